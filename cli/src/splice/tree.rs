//! Finds the spans of the parts of a YAML document.

use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, StructureStyle};

/// A value with its span.
#[derive(Debug)]
pub(super) struct Node {
    /// Without comments after it.
    pub(super) span: Range<usize>,
    pub(super) shape: Shape,
}

/// Parts of a text that can be edited.
#[derive(Debug)]
pub(super) enum Shape {
    /// A block mapping.
    Map(Vec<Entry>),
    /// A block sequence.
    List(Vec<Node>),
    /// Scalars, aliases and flow collections.
    Whole,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// First byte of the key.
    pub(super) start: usize,
    pub(super) value: Node,
}

/// A collection that is being parsed.
enum Open {
    Map {
        start: usize,
        entries: Vec<Entry>,
        key: Option<(String, Range<usize>)>,
    },
    List {
        start: usize,
        items: Vec<Node>,
    },
    /// A flow collection, of which only the end matters.
    Flow {
        start: usize,
        depth: usize,
    },
}

/// Parses a text with one document; `None` if it is not one, or has keys that are not scalars.
pub(super) fn read(text: &str) -> Option<Node> {
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.ok()?;
        let span = span.byte_range()?;
        let node = match event {
            Event::Scalar(value, style, ..) => {
                let mut span = span;
                if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
                    span.end = span.start + text.get(span.clone())?.trim_end().len();
                }
                if let Some(Open::Map { key: key @ None, .. }) = open.last_mut() {
                    *key = Some((value.into_owned(), span));
                    continue;
                }
                Node { span, shape: Shape::Whole }
            }
            Event::Alias(_) => Node { span, shape: Shape::Whole },
            Event::MappingStart(..) | Event::SequenceStart(..) if matches!(open.last(), Some(Open::Flow { .. })) => {
                if let Some(Open::Flow { depth, .. }) = open.last_mut() {
                    *depth += 1;
                }
                continue;
            }
            Event::MappingStart(StructureStyle::Block, ..) => {
                open.push(Open::Map { start: span.start, entries: Vec::new(), key: None });
                continue;
            }
            Event::SequenceStart(StructureStyle::Block, ..) => {
                open.push(Open::List { start: span.start, items: Vec::new() });
                continue;
            }
            Event::MappingStart(StructureStyle::Flow, ..) | Event::SequenceStart(StructureStyle::Flow, ..) => {
                open.push(Open::Flow { start: span.start, depth: 0 });
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => match open.pop()? {
                Open::Flow { start, depth: 0 } => Node { span: start..span.end, shape: Shape::Whole },
                Open::Flow { start, depth } => {
                    open.push(Open::Flow { start, depth: depth - 1 });
                    continue;
                }
                Open::Map { start, entries, .. } => {
                    let end = entries.last().map_or(start, |entry| entry.value.span.end);
                    Node { span: entries.first().map_or(start, |entry| entry.start)..end, shape: Shape::Map(entries) }
                }
                Open::List { start, items } => {
                    let end = items.last().map_or(start, |item| item.span.end);
                    Node { span: start..end, shape: Shape::List(items) }
                }
            },
            _ => continue,
        };
        match open.last_mut() {
            None if root.is_none() => root = Some(node),
            None => return None,
            Some(Open::Flow { .. }) => {}
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => {
                let (name, key) = key.take()?;
                let value =
                    if node.span.is_empty() { Node { span: after_colon(text, key.end)?, ..node } } else { node };
                entries.push(Entry { name, start: key.start, value });
            }
        }
    }
    root
}

/// Returns the position of an empty value.
fn after_colon(text: &str, key_end: usize) -> Option<Range<usize>> {
    let colon = key_end + text.get(key_end..)?.find(':')? + 1;
    Some(colon..colon)
}

/// Returns the comments of a text, in order.
pub(super) fn comments(text: &str) -> Vec<String> {
    let events = Parser::new_from_str(text).map_while(Result::ok);
    let comment = |event: Event<'_>| match event {
        Event::Comment(text, _) => Some(text.trim().to_owned()),
        _ => None,
    };
    events.filter_map(|(event, _)| comment(event)).collect()
}
