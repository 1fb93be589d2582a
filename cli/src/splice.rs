//! Edits a YAML text so that unchanged parts keep their text and comments.
//!
//! ```text
//! text ──tree──▶ spans of every block mapping and sequence ──┐
//! value before ─▶ differences ◀─ value after                 ├─▶ edits ──▶ text, parsed again: exactly the value after
//!                      └─────────────────────────────────────┘
//! ```
//!
//! A flow collection (`{a: 1}`) that changes is rewritten as a block. A part that cannot be edited is rewritten with the smallest
//! collection around it.

mod tree;

use std::ops::Range;

use serde_json::{Map, Value};
use weir_injector::yaml;

use tree::{Entry, Node, Shape};

/// A part that cannot be edited in place.
struct NotEditable;

/// Returns the text with the new value, and the value as it is parsed from there; `None` if the text cannot be edited, or would not
/// parse as the new value.
pub(crate) fn splice(text: &str, old: &Value, new: &Value) -> Option<(String, Value)> {
    let root = tree::read(text)?;
    let (Shape::Map(entries), Value::Object(old), Value::Object(after)) = (&root.shape, old, new) else { return None };
    let mut splicer = Splicer { text, edits: Vec::new() };
    splicer.map(entries, old, after).ok()?;
    let edited = splicer.apply();
    let parsed = yaml::from_str(&edited).ok().filter(|parsed| parsed == new)?;
    Some((edited, parsed))
}

/// Returns the comments of a text that another one lacks; none for invalid YAML.
pub(crate) fn lost_comments(before: &str, after: &str) -> Vec<String> {
    if !before.contains('#') {
        return Vec::new();
    }
    let mut left = tree::comments(after);
    let missing = |comment: &String| match left.iter().position(|kept| kept == comment) {
        Some(index) => {
            left.swap_remove(index);
            false
        }
        None => true,
    };
    tree::comments(before).into_iter().filter(missing).collect()
}

struct Splicer<'a> {
    text: &'a str,
    /// Replacements by byte range; insertions at the same position stay in their order.
    edits: Vec<(Range<usize>, String)>,
}

