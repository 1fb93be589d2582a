//! Decides which of several agents on a node installs: the one that started last. During an update with surge two agents run at once, and
//! each would keep restoring its own version.
//!
//! Every agent locks a file of its own in `RUN/agents/`, whose name is the time of its start. The kernel releases the lock with the process,
//! so a killed agent does not count. An older agent that sees a newer one alive changes nothing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};

/// Directory of the agents' lock files, in the run directory.
const AGENTS_DIR: &str = "agents";
/// File that an agent locks while it reconciles.
const LOCK_FILE: &str = "install.lock";
/// File with the time of the last uninstall: agents that started earlier do not install again.
const UNINSTALLED_FILE: &str = "uninstalled";
/// Limit for waiting for another agent's reconcile.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason for which an agent must not change the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Superseded {
    /// A newer agent is alive.
    #[error("a newer agent ({0}) owns this node")]
    ByNewerAgent(String),
    /// The plugin was uninstalled after this agent started.
    #[error("`weir-agent uninstall` ran on this node; restart the agent to install again")]
    ByUninstall,
}

/// Registration of this agent among the agents of the node.
#[derive(Debug)]
pub struct AgentRegistration {
    run: PathBuf,
    instance: String,
    started: u128,
    /// Locked while the agent runs; `None` where the run directory cannot be written.
    file: Option<Flock<File>>,
}

/// Lock on the right to reconcile, released when dropped.
#[derive(Debug)]
pub struct InstallLock(#[allow(dead_code, reason = "dropping it unlocks")] Flock<File>);

impl AgentRegistration {
    /// Registers this process.
    ///
    /// # Errors
    /// The run directory cannot be written.
    pub fn register(run: &Path) -> io::Result<Self> {
        let started = since_boot()?;
        let mut registration = Self::new(run, started);
        let dir = run.join(AGENTS_DIR);
        fs::create_dir_all(&dir)?;
        // Locked under another name first: other agents remove a file without a lock.
        let temporary = dir.join(format!(".{}", registration.instance));
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&temporary)?;
        registration.file = Some(Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?);
        fs::rename(&temporary, dir.join(&registration.instance))?;
        Ok(registration)
    }

    /// Returns a registration that other agents do not see, for a run directory that cannot be written.
    pub fn unregistered(run: &Path) -> Self {
        Self::new(run, since_boot().unwrap_or_default())
    }

    fn new(run: &Path, started: u128) -> Self {
        Self { run: run.to_owned(), instance: format!("{started:020}-{}", std::process::id()), started, file: None }
    }

    /// Returns the name of this agent: its start time and process id.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Returns whether other agents see this one.
    pub fn is_registered(&self) -> bool {
        self.file.is_some()
    }

    /// Returns why this agent must not change the node, if so.
    pub fn superseded_by(&self) -> Option<Superseded> {
        if !self.is_registered() {
            return None;
        }
        let uninstalled = fs::read_to_string(self.run.join(UNINSTALLED_FILE)).ok();
        if uninstalled.and_then(|text| text.trim().parse::<u128>().ok()).is_some_and(|time| time > self.started) {
            return Some(Superseded::ByUninstall);
        }
        let dir = self.run.join(AGENTS_DIR);
        let names = fs::read_dir(&dir).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|instance| !instance.starts_with('.') && *instance > self.instance)
            .find(|instance| is_alive(&dir.join(instance)))
            .map(Superseded::ByNewerAgent)
    }

    /// Waits for the lock; `None` where another agent holds it for more than `LOCK_TIMEOUT`.
    ///
    /// # Errors
    /// The lock file cannot be created.
    pub fn lock(&self) -> io::Result<Option<InstallLock>> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(self.run.join(LOCK_FILE))?;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(InstallLock(lock))),
                Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
                Err((_, errno)) => return Err(errno.into()),
            };
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Keeps agents that are running now from installing again.
    ///
    /// # Errors
    /// The run directory cannot be written.
    pub fn mark_uninstalled(&self) -> io::Result<()> {
        fs::write(self.run.join(UNINSTALLED_FILE), format!("{}\n", since_boot()?))
    }

    /// Removes what agents keep in the run directory, and the directory unless it is mounted, if no other agent is alive. What cannot be
    /// removed is without effect.
    pub fn remove_run_files(self) {
        let dir = self.run.join(AGENTS_DIR);
        let names = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut others = names.filter(|name| *name != *self.instance);
        if !self.is_registered() || others.any(|name| is_alive(&dir.join(name))) {
            return;
        }
        for file in [self.run.join(UNINSTALLED_FILE), self.run.join(LOCK_FILE), dir.join(&self.instance)] {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir(&dir).and_then(|()| fs::remove_dir(&self.run));
    }

    /// Removes the mark of an earlier uninstall.
    pub fn clear_uninstalled(&self) {
        // If this fails, the mark is older than this agent and does not count.
        let _ = fs::remove_file(self.run.join(UNINSTALLED_FILE));
    }
}

