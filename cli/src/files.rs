//! Reads the files of the command line, and writes results completely or not at all.

mod inputs;
mod output;
mod url;

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

pub(crate) use inputs::{InputArgs, InputText};
pub(crate) use output::OutputFileArgs;

/// An input file of the command line; `-` is standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InputFile {
    Stdin,
    File(PathBuf),
}

impl From<&str> for InputFile {
    fn from(name: &str) -> Self {
        if name == "-" { Self::Stdin } else { Self::File(name.into()) }
    }
}

impl InputFile {
    /// Returns the name for messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Stdin => "standard input".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// Reads the whole text.
    ///
    /// # Errors
    /// The file cannot be read or is not UTF-8; the message names it.
    pub(crate) fn read(&self) -> anyhow::Result<String> {
        let mut bytes = Vec::new();
        match self {
            Self::Stdin => io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
            Self::File(path) => fs::read(path).map(|read| bytes = read),
        }
        .with_context(|| format!("cannot read {}", self.name()))?;
        String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].split(|byte| *byte == b'\n').count();
            anyhow::anyhow!("{}: line {line}: not valid UTF-8", self.name())
        })
    }
}

/// Writes a result to a file, or to standard output without one.
///
/// A file appears completely or not at all, and may be the one that was read.
///
/// # Errors
/// The file cannot be written; the message names it.
pub(crate) fn write(target: Option<&Path>, text: &str) -> anyhow::Result<()> {
    write_bytes(target, text.as_bytes())
}

/// Like [`write()`], for what is no text.
///
/// # Errors
/// See [`write()`].
pub(crate) fn write_bytes(target: Option<&Path>, bytes: &[u8]) -> anyhow::Result<()> {
    match target {
        None => match io::stdout().lock().write_all(bytes) {
            // The reader has seen enough (`| head`).
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other.context("cannot write to standard output"),
        },
        Some(path) => write_file(path, bytes).with_context(|| format!("cannot write {}", path.display())),
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let old = match fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // A rename would replace a device or a pipe.
    if old.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        return fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    // Replace the target of a symbolic link, not the link.
    let path = if old.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As `open` creates files; the library's default is 0600.
    builder.permissions(fs::Permissions::from_mode(0o666));
    let mut file = builder.prefix(".weir-").tempfile_in(directory)?;
    file.write_all(bytes)?;
    if let Some(old) = old {
        file.as_file().set_permissions(old.permissions())?;
    }
    file.persist(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn file_is_replaced_with_its_mode_behind_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(Some(&link), "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(directory.path()), ["file", "link"], "no temporary file is left");
    }

    #[test]
    fn device_is_written_in_place() {
        write(Some(Path::new("/dev/null")), "text").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn missing_directory_is_named() {
        let error = write(Some(Path::new("/nonexistent/out.yaml")), "text").unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot write /nonexistent/out.yaml: "), "{error:#}");
    }

    #[test]
    fn unreadable_file_is_named() {
        let error = InputFile::from("/nonexistent/in.yaml").read().unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot read /nonexistent/in.yaml: "), "{error:#}");
    }

    #[test]
    fn invalid_utf_8_is_reported_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("latin1.yaml");
        fs::write(&file, b"a: 1\nb: caf\xe9\n").unwrap();
        let error = InputFile::from(file.to_str().unwrap()).read().unwrap_err().to_string();
        assert!(error.ends_with("latin1.yaml: line 2: not valid UTF-8"), "{error}");
    }
}
