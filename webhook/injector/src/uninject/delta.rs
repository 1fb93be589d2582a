//! The difference between two JSON trees, including the order of keys and items, as a small JSON object.
//!
//! | key | meaning |
//! |---|---|
//! | `-` | names to remove |
//! | `=` | names with a new value, set in position |
//! | `+` | names with their value, appended unless the name exists |
//! | `@` | names with the position to move them to, applied last |
//! | `.name` | the difference inside that value |
//!
//! Names are the keys of a map, or the merge keys of the items of a list that Kubernetes merges (`name`, `mountPath`, ...). Whatever
//! else changes in the meantime, a difference applies to the values it is about, or to nothing.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::merge::keys::{Field, MapKind};
use crate::patch::identical;
use crate::patch::stable_items::stable_items;

pub(super) type Delta = Map<String, Value>;

const REMOVED: &str = "-";
const SET: &str = "=";
const ADDED: &str = "+";
const MOVED: &str = "@";

/// Returns the difference that turns `from` into `to`; empty if they are identical.
pub(super) fn diff(from: &Value, to: &Value) -> Delta {
    match (Node::of(from, Field::Plain(MapKind::Pod)), Node::of(to, Field::Plain(MapKind::Pod))) {
        (Some(from), Some(to)) => from.diff(&to),
        _ => Delta::new(),
    }
}

/// Applies a difference to the values that exist.
pub(super) fn apply(delta: &Delta, tree: &mut Value) {
    apply_to(delta, tree, Field::Plain(MapKind::Pod));
}

/// A map or a keyed list, with the names of its values.
struct Node<'a> {
    children: Vec<(Cow<'a, str>, &'a Value)>,
    is_list: bool,
    field: Field,
}

impl<'a> Node<'a> {
    /// Returns `None` for other values.
    fn of(value: &'a Value, field: Field) -> Option<Self> {
        let children = match value {
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.as_str().into(), value)).collect(),
            Value::Array(items) => names(items, field)?.into_iter().zip(items).collect(),
            _ => return None,
        };
        Some(Self { children, is_list: value.is_array(), field })
    }

    fn diff(&self, to: &Self) -> Delta {
        let before: HashMap<&str, &Value> = self.children.iter().map(|(name, value)| (&**name, *value)).collect();
        let after: HashSet<&str> = to.children.iter().map(|(name, _)| &**name).collect();
        let (kept, removed): (Vec<&str>, Vec<&str>) =
            self.children.iter().map(|(name, _)| &**name).partition(|name| after.contains(name));
        let (mut set, mut added, mut inside, mut order) = (Map::new(), Map::new(), Vec::new(), kept);
        for (name, value) in &to.children {
            let Some(was) = before.get(&**name) else {
                added.insert(name.clone().into_owned(), (*value).clone());
                order.push(name);
                continue;
            };
            // Most values of a pod are identical, and their names need not be compared.
            if identical(was, value) {
                continue;
            }
            let field = child_field(self.field, name);
            match (Node::of(was, field), Node::of(value, field)) {
                (Some(was), Some(value)) if was.is_list == value.is_list => {
                    let change = was.diff(&value);
                    if !change.is_empty() {
                        inside.push((format!(".{name}"), Value::Object(change)));
                    }
                }
                _ => drop(set.insert(name.clone().into_owned(), (*value).clone())),
            }
        }
        let wanted: Vec<&str> = to.children.iter().map(|(name, _)| &**name).collect();
        let staying: HashSet<usize> = stable_items(order, &wanted).into_iter().map(|pair| pair.after).collect();
        let moved = wanted.iter().enumerate().filter(|(position, _)| !staying.contains(position));
        let moved: Map<String, Value> = moved.map(|(position, name)| ((*name).to_owned(), position.into())).collect();

        let mut delta = Delta::new();
        if !removed.is_empty() {
            delta.insert(REMOVED.to_owned(), removed.into());
        }
        for (key, names) in [(SET, set), (ADDED, added), (MOVED, moved)] {
            if !names.is_empty() {
                delta.insert(key.to_owned(), Value::Object(names));
            }
        }
        delta.extend(inside);
        delta
    }
}

