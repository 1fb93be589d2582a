//! The plugin's binary: a copy under a name of its own first, checked, and then switched to at once.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use weir_protocol::entry::PLUGIN_TYPE;

use super::disk::{self, Attributes, Disk, Name, Stamp, TEMPORARY};

/// Mode of a program.
const PROGRAM: Attributes = Attributes { mode: 0o755, owner: None };
/// No plugin is larger; a wrong path must not fill the memory.
const MAX_BINARY: u64 = 64 << 20;
/// Hex digits of the hash that stand in the name.
const DIGITS: usize = 12;

/// Why the plugin is not in its folder.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// The image does not have it.
    #[error("plugin {path} cannot be read: {reason} (--plugin-source)")]
    Source {
        /// Its path.
        path: String,
        /// Why.
        reason: io::Error,
    },
    /// The folder does not take it.
    #[error("plugin cannot be written to {folder}: {reason}")]
    Write {
        /// The folder.
        folder: String,
        /// Why.
        reason: io::Error,
    },
    /// The disk gives back something else than was written.
    #[error("plugin in {folder} differs from what was written: the disk is not sound")]
    Corrupt {
        /// The folder.
        folder: String,
    },
}

/// The plugin of the image, known by its hash, and what is known about the installed one.
#[derive(Debug, Default)]
pub struct Binary {
    source: Option<(PathBuf, String)>,
    /// The installed file as it was when it was found to be right.
    known: Option<Stamp>,
}

impl Binary {
    /// Takes note of the plugin that is to be installed. An image does not change, so it is read once.
    ///
    /// # Errors
    /// [`BinaryError::Source`].
    pub fn load(&mut self, disk: &dyn Disk, source: &Path) -> Result<(), BinaryError> {
        if self.source.is_none() {
            self.source = Some((source.to_owned(), hash(&read_source(disk, source)?)));
        }
        Ok(())
    }

    /// Whether the folder has the plugin already, whole and startable. Reads it only if it may have changed.
    pub fn is_installed(&mut self, disk: &dyn Disk, folder: &Path) -> bool {
        let Some((_, wanted)) = &self.source else { return false };
        let path = folder.join(PLUGIN_TYPE);
        let Ok(stamp) = disk.stamp(&path) else { return false };
        if self.known == Some(stamp) {
            return true;
        }
        let right = disk.attributes(&path).is_ok_and(|attributes| attributes.mode & 0o111 == 0o111)
            && disk.read(&path, MAX_BINARY).is_ok_and(|bytes| hash(&bytes) == *wanted);
        self.known = right.then_some(stamp);
        right
    }

    /// Puts the plugin into the folder: as `weir-cni-HASH`, checked, and then under its name in one step. A runtime that starts
    /// it at any moment gets the old one or the new one.
    ///
    /// # Errors
    /// See [`BinaryError`].
    pub fn install(&mut self, disk: &dyn Disk, folder: &Path, instance: &str) -> Result<(), BinaryError> {
        let Some((source, wanted)) = &self.source else { return Ok(()) };
        let bytes = &read_source(disk, source)?;
        let write = |reason| BinaryError::Write { folder: folder.display().to_string(), reason };
        let versioned = folder.join(version_name(wanted));
        let right = |path: &Path| {
            disk.attributes(path).is_ok_and(|attributes| attributes.mode == PROGRAM.mode)
                && disk.read(path, MAX_BINARY).is_ok_and(|found| hash(&found) == *wanted)
        };
        if !right(&versioned) {
            disk::replace(disk, &versioned, bytes, PROGRAM, instance).map_err(write)?;
            if !right(&versioned) {
                return Err(BinaryError::Corrupt { folder: folder.display().to_string() });
            }
        }
        let name = folder.join(PLUGIN_TYPE);
        let second = disk::temporary_beside(&name, instance);
        let linked = disk.remove(&second).and_then(|()| disk.link(&versioned, &second));
        match linked {
            Ok(()) => disk.rename(&second, &name).and_then(|()| disk.sync_folder(folder)).map_err(write)?,
            // Not every file system knows second names.
            Err(_) => disk::replace(disk, &name, bytes, PROGRAM, instance).map_err(write)?,
        }
        // Renaming one name of a file over another of the same file does nothing and leaves both.
        disk.remove(&second).map_err(write)?;
        self.known = disk.stamp(&name).ok();
        self.tidy(disk, folder).map_err(write)
    }

    /// Removes what earlier versions and attempts have left in the folder.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn tidy(&self, disk: &dyn Disk, folder: &Path) -> io::Result<()> {
        let keep = self.source.as_ref().map(|(_, wanted)| folder.join(version_name(wanted)));
        remove_versions(disk, folder, keep.as_deref())
    }
}

