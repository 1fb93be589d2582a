//! Parses the YAML that templates render, which is simple and large: several times faster than the full parser.
//!
//! The parser knows block mappings and sequences, flow collections, quoted and plain scalars of one line, and literal blocks. At
//! anything else, also where the full parser may find an error, it gives up. What it accepts it parses as [`crate::yaml`] does.

use serde_json::{Map, Value};

/// Maximum nesting of collections; the full parser has a limit of its own.
const MAX_DEPTH: usize = 60;

/// Parses one document; `None` if it needs the full parser.
pub(super) fn parse(text: &str) -> Option<Value> {
    if !text.ends_with('\n') || text.contains(['\t', '\r', '\0', '\u{feff}', '\u{85}', '\u{2028}', '\u{2029}']) {
        return None;
    }
    let mut parser = Parser { lines: text.lines().map(Line::new).collect(), at: 0 };
    let Some(first) = parser.peek() else { return Some(Value::Null) };
    let value = parser.node(first.indent, 0)?;
    parser.peek().is_none().then_some(value)
}

#[derive(Clone, Copy)]
struct Line<'a> {
    /// The whole line.
    raw: &'a str,
    /// Column of the content; for the first key of a mapping in a sequence, that of the key.
    indent: usize,
    content: &'a str,
}

impl<'a> Line<'a> {
    fn new(raw: &'a str) -> Self {
        let content = raw.trim_start_matches(' ');
        Self { raw, indent: raw.len() - content.len(), content: content.trim_end_matches(' ') }
    }

    fn is_item(self) -> bool {
        self.content == "-" || self.content.starts_with("- ")
    }
}

struct Parser<'a> {
    lines: Vec<Line<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// Returns the next line that is neither blank nor a comment.
    fn peek(&mut self) -> Option<Line<'a>> {
        while let Some(line) = self.lines.get(self.at) {
            if !line.content.is_empty() && !line.content.starts_with('#') {
                return Some(*line);
            }
            self.at += 1;
        }
        None
    }

    /// Parses the collection that starts at the next line, with its column.
    fn node(&mut self, indent: usize, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        if self.peek()?.is_item() { self.sequence(indent, depth) } else { self.mapping(indent, depth) }
    }

    fn mapping(&mut self, indent: usize, depth: usize) -> Option<Value> {
        let mut fields = Map::new();
        while let Some(line) = self.peek() {
            if line.indent < indent || (line.indent == indent && line.is_item()) {
                break;
            }
            if line.indent > indent || is_marker(line) {
                return None;
            }
            let (key, rest) = split_key(line.content)?;
            self.at += 1;
            let value = match rest {
                "" => match self.peek() {
                    Some(next) if next.indent > indent => self.node(next.indent, depth + 1)?,
                    Some(next) if next.indent == indent && next.is_item() => self.sequence(indent, depth + 1)?,
                    _ => Value::Null,
                },
                "|" => self.literal(indent, true)?,
                "|-" => self.literal(indent, false)?,
                rest => self.inline(rest, indent, depth)?,
            };
            // Of equal keys the last wins, which the full parser knows.
            if fields.insert(key.to_owned(), value).is_some() {
                return None;
            }
        }
        Some(Value::Object(fields))
    }

    fn sequence(&mut self, indent: usize, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        while let Some(line) = self.peek() {
            if line.indent < indent || (line.indent == indent && !line.is_item()) {
                break;
            }
            if line.indent > indent || is_marker(line) {
                return None;
            }
            let rest = line.content[1..].trim_start_matches(' ');
            let item = if rest.is_empty() || rest.starts_with('#') {
                self.at += 1;
                match self.peek() {
                    Some(next) if next.indent > indent => self.node(next.indent, depth + 1)?,
                    _ => Value::Null,
                }
            } else if rest == "-" || rest.starts_with("- ") || split_key(rest).is_some() {
                let column = indent + line.content.len() - rest.len();
                self.lines[self.at] = Line { raw: line.raw, indent: column, content: rest };
                self.node(column, depth + 1)?
            } else {
                self.at += 1;
                self.inline(rest, indent, depth)?
            };
            items.push(item);
        }
        Some(Value::Array(items))
    }

    /// Parses a value that starts on the line before the next one. `indent` is that of its collection.
    fn inline(&mut self, text: &'a str, indent: usize, depth: usize) -> Option<Value> {
        let value = match text.as_bytes()[0] {
            b'{' | b'[' => return self.flow(text, indent, depth),
            b'"' | b'\'' => {
                let (text, rest) = quoted(text)?;
                if !is_comment(rest) {
                    return None;
                }
                Value::String(text)
            }
            _ => {
                let plain = text.find(" #").map_or(text, |comment| text[..comment].trim_end());
                if plain.contains(": ") || plain.ends_with(':') {
                    return None;
                }
                scalar(plain)?
            }
        };
        // A deeper line would continue a scalar.
        if self.peek().is_some_and(|next| next.indent > indent) { None } else { Some(value) }
    }

    /// Parses a collection in braces or brackets, which may take several lines.
    fn flow(&mut self, text: &'a str, indent: usize, depth: usize) -> Option<Value> {
        let mut flow = Flow { parser: self, rest: text, indent };
        let value = flow.value(depth)?;
        let rest = flow.rest;
        if !is_comment(rest) || self.peek().is_some_and(|next| next.indent > indent) {
            return None;
        }
        Some(value)
    }

    /// Parses the lines of a literal block; `newline` is whether it ends with one.
    fn literal(&mut self, indent: usize, newline: bool) -> Option<Value> {
        let is_blank = |line: &Line<'_>| line.raw.trim_start_matches(' ').is_empty();
        let first = self.lines[self.at..].iter().find(|line| !is_blank(line));
        let block = match first {
            Some(first) => first.raw.len() - first.raw.trim_start_matches(' ').len(),
            None => return None,
        };
        if block <= indent {
            return None;
        }
        let (mut text, mut blank_lines) = (String::new(), 0);
        while let Some(line) = self.lines.get(self.at) {
            if is_blank(line) {
                // Spaces beyond the indentation are content, or an error before the first line.
                if line.raw.len() > block {
                    return None;
                }
                blank_lines += 1;
            } else {
                if line.indent < block {
                    break;
                }
                text.extend(std::iter::repeat_n('\n', std::mem::take(&mut blank_lines)));
                text.push_str(&line.raw[block..]);
                text.push('\n');
            }
            self.at += 1;
        }
        if !newline {
            text.pop();
        }
        Some(Value::String(text))
    }
}

