//! Kubernetes' strategic merge on raw JSON: what a template or a user says about a pod, laid over the pod.
//!
//! Maps are merged field by field, a `null` deletes, lists that have a merge key are merged item by item, all else is
//! replaced. Fields that no library knows of are kept as they are. The directives of the format (`$patch`, `$retainKeys`,
//! `$setElementOrder/x`, `$deleteFromPrimitiveList/x`) are carried out, or refused by name where they make no sense.
//!
//! Source of the rules: the Kubernetes API conventions, "strategic merge patch", and the patch strategies in
//! `k8s.io/api/core/v1`.

mod directives;
pub(crate) mod keys;
pub(crate) mod list;

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde_json::{Map, Value};

use directives::{Directives, PatchKind};
use keys::{Field, Key, Kind};
use list::{Match, Placed, matches, weave};

/// Why an overlay cannot be merged: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", super::told(.0))]
pub struct MergeError(pub Vec<MergeFinding>);

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct MergeFinding {
    /// Where, for instance `spec.containers[istio-proxy].env[3]`; `.` is the pod itself.
    pub path: String,
    /// What.
    pub reason: String,
}

/// Merges an overlay over a pod.
///
/// # Errors
/// An item of a keyed list lacks its key, or a directive that cannot be carried out; all of them.
pub fn merge_pod(mut pod: Value, overlay: Value) -> Result<Value, MergeError> {
    merge_owned(&mut pod, overlay)?;
    Ok(pod)
}

/// Merges an overlay over a pod in place.
///
/// # Errors
/// As [`merge_pod`]; the pod is then merged in part and of no use any more.
pub fn merge(pod: &mut Value, overlay: &Value) -> Result<(), MergeError> {
    merge_owned(pod, overlay.clone())
}

/// Merges a container over one of the pod's, in place: what [`merge`] does with a list of one, but without a look at the
/// others. `list` is the field it stands in.
///
/// # Errors
/// As [`merge_pod`].
pub(crate) fn merge_container(container: &mut Value, patch: Value, list: &str) -> Result<(), MergeError> {
    let mut merge = Merge::default();
    let name = patch["name"].as_str().unwrap_or_default().to_owned();
    let spec = At::Field(&At::Root, "spec");
    let list = At::Field(&spec, list);
    let at = At::Item(&list, &name);
    match (container, patch) {
        (Value::Object(container), Value::Object(patch)) => merge.map(container, patch, Kind::Container, &at),
        _ => merge.refuse(&at, "a container must be an object".to_owned()),
    }
    if merge.findings.is_empty() { Ok(()) } else { Err(MergeError(merge.findings)) }
}

fn merge_owned(pod: &mut Value, overlay: Value) -> Result<(), MergeError> {
    let mut merge = Merge::default();
    match (pod, overlay) {
        (Value::Object(pod), Value::Object(overlay)) => merge.map(pod, overlay, Kind::Pod, &At::Root),
        (Value::Object(_), _) => merge.refuse(&At::Root, "the overlay is not an object".to_owned()),
        _ => merge.refuse(&At::Root, "the pod is not an object".to_owned()),
    }
    if merge.findings.is_empty() { Ok(()) } else { Err(MergeError(merge.findings)) }
}

/// A place in the pod; written out only where something is wrong there.
#[derive(Debug, Clone, Copy)]
enum At<'a> {
    Root,
    Field(&'a At<'a>, &'a str),
    Item(&'a At<'a>, &'a str),
    Position(&'a At<'a>, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("."),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, name) => write!(f, "{parent}[{name}]"),
            Self::Position(parent, position) => write!(f, "{parent}[{position}]"),
        }
    }
}

/// A merge under way.
#[derive(Debug, Default)]
struct Merge {
    findings: Vec<MergeFinding>,
}

impl Merge {
    fn refuse(&mut self, at: &At<'_>, reason: String) {
        self.findings.push(MergeFinding { path: at.to_string(), reason });
    }

    fn map(&mut self, target: &mut Map<String, Value>, mut patch: Map<String, Value>, kind: Kind, at: &At<'_>) {
        let directives = Directives::take(&mut patch, |reason| self.refuse(at, reason));
        match directives.patch {
            Some(PatchKind::Delete) => return target.clear(),
            Some(PatchKind::Replace) => target.clear(),
            Some(PatchKind::Merge) | None => {}
        }
        if let Some(kept) = &directives.retain {
            for name in patch.keys().filter(|name| !kept.contains(name.as_str())) {
                self.refuse(at, format!("the field `{name}` is set but not listed in $retainKeys"));
            }
            target.retain(|name, _| kept.contains(name));
        }
        let mut lists = directives.lists;
        let mut deleted = HashSet::new();
        for (name, value) in patch {
            let at = At::Field(at, &name);
            match value {
                Value::Null => {
                    deleted.insert(name);
                }
                Value::Object(value) => match kind.field(&name) {
                    Field::Plain(kind) => self.child(target, &name, value, kind, &at),
                    Field::Keyed(..) | Field::Union => self.child(target, &name, value, Kind::Other, &at),
                },
                Value::Array(items) => {
                    let extra = lists.remove(&name).unwrap_or_default();
                    self.list_field(target, &name, Some(items), extra, kind, &at);
                }
                scalar => {
                    target.insert(name, scalar);
                }
            }
        }
        if !deleted.is_empty() {
            target.retain(|name, _| !deleted.contains(name));
        }
        // Directives about lists that the patch does not mention otherwise.
        for (name, extra) in lists {
            self.list_field(target, &name, None, extra, kind, &At::Field(at, &name));
        }
    }

