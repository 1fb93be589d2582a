//! A network namespace that lives as long as its value.
//!
//! Only a file descriptor holds it, without a name below `/run/netns` or a mount. So the kernel removes it, with all interfaces and rules,
//! when the value is dropped, the test panics or the process is killed. Other processes of root can open it at [`Netns::path`].

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{LabError, OperationContext};
use crate::link;
use crate::user::User;

/// A network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    fd: OwnedFd,
}

impl Netns {
    /// Creates a namespace with `lo` up, without IPv6 duplicate address detection (RFC 4862, 5.4), which would make new addresses unusable for
    /// a second or two. The name is for messages and thread names. Requires `CAP_SYS_ADMIN`.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let create = || -> io::Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        };
        // unshare(2) moves the calling thread, so this takes a new one.
        let fd = thread::scope(|scope| join(scope.spawn(create)))
            .operation(|| format!("create network namespace {name}"))?;
        let netns = Self { name: name.to_owned(), fd };
        for conf in ["all", "default", "lo"] {
            netns.set_sysctl(&format!("net/ipv6/conf/{conf}/accept_dad"), "0")?;
            netns.set_sysctl(&format!("net/ipv6/conf/{conf}/dad_transmits"), "0")?;
        }
        link::set_up(&netns, "lo")?;
        Ok(netns)
    }

    /// Opens an existing namespace by its path.
    pub fn open(name: &str, path: &Path) -> Result<Self, LabError> {
        let file = File::open(path).operation(|| format!("open network namespace {}", path.display()))?;
        Ok(Self { name: name.to_owned(), fd: file.into() })
    }

    /// Returns the name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a path at which other processes of root can open the namespace while this process lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// Returns the inode of the namespace, which `readlink /proc/PID/ns/net` shows (namespaces(7)).
    pub fn inode(&self) -> Result<u64, LabError> {
        Ok(fs::metadata(self.path()).operation(|| format!("read the inode of network namespace {}", self.name))?.ino())
    }

    /// Runs a closure in the namespace, on a new thread, and waits for it. Panics are propagated.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            join(scope.spawn(|| {
                self.enter()?;
                Ok(work())
            }))
        })
    }

    /// Like [`run`](Self::run), as another user, which owns the sockets that the closure opens.
    pub fn run_as<T: Send>(&self, user: User, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.run(|| {
            user.assume_on_thread()?;
            Ok(work())
        })?
    }

    /// Starts a thread in the namespace. If it cannot enter the namespace, its result is an error.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T, LabError>>, LabError> {
        let operation = || format!("start thread {task} in {}", self.name);
        let inside = Self { name: self.name.clone(), fd: self.fd.try_clone().operation(operation)? };
        thread::Builder::new()
            .name(format!("{task}@{}", self.name))
            .spawn(move || {
                inside.enter()?;
                drop(inside); // the thread holds the namespace
                Ok(work())
            })
            .operation(operation)
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) -> Result<(), LabError> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).operation(|| format!("enter network namespace {}", self.name))
    }

    /// Writes a setting of the namespace below `/proc/sys`; `key` is a path such as `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.run(|| fs::write(Path::new("/proc/sys").join(key), value))?
            .operation(|| format!("set {key} = {value} in {}", self.name))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits for a scoped thread and propagates its panic.
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
    fn run_leaves_the_calling_thread() {
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
    fn namespace_ends_with_its_value() {
        if !crate::privilege::available_or_skip() {
            return;
        }
        let netns = Netns::new("gone").unwrap();
        let path = netns.path();
        let before = inode(&path);
        drop(netns);
        assert!(fs::metadata(&path).map_or(true, |left| left.ino() != before));
    }

    #[test]
    fn panic_is_propagated() {
        if !crate::privilege::available_or_skip() {
            return;
        }
        let netns = Netns::new("panics").unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| netns.run(|| panic!("inside"))));
        assert!(result.is_err());
    }
}
