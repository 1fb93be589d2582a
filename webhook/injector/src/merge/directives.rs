//! Parses the directives among the fields of a patch.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

/// The value of `$patch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PatchKind {
    /// Merges, which is the default.
    Merge,
    /// Replaces what exists.
    Replace,
    /// Deletes what exists.
    Delete,
}

/// The directives of one map.
#[derive(Debug, Default)]
pub(super) struct Directives {
    pub(super) patch: Option<PatchKind>,
    /// The fields to keep; all others are removed.
    pub(super) retain: Option<HashSet<String>>,
    /// Directives about lists in the map, by the name of the list.
    pub(super) lists: HashMap<String, ListDirectives>,
}

/// The directives about one list.
#[derive(Debug, Default)]
pub(super) struct ListDirectives {
    /// `$setElementOrder/x`.
    pub(super) order: Option<Vec<Value>>,
    /// `$deleteFromPrimitiveList/x`.
    pub(super) delete: Option<Vec<Value>>,
}

impl Directives {
    /// Removes the directives from a map; calls `reject` with the reason for each invalid one.
    pub(super) fn take(patch: &mut Map<String, Value>, mut reject: impl FnMut(String)) -> Self {
        let mut directives = Self::default();
        if !patch.keys().any(|name| name.starts_with('$')) {
            return directives;
        }
        for (name, value) in std::mem::take(patch) {
            if !name.starts_with('$') {
                patch.insert(name, value);
                continue;
            }
            if let Err(reason) = directives.add(&name, value) {
                reject(reason);
            }
        }
        directives
    }

    fn add(&mut self, name: &str, value: Value) -> Result<(), String> {
        if name == "$patch" {
            self.patch = Some(patch_kind(&value)?);
            return Ok(());
        }
        let Value::Array(items) = value else { return Err(format!("`{name}` must be a list")) };
        if name == "$retainKeys" {
            let fields = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>();
            self.retain = Some(fields.ok_or("`$retainKeys` must be a list of field names")?);
        } else if let Some(list) = name.strip_prefix("$setElementOrder/") {
            self.lists.entry(list.to_owned()).or_default().order = Some(items);
        } else if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            self.lists.entry(list.to_owned()).or_default().delete = Some(items);
        } else {
            return Err(format!("unknown directive `{name}`"));
        }
        Ok(())
    }
}

/// Returns the `$patch` directive of an item of a list.
pub(super) fn of_item(item: &Map<String, Value>) -> Result<Option<PatchKind>, String> {
    item.get("$patch").map(patch_kind).transpose()
}

/// Returns whether the map only deletes what exists.
pub(super) fn deletes(patch: &Map<String, Value>) -> bool {
    of_item(patch) == Ok(Some(PatchKind::Delete))
}

fn patch_kind(value: &Value) -> Result<PatchKind, String> {
    match value.as_str() {
        Some("merge") => Ok(PatchKind::Merge),
        Some("replace") => Ok(PatchKind::Replace),
        Some("delete") => Ok(PatchKind::Delete),
        _ => Err(format!("`$patch` must be merge, replace or delete, found {value}")),
    }
}
