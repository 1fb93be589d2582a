//! Changes in a YAML text: what did not change keeps its text, comments and all.
//!
//! ```text
//! text ──tree──▶ places of every block mapping and sequence ─┐
//! value before ─▶ differences ◀─ value after                 ├─▶ edits ──▶ text, read again: exactly the value after
//!                      └─────────────────────────────────────┘
//! ```
//!
//! A flow collection (`{a: 1}`) that changes is written anew as a block. Where a place cannot be changed in part, the smallest
//! one around it is written anew.

mod tree;

use std::ops::Range;

use serde_json::{Map, Value};
use weir_injector::yaml;

use tree::{Entry, Node, Shape};

/// A part that cannot be edited where it stands.
struct Unfit;

/// The text with the value changed; `None` where that cannot be done, or would not read as the new value.
pub(crate) fn splice(text: &str, old: &Value, new: &Value) -> Option<String> {
    let root = tree::read(text)?;
    let (Shape::Map(entries), Value::Object(old), Value::Object(after)) = (&root.shape, old, new) else { return None };
    let mut splice = Splice { text, edits: Vec::new() };
    splice.map(entries, old, after).ok()?;
    let spliced = splice.apply();
    yaml::from_str(&spliced).is_ok_and(|read| read == *new).then_some(spliced)
}

/// Comments of a text that another one does not have; none of a text that is no YAML.
pub(crate) fn lost_comments(before: &str, after: &str) -> Vec<String> {
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

struct Splice<'a> {
    text: &'a str,
    /// What stands where instead; of two at one place the earlier one stands first.
    edits: Vec<(Range<usize>, String)>,
}

impl Splice<'_> {
    fn map(&mut self, entries: &[Entry], old: &Map<String, Value>, new: &Map<String, Value>) -> Result<(), Unfit> {
        let is_told_apart = |entry: &Entry| entries.iter().filter(|other| other.name == entry.name).count() == 1;
        if old.len() != entries.len()
            || !entries.iter().all(|entry| is_told_apart(entry) && old.contains_key(&entry.name))
        {
            return Err(Unfit);
        }
        if !old.keys().any(|name| new.contains_key(name)) {
            return Err(Unfit);
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
            let first = entries.first().ok_or(Unfit)?;
            let column = self.column(first.start);
            match previous {
                Some(entry) => self.insert(self.line_end(entry.value.span.end), &written, column),
                None if self.begins_line(first.start) => self.insert(self.above(first.start), &written, column),
                // Behind the dash of an item there is no place in front of its first field.
                None => self.insert(self.line_end(first.value.span.end), &written, column),
            }
        }
        Ok(())
    }

    fn list(&mut self, items: &[Node], old: &[Value], new: &[Value]) -> Result<(), Unfit> {
        let dashes: Option<Vec<usize>> = items.iter().map(|item| self.dash(item.span.start)).collect();
        let dashes = dashes.filter(|dashes| !dashes.is_empty() && items.len() == old.len()).ok_or(Unfit)?;
        let column = self.column(dashes[0]);
        let pairs = pair(old, new);
        if pairs.iter().all(Option::is_none) || !dashes.iter().all(|dash| self.column(*dash) == column) {
            return Err(Unfit);
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
                None => return Err(Unfit),
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, old: &Value, new: &Value) -> Result<(), Unfit> {
        if self.inside(&entry.value, old, new) {
            return Ok(());
        }
        let written = written(&Value::Object(Map::from_iter([(entry.name.clone(), new.clone())])))?;
        self.replace(entry.start..entry.value.span.end, &written);
        Ok(())
    }

    fn item(&mut self, item: &Node, old: &Value, new: &Value) -> Result<(), Unfit> {
        if old != new && !self.inside(item, old, new) {
            self.replace(item.span.clone(), &written(new)?);
        }
        Ok(())
    }

    /// Changes a collection in part, if that can be done.
    fn inside(&mut self, node: &Node, old: &Value, new: &Value) -> bool {
        let edits = self.edits.len();
        let done = match (&node.shape, old, new) {
            (Shape::Map(entries), Value::Object(old), Value::Object(new)) => self.map(entries, old, new),
            (Shape::List(items), Value::Array(old), Value::Array(new)) => self.list(items, old, new),
            _ => Err(Unfit),
        };
        if done.is_err() {
            self.edits.truncate(edits);
        }
        done.is_ok()
    }

    /// Writes something else in place of a node.
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
            // The comment on the line of the key stays there.
            let end = range.end + rest.len();
            let text = format!("{first} {}\n{following}", rest.trim_start());
            self.edits.push((range.start..end, text.trim_end_matches('\n').to_owned()));
        }
    }

    fn insert(&mut self, at: usize, written: &str, column: usize) {
        let text: String = written.lines().map(|line| indented(line, column)).collect();
        // The last line of a text may lack its end.
        let lacks_end = at > 0 && !self.text[..at].ends_with('\n');
        self.edits.push((at..at, if lacks_end { format!("\n{}", text.trim_end_matches('\n')) } else { text }));
    }

    /// Takes whole lines out.
    fn delete(&mut self, start: usize, end: usize) -> Result<(), Unfit> {
        if !self.begins_line(start) {
            return Err(Unfit);
        }
        self.edits.push((self.line_start(start)..self.line_end(end), String::new()));
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

    /// Start of the line after the one at `at`.
    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    fn column(&self, at: usize) -> usize {
        self.text[self.line_start(at)..at].chars().count()
    }

    fn begins_line(&self, at: usize) -> bool {
        self.text[self.line_start(at)..at].trim().is_empty()
    }

    /// Start of the line at `at`, or of the comments right above it: they are about what follows.
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

    /// The dash of an item that stands on its line.
    fn dash(&self, item: usize) -> Option<usize> {
        let before = self.text[self.line_start(item)..item].trim_end();
        before.ends_with('-').then(|| self.line_start(item) + before.len() - 1)
    }
}

/// Which of the old items each new one is: those of the same name, or else the same, in their order. Where as many are left
/// and none of them has another name, items without names are told apart by their places.
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

fn written(value: &Value) -> Result<String, Unfit> {
    yaml::to_string(value).map_err(|_| Unfit)
}

fn indented(line: &str, column: usize) -> String {
    if line.is_empty() { "\n".to_owned() } else { format!("{:column$}{line}\n", "") }
}

#[cfg(test)]
mod tests;
