//! Installs the plugin's binary: copies it under a versioned name, verifies the copy, and then replaces the plugin in one step.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use weir_protocol::entry::PLUGIN_TYPE;

use super::file_system::{self, DirEntry, FileAttributes, FileStamp, FileSystem, TEMPORARY_PREFIX};

/// Mode of the plugin.
const PROGRAM: FileAttributes = FileAttributes { mode: 0o755, owner: None };
/// Largest plugin that is read, so that a wrong path does not fill the memory.
const MAX_BINARY: u64 = 64 << 20;
/// Hex digits of the hash in the versioned name.
const HASH_DIGITS: usize = 12;

/// Error of installing the plugin.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// The plugin of the image cannot be read.
    #[error("cannot read plugin {path}: {reason} (--plugin-source)")]
    Source {
        /// Path of the plugin.
        path: String,
        /// Error of the system.
        reason: io::Error,
    },
    /// The directory cannot be written.
    #[error("cannot write plugin to {dir}: {reason}")]
    Write {
        /// Directory of plugins.
        dir: String,
        /// Error of the system.
        reason: io::Error,
    },
    /// The copy differs from the plugin.
    #[error("copy of the plugin in {dir} is corrupt: check the disk")]
    Corrupt {
        /// Directory of plugins.
        dir: String,
    },
}

/// The plugin of the image, and the state of the installed one.
#[derive(Debug, Default)]
pub struct PluginBinary {
    /// Path and hash.
    source: Option<(PathBuf, String)>,
    /// Stamp of the installed file when it was last verified.
    verified: Option<FileStamp>,
}

impl PluginBinary {
    /// Reads the plugin of the image, once.
    ///
    /// # Errors
    /// [`BinaryError::Source`].
    pub fn load(&mut self, file_system: &dyn FileSystem, source: &Path) -> Result<(), BinaryError> {
        if self.source.is_none() {
            self.source = Some((source.to_owned(), hash(&read_source(file_system, source)?)));
        }
        Ok(())
    }

    /// Returns whether a directory has the plugin, complete and executable. Reads the file only if it may have changed.
    pub fn is_installed(&mut self, file_system: &dyn FileSystem, dir: &Path) -> bool {
        let Some((_, expected)) = &self.source else { return false };
        let path = dir.join(PLUGIN_TYPE);
        let Ok(stamp) = file_system.stamp(&path) else { return false };
        if self.verified == Some(stamp) {
            return true;
        }
        let valid = file_system.attributes(&path).is_ok_and(|attributes| attributes.mode & 0o111 == 0o111)
            && file_system.read(&path, MAX_BINARY).is_ok_and(|bytes| hash(&bytes) == *expected);
        self.verified = valid.then_some(stamp);
        valid
    }

    /// Copies the plugin to a directory as `weir-cni-HASH`, verifies the copy, and then renames it. A runtime that starts the plugin at any
    /// moment gets either the old or the new one.
    ///
    /// # Errors
    /// See [`BinaryError`].
    pub fn install(&mut self, file_system: &dyn FileSystem, dir: &Path, instance: &str) -> Result<(), BinaryError> {
        let Some((source, expected)) = &self.source else { return Ok(()) };
        let bytes = &read_source(file_system, source)?;
        let write = |reason| BinaryError::Write { dir: dir.display().to_string(), reason };
        let versioned = dir.join(version_name(expected));
        let is_valid = |path: &Path| {
            file_system.attributes(path).is_ok_and(|attributes| attributes.mode == PROGRAM.mode)
                && file_system.read(path, MAX_BINARY).is_ok_and(|found| hash(&found) == *expected)
        };
        if !is_valid(&versioned) {
            file_system::replace(file_system, &versioned, bytes, PROGRAM, instance).map_err(write)?;
            if !is_valid(&versioned) {
                return Err(BinaryError::Corrupt { dir: dir.display().to_string() });
            }
        }
        let name = dir.join(PLUGIN_TYPE);
        let link = file_system::temporary_path(&name, instance);
        let linked = file_system.remove(&link).and_then(|()| file_system.link(&versioned, &link));
        match linked {
            Ok(()) => file_system.rename(&link, &name).and_then(|()| file_system.sync_dir(dir)).map_err(write)?,
            // Not every file system has hard links.
            Err(_) => file_system::replace(file_system, &name, bytes, PROGRAM, instance).map_err(write)?,
        }
        // Renaming a link over another link of the same file does nothing (`rename(2)`).
        file_system.remove(&link).map_err(write)?;
        self.verified = file_system.stamp(&name).ok();
        self.remove_old_versions(file_system, dir).map_err(write)
    }

    /// Removes other versions and leftovers of interrupted installations.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove_old_versions(&self, file_system: &dyn FileSystem, dir: &Path) -> io::Result<()> {
        let keep = self.source.as_ref().map(|(_, expected)| dir.join(version_name(expected)));
        remove_versions(file_system, dir, keep.as_deref())
    }
}

/// Returns whether a directory has the plugin, a version of it or a leftover.
pub fn is_present(file_system: &dyn FileSystem, dir: &Path) -> bool {
    file_system
        .list(dir)
        .is_ok_and(|names| names.iter().any(|name| name.name == PLUGIN_TYPE || is_version_or_leftover(name)))
}

/// Removes the plugin, its versions and leftovers.
///
/// # Errors
/// A file cannot be removed.
pub fn uninstall(file_system: &dyn FileSystem, dir: &Path) -> io::Result<()> {
    file_system::remove(file_system, &dir.join(PLUGIN_TYPE))?;
    remove_versions(file_system, dir, None)
}

/// Removes versions other than `keep`; a running process is not affected.
fn remove_versions(file_system: &dyn FileSystem, dir: &Path, keep: Option<&Path>) -> io::Result<()> {
    for name in file_system.list(dir)?.iter().filter(|name| is_version_or_leftover(name)) {
        let path = dir.join(&name.name);
        if Some(path.as_path()) != keep {
            file_system::remove(file_system, &path)?;
        }
    }
    Ok(())
}

/// Returns whether a file is a version of the plugin, or a leftover of writing one.
fn is_version_or_leftover(DirEntry { name, is_dir }: &DirEntry) -> bool {
    let version = name.strip_prefix(PLUGIN_TYPE).and_then(|rest| rest.strip_prefix('-'));
    let is_version =
        version.is_some_and(|hash| hash.len() == HASH_DIGITS && hash.chars().all(|c| c.is_ascii_hexdigit()));
    !is_dir && (is_version || name.starts_with(TEMPORARY_PREFIX))
}

fn version_name(hash: &str) -> String {
    format!("{PLUGIN_TYPE}-{}", &hash[..HASH_DIGITS])
}

fn read_source(file_system: &dyn FileSystem, source: &Path) -> Result<Vec<u8>, BinaryError> {
    let error = |reason| BinaryError::Source { path: source.display().to_string(), reason };
    match file_system.read(source, MAX_BINARY) {
        Ok(bytes) if bytes.is_empty() => Err(error(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty"))),
        Ok(bytes) => Ok(bytes),
        Err(reason) => Err(error(reason)),
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;