/// Returns how a merge treats a child of a value.
fn child_field(field: Field, name: &str) -> Field {
    match field {
        Field::Plain(kind) => kind.field(name),
        Field::Keyed(_, item) => Field::Plain(item),
        Field::Union => Field::Plain(MapKind::Other),
    }
}

/// Returns the names of the items of a keyed list, with a number for duplicates; `None` for other lists.
pub(super) fn names(items: &[Value], field: Field) -> Option<Vec<Cow<'_, str>>> {
    let Field::Keyed(key, _) = field else { return None };
    let mut seen: HashMap<Cow<'_, str>, usize> = HashMap::with_capacity(items.len());
    let mut names = Vec::with_capacity(items.len());
    let mut has_duplicates = false;
    for item in items {
        let name = key.identity(item.as_object()?)?;
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        has_duplicates |= *times > 1;
        names.push(if *times == 1 { name } else { Cow::Owned(format!("{name}#{times}")) });
    }
    // Only the number of a duplicate can make its name equal to that of another item.
    let unique = !has_duplicates || names.iter().collect::<HashSet<_>>().len() == names.len();
    unique.then_some(names)
}

fn apply_to(delta: &Delta, tree: &mut Value, field: Field) {
    let mut children: Vec<(String, Value)> = match tree {
        Value::Object(fields) => std::mem::take(fields).into_iter().collect(),
        Value::Array(items) => match names(items, field) {
            Some(names) => {
                let names: Vec<String> = names.into_iter().map(Cow::into_owned).collect();
                names.into_iter().zip(std::mem::take(items)).collect()
            }
            None => return,
        },
        _ => return,
    };
    let removed = delta.get(REMOVED).and_then(Value::as_array);
    let removed: HashSet<&str> = removed.into_iter().flatten().filter_map(Value::as_str).collect();
    children.retain(|(name, _)| !removed.contains(name.as_str()));

    let mut positions: HashMap<String, usize> =
        children.iter().enumerate().map(|(position, (name, _))| (name.clone(), position)).collect();
    let named = |key: &str| delta.get(key).and_then(Value::as_object).into_iter().flatten();
    for (name, value) in named(SET) {
        if let Some(position) = positions.get(name) {
            children[*position].1 = value.clone();
        }
    }
    for (name, value) in named(ADDED) {
        if !positions.contains_key(name) {
            positions.insert(name.clone(), children.len());
            children.push((name.clone(), value.clone()));
        }
    }
    for (key, change) in delta {
        if let (Some(name), Value::Object(change)) = (key.strip_prefix('.'), change)
            && let Some(position) = positions.get(name)
        {
            apply_to(change, &mut children[*position].1, child_field(field, name));
        }
    }
    let children = reorder(children, delta);
    match tree {
        Value::Object(fields) => fields.extend(children),
        Value::Array(items) => items.extend(children.into_iter().map(|(_, value)| value)),
        _ => {}
    }
}

/// Moves children to their positions, or to the end if there are fewer by now.
fn reorder(children: Vec<(String, Value)>, delta: &Delta) -> Vec<(String, Value)> {
    let Some(positions) = delta.get(MOVED).and_then(Value::as_object) else { return children };
    let position = |name: &str| positions.get(name).and_then(Value::as_u64);
    let (mut movers, stay): (Vec<_>, Vec<_>) = children.into_iter().partition(|(name, _)| position(name).is_some());
    movers.sort_by_key(|(name, _)| position(name));
    let (mut movers, mut stay) = (movers.into_iter().peekable(), stay.into_iter());
    let mut result = Vec::new();
    loop {
        let due = |(name, _): &(String, Value)| position(name).is_some_and(|position| position <= result.len() as u64);
        if let Some(mover) = movers.next_if(due) {
            result.push(mover);
        } else if let Some(next) = stay.next() {
            result.push(next);
        } else {
            result.extend(movers);
            return result;
        }
    }
}

#[cfg(test)]
mod tests;
