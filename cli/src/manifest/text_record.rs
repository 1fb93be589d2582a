//! Records in an injected document what its value does not tell about the original text.
//!
//! ```text
//! inject:    original ──▶ injected ──uninject──▶ almost the original ──lines that differ──▶ comment at the end of the document
//! uninject:  injected ──uninject──▶ almost the original ──these lines replaced──▶ exactly the original text
//! ```
//!
//! Additions are taken back line by line, so most documents need no record. Quotes, flow style and comments of parts that injection
//! rewrites do. A comment is the right place: it disappears where only the value goes on, as into the API server.

use std::ops::Range;

use serde_json::{Value, json};
use similar::{Algorithm, DiffOp, capture_diff_slices};

/// Start of the comment, at the first column.
const PREFIX: &str = "# weir.dev/original-text: ";

/// Lines of both texts up to which the smallest difference is searched; beyond, one hunk has everything between the first and the
/// last line that differ.
const SEARCH_MAX_LINES: usize = 20_000;

/// Adjacent lines that are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hunk {
    /// Number of the first line, from 0.
    line: usize,
    before: String,
    after: String,
}

/// The lines in which two texts differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextRecord(Vec<Hunk>);

impl TextRecord {
    /// Compares two texts.
    pub(crate) fn between(from: &str, to: &str) -> Self {
        let (old, new) = (lines(from), lines(to));
        let hunk = |(old_range, new_range): (Range<usize>, Range<usize>)| Hunk {
            line: old_range.start,
            before: old[old_range].concat(),
            after: new[new_range].concat(),
        };
        if old.len() + new.len() > SEARCH_MAX_LINES {
            let common = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| pairs.take_while(|(a, b)| a == b).count();
            let head = common(&mut old.iter().zip(&new));
            let tail = common(&mut old[head..].iter().rev().zip(new[head..].iter().rev()));
            return Self(vec![hunk((head..old.len() - tail, head..new.len() - tail))]);
        }
        // Only the lengths are used: positions of insertions are off after the library has shifted them.
        let (mut hunks, mut at) = (Vec::new(), (0, 0));
        for operation in capture_diff_slices(Algorithm::Myers, &old, &new) {
            let end = (at.0 + operation.old_range().len(), at.1 + operation.new_range().len());
            if !matches!(operation, DiffOp::Equal { .. }) {
                hunks.push(hunk((at.0..end.0, at.1..end.1)));
            }
            at = end;
        }
        Self(hunks)
    }

    /// Replaces the lines; `None` if the text is not the one that was compared.
    pub(crate) fn apply(&self, text: &str) -> Option<String> {
        let old = lines(text);
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        for Hunk { line, before, after } in &self.0 {
            let end = line.checked_add(lines(before).len())?;
            if old.get(*line..end)?.concat() != *before {
                return None;
            }
            out.push_str(&old.get(at..*line)?.concat());
            out.push_str(after);
            at = end;
        }
        out.push_str(&old.get(at..)?.concat());
        Some(out)
    }

    /// Appends the record to a document.
    pub(crate) fn append_to(&self, document: &str) -> String {
        let hunks: Vec<Value> = self.0.iter().map(|hunk| json!([hunk.line, hunk.before, hunk.after])).collect();
        let comment = format!("{PREFIX}{}", Value::from(hunks));
        if document.ends_with('\n') { format!("{document}{comment}\n") } else { format!("{document}\n{comment}") }
    }

    /// Names the lines of the second text, where its document starts at this line of a stream: `line 3, lines 7-9`.
    pub(crate) fn lines_of_result(&self, document_line: usize) -> String {
        let (mut removed, mut inserted) = (0, 0);
        let name = |hunk: &Hunk| {
            let first = document_line + hunk.line + inserted - removed;
            let added = lines(&hunk.after).len();
            (removed, inserted) = (removed + lines(&hunk.before).len(), inserted + added);
            if added < 2 { format!("line {first}") } else { format!("lines {first}-{}", first + added - 1) }
        };
        self.0.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// Splits a document into its text and its record.
    pub(crate) fn split(document: &str) -> (String, Option<Self>) {
        let mut at = 0;
        let mut found = None;
        for line in document.split_inclusive('\n') {
            if let Some(record) = line.strip_prefix(PREFIX).and_then(Self::parse) {
                found = Some((at..at + line.len(), record));
            }
            at += line.len();
        }
        let Some((range, record)) = found else { return (document.to_owned(), None) };
        let ends_line = document[range.clone()].ends_with('\n');
        let head = &document[..range.start];
        let head = if ends_line { head } else { head.strip_suffix('\n').unwrap_or(head) };
        (format!("{head}{}", &document[range.end..]), Some(record))
    }

    fn parse(text: &str) -> Option<Self> {
        let hunks: Vec<(usize, String, String)> = serde_json::from_str(text).ok()?;
        Some(Self(hunks.into_iter().map(|(line, before, after)| Hunk { line, before, after }).collect()))
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn record_turns_one_text_into_the_other(from in "[ab\n\r]{0,40}", to in "[ab\n\r]{0,40}") {
            let record = TextRecord::between(&from, &to);
            prop_assert_eq!(record.apply(&from), Some(to));
            let (text, read) = TextRecord::split(&record.append_to(&from));
            prop_assert_eq!((text, read), (from, Some(record)));
        }
    }

    #[test]
    fn only_lines_that_differ_are_recorded() {
        let record = TextRecord::between("a\nb\nc\nd\n", "a\nB\nc\nD\n");
        assert_eq!(record.append_to("x"), "x\n# weir.dev/original-text: [[1,\"b\\n\",\"B\\n\"],[3,\"d\\n\",\"D\\n\"]]");
        assert_eq!(record.apply("a\nx\nc\nd\n"), None, "edited since");
        assert_eq!(record.apply("a\nb\n"), None);
    }

    #[test]
    fn long_texts_have_one_hunk() {
        let text = |middle: &str| format!("{}{middle}{}", "a\n".repeat(15_000), "b\n".repeat(15_000));
        let record = TextRecord::between(&text("x\n"), &text("y\nz\n"));
        assert_eq!(record.0, [Hunk { line: 15_000, before: "x\n".to_owned(), after: "y\nz\n".to_owned() }]);
    }

    #[test]
    fn invalid_record_is_a_comment() {
        let text = "a: 1\n# weir.dev/original-text: [[-1]]\n";
        assert_eq!(TextRecord::split(text), (text.to_owned(), None));
    }
}
