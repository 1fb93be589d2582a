//! A network namespace that lives as long as its value.
//!
//! It is held by a file descriptor and by nothing else: no name below `/run/netns`, no mount. So the kernel drops it, with every
//! interface and rule in it, when the value is dropped, when the test panics and when the process is killed.
//! Other processes of root find it under [`Netns::path`], a link in `/proc` that opens like any bind-mounted namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{During, LabError};
use crate::link;
use crate::user::User;

/// A network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    fd: OwnedFd,
}

impl Netns {
    /// Makes a namespace with `lo` up and without IPv6 duplicate address detection (RFC 4862, 5.4), which would keep new addresses
    /// unusable for a second or two. `name` only serves messages and thread names.
    ///
    /// # Errors
    /// When the kernel refuses, in general for want of `CAP_SYS_ADMIN`.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let create = || -> io::Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        };
        // On a thread of its own: it is the thread, not the process, that moves into the new namespace.
        let fd = thread::scope(|scope| join(scope.spawn(create))).during(|| format!("network namespace {name}"))?;
        let netns = Self { name: name.to_owned(), fd };
        for conf in ["all", "default", "lo"] {
            netns.set_sysctl(&format!("net/ipv6/conf/{conf}/accept_dad"), "0")?;
            netns.set_sysctl(&format!("net/ipv6/conf/{conf}/dad_transmits"), "0")?;
        }
        link::up(&netns, "lo")?;
        Ok(netns)
    }

    /// A namespace that is there already, by its path.
    ///
    /// # Errors
    /// When the path cannot be opened.
    pub fn open(name: &str, path: &Path) -> Result<Self, LabError> {
        let file = File::open(path).during(|| format!("network namespace {}", path.display()))?;
        Ok(Self { name: name.to_owned(), fd: file.into() })
    }

    /// Name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path under which other processes of root can open the namespace while this process lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// Number of the namespace, as `readlink /proc/PID/ns/net` shows it (namespaces(7)).
    ///
    /// # Errors
    /// When the descriptor cannot be looked at.
    pub fn number(&self) -> Result<u64, LabError> {
        Ok(fs::metadata(self.path()).during(|| format!("number of network namespace {}", self.name))?.ino())
    }

    /// Runs a closure inside the namespace, on a thread of its own, and waits for it. A panic inside goes on outside.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            join(scope.spawn(|| {
                self.enter()?;
                Ok(work())
            }))
        })
    }

    /// Like [`run`](Self::run), as another user: sockets made by the closure carry `user`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the user cannot be taken on.
    pub fn run_as<T: Send>(&self, user: User, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.run(|| {
            user.assume()?;
            Ok(work())
        })?
    }

    /// Starts a thread that stays inside the namespace.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated or no thread can be started. That the namespace cannot be entered shows in the thread's result.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T, LabError>>, LabError> {
        let step = || format!("thread {task} in {}", self.name);
        let inside = Self { name: self.name.clone(), fd: self.fd.try_clone().during(step)? };
        thread::Builder::new()
            .name(format!("{task}@{}", self.name))
            .spawn(move || {
                inside.enter()?;
                drop(inside); // the thread itself holds the namespace now
                Ok(work())
            })
            .during(step)
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<(), LabError> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).during(|| format!("entering network namespace {}", self.name))
    }

    /// Writes one of the namespace's settings below `/proc/sys`; `key` is a path such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is no such setting, or not such a value.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.run(|| fs::write(Path::new("/proc/sys").join(key), value))?
            .during(|| format!("{key} = {value} in {}", self.name))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits for a scoped thread; its panic becomes ours.
fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(path: impl AsRef<Path>) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn runs_inside_and_leaves_the_caller_outside() {
        if !crate::privilege::available_or_skip() {
            return;
        }
        let before = inode("/proc/thread-self/ns/net");
        let netns = Netns::new("inside").unwrap();
        let inside = netns.run(|| inode("/proc/thread-self/ns/net")).unwrap();
        assert_ne!(inside, before);
        assert_eq!(inside, inode(netns.path()), "the path leads to the same namespace");
        assert_eq!(before, inode("/proc/thread-self/ns/net"));
    }

    #[test]
    fn is_gone_with_its_value() {
        if !crate::privilege::available_or_skip() {
            return;
        }
        let netns = Netns::new("gone").unwrap();
        let path = netns.path();
        let number = inode(&path);
        drop(netns);
        assert!(fs::metadata(&path).map_or(true, |left| left.ino() != number));
    }

    #[test]
    fn a_panic_inside_goes_on_outside() {
        if !crate::privilege::available_or_skip() {
            return;
        }
        let netns = Netns::new("panics").unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| netns.run(|| panic!("inside"))));
        assert!(result.is_err());
    }
}
