//! Compares the pod as it stands with the restored one. What a rule does not allow stays as the pod has it, and its path is reported.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::merge::keys::MapKind;
use crate::uninject::delta::names;

/// A field or an item of the pod as it stands, of the restored pod, and of the templates.
pub(super) struct Change<'a> {
    pub(super) was: Option<&'a Value>,
    pub(super) now: Option<Value>,
    pub(super) added: Option<&'a Value>,
}

impl Change<'_> {
    fn is_none(&self) -> bool {
        let absent = is_empty(self.was) && is_empty(self.now.as_ref());
        absent || self.was == self.now.as_ref()
    }

    /// Returns whether each side is nothing, or of a type.
    fn both(&self, is_type: impl Fn(&Value) -> bool) -> bool {
        self.was.is_none_or(&is_type) && self.now.as_ref().is_none_or(&is_type)
    }

    /// Returns `value`, which is what is left of a map or a list; an empty one only if the restored pod has an empty one, or the pod one.
    fn remainder(existed: Existed, is_empty: bool, value: Value) -> Option<Value> {
        match existed {
            Existed::AsNull if is_empty => Some(Value::Null),
            Existed::No if is_empty => None,
            _ => Some(value),
        }
    }

    fn existed(&self) -> Existed {
        let now = self.now.as_ref();
        if now.is_some_and(Value::is_null) {
            Existed::AsNull
        } else if now.is_some() && (self.was.is_some() || is_empty(now)) {
            Existed::Yes
        } else {
            Existed::No
        }
    }
}

/// Whether a map or list is in the restored pod by itself, and not only by its content.
#[derive(Clone, Copy)]
enum Existed {
    Yes,
    AsNull,
    No,
}

/// Decides about a field or an item, by its name: returns its value in the result.
pub(super) type Decide<'d, 'a> = &'d mut dyn FnMut(&mut Comparison, &str, Change<'a>) -> Option<Value>;

/// Rules for a keyed list.
pub(super) struct ListRules<'r, 'a> {
    /// Whether the item may go.
    pub(super) may_go: &'r dyn Fn(&Value, Option<&Value>) -> bool,
    /// Decides about items that are in the restored pod.
    pub(super) decide: Decide<'r, 'a>,
    /// Whether the place of an item has a meaning, where that of any has, as of init containers and variables.
    pub(super) is_ordered: Option<&'r dyn Fn(&Value) -> bool>,
}

/// A comparison in progress.
#[derive(Default)]
pub(super) struct Comparison {
    path: String,
    /// Paths of the differences that were refused.
    pub(super) refused: Vec<String>,
}

impl Comparison {
    /// Begins at this path.
    pub(super) fn new(path: String) -> Self {
        Self { path, refused: Vec::new() }
    }

    fn refuse(&mut self) {
        self.refused.push(self.path.clone());
    }

    fn at_field<T>(&mut self, name: &str, step: impl FnOnce(&mut Self) -> T) -> T {
        let separator = if self.path.is_empty() { "" } else { "." };
        self.at(&[separator, name], step)
    }

    fn at<T>(&mut self, parts: &[&str], step: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.extend(parts.iter().copied());
        let result = step(self);
        self.path.truncate(length);
        result
    }

