//! File operations of the installation, behind a trait so that tests can make each of them fail.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;

/// Prefix of the names of files that are being written. Runtimes do not read them.
pub const TEMPORARY_PREFIX: &str = ".weir-tmp-";

/// Largest configuration file that is read.
pub const MAX_FILE: u64 = 1 << 20;

/// Mode and owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileAttributes {
    /// Permission bits.
    pub mode: u32,
    /// User and group; `None` for those of this process.
    pub owner: Option<(u32, u32)>,
}

/// Metadata that changes whenever the content of a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// Name in the directory.
    pub name: String,
    /// Whether it is a directory; a symbolic link is not.
    pub is_dir: bool,
}

/// A file system.
pub trait FileSystem: Send {
    /// Lists a directory, sorted, without names that are not UTF-8.
    ///
    /// # Errors
    /// The error of the system.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Reads a regular file of at most `max` bytes; never waits for a pipe.
    ///
    /// # Errors
    /// The error of the system; the file is too large or not a regular file.
    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>>;
    /// Returns mode and owner; follows links.
    ///
    /// # Errors
    /// The error of the system.
    fn attributes(&self, path: &Path) -> io::Result<FileAttributes>;
    /// Returns the stamp; follows links.
    ///
    /// # Errors
    /// The error of the system.
    fn stamp(&self, path: &Path) -> io::Result<FileStamp>;
    /// Resolves a symbolic link; other paths stay as they are.
    ///
    /// # Errors
    /// The error of the system, for a dangling link among others.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf>;
    /// Creates a new file and syncs it to the disk.
    ///
    /// # Errors
    /// The error of the system; a part of the file may exist.
    fn create(&self, path: &Path, bytes: &[u8], attributes: FileAttributes) -> io::Result<()>;
    /// Creates a hard link.
    ///
    /// # Errors
    /// The error of the system.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames a file over another.
    ///
    /// # Errors
    /// The error of the system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; succeeds where it does not exist.
    ///
    /// # Errors
    /// The error of the system.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory and its parents; succeeds where it exists.
    ///
    /// # Errors
    /// The error of the system.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory; succeeds where it does not exist.
    ///
    /// # Errors
    /// The error of the system, also where it is not empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Syncs the entries of a directory to the disk.
    ///
    /// # Errors
    /// The error of the system.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// The file system of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFileSystem;

impl FileSystem for OsFileSystem {
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                names.push(DirEntry { name, is_dir: entry.file_type()?.is_dir() });
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        // Opening a pipe without O_NONBLOCK waits for a writer.
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= max) {
            Ok(bytes)
        } else {
            Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {max} bytes")))
        }
    }

    fn attributes(&self, path: &Path) -> io::Result<FileAttributes> {
        let metadata = fs::metadata(path)?;
        Ok(FileAttributes { mode: metadata.mode() & 0o7777, owner: Some((metadata.uid(), metadata.gid())) })
    }

    fn stamp(&self, path: &Path) -> io::Result<FileStamp> {
        let metadata = fs::metadata(path)?;
        Ok(FileStamp {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() => fs::canonicalize(path),
            _ => Ok(path.to_owned()),
        }
    }

    fn create(&self, path: &Path, bytes: &[u8], attributes: FileAttributes) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        if let Some((uid, gid)) = attributes.owner {
            let metadata = file.metadata()?;
            if (metadata.uid(), metadata.gid()) != (uid, gid) {
                // Without CAP_CHOWN the file belongs to root, and runtimes, which are root, can read it.
                let _ = fchown(&file, Some(uid), Some(gid));
            }
        }
        file.set_permissions(Permissions::from_mode(attributes.mode))?;
        file.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        ignore_not_found(fs::remove_file(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        ignore_not_found(fs::remove_dir(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

fn ignore_not_found(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Returns the path of a temporary file beside `path`, different for every agent.
pub fn temporary_path(path: &Path, instance: &str) -> PathBuf {
    path.with_file_name(format!("{TEMPORARY_PREFIX}{instance}"))
}

/// Replaces or creates a file atomically: readers see the old or the new content, also after a power failure.
///
/// # Errors
/// The error of the system; the file is unchanged.
pub fn replace(
    files: &dyn FileSystem,
    path: &Path,
    bytes: &[u8],
    attributes: FileAttributes,
    instance: &str,
) -> io::Result<()> {
    let temporary = temporary_path(path, instance);
    let replaced = files
        .remove(&temporary)
        .and_then(|()| files.create(&temporary, bytes, attributes))
        .and_then(|()| files.rename(&temporary, path));
    if let Err(error) = replaced {
        // The next reconcile removes it otherwise.
        let _ = files.remove(&temporary);
        return Err(error);
    }
    files.sync_dir(parent_dir(path))
}

/// Removes a file and syncs the directory.
///
/// # Errors
/// The error of the system.
pub fn remove(files: &dyn FileSystem, path: &Path) -> io::Result<()> {
    files.remove(path)?;
    files.sync_dir(parent_dir(path))
}

/// Removes temporary files of interrupted attempts.
///
/// # Errors
/// The error of the system.
pub fn remove_temporary_files(files: &dyn FileSystem, dir: &Path) -> io::Result<()> {
    for DirEntry { name, is_dir } in files.list(dir)? {
        if !is_dir && name.starts_with(TEMPORARY_PREFIX) {
            files.remove(&dir.join(name))?;
        }
    }
    Ok(())
}

fn parent_dir(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTRIBUTES: FileAttributes = FileAttributes { mode: 0o640, owner: None };

    #[test]
    fn replace_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conflist");
        fs::write(dir.path().join(format!("{TEMPORARY_PREFIX}old")), "half").unwrap();
        for text in ["one", "two"] {
            replace(&OsFileSystem, &path, text.as_bytes(), ATTRIBUTES, "x").unwrap();
            assert_eq!(OsFileSystem.read(&path, 10).unwrap(), text.as_bytes());
        }
        assert_eq!(OsFileSystem.attributes(&path).unwrap().mode, 0o640);
        remove_temporary_files(&OsFileSystem, dir.path()).unwrap();
        assert_eq!(OsFileSystem.list(dir.path()).unwrap().len(), 1);
        remove(&OsFileSystem, &path).unwrap();
        remove(&OsFileSystem, &path).unwrap();
    }

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "12345").unwrap();
        assert_eq!(OsFileSystem.read(&path, 4).unwrap_err().to_string(), "more than 4 bytes");
        assert_eq!(OsFileSystem.read(&path, 5).unwrap(), b"12345");
        assert!(OsFileSystem.read(dir.path(), 4).is_err());
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(OsFileSystem.read(&pipe, 4).unwrap_err().to_string(), "not a regular file");
    }
}
