//! Process 1 of a machine: sets up its mounts, then keeps its processes running.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::machine::{BOOTED, LOGS, PAUSED, PROCESSES, SEARCH_PATH};
use crate::plan::Process;

/// Directories in which a machine sees this machine's files and writes its own.
const LAYERED: [&str; 3] = ["/etc", "/opt", "/var"];
/// Directories of which a machine sees its own content alone. Runtimes layer images in theirs, which cannot be done in a layered directory.
const OWN: [&str; 12] = [
    "/etc/cni",
    "/etc/containerd",
    "/etc/crio",
    "/etc/kubernetes",
    "/opt/cni",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];
const SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    // Without duplicate address detection, which makes new addresses unusable for a second or two.
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];
/// How soon a process that has ended is started again, at most.
const POLL: Duration = Duration::from_millis(500);

/// Runs as process 1 of the machine with this directory, and does not return unless the mounts fail.
///
/// # Errors
/// When a mount fails.
pub fn run(dir: &Path) -> anyhow::Result<()> {
    set_up_mounts(dir)?;
    let name = dir.file_name().context("the machine has no name")?;
    fs::write("/proc/sys/kernel/hostname", name.as_bytes()).context("set the host name")?;
    for (key, value) in SYSCTLS {
        fs::write(Path::new("/proc/sys").join(key), value).with_context(|| format!("set {key}"))?;
    }
    fs::write(dir.join(BOOTED), "")?;
    supervise(dir)
}

fn set_up_mounts(dir: &Path) -> anyhow::Result<()> {
    remount_cgroups()?;
    hide_unused_controllers(dir)?;
    for path in LAYERED {
        let layer = dir.join("layers").join(&path[1..]);
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir={path},upperdir={},workdir={}", upper.display(), work.display());
        let flags = MsFlags::empty();
        mount(Some("overlay"), path, Some("overlay"), flags, Some(options.as_str()))
            .with_context(|| format!("mount an overlay on {path} ({options})"))?;
    }
    for path in OWN {
        let own = dir.join("root").join(&path[1..]);
        fs::create_dir_all(&own)?;
        fs::create_dir_all(path).with_context(|| path.to_owned())?;
        mount(Some(&own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("mount {path}"))?;
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("mount /run")?;
    for path in ["/run/lock", "/run/netns"] {
        fs::create_dir_all(path)?;
    }
    // What a service manager does: mounts of containers are seen on the machine, and the other way round.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>).context("share mounts")
}

/// Mounts the cgroup hierarchies again, so that their root is the machine's cgroup.
fn remount_cgroups() -> anyhow::Result<()> {
    for hierarchy in crate::machine::hierarchies()? {
        let (at, options) = (&hierarchy.mounted_at, hierarchy.options.as_str());
        umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("umount {}", at.display()))?;
        let kind = if hierarchy.is_unified { "cgroup2" } else { "cgroup" };
        mount(Some("cgroup"), at, Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("mount {kind} {options} on {}", at.display()))?;
        if hierarchy.is_unified {
            // Controllers can be enabled for children of a cgroup without processes only.
            let own = at.join("init");
            fs::create_dir_all(&own)?;
            fs::write(own.join("cgroup.procs"), "1")?;
        }
    }
    Ok(())
}

/// Removes controllers that no hierarchy has from `/proc/cgroups` (cgroups(7)), for CRI-O: it sets limits of all that are in there.
fn hide_unused_controllers(dir: &Path) -> anyhow::Result<()> {
    if crate::machine::hierarchies()?.iter().all(|hierarchy| hierarchy.is_unified) {
        return Ok(());
    }
    let all = fs::read_to_string("/proc/cgroups")?;
    let is_used = |line: &&str| line.split_whitespace().nth(1) != Some("0");
    let used: String = all.lines().filter(is_used).flat_map(|line| [line, "\n"]).collect();
    let file = dir.join("cgroups");
    fs::write(&file, used)?;
    mount(Some(&file), "/proc/cgroups", None::<&str>, MsFlags::MS_BIND, None::<&str>).context("mount /proc/cgroups")
}

/// Starts the processes of the machine's list, as soon as there is one, and starts them again when they end, unless they are paused. Reaps
/// what daemons leave behind.
fn supervise(dir: &Path) -> anyhow::Result<()> {
    let mut started: HashMap<String, Pid> = HashMap::new();
    loop {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) if status.pid().is_some() => started.retain(|_, pid| Some(*pid) != status.pid()),
                Ok(_) | Err(Errno::ECHILD) => break,
                Err(error) => bail!("waitpid: {error}"),
            }
        }
        let list = fs::read(dir.join(PROCESSES)).unwrap_or_else(|_| b"[]".to_vec());
        // Read again if it is being written.
        let processes: Vec<Process> = serde_json::from_slice(&list).unwrap_or_default();
        for process in processes {
            if started.contains_key(&process.name) || dir.join(PAUSED).join(&process.name).exists() {
                continue;
            }
            match start(dir, &process) {
                Ok(pid) => drop(started.insert(process.name, pid)),
                Err(error) => eprintln!("cannot start {}: {error:#}", process.name),
            }
        }
        thread::sleep(POLL);
    }
}

fn start(dir: &Path, process: &Process) -> anyhow::Result<Pid> {
    let log = dir.join(LOGS).join(format!("{}.log", process.name));
    let log = File::options().create(true).append(true).open(log)?;
    let (program, args) = process.command.split_first().context("no program")?;
    let child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", fs::read_to_string(dir.join(SEARCH_PATH))?)
        .env("HOME", "/root")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| program.clone())?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}
