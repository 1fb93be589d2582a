//! Manifests that a command line names: files, directories, URLs, and standard input.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::InputFile;
use super::url;
use crate::failure::Failure;

/// Limit of the files of one run.
const MAX_FILES: usize = 10_000;
/// Names of manifests in directories, as for kubectl.
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];

/// Options that name manifests. Their group is `input`, which commands define with `multiple`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct InputArgs {
    /// Read manifests from these files, directories and http(s) URLs; `-` is standard input
    #[arg(value_name = "FILE", group = "input")]
    files: Vec<String>,

    /// Read manifests from this file, directory or URL, or from standard input with `-`; repeatable
    #[arg(short, long, value_name = "FILE", group = "input")]
    filename: Vec<String>,

    /// Read the directories in directories too
    #[arg(short = 'R', long, requires = "input")]
    recursive: bool,
}

/// A manifest with the name for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputText {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl InputArgs {
    /// Returns whether a manifest is named.
    pub(crate) fn is_given(&self) -> bool {
        self.names().next().is_some()
    }

    /// Reads all manifests, those of a directory in the order of their names.
    ///
    /// # Errors
    /// Everything that cannot be read.
    pub(crate) fn read(&self) -> Result<Vec<InputText>, Failure> {
        let mut texts = Vec::new();
        let mut errors = Vec::new();
        if self.names().filter(|name| *name == "-").count() > 1 {
            errors.push("standard input can be read once, but - is given several times".to_owned());
        }
        for name in self.names() {
            match read(name, self.recursive) {
                Ok(read) => texts.extend(read),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        if errors.is_empty() { Ok(texts) } else { Err(Failure::usage_all(errors)) }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().chain(&self.filename).map(String::as_str)
    }
}

fn read(name: &str, is_recursive: bool) -> anyhow::Result<Vec<InputText>> {
    if url::is_url(name) {
        return Ok(vec![InputText { name: name.to_owned(), text: url::fetch(name, url::Limits::default())? }]);
    }
    let input = InputFile::from(name);
    let inputs = match &input {
        InputFile::File(path) if path.is_dir() => {
            files_in(path, is_recursive)?.into_iter().map(InputFile::File).collect()
        }
        _ => vec![input],
    };
    inputs.into_iter().map(|input| Ok(InputText { name: input.name(), text: input.read()? })).collect()
}

/// Returns the manifests in a directory. Links to files are followed, links to directories are not.
fn files_in(directory: &Path, is_recursive: bool) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let cannot_read = || format!("cannot read {}", directory.display());
        for entry in fs::read_dir(&directory).with_context(cannot_read)? {
            let entry = entry.with_context(cannot_read)?;
            let path = entry.path();
            let is_manifest =
                path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|name| extension == *name));
            if is_recursive && entry.file_type().with_context(cannot_read)?.is_dir() {
                pending.push(path);
            } else if is_manifest && path.is_file() {
                found.insert(path);
            }
        }
        anyhow::ensure!(
            found.len() + pending.len() <= MAX_FILES,
            "{} has more than {MAX_FILES} manifests and directories",
            directory.display()
        );
    }
    let advice = if is_recursive { "" } else { "; -R reads the directories in it too" };
    anyhow::ensure!(!found.is_empty(), "{} has no .yaml, .yml or .json files{advice}", directory.display());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(files: &[&str], is_recursive: bool) -> InputArgs {
        let files = files.iter().map(|&name| name.to_owned()).collect();
        InputArgs { files, recursive: is_recursive, ..InputArgs::default() }
    }

    #[test]
    fn directories_are_read_in_order_and_deep_only_if_asked() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(root.path().join(name), name).unwrap();
        fs::create_dir(root.path().join("deep")).unwrap();
        ["b.yaml", "a.json", "notes.txt", "deep/c.yml"].into_iter().for_each(write);
        // Following it would never end.
        std::os::unix::fs::symlink(root.path(), root.path().join("deep/loop")).unwrap();
        let directory = root.path().to_str().unwrap();
        let texts = |is_recursive| {
            let read = args(&[directory], is_recursive).read().unwrap();
            read.into_iter().map(|input| input.text).collect::<Vec<_>>()
        };
        assert_eq!(texts(false), ["a.json", "b.yaml"]);
        assert_eq!(texts(true), ["a.json", "b.yaml", "deep/c.yml"]);
        let empty = tempfile::tempdir().unwrap();
        let failure = args(&[empty.path().to_str().unwrap()], false).read().unwrap_err().to_string();
        assert!(failure.contains("no .yaml, .yml or .json files; -R reads"), "{failure}");
    }

    #[test]
    fn everything_unreadable_is_named_at_once() {
        let failure = args(&["/nonexistent/a.yaml", "/nonexistent/b.yaml", "-", "-"], false).read().unwrap_err();
        let text = failure.to_string();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("- is given several times"), "{text}");
    }
}
