//! A machine made of network, mount and process namespaces, on which a supervisor keeps one daemon running.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::wait::{TIMEOUT, try_wait_until};

/// While this file exists in the machine's directory, the supervisor does not start the daemon.
const PAUSED: &str = "paused";

/// The namespaces, from power on to power off. Dropping it is a power cut.
#[derive(Debug)]
pub(super) struct Machine {
    unshare: Child,
    init: u32,
    dir: PathBuf,
}

impl Machine {
    /// Creates the namespaces. As after a boot, mounts are shared, `/run` is empty and `/var/lib/cni` is on disk (`lib-cni` in `dir`). As
    /// by a service manager, the daemon is started, and restarted when it exits, unless it is [paused](Self::set_paused).
    pub(super) fn power_on(dir: &Path, daemon: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("lib-cni"))?;
        let log = fs::File::options().create(true).append(true).open(dir.join("log"))?;
        // The shell is process 1 and reaps the children of shims. It does so while it waits for a child, so it always has one.
        let script = format!(
            "mount --make-rshared / && ip link set lo up && mount -t tmpfs none /run && mkdir -p /var/lib/cni && mount --bind {0}/lib-cni /var/lib/cni || exit 1
             while :; do [ -e {0}/{PAUSED} ] || {daemon}; sleep 0.1; done",
            dir.display()
        );
        let mut unshare = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL"])
            .args(["--mount-proc", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("unshare")?;
        let init = try_wait_until("the namespaces exist", || {
            if let Some(status) = unshare.try_wait()? {
                bail!("unshare exited ({status})");
            }
            // The first child is process 1 of the namespace; it is the shell once it has mounted the directories.
            let has_mounted = |init: &u32| {
                fs::read_to_string(format!("/proc/{init}/mounts")).is_ok_and(|mounts| mounts.contains(" /var/lib/cni "))
            };
            let init = children(unshare.id()).first().copied().filter(has_mounted);
            Ok(init.ok_or_else(|| "mounts are missing".to_owned()))
        });
        match init {
            Ok(init) => Ok(Self { unshare, init, dir: dir.to_owned() }),
            Err(error) => {
                let _ = unshare.kill().and_then(|()| unshare.wait());
                Err(error)
            }
        }
    }

    /// Returns the pid of process 1, as this process sees it.
    pub(super) fn init(&self) -> u32 {
        self.init
    }

    /// Sets whether the supervisor starts the daemon.
    pub(super) fn set_paused(dir: &Path, paused: bool) -> anyhow::Result<()> {
        let path = dir.join(PAUSED);
        if paused {
            fs::write(path, "")?;
        } else if path.exists() {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Sends SIGKILL to the daemon and waits until it is gone.
    pub(super) fn kill_daemon(&self, name: &str) -> anyhow::Result<()> {
        let named =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
        let pid = children(self.init).into_iter().find(named).with_context(|| format!("{name} is not running"))?;
        let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
        anyhow::ensure!(status.success(), "kill {pid}: {status}");
        try_wait_until("the daemon is gone", || {
            Ok(if named(&pid) { Err(format!("{name} still runs")) } else { Ok(()) })
        })
    }

    /// Returns a command in all namespaces of the machine, killed with the machine and with this process.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--pid", "--"]);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program).process_group(0).current_dir(&self.dir);
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.unshare.kill().and_then(|()| self.unshare.wait());
        // Process 1 ends after every other process of its namespace. It may be a zombie for a while.
        let started = Instant::now();
        while is_running(self.init) && started.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns whether a process runs: it is neither gone nor a zombie.
fn is_running(pid: u32) -> bool {
    // The state follows the name, which is in parentheses and may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Returns the children of a process, oldest first.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
