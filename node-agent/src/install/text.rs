//! Edits a network configuration as text: adds and removes our entry without changing any other byte, so that key order, number format,
//! unknown fields and indentation of the other plugins are kept.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize as _;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use weir_protocol::entry::PLUGIN_TYPE;

/// Top-level keys of a configuration, with their values as text. The last of repeated keys counts, as in libcni.
pub(crate) type Keys<'a> = BTreeMap<String, &'a RawValue>;

/// Parses the top level of an object.
pub(crate) fn keys(text: &str) -> Result<Keys<'_>, serde_json::Error> {
    serde_json::from_str(text)
}

/// Returns the range of a value in the text that it was parsed from.
fn span(text: &str, raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
    start..start + raw.get().len()
}

/// Ranges of the list `plugins` and of its elements.
struct Elements {
    list: Range<usize>,
    items: Vec<Range<usize>>,
}

fn elements(text: &str) -> Option<Elements> {
    let list = *keys(text).ok()?.get("plugins")?;
    let items: Vec<&RawValue> = serde_json::from_str(list.get()).ok()?;
    let outer = span(text, list);
    // The elements borrow from the text of the list, which is a part of `text`.
    let items = items.into_iter().map(|raw| span(text, raw)).collect();
    Some(Elements { list: outer, items })
}

/// Returns whether an element of `plugins` is our entry.
pub(crate) fn is_ours(element: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(element)
        .is_ok_and(|map| map.get("type").and_then(Value::as_str) == Some(PLUGIN_TYPE))
}

/// Returns the list without our entries; `None` where it has none.
pub(crate) fn remove_entry(text: &str) -> Option<String> {
    let mut stripped: Option<String> = None;
    loop {
        let current = stripped.as_deref().unwrap_or(text);
        let Elements { items, .. } = elements(current)?;
        let Some(index) = items.iter().position(|item| is_ours(&current[item.clone()])) else { return stripped };
        let cut = match (index, items.get(index + 1)) {
            (0, None) => items[0].clone(),
            (0, Some(next)) => items[0].start..next.start,
            (_, _) => items[index - 1].end..items[index].end,
        };
        stripped = Some(format!("{}{}", &current[..cut.start], &current[cut.end..]));
    }
}

/// Returns the list with our entry as its last element, formatted like the others. `None` for an empty list: a chained plugin cannot be the
/// first.
pub(crate) fn append_entry(text: &str, entry: &Map<String, Value>) -> Option<String> {
    let Elements { list, items } = elements(text)?;
    let last = items.last()?.clone();
    let separator = match items.len().checked_sub(2).map(|before| items[before].end..last.start) {
        Some(between) => text[between].to_owned(),
        None => format!(",{}", &text[list.start + 1..last.start]),
    };
    let sample = &text[last.clone()];
    let written = if sample.contains('\n') {
        let base = match separator.rsplit_once('\n') {
            Some((_, indent)) => indent.to_owned(),
            None => indent_of_line(text, last.end).to_owned(),
        };
        let unit =
            inner_indent(sample).and_then(|inner| inner.strip_prefix(base.as_str())).filter(|unit| !unit.is_empty());
        let eol = if sample.contains("\r\n") { "\r\n" } else { "\n" };
        pretty(entry, unit.unwrap_or("  ")).replace('\n', &format!("{eol}{base}"))
    } else {
        compact(entry)
    };
    Some(format!("{}{separator}{written}{}", &text[..last.end], &text[last.end..]))
}

/// Returns the list that is equivalent to a single plugin's configuration, with the same name and version, as the runtime converts it.
pub(crate) fn to_conflist(text: &str) -> Option<String> {
    let keys = keys(text).ok()?;
    let mut wrapped = String::from("{\n");
    for key in ["cniVersion", "name"] {
        if let Some(value) = keys.get(key) {
            wrapped.push_str("  \"");
            wrapped.push_str(key);
            wrapped.push_str("\": ");
            wrapped.push_str(value.get());
            wrapped.push_str(",\n");
        }
    }
    wrapped.push_str("  \"plugins\": [\n    ");
    wrapped.push_str(&text.trim_ascii().replace('\n', "\n    "));
    wrapped.push_str("\n  ]\n}\n");
    Some(wrapped)
}

/// Returns the list with another `cniVersion`.
pub(crate) fn with_version(text: &str, version: &str) -> Option<String> {
    let keys = keys(text).ok()?;
    if let Some(raw) = keys.get("cniVersion") {
        let Range { start, end } = span(text, raw);
        return Some(format!("{}\"{version}\"{}", &text[..start], &text[end..]));
    }
    let brace = text.find('{')? + 1;
    let space: String = text[brace..].chars().take_while(char::is_ascii_whitespace).collect();
    Some(format!("{}{space}\"cniVersion\": \"{version}\",{}", &text[..brace], &text[brace..]))
}

/// Returns the text of a new file.
pub(crate) fn to_document(map: &Map<String, Value>) -> String {
    let mut text = pretty(map, "  ");
    text.push('\n');
    text
}

fn compact(map: &Map<String, Value>) -> String {
    serde_json::to_string(map).unwrap_or_default()
}

fn pretty(map: &Map<String, Value>, unit: &str) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(unit.as_bytes()));
    // A map with string keys can always be serialized.
    let _ = map.serialize(&mut serializer);
    String::from_utf8(out).unwrap_or_default()
}

/// Returns the indentation of the line at `position`.
fn indent_of_line(text: &str, position: usize) -> &str {
    let start = text[..position].rfind('\n').map_or(0, |newline| newline + 1);
    let line = &text[start..];
    &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
}

/// Returns the indentation of the first key of an object with several lines.
fn inner_indent(element: &str) -> Option<&str> {
    let (_, rest) = element.split_once('\n')?;
    Some(&rest[..rest.len() - rest.trim_start_matches([' ', '\t']).len()])
}

#[cfg(test)]
mod tests;
