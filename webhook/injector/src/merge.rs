//! Kubernetes' strategic merge on raw JSON: merges an overlay of a template or a user into a pod.
//!
//! Maps are merged field by field, a `null` deletes, lists that have a merge key are merged item by item, everything else is
//! replaced. Unknown fields are kept. The directives of the format (`$patch`, `$retainKeys`, `$setElementOrder/x`,
//! `$deleteFromPrimitiveList/x`) are applied, or rejected by name where they are invalid.
//!
//! Source of the rules: the Kubernetes API conventions, "strategic merge patch", and the patch strategies in
//! `k8s.io/api/core/v1`.

mod directives;
pub(crate) mod keys;
pub(crate) mod list;
mod path;
mod plain;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::findings::{join_findings, type_name};
use directives::{Directives, PatchKind};
use keys::{Field, Key, MapKind};
use list::{Match, Placed, interleave, matches};
use path::FieldPath;
use plain::is_plain;

/// Error returned when an overlay cannot be merged; has every finding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", join_findings(.0))]
pub struct MergeError(pub Vec<MergeFinding>);

/// A field that cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct MergeFinding {
    /// Path of the field, for example `spec.containers[istio-proxy].env[3]`; `.` is the pod itself.
    pub path: String,
    /// Description of the conflict.
    pub reason: String,
}

/// Merges an overlay into a pod.
///
/// # Errors
/// Returns every item of a keyed list that has no key, and every invalid directive.
pub fn merge_pod(mut pod: Value, overlay: Value) -> Result<Value, MergeError> {
    merge_owned(&mut pod, overlay)?;
    Ok(pod)
}

/// Merges an overlay into a pod in place.
///
/// # Errors
/// As [`merge_pod`]; the pod is then only partly merged and must be discarded.
pub fn merge(pod: &mut Value, overlay: &Value) -> Result<(), MergeError> {
    merge_owned(pod, overlay.clone())
}

/// Merges a container into one of the pod's in place, as [`merge`] does with a list of one, but without searching the list.
/// `list` is the field of the list.
///
/// # Errors
/// As [`merge_pod`].
pub(crate) fn merge_container(container: &mut Value, patch: Value, list: &str) -> Result<(), MergeError> {
    let mut merger = Merger::default();
    let name = patch["name"].as_str().unwrap_or_default().to_owned();
    let spec = FieldPath::Field(&FieldPath::Root, "spec");
    let list = FieldPath::Field(&spec, list);
    let at = FieldPath::Item(&list, &name);
    match (container, patch) {
        (Value::Object(container), Value::Object(patch)) => merger.map(container, patch, MapKind::Container, &at),
        _ => merger.reject(&at, "must be an object".to_owned()),
    }
    merger.finish()
}

fn merge_owned(pod: &mut Value, overlay: Value) -> Result<(), MergeError> {
    let mut merger = Merger::default();
    match (pod, overlay) {
        (Value::Object(pod), Value::Object(overlay)) => merger.map(pod, overlay, MapKind::Pod, &FieldPath::Root),
        (Value::Object(_), _) => merger.reject(&FieldPath::Root, "the overlay is not an object".to_owned()),
        _ => merger.reject(&FieldPath::Root, "the pod is not an object".to_owned()),
    }
    merger.finish()
}

/// A merge in progress.
#[derive(Debug, Default)]
struct Merger {
    findings: Vec<MergeFinding>,
}

impl Merger {
    fn finish(self) -> Result<(), MergeError> {
        if self.findings.is_empty() { Ok(()) } else { Err(MergeError(self.findings)) }
    }

    fn reject(&mut self, at: &FieldPath<'_>, reason: String) {
        self.findings.push(MergeFinding { path: at.to_string(), reason });
    }

