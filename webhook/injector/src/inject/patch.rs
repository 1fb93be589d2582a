//! The patch that makes one pod of another (RFC 6902), such that no change lands on the wrong item of a list.
//!
//! Lists are compared by the merge keys of their items, not by position: a container that is put first is one addition, and
//! its neighbours are not rewritten. Only what differs is touched, so fields that nobody here knows of stay where they are.

pub(in crate::inject) mod pairs;

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use super::merge::keys::{Field, Key, Kind};
use pairs::{Pair, pairs};

/// One step of a patch. Paths are JSON pointers (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation<'a> {
    /// Sets a field that is absent, or inserts an item of a list.
    Add {
        /// Where.
        path: String,
        /// What.
        value: &'a Value,
    },
    /// Takes a field or an item away.
    Remove {
        /// Where.
        path: String,
    },
    /// Sets a field that is present.
    Replace {
        /// Where.
        path: String,
        /// What.
        value: &'a Value,
    },
}

/// The steps that make `result` of the pod `original`, in order; none where the two are equal.
///
/// The time grows with the size of the pods (and the logarithm of the length of lists that are reordered).
pub fn diff<'a>(original: &Value, result: &'a Value) -> Vec<Operation<'a>> {
    let mut diff = Diff { path: String::new(), operations: Vec::new() };
    diff.value(original, result, Field::Plain(Kind::Pod));
    diff.operations
}

/// A patch as compact JSON, for the `patch` field of an AdmissionReview.
///
/// # Errors
/// None in practice: texts and JSON values always have a JSON form.
pub fn to_json(operations: &[Operation<'_>]) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(operations)
}

/// A comparison under way.
struct Diff<'a> {
    /// The place that is being compared.
    path: String,
    operations: Vec<Operation<'a>>,
}

impl<'a> Diff<'a> {
    fn value(&mut self, original: &Value, result: &'a Value, field: Field) {
        match (original, result, field) {
            (Value::Object(original), Value::Object(result), Field::Plain(kind)) => self.map(original, result, kind),
            (Value::Object(original), Value::Object(result), _) => self.map(original, result, Kind::Other),
            (Value::Array(original), Value::Array(items), _) => {
                if original != items {
                    self.list(original, items, result, field);
                }
            }
            _ if original == result => {}
            _ => self.replace(result),
        }
    }

    fn map(&mut self, original: &Map<String, Value>, result: &'a Map<String, Value>, kind: Kind) {
        for name in original.keys().filter(|name| !result.contains_key(*name)) {
            self.at_field(name, Self::remove);
        }
        for (name, value) in result {
            self.at_field(name, |diff| match original.get(name) {
                Some(original) => diff.value(original, value, kind.field(name)),
                None => diff.add(value),
            });
        }
    }

    /// Removals from the end on, then additions from the start on: each index is right when its turn comes, and what stays
    /// has the index that it has in the result after that. An item that moves is removed and added as a whole.
    fn list(&mut self, original: &[Value], items: &'a [Value], whole: &'a Value, field: Field) {
        let (keyed, item) = match field {
            Field::Keyed(key, item) => (by_key(original, key).zip(by_key(items, key)), item),
            Field::Union | Field::Plain(_) => (None, Kind::Other),
        };
        let (before, after) = keyed.unwrap_or_else(|| (by_content(original), by_content(items)));
        let kept = pairs(before, &after);
        if kept.is_empty() {
            return self.replace(whole);
        }
        let mut stays = vec![false; original.len()];
        let mut stands = vec![false; items.len()];
        for pair in &kept {
            (stays[pair.before], stands[pair.after]) = (true, true);
        }
        for (index, _) in stays.iter().enumerate().rev().filter(|(_, stays)| !**stays) {
            self.at_index(index, Self::remove);
        }
        for (index, _) in stands.iter().enumerate().filter(|(_, stands)| !**stands) {
            self.at_index(index, |diff| diff.add(&items[index]));
        }
        for Pair { before, after } in kept {
            self.at_index(after, |diff| diff.value(&original[before], &items[after], Field::Plain(item)));
        }
    }

    fn add(&mut self, value: &'a Value) {
        self.operations.push(Operation::Add { path: self.path.clone(), value });
    }

    fn remove(&mut self) {
        self.operations.push(Operation::Remove { path: self.path.clone() });
    }

    fn replace(&mut self, value: &'a Value) {
        self.operations.push(Operation::Replace { path: self.path.clone(), value });
    }

    fn at_field(&mut self, name: &str, step: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push('/');
        for part in name.chars() {
            match part {
                '~' => self.path.push_str("~0"),
                '/' => self.path.push_str("~1"),
                other => self.path.push(other),
            }
        }
        step(self);
        self.path.truncate(length);
    }

    fn at_index(&mut self, index: usize, step: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        // Writing to a text does not fail.
        let _ = write!(self.path, "/{index}");
        step(self);
        self.path.truncate(length);
    }
}

/// Identities by merge key; `None` where an item has none.
fn by_key(items: &[Value], key: Key) -> Option<Vec<Cow<'_, str>>> {
    items.iter().map(|item| key.identity(item.as_object()?)).collect()
}

/// Each item is its own identity.
fn by_content(items: &[Value]) -> Vec<Cow<'_, str>> {
    items.iter().map(|item| item.to_string().into()).collect()
}

#[cfg(test)]
mod tests;
