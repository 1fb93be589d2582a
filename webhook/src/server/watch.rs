//! Files that are re-read while the server runs.
//!
//! The bytes are compared on a timer. A watch on the file would miss the way the kubelet changes a mounted Secret or ConfigMap (it swaps a
//! symlink in the folder above), and a watch on folders still needs the timer for what it loses.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::{error, info, warn};
use weir_runtime::health::Condition;

/// No Secret or ConfigMap is larger than 1 MiB.
const FILE_LIMIT: u64 = 4 << 20;

/// Makes a value from the bytes of all files, in order.
pub type Build<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// A value made of files. A change that cannot be taken leaves the last good one in place.
pub struct Watched<T> {
    files: Vec<PathBuf>,
    build: Build<T>,
    current: Arc<ArcSwap<T>>,
    /// What the last try was made of: bytes, or why there were none.
    seen: Result<Vec<Vec<u8>>, String>,
    /// Why the last try failed, if it did.
    problem: Option<String>,
}

impl<T: fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, current, problem, .. } = self;
        f.debug_struct("Watched")
            .field("files", files)
            .field("current", &**current.load())
            .field("problem", problem)
            .finish_non_exhaustive()
    }
}

/// What one look at the files found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// As at the last look.
    Same,
    /// Changed and taken.
    Replaced,
    /// Changed and refused, for this reason; the last good value stays.
    Refused(String),
    /// Back to what is served already; an earlier refusal is over.
    Restored,
}

impl<T> Watched<T> {
    /// The first look.
    ///
    /// # Errors
    /// A file that cannot be read, or whatever `build` refuses, with the names of the files.
    pub fn open(files: Vec<PathBuf>, build: Build<T>) -> Result<Self, String> {
        let bytes = read_all(&files)?;
        let value = build(&bytes)?;
        let current = Arc::new(ArcSwap::from_pointee(value));
        Ok(Self { files, build, current, seen: Ok(bytes), problem: None })
    }

    /// Where the value of the moment is.
    pub fn current(&self) -> &Arc<ArcSwap<T>> {
        &self.current
    }

    /// Which files; none for a value that never changes.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Why the files as they are now are not in use, if so.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Looks again. Blocks on the file system.
    pub fn look(&mut self) -> Look {
        let found = read_all(&self.files);
        if found == self.seen {
            return Look::Same;
        }
        let built = match &found {
            Ok(bytes) => (self.build)(bytes),
            Err(reason) => Err(reason.clone()),
        };
        self.seen = found;
        match built {
            Ok(value) => {
                self.current.store(Arc::new(value));
                match self.problem.take() {
                    Some(_) => Look::Restored,
                    None => Look::Replaced,
                }
            }
            Err(reason) => {
                self.problem = Some(reason.clone());
                Look::Refused(reason)
            }
        }
    }
}

/// Looks again and again, and tells what was found when something was. Ends only where looking itself fails, which is a defect.
pub async fn follow<T: Send + Sync + 'static>(
    mut watched: Watched<T>,
    interval: Duration,
    mut told: impl FnMut(&Watched<T>, Look),
) {
    loop {
        tokio::time::sleep(interval).await;
        // File systems can hang; that must not take a worker from the requests.
        let looked = tokio::task::spawn_blocking(move || {
            let look = watched.look();
            (watched, look)
        });
        let look;
        (watched, look) = match looked.await {
            Ok(looked) => looked,
            Err(reason) => return error!(%reason, "files are not looked at any more"),
        };
        if look != Look::Same {
            told(&watched, look);
        }
    }
}

/// Says what a look found: as a condition, and in the log. `what` is the file, for messages.
pub fn tell(condition: &Condition, what: &str, look: &Look) {
    match look {
        Look::Same => {}
        Look::Replaced | Look::Restored => {
            info!("{what} has changed and is in use");
            condition.good("ok");
        }
        Look::Refused(reason) => {
            warn!(reason, "{what} is refused; the last good one stays in use");
            condition.odd(format!("the last good one is in use; its change was refused: {reason}"));
        }
    }
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let mut problems = Vec::new();
    let mut all = Vec::with_capacity(files.len());
    for path in files {
        match read(path) {
            Ok(bytes) => all.push(bytes),
            Err(reason) => problems.push(format!("cannot read {}: {reason}", path.display())),
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(problems.join("; ")) }
}

/// A regular file (or a symlink to one): a pipe would block for ever, and could not be re-read.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let kind = path.metadata().map_err(|error| error.to_string())?;
    if !kind.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(format!("it is larger than {} MiB", FILE_LIMIT >> 20));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn number(path: &Path) -> Result<Watched<u32>, String> {
        let build = |bytes: &[Vec<u8>]| {
            let text = String::from_utf8_lossy(&bytes[0]).trim().to_owned();
            text.parse().map_err(|_| format!("{text:?} is not a number"))
        };
        Watched::open(vec![path.to_owned()], Box::new(build))
    }

    #[test]
    fn takes_a_change_and_keeps_the_last_good_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        fs::write(&path, "1").unwrap();
        let mut watched = number(&path).unwrap();
        let value = Arc::clone(watched.current());
        assert_eq!((watched.look(), **value.load()), (Look::Same, 1));

        fs::write(&path, "2").unwrap();
        assert_eq!((watched.look(), **value.load()), (Look::Replaced, 2));

        fs::write(&path, "two").unwrap();
        assert_eq!(watched.look(), Look::Refused("\"two\" is not a number".to_owned()));
        assert_eq!(**value.load(), 2);
        assert_eq!(watched.look(), Look::Same, "one refusal is told once");
        assert!(watched.problem().is_some());

        fs::remove_file(&path).unwrap();
        let Look::Refused(reason) = watched.look() else { panic!("a lost file is a problem") };
        assert!(reason.contains("cannot read") && reason.contains(path.to_str().unwrap()), "{reason}");
        assert_eq!(watched.look(), Look::Same);

        fs::write(&path, "3").unwrap();
        assert_eq!((watched.look(), **value.load()), (Look::Restored, 3));
        assert_eq!(watched.problem(), None);
    }

    #[test]
    fn sees_the_kubelets_symlink_swap() {
        let dir = tempfile::tempdir().unwrap();
        for (folder, text) in [("..1", "1"), ("..2", "2")] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join("n"), text).unwrap();
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/n", dir.path().join("n")).unwrap();
        let mut watched = number(&dir.path().join("n")).unwrap();

        symlink("..2", dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        assert_eq!(watched.look(), Look::Replaced);
        assert_eq!(**watched.current().load(), 2);
    }

    #[test]
    fn refuses_what_is_no_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        for (path, expected) in [
            (dir.path(), "not a regular file"),
            (Path::new("/dev/zero"), "not a regular file"),
            (Path::new("/nonexistent/n"), "No such file"),
        ] {
            let text = number(path).unwrap_err();
            assert!(text.contains(expected), "{text}");
        }
    }
}
