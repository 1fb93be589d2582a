//! A machine made of namespaces: network, mounts and processes of its own, on which a supervisor keeps one daemon running.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How long namespaces may take to come up or to be gone.
const BOUND: Duration = Duration::from_secs(20);

/// While this file exists in the machine's folder, the supervisor does not start the daemon.
const HOLD: &str = "hold";

/// The namespaces, from power on to power off. Dropping it is a power cut.
#[derive(Debug)]
pub(super) struct Machine {
    unshare: Child,
    init: u32,
    dir: PathBuf,
}

impl Machine {
    /// Makes the namespaces. Mounts are shared among them, as a service manager does it. `/run` is empty, `/var/lib/cni` is the folder `lib-cni` below `dir`, as both are after a boot. The daemon
    /// starts at once, unless it is [held](Self::hold), and again whenever it ended, as a service manager does it.
    pub(super) fn power_on(dir: &Path, daemon: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("lib-cni"))?;
        let log = fs::File::options().create(true).append(true).open(dir.join("log"))?;
        // The shell is process 1 and reaps what the shims leave: it does so while it waits for a child, so it always has one.
        let script = format!(
            "mount --make-rshared / && ip link set lo up && mount -t tmpfs none /run && mkdir -p /var/lib/cni && mount --bind {0}/lib-cni /var/lib/cni || exit 1
             while :; do [ -e {0}/{HOLD} ] || {daemon}; sleep 0.1; done",
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
        let started = Instant::now();
        loop {
            // The first child is process 1 of the namespace; it is our shell when it has mounted `/run`.
            if let Some(init) = children(unshare.id()).first().copied()
                && fs::read_to_string(format!("/proc/{init}/mounts"))
                    .is_ok_and(|mounts| mounts.contains(" /var/lib/cni "))
            {
                return Ok(Self { unshare, init, dir: dir.to_owned() });
            }
            if let Some(status) = unshare.try_wait()? {
                bail!("unshare ended ({status})");
            }
            if started.elapsed() > BOUND {
                // Errors on the way out would hide the reason.
                let _ = unshare.kill().and_then(|()| unshare.wait());
                bail!("no namespaces after {BOUND:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Process 1, as seen from here.
    pub(super) fn init(&self) -> u32 {
        self.init
    }

    /// Keeps the daemon from being started, or lets it.
    pub(super) fn hold(dir: &Path, hold: bool) -> anyhow::Result<()> {
        let path = dir.join(HOLD);
        if hold {
            fs::write(path, "")?;
        } else if path.exists() {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Kills the daemon as it stands.
    pub(super) fn kill_daemon(&self, name: &str) -> anyhow::Result<()> {
        let named =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
        let pid = children(self.init).into_iter().find(named).with_context(|| format!("no {name} runs"))?;
        let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
        anyhow::ensure!(status.success(), "kill {pid}: {status}");
        let started = Instant::now();
        while named(&pid) {
            anyhow::ensure!(started.elapsed() < BOUND, "{name} does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A command that will run on the machine: in all its namespaces, and gone when the machine or this process is.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--pid", "--"]);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program).process_group(0).current_dir(&self.dir);
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A machine that is gone already is what is wanted.
        let _ = self.unshare.kill().and_then(|()| self.unshare.wait());
        // Process 1 ends after every other process of its namespace. Who adopted it may take its time to reap it.
        let started = Instant::now();
        while alive(self.init) && started.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether a process still runs: it is neither gone nor waiting to be reaped.
fn alive(pid: u32) -> bool {
    // The state follows the name, which is in parentheses and may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Children of a process, oldest first.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
