//! Who of several agents on a node installs: the one that was started last. During an update with surge two run at once; both would otherwise
//! put their own version back for ever.
//!
//! Every agent holds a lock on a file of its own in `RUN/agents/`, whose name says when it started. The kernel drops the lock with the process, so
//! an agent that was killed never counts. Nobody waits for anybody: an older agent that sees a live younger one leaves the node to it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};

/// Folder of the agents' lock files, in the run folder.
const AGENTS: &str = "agents";
/// File that keeps two agents from working at the same moment.
const PASS_LOCK: &str = "install.lock";
/// File that says when the node was cleaned: agents that were started before leave it so.
const UNINSTALLED: &str = "uninstalled";
/// How long one waits for the other's pass.
const PASS_WAIT: Duration = Duration::from_secs(10);

/// Why an agent leaves the node alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Yield {
    /// Another agent was started later and is alive.
    #[error("a younger agent ({0}) takes care of this node")]
    ToYounger(String),
    /// The node was cleaned after this agent had started.
    #[error("`weir-agent uninstall` has cleaned this node; start the agent anew to install again")]
    Uninstalled,
}

/// One agent among others.
#[derive(Debug)]
pub struct Lease {
    run: PathBuf,
    name: String,
    started: u128,
    /// Held for as long as the agent lives; `None` where the run folder cannot be written.
    held: Option<Flock<File>>,
}

/// The right to work now.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code, reason = "dropping it unlocks")] Flock<File>);

impl Lease {
    /// Enters this process among the agents of the node.
    ///
    /// # Errors
    /// The run folder cannot be written.
    pub fn enter(run: &Path) -> io::Result<Self> {
        let started = since_boot()?;
        let mut lease = Self::outside(run, started);
        let folder = run.join(AGENTS);
        fs::create_dir_all(&folder)?;
        // Locked under another name first: a file without a lock is one of the dead, and removed by whoever sees it.
        let entering = folder.join(format!(".{}", lease.name));
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&entering)?;
        lease.held = Some(Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?);
        fs::rename(&entering, folder.join(&lease.name))?;
        Ok(lease)
    }

    /// A lease that nobody else sees, for a node whose run folder cannot be written.
    pub fn alone(run: &Path) -> Self {
        Self::outside(run, since_boot().unwrap_or_default())
    }

    fn outside(run: &Path, started: u128) -> Self {
        Self { run: run.to_owned(), name: format!("{started:020}-{}", std::process::id()), started, held: None }
    }

    /// Name of this agent among the others.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether other agents see it.
    pub fn is_shared(&self) -> bool {
        self.held.is_some()
    }

    /// Whether this agent has to leave the node alone, and why.
    pub fn yields(&self) -> Option<Yield> {
        if !self.is_shared() {
            return None;
        }
        let cleaned = fs::read_to_string(self.run.join(UNINSTALLED)).ok();
        if cleaned.and_then(|text| text.trim().parse::<u128>().ok()).is_some_and(|cleaned| cleaned > self.started) {
            return Some(Yield::Uninstalled);
        }
        let folder = self.run.join(AGENTS);
        let names = fs::read_dir(&folder).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| !name.starts_with('.') && *name > self.name)
            .find(|name| is_alive(&folder.join(name)))
            .map(Yield::ToYounger)
    }

    /// The right to work, or `None` where another agent has it for too long.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn turn(&self) -> io::Result<Option<Turn>> {
        let end = Instant::now() + PASS_WAIT;
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(self.run.join(PASS_LOCK))?;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(Turn(lock))),
                Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
                Err((_, errno)) => return Err(errno.into()),
            };
            if Instant::now() >= end {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// From now on agents that were started before this moment leave the node alone.
    ///
    /// # Errors
    /// The run folder cannot be written.
    pub fn leave_clean(&self) -> io::Result<()> {
        fs::write(self.run.join(UNINSTALLED), format!("{}\n", since_boot()?))
    }

    /// This agent was started to install: what an earlier uninstall left behind has done its duty.
    pub fn forget_clean(&self) {
        // Where it cannot be removed it is older than this agent all the same.
        let _ = fs::remove_file(self.run.join(UNINSTALLED));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_shared() {
            let _ = fs::remove_file(self.run.join(AGENTS).join(&self.name));
        }
    }
}

/// Whether the file's agent holds its lock; the file of a dead one is removed.
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

/// Nanoseconds since the machine started: the same for every container, and never set back.
fn since_boot() -> io::Result<u128> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?).as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_living_agent_installs() {
        let run = tempfile::tempdir().unwrap();
        let old = Lease::enter(run.path()).unwrap();
        assert_eq!(old.yields(), None);
        let new = Lease::enter(run.path()).unwrap();
        assert_eq!(old.yields(), Some(Yield::ToYounger(new.name().to_owned())));
        assert_eq!(new.yields(), None);
        drop(new);
        assert_eq!(old.yields(), None);
    }

    #[test]
    fn the_lock_file_of_a_dead_agent_does_not_count() {
        let run = tempfile::tempdir().unwrap();
        let agent = Lease::enter(run.path()).unwrap();
        let dead = run.path().join(AGENTS).join(format!("{}-7", "9".repeat(20)));
        fs::write(&dead, "").unwrap();
        assert_eq!(agent.yields(), None);
        assert!(!dead.exists());
    }

    #[test]
    fn an_agent_from_before_an_uninstall_stays_away() {
        let run = tempfile::tempdir().unwrap();
        let old = Lease::enter(run.path()).unwrap();
        old.leave_clean().unwrap();
        assert_eq!(old.yields(), Some(Yield::Uninstalled));
        let new = Lease::enter(run.path()).unwrap();
        assert_eq!(new.yields(), None);
        new.forget_clean();
        drop(new);
        assert_eq!(old.yields(), None);
    }

    #[test]
    fn only_one_works_at_a_time() {
        let run = tempfile::tempdir().unwrap();
        let lease = Lease::enter(run.path()).unwrap();
        let turn = lease.turn().unwrap();
        assert!(turn.is_some());
        let file = File::open(run.path().join(PASS_LOCK)).unwrap();
        let other = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        assert!(other.is_err());
        drop((turn, other));
        assert!(lease.turn().unwrap().is_some());
    }
}