    fn child(
        &mut self,
        target: &mut Map<String, Value>,
        name: &str,
        patch: Map<String, Value>,
        kind: Kind,
        at: &At<'_>,
    ) {
        if let Some(Value::Object(child)) = target.get_mut(name) {
            return self.map(child, patch, kind, at);
        }
        if directives::deletes(&patch) {
            // What is not there, or is no map, has nothing to lose but itself.
            target.shift_remove(name);
            return;
        }
        let mut child = Map::new();
        self.map(&mut child, patch, kind, at);
        target.insert(name.to_owned(), Value::Object(child));
    }

    fn list_field(
        &mut self,
        target: &mut Map<String, Value>,
        name: &str,
        items: Option<Vec<Value>>,
        extra: directives::List,
        kind: Kind,
        at: &At<'_>,
    ) {
        let original = match target.get_mut(name) {
            Some(Value::Array(original)) => Some(std::mem::take(original)),
            _ => None,
        };
        if items.is_none() && original.is_none() {
            return; // Nothing to order and nothing to delete from.
        }
        let mut original = original.unwrap_or_default();
        let field = kind.field(name);
        if let Some(values) = extra.delete {
            if matches!(field, Field::Keyed(..)) {
                self.refuse(at, "$deleteFromPrimitiveList is for lists of scalars".to_owned());
            }
            let values: HashSet<String> = values.iter().map(ToString::to_string).collect();
            original.retain(|item| !values.contains(&item.to_string()));
        }
        let merged = match field {
            Field::Keyed(key, item) => {
                self.keyed(original, items.unwrap_or_default(), extra.order.as_deref(), KeyedBy { key, item }, at)
            }
            Field::Union => union(original, items.unwrap_or_default(), extra.order.as_deref()),
            Field::Plain(_) => {
                if extra.order.is_some() {
                    self.refuse(at, "$setElementOrder is for lists that are merged; this one is replaced".to_owned());
                }
                match items {
                    Some(items) => self.replaced(items, at),
                    None => original,
                }
            }
        };
        target.insert(name.to_owned(), Value::Array(merged));
    }

