//! Estimates the memory that a JSON text takes when it is parsed, without parsing it.
//!
//! `{"a":1},{"a":1},…` takes 60 times its length, a long string once: the number of values decides, not that of bytes.

/// Memory of a value: a map with one field takes most (measured: 250 bytes per separator).
const BYTES_PER_SEPARATOR: usize = 256;
/// Copies of the text: the body, its strings, the object and its patch.
const COPIES: usize = 4;
/// Separators of a review that is parsed. A pod may have 150,000 values (see the injector's limits), each of which has at most two of
/// them; the rest is for the review around the pod.
pub const MAX_SEPARATORS: usize = 2 * 150_000 + 20_000;

/// Size of a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonSize {
    bytes: usize,
    /// Commas and opening brackets outside of strings; there are at least half as many values.
    separators: usize,
}

impl JsonSize {
    /// Scans a text, which need not be valid.
    pub fn scan(text: &[u8]) -> Self {
        let (mut separators, mut in_string, mut is_escaped) = (0, false, false);
        for byte in text {
            if in_string {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' => is_escaped = true,
                    b'"' => in_string = false,
                    _ => {}
                }
            } else {
                in_string = *byte == b'"';
                separators += usize::from(matches!(byte, b',' | b'{' | b'['));
            }
        }
        Self { bytes: text.len(), separators }
    }

    /// Returns whether parsing would take too much memory.
    pub const fn is_excessive(self) -> bool {
        self.separators > MAX_SEPARATORS
    }

    /// Returns the memory that a decision about the text takes at most, in bytes; little if it is [excessive](Self::is_excessive),
    /// because it is not parsed then.
    pub const fn memory(self) -> usize {
        let values = if self.is_excessive() { 0 } else { self.separators * BYTES_PER_SEPARATOR };
        self.bytes * COPIES + values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_strings_do_not_count() {
        let size = JsonSize::scan(br#"{"a,\"[{":["x",{"b":1}],"c":"\\"}"#);
        assert_eq!((size.separators, size.is_excessive()), (5, false));
        assert!(JsonSize::scan(&b"{},".repeat(MAX_SEPARATORS / 2 + 1)).is_excessive());
        assert!(!JsonSize::scan(&vec![b'"'; 1 << 20]).is_excessive());
    }
}