/// A flow collection; `rest` is what is left of the current line.
struct Flow<'a, 'p> {
    parser: &'p mut Parser<'a>,
    rest: &'a str,
    indent: usize,
}

impl Flow<'_, '_> {
    /// Returns the next character that is not white space or a comment, on this or a later line.
    fn skip(&mut self) -> Option<u8> {
        loop {
            let trimmed = self.rest.trim_start_matches(' ');
            let is_comment = trimmed.starts_with('#');
            if is_comment && trimmed.len() == self.rest.len() {
                return None;
            }
            if !trimmed.is_empty() && !is_comment {
                self.rest = trimmed;
                return Some(trimmed.as_bytes()[0]);
            }
            let next = self.parser.peek()?;
            if next.indent < self.indent || is_marker(next) {
                return None;
            }
            self.parser.at += 1;
            self.rest = next.content;
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.skip()? {
            b'{' => self.map(depth + 1),
            b'[' => self.list(depth + 1),
            b'"' | b'\'' => self.quoted().map(Value::String),
            _ => {
                let end = self.rest.find([',', ']', '}', '[', '{', '#', ':']).unwrap_or(self.rest.len());
                let ends_value = end == self.rest.len() || matches!(self.rest.as_bytes()[end], b',' | b']' | b'}');
                let plain = self.rest[..end].trim_end();
                self.rest = &self.rest[end..];
                // It may go on in the next line, which the check after it finds.
                if ends_value { scalar(plain) } else { None }
            }
        }
    }

    fn quoted(&mut self) -> Option<String> {
        let (text, rest) = quoted(self.rest)?;
        self.rest = rest;
        Some(text)
    }

    fn map(&mut self, depth: usize) -> Option<Value> {
        let mut fields = Map::new();
        self.rest = &self.rest[1..];
        loop {
            let key = match self.skip()? {
                b'}' => break,
                b'"' => {
                    let key = self.quoted()?;
                    self.rest = self.rest.strip_prefix(':')?;
                    key
                }
                _ => {
                    let (key, rest) = self.rest.split_once(':')?;
                    if !is_plain_key(key) || !(rest.is_empty() || rest.starts_with(' ')) {
                        return None;
                    }
                    self.rest = rest;
                    key.to_owned()
                }
            };
            if matches!(self.skip()?, b',' | b'}') {
                return None;
            }
            let value = self.value(depth)?;
            if fields.insert(key, value).is_some() {
                return None;
            }
            if !self.separator(b'}')? {
                break;
            }
        }
        self.rest = &self.rest[1..];
        Some(Value::Object(fields))
    }

    fn list(&mut self, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        self.rest = &self.rest[1..];
        loop {
            match self.skip()? {
                b']' => break,
                b',' => return None,
                _ => items.push(self.value(depth)?),
            }
            if !self.separator(b']')? {
                break;
            }
        }
        self.rest = &self.rest[1..];
        Some(Value::Array(items))
    }

    /// Reads a comma and returns true, or stays before the end of the collection and returns false.
    fn separator(&mut self, end: u8) -> Option<bool> {
        match self.skip()? {
            b',' => {
                self.rest = &self.rest[1..];
                Some(true)
            }
            other => (other == end).then_some(false),
        }
    }
}

/// Returns whether the line may be a marker of a document, or a directive.
fn is_marker(line: Line<'_>) -> bool {
    line.indent == 0 && (line.raw.starts_with("---") || line.raw.starts_with("...") || line.raw.starts_with('%'))
}

fn is_comment(rest: &str) -> bool {
    rest.is_empty() || rest.trim_start().is_empty() || (rest.starts_with(' ') && rest.trim_start().starts_with('#'))
}

/// Splits a line into a key and its value without a comment before it.
fn split_key(content: &str) -> Option<(&str, &str)> {
    let (key, rest) = content.split_once(':')?;
    let value = rest.trim_start_matches(' ');
    let separated = rest.is_empty() || value.len() < rest.len();
    let value = if value.starts_with('#') { "" } else { value };
    (separated && is_plain_key(key)).then_some((key, value))
}

/// Returns whether the text is a string that can be a key without quotes.
fn is_plain_key(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'_' | b'-'))
        && !is_special_word(key)
}