impl Splicer<'_> {
    fn map(
        &mut self,
        entries: &[Entry],
        old: &Map<String, Value>,
        new: &Map<String, Value>,
    ) -> Result<(), NotEditable> {
        let has_unique_name = |entry: &Entry| entries.iter().filter(|other| other.name == entry.name).count() == 1;
        if old.len() != entries.len()
            || !entries.iter().all(|entry| has_unique_name(entry) && old.contains_key(&entry.name))
        {
            return Err(NotEditable);
        }
        if !old.keys().any(|name| new.contains_key(name)) {
            return Err(NotEditable);
        }
        for entry in entries {
            match (old.get(&entry.name), new.get(&entry.name)) {
                (Some(before), Some(after)) if before == after => {}
                (Some(before), Some(after)) => self.entry(entry, before, after)?,
                _ => self.delete(entry.start, entry.value.span.end)?,
            }
        }
        let mut previous: Option<&Entry> = None;
        for (name, value) in new {
            if let Some(entry) = entries.iter().find(|entry| entry.name == *name) {
                previous = Some(entry);
                continue;
            }
            let written = written(&Value::Object(Map::from_iter([(name.clone(), value.clone())])))?;
            let first = entries.first().ok_or(NotEditable)?;
            let column = self.column(first.start);
            match previous {
                Some(entry) => self.insert(self.line_end(entry.value.span.end), &written, column),
                None if self.begins_line(first.start) => self.insert(self.above(first.start), &written, column),
                // An item's dash leaves no room before its first field.
                None => self.insert(self.line_end(first.value.span.end), &written, column),
            }
        }
        Ok(())
    }

    fn list(&mut self, items: &[Node], old: &[Value], new: &[Value]) -> Result<(), NotEditable> {
        let dashes: Option<Vec<usize>> = items.iter().map(|item| self.dash(item.span.start)).collect();
        let dashes = dashes.filter(|dashes| !dashes.is_empty() && items.len() == old.len()).ok_or(NotEditable)?;
        let column = self.column(dashes[0]);
        let pairs = pair(old, new);
        if pairs.iter().all(Option::is_none) || !dashes.iter().all(|dash| self.column(*dash) == column) {
            return Err(NotEditable);
        }
        for (index, item) in items.iter().enumerate() {
            match pairs.iter().position(|pair| *pair == Some(index)) {
                Some(at) => self.item(item, &old[index], &new[at])?,
                None => self.delete(dashes[index], item.span.end)?,
            }
        }
        let mut previous = None;
        for (value, paired) in new.iter().zip(&pairs) {
            if paired.is_some() {
                previous = *paired;
                continue;
            }
            let written = written(&Value::Array(vec![value.clone()]))?;
            match previous {
                Some(index) => self.insert(self.line_end(items[index].span.end), &written, column),
                None if self.begins_line(dashes[0]) => self.insert(self.above(dashes[0]), &written, column),
                None => return Err(NotEditable),
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, old: &Value, new: &Value) -> Result<(), NotEditable> {
        if self.edit(&entry.value, old, new) {
            return Ok(());
        }
        let written = written(&Value::Object(Map::from_iter([(entry.name.clone(), new.clone())])))?;
        self.replace(entry.start..entry.value.span.end, &written);
        Ok(())
    }

    fn item(&mut self, item: &Node, old: &Value, new: &Value) -> Result<(), NotEditable> {
        if old != new && !self.edit(item, old, new) {
            self.replace(item.span.clone(), &written(new)?);
        }
        Ok(())
    }

    /// Edits a collection in part; returns whether that is possible.
    fn edit(&mut self, node: &Node, old: &Value, new: &Value) -> bool {
        let edits = self.edits.len();
        let done = match (&node.shape, old, new) {
            (Shape::Map(entries), Value::Object(old), Value::Object(new)) => self.map(entries, old, new),
            (Shape::List(items), Value::Array(old), Value::Array(new)) => self.list(items, old, new),
            _ => Err(NotEditable),
        };
        if done.is_err() {
            self.edits.truncate(edits);
        }
        done.is_ok()
    }

    fn replace(&mut self, range: Range<usize>, written: &str) {
        let pad = self.column(range.start);
        let line_end = self.line_end(range.end);
        let rest = self.text[range.end..line_end].trim_end_matches(['\r', '\n']);
        let mut lines = written.lines();
        let first = lines.next().unwrap_or_default();
        let following: String = lines.map(|line| indented(line, pad)).collect();
        if following.is_empty() || !rest.trim_start().starts_with('#') {
            self.edits.push((range, format!("{first}\n{following}").trim_end_matches('\n').to_owned()));
        } else {
            // Keep the comment on the line of the key.
            let end = range.end + rest.len();
            let text = format!("{first} {}\n{following}", rest.trim_start());
            self.edits.push((range.start..end, text.trim_end_matches('\n').to_owned()));
        }
    }

    fn insert(&mut self, at: usize, written: &str, column: usize) {
        let text: String = written.lines().map(|line| indented(line, column)).collect();
        // The last line may lack its line feed.
        let lacks_end = at > 0 && !self.text[..at].ends_with('\n');
        self.edits.push((at..at, if lacks_end { format!("\n{}", text.trim_end_matches('\n')) } else { text }));
    }

    /// Deletes whole lines.
    fn delete(&mut self, start: usize, end: usize) -> Result<(), NotEditable> {
        if !self.begins_line(start) {
            return Err(NotEditable);
        }
        let mut lines = self.line_start(start)..self.line_end(end);
        // The line before becomes the last one, which lacks a line feed as this one does.
        if !self.text[lines.clone()].ends_with('\n') {
            let before = &self.text[..lines.start];
            let before = before.strip_suffix('\n').unwrap_or(before);
            lines.start = before.strip_suffix('\r').unwrap_or(before).len();
        }
        self.edits.push((lines, String::new()));
        Ok(())
    }

    fn apply(mut self) -> String {
        self.edits.sort_by_key(|(range, _)| range.start);
        let newline = if self.text.contains("\r\n") { "\r\n" } else { "\n" };
        let mut out = String::with_capacity(self.text.len() * 2);
        let mut at = 0;
        for (range, text) in &self.edits {
            out.push_str(self.text.get(at..range.start).unwrap_or_default());
            out.push_str(&text.replace('\n', newline));
            at = at.max(range.end);
        }
        out + &self.text[at..]
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// Returns the start of the next line.
    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    fn column(&self, at: usize) -> usize {
        self.text[self.line_start(at)..at].chars().count()
    }

    fn begins_line(&self, at: usize) -> bool {
        self.text[self.line_start(at)..at].trim().is_empty()
    }

    /// Returns the start of the line, or of the comments right above it, which belong to it.
    fn above(&self, at: usize) -> usize {
        let mut start = self.line_start(at);
        while start > 0 {
            let previous = self.line_start(start - 1);
            if !self.text[previous..start].trim_start().starts_with('#') {
                break;
            }
            start = previous;
        }
        start
    }

    /// Returns the position of an item's dash, if it is on the same line.
    fn dash(&self, item: usize) -> Option<usize> {
        let before = self.text[self.line_start(item)..item].trim_end();
        before.ends_with('-').then(|| self.line_start(item) + before.len() - 1)
    }
}

/// Returns for each new item the index of its old one: the next one with the same name or value. If number and names are unchanged,
/// items are paired by position.
fn pair(old: &[Value], new: &[Value]) -> Vec<Option<usize>> {
    let name = |value: &Value| value.get("name").and_then(Value::as_str).map(str::to_owned);
    if old.len() == new.len() && old.iter().zip(new).all(|(old, new)| name(old) == name(new)) {
        return (0..old.len()).map(Some).collect();
    }
    let mut next = 0;
    let mut pair = |value: &Value| {
        let same = |other: &Value| other == value || name(value).is_some_and(|own| name(other) == Some(own));
        let found = next + old[next..].iter().position(same)?;
        next = found + 1;
        Some(found)
    };
    new.iter().map(&mut pair).collect()
}

fn written(value: &Value) -> Result<String, NotEditable> {
    yaml::to_string(value).map_err(|_| NotEditable)
}

fn indented(line: &str, column: usize) -> String {
    if line.is_empty() { "\n".to_owned() } else { format!("{:column$}{line}\n", "") }
}

#[cfg(test)]
mod tests;