    /// Decides about each field of an object.
    pub(super) fn fields<'a>(&mut self, change: Change<'a>, decide: Decide<'_, 'a>) -> Option<Value> {
        if change.is_none() {
            return change.now;
        }
        if !change.both(|value| value.is_object() || value.is_null()) {
            return self.strict(change);
        }
        let existed = change.existed();
        let Change { was, now, added } = change;
        let was = was.and_then(Value::as_object);
        let now = match now {
            Some(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let missing: Vec<&String> = was.into_iter().flat_map(Map::keys).filter(|key| !now.contains_key(*key)).collect();
        let missing = missing.into_iter().map(|key| (key.clone(), None));
        let mut result = Map::new();
        for (key, now) in now.into_iter().map(|(key, value)| (key, Some(value))).chain(missing) {
            let (was, added) = (was.and_then(|was| was.get(&key)), added.and_then(|added| added.get(&key)));
            let change = Change { was, now, added };
            let value = if change.is_none() { change.now } else { self.at_field(&key, |at| decide(at, &key, change)) };
            if let Some(value) = value {
                result.insert(key, value);
            }
        }
        Change::remainder(existed, result.is_empty(), Value::Object(result))
    }

    /// Decides about each item of a list with a merge key; `field` is the list's in `kind`.
    pub(super) fn items<'a>(
        &mut self,
        change: Change<'a>,
        kind: MapKind,
        field: &str,
        rules: &mut ListRules<'_, 'a>,
    ) -> Option<Value> {
        let list = |value: Option<&'a Value>| value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (was, added, field) = (list(change.was), list(change.added), kind.field(field));
        let now = change.now.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (Some(was_names), Some(now_names), true) =
            (names(was, field), names(now, field), change.both(|value| value.is_array() || value.is_null()))
        else {
            return self.strict(change);
        };
        let now_names: Vec<String> = now_names.into_iter().map(Cow::into_owned).collect();
        let added: HashMap<_, _> = names(added, field).unwrap_or_default().into_iter().zip(added).collect();
        let added = |name: &str| added.get(name).copied();
        let existed = change.existed();
        let now = match change.now {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        let was: Vec<(&str, &'a Value)> = was_names.iter().map(|name| &**name).zip(was).collect();
        let by_name: HashMap<&str, &'a Value> = was.iter().copied().collect();
        let in_now: HashSet<&str> = now_names.iter().map(String::as_str).collect();
        let gone = was.iter().filter(|(name, item)| !in_now.contains(name) && !(rules.may_go)(item, added(name)));
        let kept: HashMap<&str, Value> = gone.map(|(name, item)| (*name, (*item).clone())).collect();
        for (name, _) in was.iter().filter(|(name, _)| kept.contains_key(name)) {
            self.at(&["[", name, "]"], Self::refuse);
        }
        let mut result: Vec<(&str, Value)> = Vec::with_capacity(now.len());
        for (name, item) in now_names.iter().zip(now) {
            let change = Change { was: by_name.get(name.as_str()).copied(), now: Some(item), added: added(name) };
            let item = if change.is_none() {
                change.now
            } else {
                self.at(&["[", name, "]"], |at| (rules.decide)(at, name, change))
            };
            result.extend(item.map(|item| (name.as_str(), item)));
        }
        let is_reordered = rules.is_ordered.is_some_and(|is_ordered| {
            let is_in_both = |name: &str| by_name.contains_key(name) && in_now.contains(name);
            let is_placed = |name: &str, item: &Value| is_in_both(name) && is_ordered(item);
            let before = was.iter().filter(|(name, item)| is_placed(name, item)).map(|(name, _)| *name);
            !before.eq(result.iter().filter(|(name, item)| is_placed(name, item)).map(|(name, _)| *name))
        });
        // Items that were kept have brought the order back already.
        if is_reordered && kept.is_empty() {
            self.refuse();
        }
        if is_reordered || !kept.is_empty() {
            result = in_order(was.iter().map(|(name, _)| *name), kept, result);
        }
        let is_empty = result.is_empty();
        Change::remainder(existed, is_empty, result.into_iter().map(|(_, item)| item).collect())
    }

    /// Allows only what the templates make again.
    pub(super) fn strict(&mut self, change: Change<'_>) -> Option<Value> {
        if change.is_none() || (change.was.is_some() && change.added == change.was) {
            return change.now;
        }
        self.refuse();
        change.was.cloned()
    }

    /// Allows only what the templates make again, field by field.
    pub(super) fn plain(&mut self, change: Change<'_>) -> Option<Value> {
        if change.both(Value::is_object) && (change.was.is_some() || change.now.is_some()) {
            return self.fields(change, &mut |at, _, change| at.plain(change));
        }
        self.strict(change)
    }

    /// As [`Self::plain`], for an item of a list: the restored pod has none that the pod does not have.
    pub(super) fn existing(&mut self, change: Change<'_>) -> Option<Value> {
        if change.was.is_none() {
            self.refuse();
            return None;
        }
        self.plain(change)
    }

    /// Allows what the pod shows as well, field by field; what only the pod has comes from the templates.
    pub(super) fn shown(&mut self, change: Change<'_>) -> Option<Value> {
        if change.now.is_none() || change.is_none() {
            return change.now;
        }
        if change.was.is_some() && change.both(Value::is_object) {
            return self.fields(change, &mut |at, _, change| at.shown(change));
        }
        self.refuse();
        change.was.cloned()
    }
}

/// Returns the items in this order of names, what was kept in its place, and then the others.
fn in_order<'n>(
    order: impl Iterator<Item = &'n str>,
    mut kept: HashMap<&'n str, Value>,
    items: Vec<(&'n str, Value)>,
) -> Vec<(&'n str, Value)> {
    let mut ordered = Vec::with_capacity(kept.len() + items.len());
    let names: Vec<&str> = items.iter().map(|(name, _)| *name).collect();
    let mut rest: HashMap<&str, Value> = items.into_iter().collect();
    for name in order {
        ordered.extend(rest.remove(name).or_else(|| kept.remove(name)).map(|item| (name, item)));
    }
    ordered.extend(names.into_iter().filter_map(|name| Some((name, rest.remove(name)?))));
    ordered
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(_) => false,
    }
}
