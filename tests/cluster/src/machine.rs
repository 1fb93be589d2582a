//! A machine made of namespaces: on, off, and commands in it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weir_lab::process;
use weir_tests::cri_runtime::children;
use weir_tests::try_wait_until;

use crate::files::File;
use crate::plan::Process;

/// Exists when process 1 has set up the machine.
pub(crate) const BOOTED: &str = "booted";
/// The processes of the machine, JSON.
pub(crate) const PROCESSES: &str = "processes.json";
/// The value of `PATH` for them.
pub(crate) const SEARCH_PATH: &str = "search-path";
/// Directory with the logs of processes.
pub(crate) const LOGS: &str = "logs";
/// Directory with an empty file for each process that is not to run.
pub(crate) const PAUSED: &str = "paused";
/// File with the process that holds the namespaces: its pid, and the time it was started at, from `/proc/PID/stat`.
const HOLDER: &str = "holder";
/// Longest time a command on a machine may take: importing images on a busy machine.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(5);

/// A machine. The value only names it: it lives as long as its process 1.
#[derive(Debug, Clone)]
pub struct Machine {
    dir: PathBuf,
    name: String,
}

impl Machine {
    /// Names the machine that has its files in a directory.
    pub fn new(dir: PathBuf) -> Self {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { dir, name }
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the file with the log of a process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.dir.join(LOGS).join(format!("{process}.log"))
    }

    /// Returns the path on this machine of a file in one of its own directories, such as `/etc/kubernetes`.
    pub fn host_path(&self, path: &str) -> PathBuf {
        self.dir.join("root").join(path.trim_start_matches('/'))
    }

    /// Writes files of it, also while it is off. Scripts can be executed.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write_files(&self, files: &[File]) -> anyhow::Result<()> {
        for (path, content) in files {
            let path = self.host_path(path);
            fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
            fs::write(&path, content).with_context(|| path.display().to_string())?;
            if content.starts_with("#!") {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(())
    }

    /// Creates its namespaces, with `init` as the program of process 1. Its processes are started by [`start`](Self::start).
    ///
    /// # Errors
    /// When it is on already, or its namespaces cannot be created; the error has its log.
    pub fn power_on(&self, init: &Path) -> anyhow::Result<()> {
        ensure!(self.init().is_none(), "{} is on already", self.name);
        for dir in [LOGS, PAUSED] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        for leftover in [BOOTED, PROCESSES] {
            remove_if_exists(&self.dir.join(leftover))?;
        }
        let log = fs::File::options().create(true).append(true).open(self.log("init"))?;
        let enter = |cgroup: PathBuf| format!("echo $$ >{}/cgroup.procs && ", cgroup.display());
        let script: String = self.create_cgroups()?.into_iter().map(enter).collect();
        let script = format!(
            "{script}exec unshare --net --mount --propagation private --pid --uts --cgroup --fork --kill-child=KILL --mount-proc {} init {}",
            init.display(),
            self.dir.display()
        );
        let holder = Command::new("setsid")
            .args(["sh", "-c", &script])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("setsid")?
            .id();
        fs::write(self.dir.join(HOLDER), format!("{holder} {}", start_time(holder).unwrap_or_default()))?;
        try_wait_until("the machine has booted", || {
            if start_time(holder).is_none() {
                bail!("{} cannot boot: {}", self.name, fs::read_to_string(self.log("init"))?);
            }
            Ok(self.dir.join(BOOTED).exists().then_some(()).ok_or_else(|| "mounts are missing".to_owned()))
        })?;
        for hierarchy in hierarchies()?.iter().filter(|hierarchy| hierarchy.is_unified && hierarchy.has_controllers()) {
            // A cgroup whose children have controllers must not have processes.
            let outside = hierarchy.mounted_at.join(self.cluster_cgroup()).join("holders");
            fs::create_dir_all(&outside)?;
            fs::write(outside.join("cgroup.procs"), holder.to_string())?;
        }
        Ok(())
    }

    /// Kills every process at once, as a power cut does, also what an interrupted [`power_on`](Self::power_on) has left. Nothing happens if
    /// it is off.
    ///
    /// # Errors
    /// When something stays busy.
    pub fn power_off(&self) -> anyhow::Result<()> {
        let Some((holder, init)) = self.holder().map(|holder| (holder, self.init())) else {
            return self.remove_cgroups();
        };
        kill(Pid::from_raw(holder.cast_signed()), Signal::SIGKILL)?;
        try_wait_until("the processes of the machine are gone", || {
            // Where this process has started the machine, it is its parent.
            let _ = nix::sys::wait::waitpid(
                Pid::from_raw(holder.cast_signed()),
                Some(nix::sys::wait::WaitPidFlag::WNOHANG),
            );
            let gone = [Some(holder), init].into_iter().flatten().all(|pid| start_time(pid).is_none());
            Ok(gone.then_some(()).ok_or_else(|| format!("process {holder} is still there")))
        })?;
        remove_if_exists(&self.dir.join(HOLDER))?;
        self.remove_cgroups()
    }

    /// Has process 1 run these processes, with programs from a `PATH`, instead of those it has run.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn start(&self, processes: &[Process], search_path: &str) -> anyhow::Result<()> {
        fs::write(self.dir.join(SEARCH_PATH), search_path)?;
        let list = serde_json::to_vec_pretty(processes)?;
        fs::write(self.dir.join(PROCESSES), list).context("write the list of processes")
    }

