//! Computes the JSON patch (RFC 6902) between two pods.
//!
//! Lists are compared by the merge keys of their items, not by position: a container that is inserted first is one addition,
//! and no change lands on another container. Only differences are patched, so unknown fields stay as they are.

pub(crate) mod stable_items;

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::merge::keys::{Field, Key, MapKind};
use stable_items::{Pair, stable_items};

/// An operation of a JSON patch. Paths are JSON pointers (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation<'a> {
    /// Sets a field that is absent, or inserts an item of a list.
    Add {
        /// Path of the field or item.
        path: String,
        /// The value to add.
        value: &'a Value,
    },
    /// Removes a field or an item.
    Remove {
        /// Path of the field or item.
        path: String,
    },
    /// Sets a field that is present.
    Replace {
        /// Path of the field.
        path: String,
        /// The new value.
        value: &'a Value,
    },
}

/// Returns the operations that turn the pod `original` into `result`, in order; none if they are equal.
///
/// Takes linear time in the size of the pods, times the logarithm of the length of reordered lists.
pub fn diff<'a>(original: &Value, result: &'a Value) -> Vec<Operation<'a>> {
    let mut diff = Diff { path: String::new(), operations: Vec::new() };
    diff.value(original, result, Field::Plain(MapKind::Pod));
    diff.operations
}

/// Serializes a patch as compact JSON, for the `patch` field of an AdmissionReview.
///
/// # Errors
/// Never fails in practice: strings and JSON values can always be serialized.
pub fn to_json(operations: &[Operation<'_>]) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(operations)
}

/// A comparison in progress.
struct Diff<'a> {
    /// JSON pointer to the values being compared.
    path: String,
    operations: Vec<Operation<'a>>,
}

impl<'a> Diff<'a> {
    fn value(&mut self, original: &Value, result: &'a Value, field: Field) {
        // Most values of a pod stay the same; to tell that takes no lookup of fields.
        if identical(original, result) {
            return;
        }
        match (original, result, field) {
            (Value::Object(original), Value::Object(result), Field::Plain(kind)) => self.map(original, result, kind),
            (Value::Object(original), Value::Object(result), _) => self.map(original, result, MapKind::Other),
            (Value::Array(original), Value::Array(items), _) => {
                if original != items {
                    self.list(original, items, result, field);
                }
            }
            _ if original == result => {}
            _ => self.replace(result),
        }
    }

    fn map(&mut self, original: &Map<String, Value>, result: &'a Map<String, Value>, kind: MapKind) {
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

    /// Compares two lists. Items are removed from the end, then added from the start, so that each index is valid when its
    /// operation is applied. An item that moves is removed and added as a whole.
    fn list(&mut self, original: &[Value], items: &'a [Value], whole: &'a Value, field: Field) {
        let (keyed, item) = match field {
            Field::Keyed(key, item) => (by_key(original, key).zip(by_key(items, key)), item),
            Field::Union | Field::Plain(_) => (None, MapKind::Other),
        };
        let kept = match keyed {
            Some((before, after)) => stable_items(before, &after),
            None => stable_items(original.iter().collect(), &items.iter().collect::<Vec<_>>()),
        };
        if kept.is_empty() {
            return self.replace(whole);
        }
        let mut remains = vec![false; original.len()];
        let mut is_placed = vec![false; items.len()];
        for pair in &kept {
            (remains[pair.before], is_placed[pair.after]) = (true, true);
        }
        for (index, _) in remains.iter().enumerate().rev().filter(|(_, remains)| !**remains) {
            self.at_index(index, Self::remove);
        }
        for (index, _) in is_placed.iter().enumerate().filter(|(_, is_placed)| !**is_placed) {
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
        // Writing to a string does not fail.
        let _ = write!(self.path, "/{index}");
        step(self);
        self.path.truncate(length);
    }
}

/// Returns whether two values are equal including the order of keys.
pub(crate) fn identical(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((k, v), (l, w))| k == l && identical(v, w))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| identical(a, b)),
        _ => a == b,
    }
}

/// Returns the identities of items by their merge key; `None` if an item has no key.
fn by_key(items: &[Value], key: Key) -> Option<Vec<Cow<'_, str>>> {
    items.iter().map(|item| key.identity(item.as_object()?)).collect()
}

#[cfg(test)]
mod tests;
