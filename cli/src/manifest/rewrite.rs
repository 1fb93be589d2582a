//! Changes the pods of a stream; text that does not change stays byte for byte.
//!
//! ```text
//! text ──stream──▶ documents ──pods──▶ pods ──change──▶ changed pods
//!                      │ untouched: byte for byte           │ touched: splice, else serialized
//!                      └──────────────▶ text ◀──────────────┘
//! ```

use std::path::Path;
use std::process::ExitCode;

use weir_injector::yaml;

use super::pods::{self, PodHolder};
use super::stream::{self, Document};
use crate::failure::Failure;
use crate::files::{self, InputFile};
use crate::splice;

/// A stream with changed pods.
#[derive(Debug, Default)]
pub(crate) struct RewrittenStream {
    /// The documents, each followed by a separator.
    pub(crate) text: String,
    /// Lines for standard error.
    pub(crate) notices: Vec<String>,
    /// Errors; the text is incomplete if there are any.
    pub(crate) findings: Vec<String>,
}

impl RewrittenStream {
    /// Prints the notices, and writes the text if there are no findings.
    ///
    /// # Errors
    /// There are findings, or the target cannot be written.
    pub(crate) fn write(self, input: &InputFile, target: Option<&Path>) -> Result<ExitCode, Failure> {
        for notice in &self.notices {
            eprintln!("{notice}");
        }
        if !self.findings.is_empty() {
            return Err(Failure::findings_in(&input.name(), &self.findings));
        }
        files::write(target, &self.text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Calls `change` for every pod of a stream, with its location for messages; `change` returns whether it replaced the pod.
pub(crate) fn rewrite(
    text: &str,
    mut change: impl FnMut(&mut PodHolder<'_>, &str, &mut RewrittenStream) -> bool,
) -> RewrittenStream {
    let mut out = RewrittenStream::default();
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

/// Returns the new text of a document; `None` if it is unchanged.
fn rewrite_document(
    document: &Document<'_>,
    change: &mut impl FnMut(&mut PodHolder<'_>, &str, &mut RewrittenStream) -> bool,
    out: &mut RewrittenStream,
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
        let location = holder.location(document);
        let known = out.findings.len();
        touched |= change(holder, &location, out);
        for finding in &mut out.findings[known..] {
            if let Some(text) = finding.strip_prefix(&format!("{location}: ")) {
                *finding = holder.finding(document, text);
            }
        }
    }
    if !touched {
        return None;
    }
    // Serialize the whole document only where the change cannot be spliced into its text.
    match splice::splice(document.text, &original, &value).map_or_else(|| yaml::to_string(&value), Ok) {
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

/// Returns a notice about comments that the new text lacks.
fn lost_comments(document: &Document<'_>, text: &str) -> Option<String> {
    let lost = splice::lost_comments(document.text, text);
    if lost.is_empty() {
        return None;
    }
    let shown: Vec<String> = lost.iter().take(3).map(|comment| format!("# {comment}")).collect();
    let number = lost.len();
    let more = if number > shown.len() { ", ..." } else { "" };
    Some(format!("weir: note: {document}: comments in changed parts are lost ({number}): {}{more}", shown.join(", ")))
}
