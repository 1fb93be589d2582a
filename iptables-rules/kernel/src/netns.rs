//! Enters network namespaces: on a new thread, so that no other thread is ever moved into a pod, or for the rest of the process.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, NSFS_MAGIC, PROC_SUPER_MAGIC, fstatfs};

/// Error returned when a network namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("cannot open network namespace {path}: {source}")]
    Open {
        /// Path of the namespace.
        path: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The path is not a network namespace, or it cannot be entered.
    #[error("cannot enter network namespace {path}: {source}")]
    Enter {
        /// Path of the namespace.
        path: String,
        /// The error of the system.
        source: io::Error,
    },
    /// No thread can be started, or it panicked.
    #[error("cannot work in network namespace {path}: {reason}")]
    Thread {
        /// Path of the namespace.
        path: String,
        /// Operation that failed.
        reason: String,
    },
}

/// Moves the calling thread into the namespace at `path`, without a way back. This is for a process that has one thread and ends with its
/// work, where a thread would take a tenth of the time; all others use [`run_in`].
///
/// # Errors
/// Returns an error if the namespace cannot be opened or entered; the thread stays where it was.
pub fn enter(path: &Path) -> Result<(), NetnsError> {
    set_netns(&open(path)?, path)
}

/// Like [`enter`], for a namespace that is open already; `path` is for errors.
///
/// # Errors
/// Returns an error if it cannot be entered; the thread stays where it was.
pub fn enter_opened(namespace: &File, path: &Path) -> Result<(), NetnsError> {
    check_kind(namespace, path)?;
    set_netns(namespace, path)
}

/// Runs a closure in the namespace at `path`.
///
/// # Errors
/// Returns an error if the namespace cannot be opened or entered, or if the closure panics (in builds that unwind).
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let name = || path.display().to_string();
    let namespace = open(path)?;
    let inside = || {
        set_netns(&namespace, path)?;
        catch_unwind(AssertUnwindSafe(work))
            .map_err(|panic| NetnsError::Thread { path: name(), reason: panic_message(panic.as_ref()) })
    };
    // The thread ends in the namespace and is not reused.
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, inside);
        match worker.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(NetnsError::Thread { path: name(), reason: panic_message(panic.as_ref()) }),
            Err(error) => Err(NetnsError::Thread { path: name(), reason: format!("cannot start a thread: {error}") }),
        }
    })
}

fn open(path: &Path) -> Result<File, NetnsError> {
    let name = || path.display().to_string();
    // O_NONBLOCK: does not wait for the writer of a pipe. The standard library sets O_CLOEXEC.
    let namespace = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|source| NetnsError::Open { path: name(), source })?;
    check_kind(&namespace, path)?;
    Ok(namespace)
}

fn check_kind(namespace: &File, path: &Path) -> Result<(), NetnsError> {
    let enter = |source: io::Error| NetnsError::Enter { path: path.display().to_string(), source };
    let kind = fstatfs(namespace).map_err(|errno| enter(errno.into()))?.filesystem_type();
    if is_namespace_filesystem(kind) {
        return Ok(());
    }
    Err(enter(io::Error::other("a plain file or directory, not a namespace (was it unmounted?)")))
}

fn set_netns(namespace: &File, path: &Path) -> Result<(), NetnsError> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetnsError::Enter { path: path.display().to_string(), source: explain(errno) })
}

/// Namespaces are files of nsfs; before Linux 3.19 of procfs.
fn is_namespace_filesystem(kind: FsType) -> bool {
    kind == NSFS_MAGIC || kind == PROC_SUPER_MAGIC
}

fn explain(errno: Errno) -> io::Error {
    match errno {
        Errno::EINVAL => io::Error::new(io::ErrorKind::InvalidInput, "a namespace, but not a network namespace"),
        Errno::EPERM => io::Error::new(io::ErrorKind::PermissionDenied, "not permitted (CAP_SYS_ADMIN is required)"),
        other => other.into(),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("no message"))
}

#[cfg(test)]
mod tests;