impl Drop for AgentRegistration {
    fn drop(&mut self) {
        if self.is_registered() {
            let _ = fs::remove_file(self.run.join(AGENTS_DIR).join(&self.instance));
        }
    }
}

/// Returns whether the agent of a lock file is alive; removes the file of a dead one.
fn is_alive(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_unlocked) => {
            let _ = fs::remove_file(path);
            false
        }
        Err((_, errno)) => errno == Errno::EWOULDBLOCK,
    }
}

/// Returns nanoseconds since boot: the same clock in every container, never set back.
fn since_boot() -> io::Result<u128> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?).as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_living_agent_installs() {
        let run = tempfile::tempdir().unwrap();
        let old = AgentRegistration::register(run.path()).unwrap();
        assert_eq!(old.superseded_by(), None);
        let new = AgentRegistration::register(run.path()).unwrap();
        assert_eq!(old.superseded_by(), Some(Superseded::ByNewerAgent(new.instance().to_owned())));
        assert_eq!(new.superseded_by(), None);
        drop(new);
        assert_eq!(old.superseded_by(), None);
    }

    #[test]
    fn the_lock_file_of_a_dead_agent_does_not_count() {
        let run = tempfile::tempdir().unwrap();
        let agent = AgentRegistration::register(run.path()).unwrap();
        let dead = run.path().join(AGENTS_DIR).join(format!("{}-7", "9".repeat(20)));
        fs::write(&dead, "").unwrap();
        assert_eq!(agent.superseded_by(), None);
        assert!(!dead.exists());
    }

    #[test]
    fn a_running_agent_does_not_undo_an_uninstall() {
        let run = tempfile::tempdir().unwrap();
        let old = AgentRegistration::register(run.path()).unwrap();
        old.mark_uninstalled().unwrap();
        assert_eq!(old.superseded_by(), Some(Superseded::ByUninstall));
        let new = AgentRegistration::register(run.path()).unwrap();
        assert_eq!(new.superseded_by(), None);
        new.clear_uninstalled();
        drop(new);
        assert_eq!(old.superseded_by(), None);
    }

    #[test]
    fn run_directory_goes_with_the_last_agent() {
        let parent = tempfile::tempdir().unwrap();
        let run = parent.path().join("weir");
        let agent = AgentRegistration::register(&run).unwrap();
        let uninstaller = AgentRegistration::register(&run).unwrap();
        uninstaller.mark_uninstalled().unwrap();
        uninstaller.remove_run_files();
        assert_eq!(agent.superseded_by(), Some(Superseded::ByUninstall), "it must not install again");
        drop(agent);
        let again = AgentRegistration::register(&run).unwrap();
        again.mark_uninstalled().unwrap();
        again.remove_run_files();
        assert!(!run.exists());
    }

    #[test]
    fn only_one_agent_reconciles_at_a_time() {
        let run = tempfile::tempdir().unwrap();
        let registration = AgentRegistration::register(run.path()).unwrap();
        let lock = registration.lock().unwrap();
        assert!(lock.is_some());
        let file = File::open(run.path().join(LOCK_FILE)).unwrap();
        let other = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        assert!(other.is_err());
        drop((lock, other));
        assert!(registration.lock().unwrap().is_some());
    }
}
