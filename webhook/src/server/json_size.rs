//! Estimates the memory that the decision about a JSON text takes, without parsing it.
//!
//! Small values take many times their length, a long string little more than once: the number of values decides, not that of bytes.
//! `webhook/tests/it/review_memory.rs` measures pods of all shapes, and compares.

/// Memory of a value in all trees that a decision holds at the same time: the review's, that without an earlier injection, the result, and
/// what of it the records give back. Each takes up to 130 bytes for a value.
const BYTES_PER_SEPARATOR: usize = 560;
/// Memory of a value in a JSON text that is a string of the pod: it is parsed more than once.
const BYTES_PER_QUOTED_SEPARATOR: usize = 900;
/// Copies of the text at the same time: the body, and the strings in each tree; or the patch and the response.
const COPIES: usize = 7;
/// Memory of a decision whatever the text: the templates and what they write.
const BASE: usize = 1 << 20;
/// Separators of a review that is parsed. A pod may have 50,000 values (see the injector's limits), each of which has at most two of
/// them.
pub const MAX_SEPARATORS: usize = 2 * 50_000;
/// Separators in strings that count: annotations and variables that are JSON themselves are limited, too.
const MAX_QUOTED_SEPARATORS: usize = 30_000;

/// Size of a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonSize {
    bytes: usize,
    /// Commas and opening brackets outside of strings; there are at least half as many values.
    separators: usize,
    /// The same in strings.
    quoted: usize,
}

impl JsonSize {
    /// Scans a text, which need not be valid.
    pub fn scan(text: &[u8]) -> Self {
        let (mut separators, mut quoted, mut in_string, mut is_escaped) = (0, 0, false, false);
        for byte in text {
            let is_separator = matches!(byte, b',' | b'{' | b'[');
            if in_string {
                quoted += usize::from(is_separator);
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' => is_escaped = true,
                    b'"' => in_string = false,
                    _ => {}
                }
            } else {
                in_string = *byte == b'"';
                separators += usize::from(is_separator);
            }
        }
        Self { bytes: text.len(), separators, quoted }
    }

    /// Returns whether parsing would take too much memory.
    pub const fn is_excessive(self) -> bool {
        self.separators > MAX_SEPARATORS
    }

    /// Returns the memory that a decision about the text takes at most, with the text itself, in bytes; little if it is
    /// [excessive](Self::is_excessive), because it is not parsed then.
    pub const fn memory(self) -> usize {
        if self.is_excessive() {
            return self.bytes * 2;
        }
        let quoted = if self.quoted < MAX_QUOTED_SEPARATORS { self.quoted } else { MAX_QUOTED_SEPARATORS };
        let values = self.separators * BYTES_PER_SEPARATOR + quoted * BYTES_PER_QUOTED_SEPARATOR;
        BASE + self.bytes * COPIES + values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_strings_do_not_count() {
        let size = JsonSize::scan(br#"{"a,\"[{":["x",{"b":1}],"c":"\\"}"#);
        assert_eq!((size.separators, size.quoted, size.is_excessive()), (5, 3, false));
        assert!(JsonSize::scan(&b"{},".repeat(MAX_SEPARATORS / 2 + 1)).is_excessive());
        assert!(!JsonSize::scan(&vec![b'"'; 1 << 20]).is_excessive());
    }
}
