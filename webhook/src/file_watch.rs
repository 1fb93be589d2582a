//! Files that are read again while the server runs.
//!
//! Their bytes are compared on a timer. A watch on the file would miss how the kubelet changes a mounted Secret or ConfigMap (it swaps a
//! symlink in the directory above), and a watch on directories would still need the timer for lost events.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::{error, info, warn};
use weir_runtime::health::Condition;

/// Largest file; Secrets and ConfigMaps have at most 1 MiB.
const FILE_LIMIT: u64 = 4 << 20;

/// Builds a value from the bytes of all files, in order.
pub type Build<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// A value built from files. A change that cannot be built keeps the last good value.
pub struct WatchedFiles<T> {
    files: Vec<PathBuf>,
    build: Build<T>,
    current: Arc<ArcSwap<T>>,
    /// Bytes at the last poll, or why they could not be read.
    seen: Result<Vec<Vec<u8>>, String>,
}

impl<T: fmt::Debug> fmt::Debug for WatchedFiles<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, current, .. } = self;
        let current = current.load();
        f.debug_struct("WatchedFiles").field("files", files).field("current", &**current).finish_non_exhaustive()
    }
}

/// Difference that a poll found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChange {
    /// The files changed, and are in use.
    Reloaded,
    /// The files changed, but are unusable for this reason; the last good value stays.
    Rejected(String),
}

impl<T> WatchedFiles<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// A file cannot be read, or `build` rejects them.
    pub fn open(files: Vec<PathBuf>, build: Build<T>) -> Result<Self, String> {
        let bytes = read_all(&files)?;
        let value = build(&bytes)?;
        let current = Arc::new(ArcSwap::from_pointee(value));
        Ok(Self { files, build, current, seen: Ok(bytes) })
    }

    /// Wraps a value that never changes.
    pub fn constant(value: T) -> Self
    where
        T: Clone + Send + Sync + 'static,
    {
        let current = Arc::new(ArcSwap::from_pointee(value.clone()));
        Self { files: Vec::new(), build: Box::new(move |_| Ok(value.clone())), current, seen: Ok(Vec::new()) }
    }

    /// Returns the current value.
    pub fn current(&self) -> &Arc<ArcSwap<T>> {
        &self.current
    }

    /// Returns the paths; none for a value that never changes.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Reads the files again, blocking; returns what changed since the last poll.
    pub fn poll(&mut self) -> Option<FileChange> {
        let found = read_all(&self.files);
        if found == self.seen {
            return None;
        }
        let built = match &found {
            Ok(bytes) => (self.build)(bytes),
            Err(reason) => Err(reason.clone()),
        };
        self.seen = found;
        Some(match built {
            Ok(value) => {
                self.current.store(Arc::new(value));
                FileChange::Reloaded
            }
            Err(reason) => FileChange::Rejected(reason),
        })
    }
}

/// Polls `source` on a timer, for ever, and reports changes.
pub async fn poll_forever<S: Send + 'static, C: Send + 'static>(
    mut source: S,
    interval: Duration,
    poll: fn(&mut S) -> Option<C>,
    mut on_change: impl FnMut(&S, C),
) {
    loop {
        tokio::time::sleep(interval).await;
        // File systems can hang; that must not block the workers that serve requests.
        let polled = tokio::task::spawn_blocking(move || {
            let change = poll(&mut source);
            (source, change)
        });
        let change;
        (source, change) = match polled.await {
            Ok(polled) => polled,
            Err(error) => return error!(%error, "file watcher stopped"),
        };
        if let Some(change) = change {
            on_change(&source, change);
        }
    }
}

/// Reports a change in the log and as a condition. `what` names the file.
pub fn report_change(condition: &Condition, what: &'static str, change: &FileChange) {
    log_change(what, change);
    match change {
        FileChange::Reloaded => condition.set_ok("FileLoaded", "ok"),
        FileChange::Rejected(reason) => {
            condition.set_degraded("FileRejected", format!("using the last good version; change rejected: {reason}"));
        }
    }
}

/// Reports a change in the log.
pub fn log_change(what: &'static str, change: &FileChange) {
    match change {
        FileChange::Reloaded => info!(what, "reloaded file"),
        FileChange::Rejected(error) => warn!(what, error, "cannot reload changed file; keeping the last good one"),
    }
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let mut errors = Vec::new();
    let mut all = Vec::with_capacity(files.len());
    for path in files {
        match read(path) {
            Ok(bytes) => all.push(bytes),
            Err(reason) => errors.push(format!("cannot read {}: {reason}", path.display())),
        }
    }
    if errors.is_empty() { Ok(all) } else { Err(errors.join("; ")) }
}

/// Reads a regular file, or a symlink to one: a pipe would block for ever, and could not be read again.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let metadata = path.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(format!("larger than {} MiB", FILE_LIMIT >> 20));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn number(path: &Path) -> Result<WatchedFiles<u32>, String> {
        let build = |bytes: &[Vec<u8>]| {
            let text = String::from_utf8_lossy(&bytes[0]).trim().to_owned();
            text.parse().map_err(|_| format!("{text:?} is not a number"))
        };
        WatchedFiles::open(vec![path.to_owned()], Box::new(build))
    }

    #[test]
    fn rejected_change_keeps_the_last_good_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        fs::write(&path, "1").unwrap();
        let mut watched = number(&path).unwrap();
        let value = Arc::clone(watched.current());
        assert_eq!((watched.poll(), **value.load()), (None, 1));

        fs::write(&path, "2").unwrap();
        assert_eq!((watched.poll(), **value.load()), (Some(FileChange::Reloaded), 2));

        fs::write(&path, "two").unwrap();
        assert_eq!(watched.poll(), Some(FileChange::Rejected("\"two\" is not a number".to_owned())));
        assert_eq!(**value.load(), 2);
        assert_eq!(watched.poll(), None, "reported once");

        fs::remove_file(&path).unwrap();
        let Some(FileChange::Rejected(reason)) = watched.poll() else { panic!("a removed file is an error") };
        assert!(reason.contains("cannot read") && reason.contains(path.to_str().unwrap()), "{reason}");
        assert_eq!(watched.poll(), None);

        fs::write(&path, "3").unwrap();
        assert_eq!((watched.poll(), **value.load()), (Some(FileChange::Reloaded), 3));
    }

    #[test]
    fn symlink_swap_of_the_kubelet_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        for (version, text) in [("..1", "1"), ("..2", "2")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("n"), text).unwrap();
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/n", dir.path().join("n")).unwrap();
        let mut watched = number(&dir.path().join("n")).unwrap();

        symlink("..2", dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        assert_eq!(watched.poll(), Some(FileChange::Reloaded));
        assert_eq!(**watched.current().load(), 2);
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for (path, expected) in [
            (dir.path(), "not a regular file"),
            (Path::new("/dev/zero"), "not a regular file"),
            (Path::new("/nonexistent/n"), "No such file"),
        ] {
            let error = number(path).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