/// Returns whether the text is a word that YAML 1.1 or 1.2 takes for another type.
fn is_special_word(text: &str) -> bool {
    const WORDS: [&str; 11] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    text.len() <= 5 && WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Parses a string in quotes; returns what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next()?;
    let mut out = String::new();
    let mut rest = &text[1..];
    loop {
        let at = rest.find([quote, '\\'])?;
        out.push_str(&rest[..at]);
        let (found, after) = (rest.as_bytes()[at], &rest[at + 1..]);
        rest = after;
        match (quote, found) {
            ('\'', b'\\') => out.push('\\'),
            ('\'', _) => match after.strip_prefix('\'') {
                Some(after) => {
                    out.push('\'');
                    rest = after;
                }
                None => return Some((out, after)),
            },
            (_, b'\\') => {
                out.push(match after.as_bytes().first()? {
                    b'"' => '"',
                    b'\\' => '\\',
                    b'n' => '\n',
                    b't' => '\t',
                    _ => return None,
                });
                rest = &after[1..];
            }
            _ => return Some((out, after)),
        }
    }
}

/// Parses a plain scalar; `None` if its type is not obvious.
fn scalar(text: &str) -> Option<Value> {
    let bytes = text.as_bytes();
    let is_string = match bytes.first()? {
        b'0'..=b'9' => {
            if bytes.iter().all(u8::is_ascii_digit) {
                let is_decimal = bytes.len() <= 18 && (bytes[0] != b'0' || bytes.len() == 1);
                return is_decimal.then(|| text.parse::<u64>().ok().map(Value::from))?;
            }
            // None of the characters of numbers and times.
            bytes.iter().any(|byte| {
                !byte.is_ascii_hexdigit()
                    && !matches!(byte, b'x' | b'X' | b'o' | b'O' | b'_' | b'.' | b'+' | b'-' | b':')
            })
        }
        b'-' => bytes.get(1).is_some_and(|second| second.is_ascii_alphabetic() || *second == b'-'),
        b'a'..=b'z' | b'A'..=b'Z' if is_special_word(text) => {
            return match text {
                "true" => Some(Value::Bool(true)),
                "false" => Some(Value::Bool(false)),
                "null" => Some(Value::Null),
                _ => None,
            };
        }
        b'a'..=b'z' | b'A'..=b'Z' | b'/' | b'$' | b'_' => true,
        _ => false,
    };
    is_string.then(|| Value::from(text))
}

#[cfg(test)]
mod tests;