/// Whether the folder has the plugin, or anything that was written on its behalf.
pub fn is_there(disk: &dyn Disk, folder: &Path) -> bool {
    disk.list(folder).is_ok_and(|names| names.iter().any(|name| name.name == PLUGIN_TYPE || is_trace(name)))
}

/// Removes the plugin and everything that was written on its behalf.
///
/// # Errors
/// The kernel's reason.
pub fn uninstall(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    disk::remove(disk, &folder.join(PLUGIN_TYPE))?;
    remove_versions(disk, folder, None)
}

/// Removes versions other than `keep`. A process that runs one goes on running it.
fn remove_versions(disk: &dyn Disk, folder: &Path, keep: Option<&Path>) -> io::Result<()> {
    for name in disk.list(folder)?.iter().filter(|name| is_trace(name)) {
        let path = folder.join(&name.name);
        if Some(path.as_path()) != keep {
            disk::remove(disk, &path)?;
        }
    }
    Ok(())
}

/// A version of the plugin, or what was left of writing one.
fn is_trace(Name { name, is_folder }: &Name) -> bool {
    let version = name.strip_prefix(PLUGIN_TYPE).and_then(|rest| rest.strip_prefix('-'));
    let is_version = version.is_some_and(|hash| hash.len() == DIGITS && hash.chars().all(|c| c.is_ascii_hexdigit()));
    !is_folder && (is_version || name.starts_with(TEMPORARY))
}

fn version_name(hash: &str) -> String {
    format!("{PLUGIN_TYPE}-{}", &hash[..DIGITS])
}

fn read_source(disk: &dyn Disk, source: &Path) -> Result<Vec<u8>, BinaryError> {
    let bad = |reason| BinaryError::Source { path: source.display().to_string(), reason };
    match disk.read(source, MAX_BINARY) {
        Ok(bytes) if bytes.is_empty() => Err(bad(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty"))),
        Ok(bytes) => Ok(bytes),
        Err(reason) => Err(bad(reason)),
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::disk::RealDisk;
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        RealDisk.list(folder).unwrap().into_iter().map(|name| name.name).collect()
    }

    #[test]
    fn installs_updates_and_removes() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("bridge"), "other").unwrap();
        let mut versions = Vec::new();
        for content in ["cni111", "cni222"] {
            let source = folder.path().join(content);
            fs::write(&source, content).unwrap();
            let mut binary = Binary::default();
            binary.load(&RealDisk, &source).unwrap();
            assert!(!binary.is_installed(&RealDisk, &bin));
            binary.install(&RealDisk, &bin, "x").unwrap();
            assert!(binary.is_installed(&RealDisk, &bin));
            assert_eq!(fs::read_to_string(bin.join(PLUGIN_TYPE)).unwrap(), content);
            let now = names(&bin);
            assert_eq!(now.len(), 3, "{now:?}");
            versions.push(now[2].clone());
            // Again, from scratch, changes nothing.
            let mut again = Binary::default();
            again.load(&RealDisk, &source).unwrap();
            assert!(again.is_installed(&RealDisk, &bin));
            again.install(&RealDisk, &bin, "y").unwrap();
            assert_eq!(names(&bin), now);
        }
        assert_ne!(versions[0], versions[1]);
        for there in [true, false] {
            assert_eq!(is_there(&RealDisk, &bin), there);
            uninstall(&RealDisk, &bin).unwrap();
        }
        assert_eq!(names(&bin), ["bridge"]);
    }

    #[test]
    fn notices_a_changed_binary() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "plugin").unwrap();
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let mut binary = Binary::default();
        binary.load(&RealDisk, &source).unwrap();
        let spoil: [&dyn Fn(&Path); 4] = [
            &|path| fs::remove_file(path).unwrap(),
            &|path| fs::write(path, "plug").unwrap(),
            &|path| fs::write(path, "").unwrap(),
            &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap(),
        ];
        for spoil in spoil {
            binary.install(&RealDisk, &bin, "x").unwrap();
            spoil(&bin.join(PLUGIN_TYPE));
            assert!(!binary.is_installed(&RealDisk, &bin));
            binary.install(&RealDisk, &bin, "x").unwrap();
            assert!(binary.is_installed(&RealDisk, &bin));
        }
    }

    #[test]
    fn an_image_without_the_plugin_says_so() {
        let mut binary = Binary::default();
        let error = binary.load(&RealDisk, Path::new("/nowhere/weir-cni")).unwrap_err();
        assert!(error.to_string().contains("--plugin-source"), "{error}");
    }
}
