//! Changes the pods of a stream; text that does not change stays byte for byte.
//!
//! ```text
//! text ──stream──▶ documents ──pods──▶ pods ──change──▶ changed pods
//!                      │ untouched: byte for byte           │ touched: splice, else serialized; finish
//!                      └──────────────▶ text ◀──────────────┘
//! ```

use std::process::ExitCode;

use serde_json::Value;
use weir_injector::yaml;

use super::pods::{self, PodHolder};
use super::stream::{self, Document};
use super::text_record::TextRecord;
use crate::failure::Failure;
use crate::files::{self, OutputFileArgs};
use crate::splice;

/// A stream with changed pods.
#[derive(Debug, Default)]
pub(crate) struct RewrittenStream {
    /// The stream; what does not change is byte for byte that of the input.
    pub(crate) text: String,
    /// Lines for standard error.
    pub(crate) notices: Vec<String>,
    /// Errors; the text is incomplete if there are any.
    pub(crate) findings: Vec<String>,
}

/// Prints the notices of all streams, by the names of their inputs, and writes them as one if there are no findings.
///
/// # Errors
/// There are findings, or the output cannot be written.
pub(crate) fn write(streams: &[(String, RewrittenStream)], output: &OutputFileArgs) -> Result<ExitCode, Failure> {
    streams.iter().flat_map(|(_, stream)| &stream.notices).for_each(|notice| eprintln!("{notice}"));
    let in_input = |(name, stream): &(String, RewrittenStream)| {
        stream.findings.iter().map(|finding| format!("{name}: {finding}")).collect::<Vec<_>>()
    };
    let findings: Vec<String> = streams.iter().flat_map(in_input).collect();
    if !findings.is_empty() {
        return Err(Failure::findings(findings));
    }
    files::write(output.target()?, &join(streams.iter().map(|(_, stream)| stream.text.as_str())))?;
    Ok(ExitCode::SUCCESS)
}

/// Joins streams, with separators where there are none. A single one stays as it is.
fn join<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut joined = String::new();
    for text in texts {
        if !joined.is_empty() {
            if !joined.ends_with('\n') {
                joined.push('\n');
            }
            if !text.starts_with("---") {
                joined.push_str("---\n");
            }
        }
        joined.push_str(text);
    }
    joined
}

/// Changes one pod, with its location for messages; returns whether it replaced the pod.
pub(crate) trait Change: FnMut(&mut PodHolder<'_>, &str, &mut RewrittenStream) -> bool {}

impl<F: FnMut(&mut PodHolder<'_>, &str, &mut RewrittenStream) -> bool> Change for F {}

/// A document whose pods have changed.
pub(crate) struct EditedDocument {
    /// The new text, without record.
    pub(crate) text: String,
    /// The value that the new text has.
    pub(crate) value: Value,
    /// The value before.
    pub(crate) original: Value,
    /// Record of the text before.
    pub(crate) record: Option<TextRecord>,
}

/// Changes every pod of a stream. `finish` makes the new text of a document out of the edited one.
pub(crate) fn rewrite(
    text: &str,
    mut change: impl Change,
    finish: impl Fn(&Document<'_>, EditedDocument, &mut RewrittenStream) -> String,
) -> RewrittenStream {
    let mut out = RewrittenStream::default();
    let documents = match stream::split(text) {
        Ok(documents) => documents,
        Err(strays) => {
            out.findings.extend(strays.iter().map(ToString::to_string));
            return out;
        }
    };
    let mut at = 0;
    for document in documents {
        let Some(edited) = edit_document(&document, &mut change, &mut out) else { continue };
        let finished = finish(&document, edited, &mut out);
        out.text.push_str(&text[at..document.start]);
        out.text.push_str(&finished);
        at = document.start + document.text.len();
    }
    out.text.push_str(&text[at..]);
    out
}

/// Changes the pods of a document; `None` if nothing changes, or the document is invalid.
fn edit_document(document: &Document<'_>, change: impl Change, out: &mut RewrittenStream) -> Option<EditedDocument> {
    match document.parse() {
        Ok(value) => edit_parsed(document, value, change, out),
        Err(error) => {
            out.findings.push(format!("{document}: {error}"));
            None
        }
    }
}

/// Edits a document whose value is known, see [`edit_document`].
pub(crate) fn edit_parsed(
    document: &Document<'_>,
    mut value: Value,
    mut change: impl Change,
    out: &mut RewrittenStream,
) -> Option<EditedDocument> {
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
    let (before, record) = TextRecord::split(document.text);
    // Serialize the whole document only where the change cannot be spliced into its text.
    let spliced = splice::splice(&before, &original, &value);
    match spliced.map_or_else(|| yaml::to_string(&value).map(|text| (text, value)), Ok) {
        Ok((text, value)) => {
            out.notices.extend(lost_comments(document, &before, &text));
            Some(EditedDocument { text, value, original, record })
        }
        Err(error) => {
            out.findings.push(format!("{document}: {error:#}"));
            None
        }
    }
}

/// Returns a notice about comments that the new text lacks.
fn lost_comments(document: &Document<'_>, before: &str, after: &str) -> Option<String> {
    let lost = splice::lost_comments(before, after);
    if lost.is_empty() {
        return None;
    }
    let shown: Vec<String> = lost.iter().take(3).map(|comment| format!("# {comment}")).collect();
    let number = lost.len();
    let more = if number > shown.len() { ", ..." } else { "" };
    Some(format!("weir: note: {document}: comments in changed parts are lost ({number}): {}{more}", shown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_joined_by_separators() {
        assert_eq!(join(["a: 1"]), "a: 1");
        assert_eq!(join(["a: 1", "---\nb: 1\n", "# c\nc: 1\n"]), "a: 1\n---\nb: 1\n---\n# c\nc: 1\n");
    }
}
