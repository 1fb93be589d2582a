//! Splits the text of a list into its items, and that of a watch into its lines, as it arrives. No more than one item is in memory, and of
//! an item beyond the limit nothing.

/// Bytes of a list outside of its items: kind, resource version, continue token.
const MAX_ENVELOPE: usize = 64 << 10;
/// Keys of a list are shorter.
const MAX_KEY: usize = 16;

/// An item of a list, or a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Its text.
    Text(Vec<u8>),
    /// It was longer than the limit: so many bytes.
    Oversized(usize),
}

/// Error of a text that is not a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotAList;

/// Collects one piece at a time.
#[derive(Debug)]
struct Collector {
    max: usize,
    text: Vec<u8>,
    bytes: usize,
}

impl Collector {
    fn new(max: usize) -> Self {
        Self { max, text: Vec::new(), bytes: 0 }
    }

    fn extend(&mut self, part: &[u8]) {
        self.bytes += part.len();
        if self.bytes <= self.max {
            self.text.extend_from_slice(part);
        } else {
            self.text = Vec::new();
        }
    }

    fn take(&mut self) -> Piece {
        let (text, bytes) = (std::mem::take(&mut self.text), std::mem::take(&mut self.bytes));
        if bytes <= self.max { Piece::Text(text) } else { Piece::Oversized(bytes) }
    }
}

/// Splits `{"metadata": {...}, "items": [{...}, ...]}`.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the state of a scanner that takes one byte at a time")]
pub(super) struct ListSplitter {
    item: Collector,
    in_item: bool,
    in_items: bool,
    envelope: Vec<u8>,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// The last string of the outermost object, which is the key if a colon follows.
    key: Vec<u8>,
    /// Whether the value of `items` is next.
    items_next: bool,
}

impl ListSplitter {
    /// Collects items of at most `max_item` bytes.
    pub(super) fn new(max_item: usize) -> Self {
        Self {
            item: Collector::new(max_item),
            in_item: false,
            in_items: false,
            envelope: Vec::new(),
            depth: 0,
            in_string: false,
            is_escaped: false,
            key: Vec::new(),
            items_next: false,
        }
    }

    /// Reads the next part of the text, and calls `emit` for each item that ends in it.
    ///
    /// # Errors
    /// What is outside of the items is too long.
    pub(super) fn push(&mut self, part: &[u8], mut emit: impl FnMut(Piece)) -> Result<(), NotAList> {
        let mut item_from = 0;
        for (index, &byte) in part.iter().enumerate() {
            let was_in_items = self.in_items;
            if !self.in_item && self.in_items && byte == b'{' {
                (self.in_item, item_from) = (true, index);
            }
            self.scan(byte);
            if self.in_item {
                if self.depth == 2 && !self.in_string {
                    self.in_item = false;
                    self.item.extend(&part[item_from..=index]);
                    emit(self.item.take());
                }
            } else if !(was_in_items && self.in_items) {
                self.envelope.push(byte);
            }
        }
        if self.in_item {
            self.item.extend(&part[item_from..]);
        }
        if self.envelope.len() > MAX_ENVELOPE { Err(NotAList) } else { Ok(()) }
    }

    /// Follows strings, depth, and the key of the outermost object.
    fn scan(&mut self, byte: u8) {
        if self.in_string {
            if self.is_escaped {
                self.is_escaped = false;
            } else if byte == b'\\' {
                self.is_escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
                return;
            }
            if self.depth == 1 && self.key.len() < MAX_KEY {
                self.key.push(byte);
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 {
                    self.key.clear();
                }
            }
            b'{' | b'[' => {
                self.depth += 1;
                self.in_items |= byte == b'[' && self.depth == 2 && std::mem::take(&mut self.items_next);
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.in_items &= self.depth > 1;
            }
            b':' if self.depth == 1 => self.items_next = self.key == b"items",
            b',' if self.depth == 1 => self.items_next = false,
            _ => {}
        }
    }

    /// Returns the text without its items.
    pub(super) fn into_envelope(self) -> Vec<u8> {
        self.envelope
    }
}

/// Splits a text into lines.
#[derive(Debug)]
pub(super) struct LineSplitter {
    line: Collector,
}

impl LineSplitter {
    /// Collects lines of at most `max_line` bytes.
    pub(super) fn new(max_line: usize) -> Self {
        Self { line: Collector::new(max_line) }
    }

    /// Reads the next part of the text, and returns the lines that end in it.
    pub(super) fn push(&mut self, part: &[u8]) -> Vec<Piece> {
        let mut lines = Vec::new();
        let mut rest = part;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend(&rest[..end]);
            lines.push(self.line.take());
            rest = &rest[end + 1..];
        }
        self.line.extend(rest);
        lines
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn split(text: &str, max: usize, chunk: usize) -> (Vec<Piece>, String) {
        let (mut splitter, mut items) = (ListSplitter::new(max), Vec::new());
        for part in text.as_bytes().chunks(chunk) {
            splitter.push(part, |item| items.push(item)).unwrap();
        }
        (items, String::from_utf8(splitter.into_envelope()).unwrap())
    }

    #[test]
    fn items_are_split_wherever_chunks_end() {
        let items = [json!({"a": "]}\\\"{", "items": [{"x": [1]}]}), json!({}), json!({"metadata": {"name": "}"}})];
        let list =
            json!({"kind": "items", "metadata": {"items": [{"b": 1}], "continue": "c"}, "items": items, "z": "items"});
        for text in [list.to_string(), serde_json::to_string_pretty(&list).unwrap()] {
            for chunk in [1, 2, 7, 1000] {
                let (found, envelope) = split(&text, 1000, chunk);
                let parse = |piece: &Piece| match piece {
                    Piece::Text(text) => serde_json::from_slice::<Value>(text).unwrap(),
                    Piece::Oversized(bytes) => panic!("{bytes}"),
                };
                assert_eq!(found.iter().map(parse).collect::<Vec<_>>(), items);
                let envelope: Value = serde_json::from_str(&envelope).unwrap();
                assert_eq!((&envelope["metadata"]["continue"], &envelope["items"]), (&json!("c"), &json!([])));
            }
        }
    }

    #[test]
    fn oversized_items_are_not_kept() {
        let big = "x".repeat(500);
        let text = json!({"items": [{"a": 1}, {"a": big}, {"a": 2}]}).to_string();
        let (found, _) = split(&text, 100, 64);
        assert_eq!(found[1], Piece::Oversized(508));
        assert!(matches!((&found[0], &found[2]), (Piece::Text(_), Piece::Text(_))));
        let not_a_list = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_ENVELOPE));
        assert_eq!(ListSplitter::new(10).push(not_a_list.as_bytes(), |_| ()), Err(NotAList));
    }

    #[test]
    fn lines_beyond_the_limit_are_skipped() {
        let mut splitter = LineSplitter::new(4);
        assert_eq!(splitter.push(b"ab"), []);
        assert_eq!(splitter.push(b"cd\n12345"), [Piece::Text(b"abcd".to_vec())]);
        assert_eq!(splitter.push(b"6\nx\n"), [Piece::Oversized(6), Piece::Text(b"x".to_vec())]);
    }
}