    /// Sets whether process 1 leaves a process alone when it has ended. A running process goes on.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn pause(&self, process: &str, paused: bool) -> anyhow::Result<()> {
        let path = self.dir.join(PAUSED).join(process);
        if paused { Ok(fs::write(path, "")?) } else { remove_if_exists(&path) }
    }

    /// Sends SIGKILL to a process; process 1 starts it again unless it is paused.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&self, process: &str) -> anyhow::Result<()> {
        let init = self.init().with_context(|| format!("{} is off", self.name))?;
        // The kernel cuts names at 15 bytes.
        let comm = &process[..process.len().min(15)];
        let named =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == comm);
        let pid = children(init)
            .into_iter()
            .find(named)
            .with_context(|| format!("{process} does not run on {}", self.name))?;
        Ok(kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?)
    }

    /// Returns the pid of process 1, as this machine sees it, while the machine is on.
    pub fn init(&self) -> Option<u32> {
        self.holder().and_then(|holder| children(holder).first().copied())
    }

    /// Returns the path of its network namespace.
    ///
    /// # Errors
    /// When it is off.
    pub fn netns(&self) -> anyhow::Result<PathBuf> {
        let init = self.init().with_context(|| format!("{} is off", self.name))?;
        Ok(PathBuf::from(format!("/proc/{init}/ns/net")))
    }

    /// Returns a command in its namespaces, as root.
    ///
    /// # Errors
    /// When it is off.
    pub fn command(&self, program: &str) -> anyhow::Result<Command> {
        let init = self.init().with_context(|| format!("{} is off", self.name))?;
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &init.to_string(), "--net", "--mount", "--pid", "--uts", "--cgroup", "--"])
            .arg(program);
        if let Ok(path) = fs::read_to_string(self.dir.join(SEARCH_PATH)) {
            command.env("PATH", path);
        }
        Ok(command)
    }

    /// Runs a command in its namespaces with `input`, and returns what it prints.
    ///
    /// # Errors
    /// When it fails; the error has what it printed.
    pub fn run(&self, command: &[&str], input: &str) -> anyhow::Result<String> {
        let (program, args) = command.split_first().context("no program")?;
        let output = process::run(self.command(program)?.args(args), input.as_bytes(), COMMAND_TIMEOUT)?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{} on {}: {stdout}{stderr}", command.join(" "), self.name);
        Ok(stdout.into_owned())
    }

    /// Returns the pid of the process that holds the namespaces, while it lives.
    fn holder(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join(HOLDER)).ok()?;
        let (pid, started) = text.split_once(' ')?;
        let pid = pid.parse().ok()?;
        // Another process may have the number by now.
        (start_time(pid)? == started).then_some(pid)
    }

    /// Creates its cgroup in every hierarchy.
    fn create_cgroups(&self) -> anyhow::Result<Vec<PathBuf>> {
        self.remove_cgroups()?;
        let all = hierarchies()?.into_iter().map(|hierarchy| {
            let mut parent = hierarchy.mounted_at.clone();
            for name in [&self.cluster_cgroup(), &self.name] {
                let cgroup = parent.join(name);
                if hierarchy.has_controllers() && hierarchy.is_unified {
                    let controllers = fs::read_to_string(parent.join("cgroup.controllers"))?;
                    let enable: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
                    fs::write(parent.join("cgroup.subtree_control"), enable.join(" "))?;
                }
                fs::create_dir_all(&cgroup)?;
                // A cgroup without processors and memory takes no process.
                for key in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|_| !hierarchy.is_unified) {
                    if let Ok(value) = fs::read_to_string(parent.join(key)) {
                        fs::write(cgroup.join(key), value.trim_end())?;
                    }
                }
                parent = cgroup;
            }
            Ok(parent)
        });
        all.collect()
    }

    /// Returns the name of the cluster's cgroup.
    fn cluster_cgroup(&self) -> String {
        cluster_cgroup(self.dir.ancestors().nth(2).unwrap_or(&self.dir))
    }

    fn remove_cgroups(&self) -> anyhow::Result<()> {
        for hierarchy in hierarchies()? {
            let cgroup = hierarchy.mounted_at.join(self.cluster_cgroup()).join(&self.name);
            // What lives without its holder was started by a run that did not come to write it down.
            kill_all(&cgroup);
            let deadline = Instant::now() + Duration::from_secs(10);
            while cgroup.exists() && !remove_cgroup(&cgroup) {
                ensure!(Instant::now() < deadline, "cannot remove cgroup {}: it is busy", cgroup.display());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

/// Returns the name of a cluster's cgroup, below the root of every hierarchy: `weir-cluster` and its directory, so that two clusters do not
/// share one.
fn cluster_cgroup(dir: &Path) -> String {
    format!("weir-cluster{}", dir.display().to_string().replace('/', "-"))
}

/// Removes the cgroups that all machines of the cluster with this directory have in common. Those of machines must be gone.
///
/// # Errors
/// When one is busy.
pub fn remove_common_cgroups(dir: &Path) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let cgroup = hierarchy.mounted_at.join(cluster_cgroup(dir));
        ensure!(!cgroup.exists() || remove_cgroup(&cgroup), "cannot remove cgroup {}: it is busy", cgroup.display());
    }
    Ok(())
}

/// A cgroup hierarchy of this machine.
pub(crate) struct Hierarchy {
    pub(crate) mounted_at: PathBuf,
    /// Options that mount it again.
    pub(crate) options: String,
    pub(crate) is_unified: bool,
}

impl Hierarchy {
    /// Returns whether it has controllers. The unified one has none where those of version 1 have them.
    fn has_controllers(&self) -> bool {
        !self.is_unified
            || fs::read_to_string(self.mounted_at.join("cgroup.controllers")).is_ok_and(|text| !text.trim().is_empty())
    }
}

/// Returns the mounted cgroup hierarchies.
pub(crate) fn hierarchies() -> anyhow::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(mounts.lines().filter_map(hierarchy).collect())
}

