//! A stream of documents with its pods changed: what nobody changes stays as it is written.
//!
//! ```text
//! text ──stream──▶ documents ──pods──▶ pods ──change──▶ changed pods
//!                      │ untouched: byte for byte           │ touched: splice, else yaml_text
//!                      └──────────────▶ text ◀──────────────┘
//! ```

use std::path::Path;
use std::process::ExitCode;

use super::pods::{self, PodHolder};
use super::stream::{self, Document};
use crate::failure::Failure;
use crate::files::{self, Source};
use crate::{splice, yaml_text};

/// A stream after its pods were changed.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    /// The documents, each followed by a separator.
    pub(crate) text: String,
    /// What the user should hear.
    pub(crate) notices: Vec<String>,
    /// What was refused. Where there is anything, the text is of no use.
    pub(crate) findings: Vec<String>,
}

impl Rewritten {
    /// Says what is to be said, and writes the result where nothing was refused.
    ///
    /// # Errors
    /// What was refused, and a target that cannot be written.
    pub(crate) fn write(self, source: &Source, target: Option<&Path>) -> Result<ExitCode, Failure> {
        for notice in &self.notices {
            eprintln!("{notice}");
        }
        if !self.findings.is_empty() {
            return Err(Failure::refused_in(&source.name(), &self.findings));
        }
        files::write(target, &self.text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows every pod of a stream to `change`, with its place for messages; `change` says whether it replaced the pod.
pub(crate) fn rewrite(
    text: &str,
    mut change: impl FnMut(&mut PodHolder<'_>, &str, &mut Rewritten) -> bool,
) -> Rewritten {
    let mut out = Rewritten::default();
    let documents = match stream::split(text) {
        Ok(documents) => documents,
        Err(strays) => {
            out.findings.extend(strays.iter().map(ToString::to_string));
            return out;
        }
    };
    for document in documents {
        let rewritten = rewrite_document(&document, &mut change, &mut out);
        let text = rewritten.as_deref().unwrap_or(document.text);
        out.text.push_str(text);
        if !text.ends_with('\n') {
            out.text.push('\n');
        }
        out.text.push_str("---\n");
    }
    out
}

/// The new text of a document; `None` where it stays as it is.
fn rewrite_document(
    document: &Document<'_>,
    change: &mut impl FnMut(&mut PodHolder<'_>, &str, &mut Rewritten) -> bool,
    out: &mut Rewritten,
) -> Option<String> {
    let mut value = match document.parse() {
        Ok(value) => value,
        Err(error) => {
            out.findings.push(format!("{document}: {error}"));
            return None;
        }
    };
    let original = value.clone();
    let mut holders = match pods::find(&mut value) {
        Ok(holders) => holders,
        Err(errors) => {
            out.findings.extend(errors.iter().map(|error| format!("{document}: {error}")));
            return None;
        }
    };
    let mut touched = false;
    for holder in &mut holders {
        let place = holder.place(document);
        touched |= change(holder, &place, out);
    }
    if !touched {
        return None;
    }
    // Changed where it changed, or where that cannot be done written anew.
    match splice::splice(document.text, &original, &value).map_or_else(|| yaml_text::to_string(&value), Ok) {
        Ok(text) => {
            out.notices.extend(lost_comments(document, &text));
            Some(text)
        }
        Err(error) => {
            out.findings.push(format!("{document}: {error:#}"));
            None
        }
    }
}

/// A note of the comments that the new text has not.
fn lost_comments(document: &Document<'_>, text: &str) -> Option<String> {
    let lost = splice::lost_comments(document.text, text);
    if lost.is_empty() {
        return None;
    }
    let shown: Vec<String> = lost.iter().take(3).map(|comment| format!("# {comment}")).collect();
    let number = lost.len();
    let more = if number > shown.len() { ", ..." } else { "" };
    Some(format!(
        "weir: note: {document}: comments in changed parts are not kept ({number}): {}{more}",
        shown.join(", ")
    ))
}
