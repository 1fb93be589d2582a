//! Entering a network namespace: on a thread of its own, so that no other thread ever finds itself in a pod, or for good, in a process
//! that does nothing else.

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

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path could not be opened.
    #[error("network namespace {path}: {source}")]
    Open {
        /// Path of the namespace.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// What the path names is no network namespace, or it cannot be entered.
    #[error("network namespace {path}: cannot enter: {source}")]
    Enter {
        /// Path of the namespace.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// No thread could be started, or it panicked.
    #[error("network namespace {path}: {reason}")]
    Thread {
        /// Path of the namespace.
        path: String,
        /// What happened.
        reason: String,
    },
}

/// Takes the calling thread into the namespace at `path`, for good: there is no way back. For a process that has one thread and ends
/// with its work, where starting a thread would be a tenth of that; all others want [`within`].
///
/// # Errors
/// When the namespace cannot be opened or entered; the thread is where it was then.
pub fn enter(path: &Path) -> Result<(), NetnsError> {
    join(&open(path)?, path)
}

/// Runs a closure inside the namespace at `path`.
///
/// # Errors
/// When the namespace cannot be opened or entered, and when the closure panics (in builds that unwind).
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let name = || path.display().to_string();
    let namespace = open(path)?;
    let inside = || {
        join(&namespace, path)?;
        catch_unwind(AssertUnwindSafe(work))
            .map_err(|panic| NetnsError::Thread { path: name(), reason: in_words(panic.as_ref()) })
    };
    // The thread ends with its namespace; it is never used for anything else.
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, inside);
        match worker.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(NetnsError::Thread { path: name(), reason: in_words(panic.as_ref()) }),
            Err(error) => Err(NetnsError::Thread { path: name(), reason: format!("no thread: {error}") }),
        }
    })
}

fn open(path: &Path) -> Result<File, NetnsError> {
    let name = || path.display().to_string();
    // Reading only, close on exec (the standard library sets O_CLOEXEC always), and without waiting for the writer of a pipe.
    let namespace = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|source| NetnsError::Open { path: name(), source })?;
    let enter = |source: io::Error| NetnsError::Enter { path: name(), source };
    let kind = fstatfs(&namespace).map_err(|errno| enter(errno.into()))?.filesystem_type();
    if !is_namespace_filesystem(kind) {
        return Err(enter(io::Error::other("a plain file or directory, not a namespace; was it unmounted?")));
    }
    Ok(namespace)
}

fn join(namespace: &File, path: &Path) -> Result<(), NetnsError> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetnsError::Enter { path: path.display().to_string(), source: explain(errno) })
}

/// Namespaces are files of nsfs; before Linux 3.19 they were files of procfs.
fn is_namespace_filesystem(kind: FsType) -> bool {
    kind == NSFS_MAGIC || kind == PROC_SUPER_MAGIC
}

fn explain(errno: Errno) -> io::Error {
    match errno {
        Errno::EINVAL => io::Error::new(io::ErrorKind::InvalidInput, "a namespace, but not a network namespace"),
        Errno::EPERM => io::Error::new(io::ErrorKind::PermissionDenied, "not permitted (CAP_SYS_ADMIN is needed)"),
        other => other.into(),
    }
}

fn in_words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the work inside panicked: {}", text.unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_namespace;

    fn current() -> std::path::PathBuf {
        std::fs::read_link("/proc/thread-self/ns/net").unwrap()
    }

    #[test]
    fn works_inside_and_comes_back() {
        in_namespace(|| {
            let here = current();
            // The namespace of the process is that of its first thread, which stays where it was.
            let path = Path::new("/proc/self/ns/net");
            let there = std::fs::read_link(path).unwrap();
            assert_ne!(here, there);
            assert_eq!(within(path, current).unwrap(), there);
            assert_eq!(current(), here);
        });
    }

    #[test]
    fn enters_for_good() {
        in_namespace(|| {
            let there = std::fs::read_link("/proc/self/ns/net").unwrap();
            assert_ne!(current(), there);
            enter(Path::new("/proc/self/ns/net")).unwrap();
            assert_eq!(current(), there);
            assert!(enter(Path::new("/proc/self/ns/uts")).is_err());
            assert_eq!(current(), there);
        });
    }

    #[test]
    fn names_a_path_that_does_not_exist() {
        let error = within(Path::new("/run/netns/no-such"), || ()).unwrap_err();
        assert_eq!(error.to_string(), "network namespace /run/netns/no-such: No such file or directory (os error 2)");
    }

    #[test]
    fn refuses_a_plain_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = within(file.path(), || ()).unwrap_err().to_string();
        assert!(error.contains("cannot enter: a plain file or directory, not a namespace"), "{error}");
    }

    #[test]
    fn does_not_wait_for_the_writer_of_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = within(&path, || ()).unwrap_err().to_string();
        assert!(error.contains("not a namespace"), "{error}");
    }

    #[test]
    fn refuses_another_kind_of_namespace() {
        in_namespace(|| {
            let error = within(Path::new("/proc/self/ns/uts"), || ()).unwrap_err().to_string();
            assert!(error.ends_with("a namespace, but not a network namespace"), "{error}");
            let error = within(Path::new("/proc/self/status"), || ()).unwrap_err().to_string();
            assert!(error.ends_with("a namespace, but not a network namespace"), "{error}");
        });
    }

    #[test]
    fn a_panic_inside_is_an_error() {
        in_namespace(|| {
            let error = within(Path::new("/proc/self/ns/net"), || panic!("out of {}", "tune")).unwrap_err();
            assert_eq!(error.to_string(), "network namespace /proc/self/ns/net: the work inside panicked: out of tune");
        });
    }
}