    fn map(
        &mut self,
        target: &mut Map<String, Value>,
        mut patch: Map<String, Value>,
        kind: MapKind,
        at: &FieldPath<'_>,
    ) {
        if target.is_empty() && is_plain(&patch, kind) {
            *target = patch;
            return;
        }
        let directives = Directives::take(&mut patch, |reason| self.reject(at, reason));
        match directives.patch {
            Some(PatchKind::Delete) => return target.clear(),
            Some(PatchKind::Replace) => target.clear(),
            Some(PatchKind::Merge) | None => {}
        }
        if let Some(kept) = &directives.retain {
            for name in patch.keys().filter(|name| !kept.contains(name.as_str())) {
                self.reject(at, format!("field `{name}` is set but not listed in $retainKeys"));
            }
            target.retain(|name, _| kept.contains(name));
        }
        let mut lists = directives.lists;
        let mut deleted = HashSet::new();
        for (name, value) in patch {
            let at = FieldPath::Field(at, &name);
            match value {
                Value::Null => {
                    deleted.insert(name);
                }
                Value::Object(value) => match kind.field(&name) {
                    Field::Plain(kind) => self.child(target, &name, value, kind, &at),
                    Field::Keyed(..) | Field::Union => self.child(target, &name, value, MapKind::Other, &at),
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
        // Directives about lists that the patch does not contain.
        for (name, extra) in lists {
            self.list_field(target, &name, None, extra, kind, &FieldPath::Field(at, &name));
        }
    }

    fn child(
        &mut self,
        target: &mut Map<String, Value>,
        name: &str,
        patch: Map<String, Value>,
        kind: MapKind,
        at: &FieldPath<'_>,
    ) {
        if let Some(Value::Object(child)) = target.get_mut(name) {
            return self.map(child, patch, kind, at);
        }
        if directives::deletes(&patch) {
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
        extra: directives::ListDirectives,
        kind: MapKind,
        at: &FieldPath<'_>,
    ) {
        let original = match target.get_mut(name) {
            Some(Value::Array(original)) => Some(std::mem::take(original)),
            _ => None,
        };
        if items.is_none() && original.is_none() {
            return; // There is nothing to order or to delete from.
        }
        let mut original = original.unwrap_or_default();
        let field = kind.field(name);
        if let Some(values) = extra.delete {
            if matches!(field, Field::Keyed(..)) {
                self.reject(at, "$deleteFromPrimitiveList needs a list of scalars".to_owned());
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
                    self.reject(at, "$setElementOrder needs a list with a merge key".to_owned());
                }
                match items {
                    Some(items) => self.replaced(items, at),
                    None => original,
                }
            }
        };
        target.insert(name.to_owned(), Value::Array(merged));
    }

    /// Returns the items that replace a list: the patch's, without their nulls.
    fn replaced(&mut self, items: Vec<Value>, at: &FieldPath<'_>) -> Vec<Value> {
        let mut result = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            let at = FieldPath::Position(at, position);
            match item {
                Value::Object(fields) => match directives::of_item(&fields) {
                    Ok(Some(PatchKind::Replace)) => {}
                    Ok(Some(PatchKind::Delete)) => {
                        self.reject(&at, "$patch: delete needs a list with a merge key".to_owned());
                    }
                    Ok(Some(PatchKind::Merge) | None) => {
                        let mut fresh = Map::new();
                        self.map(&mut fresh, fields, MapKind::Other, &at);
                        result.push(Value::Object(fresh));
                    }
                    Err(reason) => self.reject(&at, reason),
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
        at: &FieldPath<'_>,
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
            identities.extend(self.identity(item, by.key, &FieldPath::Position(at, position)));
        }
        if self.findings.len() > findings {
            return original;
        }
        let keep: Vec<bool> = identities.iter().map(|identity| !deleted.contains(&**identity)).collect();
        let patched: Vec<&str> = items.iter().map(|(identity, _)| identity.as_str()).collect();
        let matches = matches(identities.iter().map(|identity| &**identity).collect(), patched.iter());
        let mut slots: Vec<Option<Value>> =
            original.into_iter().zip(&keep).map(|(item, keep)| keep.then_some(item)).collect();

        let mut patched = Vec::with_capacity(items.len());
        for ((identity, fields), Match { was, duplicates }) in items.into_iter().zip(matches) {
            let was = was.filter(|was| keep[*was]);
            let mut item = match was.and_then(|was| slots[was].take()) {
                Some(Value::Object(item)) => item,
                _ => Map::new(),
            };
            self.map(&mut item, fields, by.item, &FieldPath::Item(at, &identity));
            patched.push(Placed { item: Value::Object(item), was });
            patched.extend(
                duplicates
                    .into_iter()
                    .filter_map(|duplicate| Some(Placed { item: slots[duplicate].take()?, was: None })),
            );
        }
        let rest = slots.into_iter().enumerate();
        let rest: Vec<_> = rest.filter_map(|(was, item)| Some(Placed { item: item?, was: Some(was) })).collect();
        match order {
            None => interleave(patched, rest),
            Some(order) => self.ordered(patched, rest, order, by.key, at),
        }
    }

    /// Separates the items of a keyed list into those to merge and those to delete; `None` if one is invalid.
    fn changes(&mut self, patch: Vec<Value>, key: Key, at: &FieldPath<'_>) -> Option<Changes> {
        let findings = self.findings.len();
        let mut changes = Changes { items: Vec::with_capacity(patch.len()), deleted: HashSet::new(), replace: false };
        for (position, item) in patch.into_iter().enumerate() {
            let at = FieldPath::Position(at, position);
            let directive = match item.as_object().map_or(Ok(None), directives::of_item) {
                Ok(directive) => directive,
                Err(reason) => {
                    self.reject(&at, reason);
                    continue;
                }
            };
            if directive == Some(PatchKind::Replace) {
                changes.replace = true;
                continue;
            }
            let Some(identity) = self.identity(&item, key, &at) else { continue };
            if directive == Some(PatchKind::Delete) {
                changes.deleted.insert(identity.into_owned());
                continue;
            }
            let identity = identity.into_owned();
            if let Value::Object(fields) = item {
                changes.items.push((identity, fields));
            }
        }
        (self.findings.len() == findings).then_some(changes)
    }

    fn identity<'a>(&mut self, item: &'a Value, key: Key, at: &FieldPath<'_>) -> Option<Cow<'a, str>> {
        let Value::Object(fields) = item else {
            self.reject(at, format!("must be an object with the merge key `{}`, found {}", key.field, type_name(item)));
            return None;
        };
        let identity = key.identity(fields);
        if identity.is_none() {
            self.reject(at, format!("the merge key `{}` is missing", key.field));
        }
        identity
    }

    /// Orders items by `$setElementOrder`: listed items as listed, the others where they were.
    fn ordered(
        &mut self,
        patched: Vec<Placed<Value>>,
        rest: Vec<Placed<Value>>,
        order: &[Value],
        key: Key,
        at: &FieldPath<'_>,
    ) -> Vec<Value> {
        let mut ranks = HashMap::with_capacity(order.len());
        for (rank, item) in order.iter().enumerate() {
            if let Some(identity) = self.identity(item, key, &FieldPath::Position(at, rank)) {
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
                self.reject(at, format!("item {key} of the patch is not listed in $setElementOrder"));
            }
        }
        for placed in rest {
            match rank(&placed.item) {
                Some(rank) => listed.push((rank, placed)),
                None => others.push(placed),
            }
        }
        listed.sort_by_key(|(rank, _)| *rank);
        interleave(listed.into_iter().map(|(_, placed)| placed).collect(), others)
    }
}

/// The merge key of a list, and the kind of its items.
#[derive(Debug, Clone, Copy)]
struct KeyedBy {
    key: Key,
    item: MapKind,
}

/// The changes that a patch makes to a keyed list.
struct Changes {
    items: Vec<(String, Map<String, Value>)>,
    deleted: HashSet<String>,
    replace: bool,
}

/// Returns the union of two lists of scalars.
fn union(original: Vec<Value>, patch: Vec<Value>, order: Option<&[Value]>) -> Vec<Value> {
    let identities: Vec<String> = patch.iter().map(ToString::to_string).collect();
    let matches = matches(original.iter().map(ToString::to_string).collect(), identities.iter());
    let mut slots: Vec<Option<Value>> = original.into_iter().map(Some).collect();
    let mut patched = Vec::with_capacity(patch.len());
    for (item, Match { was, duplicates }) in patch.into_iter().zip(matches) {
        if let Some(was) = was {
            slots[was] = None;
        }
        patched.push(Placed { item, was });
        patched.extend(
            duplicates.into_iter().filter_map(|duplicate| Some(Placed { item: slots[duplicate].take()?, was: None })),
        );
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
    interleave(patched, rest)
}

#[cfg(test)]
mod tests;
