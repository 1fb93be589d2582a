//! Splits a text into YAML documents without changing them.

use std::fmt;
use std::ops::Range;

use serde_json::Value;
use weir_injector::yaml;

/// One document of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    /// Number in the stream, from 1, without empty documents.
    pub(crate) number: usize,
    /// Line of the stream, from 1, on which the document starts.
    pub(crate) line: usize,
    /// Position of the text in the stream, in bytes.
    pub(crate) start: usize,
    /// Text without the separators.
    pub(crate) text: &'a str,
}

/// A separator with content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: a line that starts with --- separates documents and can only have a comment, found {found:?}")]
pub(crate) struct StraySeparator {
    /// Line of the stream, from 1.
    line: usize,
    /// The line, cut to 80 characters.
    found: String,
}

/// Splits a stream at lines that start with `---`, and drops blank documents.
///
/// # Errors
/// Every separator with content other than a comment.
pub(crate) fn split(text: &str) -> Result<Vec<Document<'_>>, Vec<StraySeparator>> {
    let mut documents: Vec<Document<'_>> = Vec::new();
    let mut strays = Vec::new();
    let mut close = |line: usize, range: Range<usize>| {
        let document = &text[range.clone()];
        if !is_blank(document) {
            documents.push(Document { number: documents.len() + 1, line, start: range.start, text: document });
        }
    };
    // Start of the current document: byte offset and line.
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if let Some(rest) = line.strip_prefix("---") {
            let rest = rest.trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                strays.push(StraySeparator { line: index + 1, found: line.trim_end().chars().take(80).collect() });
            }
            close(start_line, start..offset);
            (start, start_line) = (offset + line.len(), index + 2);
        }
        offset += line.len();
    }
    close(start_line, start..text.len());
    if strays.is_empty() { Ok(documents) } else { Err(strays) }
}

/// A byte order mark counts as blank.
fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || c == '\u{feff}')
}

impl fmt::Display for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {} (line {})", self.number, self.line)
    }
}

impl<'a> Document<'a> {
    /// Wraps a text that is no part of a stream.
    pub(crate) fn alone(text: &'a str) -> Self {
        Self { number: 1, line: 1, start: 0, text }
    }

    /// Returns the line of the stream with this key of a map; `None` without it, or with several.
    pub(crate) fn line_of_key(&self, key: &str) -> Option<usize> {
        let is_key = |line: &str| {
            let unquoted = line.trim_start().trim_start_matches(['"', '\'']);
            let rest = unquoted.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'']).trim_start());
            rest.is_some_and(|rest| rest.starts_with(':'))
        };
        let mut lines =
            self.text.lines().enumerate().filter(|(_, line)| is_key(line)).map(|(index, _)| self.line + index);
        lines.next().filter(|_| lines.next().is_none())
    }

    /// Parses the document; `null` if it has only comments.
    ///
    /// # Errors
    /// It is neither JSON nor YAML; the message counts lines from the start of the stream.
    pub(crate) fn parse(&self) -> Result<Value, yaml::YamlError> {
        let text = self.text.trim_start_matches('\u{feff}');
        // JSON first: YAML lacks some of its escapes (`\/`, surrogate pairs).
        if text.trim_start().starts_with('{')
            && let Ok(value) = serde_json::from_str(text)
        {
            return Ok(value);
        }
        yaml::from_str(text).map_err(|error| {
            // Parsed again behind blank lines, for the line numbers of the stream.
            let padded = "\n".repeat(self.line - 1) + text;
            yaml::from_str(&padded).err().unwrap_or(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(stream: &str) -> Vec<(usize, usize, &str)> {
        split(stream).unwrap().into_iter().map(|d| (d.number, d.line, d.text)).collect()
    }

    #[test]
    fn documents_keep_their_text_and_line() {
        let stream = "# head\na: 1\r\n---\nb: |\n  ---\n  x\n--- # note\n\nc: 1";
        assert_eq!(texts(stream), [(1, 1, "# head\na: 1\r\n"), (2, 4, "b: |\n  ---\n  x\n"), (3, 8, "\nc: 1")]);
    }

    #[test]
    fn empty_documents_are_dropped_and_not_counted() {
        assert_eq!(texts("---\n---\n \n---\na: 1\n---\n---\n"), [(1, 5, "a: 1\n")]);
        assert_eq!(texts(""), []);
        assert_eq!(texts("\u{feff}---\r\na: 1\r\n"), [(1, 1, "\u{feff}---\r\na: 1\r\n")]);
    }

    #[test]
    fn separators_with_content_are_errors() {
        let errors = split("a: 1\n---x\nb: 1\n--- {c: 1}\n").unwrap_err();
        let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [2, 4]);
        assert!(errors[1].to_string().contains("found \"--- {c: 1}\""), "{}", errors[1]);
    }

    #[test]
    fn errors_count_lines_from_the_start_of_the_stream() {
        let stream = "a: 1\n---\nb: 2\nc: [1\nd: 2\n";
        let documents = split(stream).unwrap();
        let alone = yaml::from_str(documents[1].text).unwrap_err().to_string();
        let message = documents[1].parse().unwrap_err().to_string();
        assert_ne!(alone, message);
        assert!(message.contains("line 5") || message.contains("line 4"), "{message}");
    }

    #[test]
    fn json_escapes_are_parsed() {
        let document = Document::alone("{\"a\": \"\\/ \\ud83d\\ude00\"}\n");
        assert_eq!(document.parse().unwrap(), json!({"a": "/ 😀"}));
    }

    #[test]
    fn comments_alone_are_null() {
        let document = Document::alone("# nothing here\n");
        assert_eq!(document.parse().unwrap(), Value::Null);
    }
}