/// Reads a line of `/proc/PID/mountinfo` (proc(5)).
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (place, kind) = line.split_once(" - ")?;
    let mounted_at = PathBuf::from(place.split(' ').nth(4)?);
    let mut kind = kind.split(' ');
    let is_unified = match kind.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let mut options: Vec<&str> = Vec::new();
    if !is_unified {
        let is_hierarchy = |option: &&str| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix");
        options.extend(
            kind.nth(1)?.split(',').filter(is_hierarchy).filter(|option| !option.starts_with("release_agent=")),
        );
        if options.iter().any(|option| option.starts_with("name=")) {
            options.push("none");
        }
    }
    Some(Hierarchy { mounted_at, options: options.join(","), is_unified })
}

/// Sends SIGKILL to all processes in a cgroup and below it.
fn kill_all(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        kill_all(&entry.path());
    }
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    // Process 0 is one of another PID namespace, and would mean this one.
    for pid in processes.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid: &i32| pid > 0) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Removes a cgroup and those below it; returns `false` while one is busy.
fn remove_cgroup(cgroup: &Path) -> bool {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    below.for_each(|entry| {
        remove_cgroup(&entry.path());
    });
    fs::remove_dir(cgroup).is_ok()
}

/// Returns when a process was started, in clock ticks since boot, unless it is gone or a zombie.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The state follows the name, which is in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (!matches!(fields.first(), Some(&("Z" | "X")))).then(|| fields.get(19).map(|&time| time.to_owned()))?
}

fn remove_if_exists(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_have_cgroups_of_their_own() {
        let of = |dir: &str| Machine::new(Path::new(dir).join("machines/node1")).cluster_cgroup();
        assert_eq!(of("/var/lib/one"), "weir-cluster-var-lib-one");
        assert_eq!(of("/var/lib/one"), cluster_cgroup(Path::new("/var/lib/one")));
    }

    #[test]
    fn reads_hierarchies_of_both_versions() {
        let line = |kind| format!("31 24 0:27 / /sys/fs/cgroup/systemd rw,nosuid shared:8 - {kind}");
        let named = hierarchy(&line("cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd")).unwrap();
        assert_eq!((named.options.as_str(), named.is_unified), ("name=systemd,none", false));
        assert_eq!(named.mounted_at, Path::new("/sys/fs/cgroup/systemd"));
        let joined = hierarchy(&line("cgroup cgroup rw,cpu,cpuacct")).unwrap();
        assert_eq!(joined.options, "cpu,cpuacct");
        let unified = hierarchy(&line("cgroup2 cgroup2 rw,nsdelegate")).unwrap();
        assert_eq!((unified.options.as_str(), unified.is_unified), ("", true));
        assert!(hierarchy(&line("tmpfs tmpfs rw")).is_none());
    }
}