    /// A list that is replaced: the patch's items, without their nulls.
    fn replaced(&mut self, items: Vec<Value>, at: &At<'_>) -> Vec<Value> {
        let mut result = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            let at = At::Position(at, position);
            match item {
                Value::Object(fields) => match directives::of_item(&fields) {
                    Ok(Some(PatchKind::Replace)) => {}
                    Ok(Some(PatchKind::Delete)) => {
                        self.refuse(&at, "$patch: delete in a list without a merge key".to_owned());
                    }
                    Ok(Some(PatchKind::Merge) | None) => {
                        let mut fresh = Map::new();
                        self.map(&mut fresh, fields, Kind::Other, &at);
                        result.push(Value::Object(fresh));
                    }
                    Err(reason) => self.refuse(&at, reason),
                },
                Value::Array(items) => result.push(Value::Array(self.replaced(items, &at))),
                scalar => result.push(scalar),
            }
        }
        result
    }

    fn keyed(
        &mut self,
        mut original: Vec<Value>,
        patch: Vec<Value>,
        order: Option<&[Value]>,
        by: KeyedBy,
        at: &At<'_>,
    ) -> Vec<Value> {
        if patch.is_empty() && order.is_none() {
            return original;
        }
        let Some(Changes { items, deleted, replace }) = self.changes(patch, by.key, at) else { return original };
        if replace {
            original.clear();
        }
        let findings = self.findings.len();
        let mut identities = Vec::with_capacity(original.len());
        for (position, item) in original.iter().enumerate() {
            identities.extend(self.identity(item, by.key, &At::Position(at, position)));
        }
        if self.findings.len() > findings {
            return original;
        }
        let keep: Vec<bool> = identities.iter().map(|identity| !deleted.contains(identity)).collect();
        let matches = matches(identities, items.iter().map(|(identity, _)| identity));
        let mut slots: Vec<Option<Value>> =
            original.into_iter().zip(&keep).map(|(item, keep)| keep.then_some(item)).collect();

        let mut patched = Vec::with_capacity(items.len());
        for ((identity, fields), Match { was, twins }) in items.into_iter().zip(matches) {
            let was = was.filter(|was| keep[*was]);
            let mut item = match was.and_then(|was| slots[was].take()) {
                Some(Value::Object(item)) => item,
                _ => Map::new(),
            };
            self.map(&mut item, fields, by.item, &At::Item(at, &identity));
            patched.push(Placed { item: Value::Object(item), was });
            patched.extend(twins.into_iter().filter_map(|twin| Some(Placed { item: slots[twin].take()?, was: None })));
        }
        let rest = slots.into_iter().enumerate();
        let rest: Vec<_> = rest.filter_map(|(was, item)| Some(Placed { item: item?, was: Some(was) })).collect();
        match order {
            None => weave(patched, rest),
            Some(order) => self.ordered(patched, rest, order, by.key, at),
        }
    }

    /// Sorts the items of a keyed list out into those to merge and those to delete; `None` where one cannot be told.
    fn changes(&mut self, patch: Vec<Value>, key: Key, at: &At<'_>) -> Option<Changes> {
        let findings = self.findings.len();
        let mut changes = Changes { items: Vec::with_capacity(patch.len()), deleted: HashSet::new(), replace: false };
        for (position, item) in patch.into_iter().enumerate() {
            let at = At::Position(at, position);
            let directive = match item.as_object().map_or(Ok(None), directives::of_item) {
                Ok(directive) => directive,
                Err(reason) => {
                    self.refuse(&at, reason);
                    continue;
                }
            };
            if directive == Some(PatchKind::Replace) {
                changes.replace = true;
                continue;
            }
            let Some(identity) = self.identity(&item, key, &at) else { continue };
            if directive == Some(PatchKind::Delete) {
                changes.deleted.insert(identity);
            } else if let Value::Object(fields) = item {
                changes.items.push((identity, fields));
            }
        }
        (self.findings.len() == findings).then_some(changes)
    }

    fn identity(&mut self, item: &Value, key: Key, at: &At<'_>) -> Option<String> {
        let Value::Object(fields) = item else {
            self.refuse(
                at,
                format!("an object with the merge key `{}` is needed here, not {}", key.field, kind_of(item)),
            );
            return None;
        };
        let identity = key.identity(fields);
        if identity.is_none() {
            self.refuse(at, format!("the item lacks its merge key `{}`", key.field));
        }
        identity.map(std::borrow::Cow::into_owned)
    }

    /// The order that `$setElementOrder` asks for: listed items as listed, the others where they stood.
    fn ordered(
        &mut self,
        patched: Vec<Placed<Value>>,
        rest: Vec<Placed<Value>>,
        order: &[Value],
        key: Key,
        at: &At<'_>,
    ) -> Vec<Value> {
        let mut ranks = HashMap::with_capacity(order.len());
        for (rank, item) in order.iter().enumerate() {
            if let Some(identity) = self.identity(item, key, &At::Position(at, rank)) {
                ranks.entry(identity).or_insert(rank);
            }
        }
        let rank = |item: &Value| ranks.get(&*key.identity(item.as_object()?)?).copied();
        let mut listed = Vec::new();
        let mut others = Vec::new();
        for placed in patched {
            if let Some(rank) = rank(&placed.item) {
                listed.push((rank, placed));
            } else {
                let key = &placed.item[key.field];
                self.refuse(at, format!("an item of the patch is not listed in $setElementOrder: {key}"));
            }
        }
        for placed in rest {
            match rank(&placed.item) {
                Some(rank) => listed.push((rank, placed)),
                None => others.push(placed),
            }
        }
        listed.sort_by_key(|(rank, _)| *rank);
        weave(listed.into_iter().map(|(_, placed)| placed).collect(), others)
    }
}

/// How a keyed list is merged.
#[derive(Debug, Clone, Copy)]
struct KeyedBy {
    key: Key,
    item: Kind,
}

/// What a patch says about a keyed list.
struct Changes {
    items: Vec<(String, Map<String, Value>)>,
    deleted: HashSet<String>,
    replace: bool,
}

/// The union of two lists of scalars.
fn union(original: Vec<Value>, patch: Vec<Value>, order: Option<&[Value]>) -> Vec<Value> {
    let identities: Vec<String> = patch.iter().map(ToString::to_string).collect();
    let matches = matches(original.iter().map(ToString::to_string).collect(), identities.iter());
    let mut slots: Vec<Option<Value>> = original.into_iter().map(Some).collect();
    let mut patched = Vec::with_capacity(patch.len());
    for (item, Match { was, twins }) in patch.into_iter().zip(matches) {
        if let Some(was) = was {
            slots[was] = None;
        }
        patched.push(Placed { item, was });
        patched.extend(twins.into_iter().filter_map(|twin| Some(Placed { item: slots[twin].take()?, was: None })));
    }
    let rest = slots.into_iter().enumerate();
    let mut rest: Vec<_> = rest.filter_map(|(was, item)| Some(Placed { item: item?, was: Some(was) })).collect();
    if let Some(order) = order {
        let ranks: HashMap<String, usize> =
            order.iter().enumerate().rev().map(|(rank, item)| (item.to_string(), rank)).collect();
        let rank = |placed: &Placed<Value>| ranks.get(&placed.item.to_string()).copied();
        let (listed, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|placed| rank(placed).is_some());
        rest = others;
        patched.extend(listed);
        patched.sort_by_key(|placed| rank(placed).unwrap_or(usize::MAX));
    }
    weave(patched, rest)
}

const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
