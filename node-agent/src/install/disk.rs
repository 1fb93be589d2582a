//! The few operations that installing needs from a file system, behind a trait so that tests can make each of them fail, and the two ways
//! of putting a file in place that are made of them.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;

/// Beginning of the names of files that are being written. No runtime reads them, whatever follows, and none outlives a pass.
pub const TEMPORARY: &str = ".weir-tmp-";

/// Longest file of the configuration folder that is looked at.
pub const MAX_FILE: u64 = 1 << 20;

/// Mode and owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// User and group; `None` keeps whoever makes the file.
    pub owner: Option<(u32, u32)>,
}

/// What identifies the content of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The name.
    pub name: String,
    /// Whether it is a folder (links are not).
    pub is_folder: bool,
}

/// A file system.
pub trait Disk: Send {
    /// Names in a folder. Names that are no UTF-8 are left out: no runtime's name is.
    ///
    /// # Errors
    /// The kernel's reason.
    fn list(&self, folder: &Path) -> io::Result<Vec<Name>>;
    /// All of a regular file of at most `max` bytes. Never waits for a pipe.
    ///
    /// # Errors
    /// The kernel's reason, or that it is no such file.
    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>>;
    /// Mode and owner of what a path leads to.
    ///
    /// # Errors
    /// The kernel's reason.
    fn attributes(&self, path: &Path) -> io::Result<Attributes>;
    /// The stamp of what a path leads to.
    ///
    /// # Errors
    /// The kernel's reason.
    fn stamp(&self, path: &Path) -> io::Result<Stamp>;
    /// Where a path leads in the end; a path to nothing leads to itself.
    ///
    /// # Errors
    /// The kernel's reason, such as a link to nowhere.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf>;
    /// Makes a new file, whole and on the disk.
    ///
    /// # Errors
    /// The kernel's reason; the file may be there in part.
    fn create(&self, path: &Path, bytes: &[u8], attributes: Attributes) -> io::Result<()>;
    /// Gives a file a second name.
    ///
    /// # Errors
    /// The kernel's reason.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames a file over another.
    ///
    /// # Errors
    /// The kernel's reason.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; one that is not there is removed already.
    ///
    /// # Errors
    /// The kernel's reason.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder with its parents; one that is there is made already.
    ///
    /// # Errors
    /// The kernel's reason.
    fn make_folder(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    ///
    /// # Errors
    /// The kernel's reason, also that it is not empty.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Brings the names of a folder to the disk.
    ///
    /// # Errors
    /// The kernel's reason.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// The real one.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn list(&self, folder: &Path) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                names.push(Name { name, is_folder: entry.file_type()?.is_dir() });
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        // Without O_NONBLOCK the open itself would wait for a writer of a pipe.
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

    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        let metadata = fs::metadata(path)?;
        Ok(Attributes { mode: metadata.mode() & 0o7777, owner: Some((metadata.uid(), metadata.gid())) })
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        let metadata = fs::metadata(path)?;
        Ok(Stamp {
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

    fn create(&self, path: &Path, bytes: &[u8], attributes: Attributes) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        if let Some((uid, gid)) = attributes.owner {
            let made = file.metadata()?;
            if (made.uid(), made.gid()) != (uid, gid) {
                // Without CAP_CHOWN the file is root's. Runtimes are root, so they read it all the same.
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
        gone_is_fine(fs::remove_file(path))
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        gone_is_fine(fs::remove_dir(path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A name beside `path` that no runtime reads. Two agents have different processes and start times, though each may be process 1.
pub fn temporary_beside(path: &Path, instance: &str) -> PathBuf {
    path.with_file_name(format!("{TEMPORARY}{instance}"))
}

/// Replaces or makes a file in one step: readers see the old bytes or all of the new ones, also after a power cut.
///
/// # Errors
/// The kernel's reason; the file is then as it was.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8], attributes: Attributes, instance: &str) -> io::Result<()> {
    let temporary = temporary_beside(path, instance);
    let replaced = disk
        .remove(&temporary)
        .and_then(|()| disk.create(&temporary, bytes, attributes))
        .and_then(|()| disk.rename(&temporary, path));
    if let Err(error) = replaced {
        // What cannot be removed now is removed by the next pass.
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    disk.sync_folder(folder_of(path))
}

/// Removes a file for good.
///
/// # Errors
/// The kernel's reason.
pub fn remove(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    disk.remove(path)?;
    disk.sync_folder(folder_of(path))
}

/// Removes what an earlier pass, cut off, has left in a folder.
///
/// # Errors
/// The kernel's reason.
pub fn sweep(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    for Name { name, is_folder } in disk.list(folder)? {
        if !is_folder && name.starts_with(TEMPORARY) {
            disk.remove(&folder.join(name))?;
        }
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTRIBUTES: Attributes = Attributes { mode: 0o640, owner: None };

    #[test]
    fn replaces_a_file_whole_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conflist");
        fs::write(folder.path().join(format!("{TEMPORARY}old")), "half").unwrap();
        for text in ["one", "two"] {
            replace(&RealDisk, &path, text.as_bytes(), ATTRIBUTES, "x").unwrap();
            assert_eq!(RealDisk.read(&path, 10).unwrap(), text.as_bytes());
        }
        assert_eq!(RealDisk.attributes(&path).unwrap().mode, 0o640);
        sweep(&RealDisk, folder.path()).unwrap();
        assert_eq!(RealDisk.list(folder.path()).unwrap().len(), 1);
        remove(&RealDisk, &path).unwrap();
        remove(&RealDisk, &path).unwrap();
    }

    #[test]
    fn reads_nothing_but_regular_files_of_a_bounded_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "12345").unwrap();
        assert_eq!(RealDisk.read(&path, 4).unwrap_err().to_string(), "more than 4 bytes");
        assert_eq!(RealDisk.read(&path, 5).unwrap(), b"12345");
        assert!(RealDisk.read(folder.path(), 4).is_err());
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(RealDisk.read(&pipe, 4).unwrap_err().to_string(), "not a regular file");
    }
}
