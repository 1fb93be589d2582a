//! Server-side apply, and the effect of other writes on the ownership of fields.
//!
//! ```text
//! apply:  live + configuration ─ merge ─▶ minus fields that the manager no longer applies and nobody else owns ─▶ owners
//! update: old, new ─ difference ─▶ the writer owns what changed, nobody else does
//! ```

use serde_json::{Map, Value, json};

use super::fields::{self, FieldPath, FieldStep, Fields, ListKind};
use super::store::StatusError;

/// The client that writes.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub(super) manager: String,
    /// `v1` or `group/version` of the request.
    pub(super) api_version: String,
    /// `status` or empty.
    pub(super) subresource: String,
}

/// An entry of `managedFields`.
#[derive(Debug, Clone)]
struct Owner {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    fields: Fields,
}

impl Owner {
    fn new(writer: &Writer, operation: &str) -> Self {
        Self {
            manager: writer.manager.clone(),
            operation: operation.to_owned(),
            api_version: writer.api_version.clone(),
            subresource: writer.subresource.clone(),
            fields: Fields::default(),
        }
    }

    fn from_entry(entry: &Value) -> Self {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        Self {
            manager: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            fields: Fields::from_v1(&entry["fieldsV1"]),
        }
    }

    fn to_entry(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_v1(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }

    fn description(&self) -> String {
        let using = if self.operation == "Update" { format!(" using {}", self.api_version) } else { String::new() };
        format!("\"{}\"{using}", self.manager)
    }

    fn is_same_manager(&self, other: &Self) -> bool {
        (&self.manager, &self.operation, &self.subresource) == (&other.manager, &other.operation, &other.subresource)
    }
}

fn owners(object: &Value) -> Vec<Owner> {
    object["metadata"]["managedFields"].as_array().into_iter().flatten().map(Owner::from_entry).collect()
}

fn set_owners(object: &mut Value, owners: &[Owner]) {
    let entries = owners.iter().filter(|owner| !owner.fields.0.is_empty()).map(Owner::to_entry).collect();
    object["metadata"]["managedFields"] = Value::Array(entries);
}

/// Returns `new` with the owners of its fields after a create, update or patch; `old` is null for a create.
pub(super) fn updated(old: &Value, mut new: Value, writer: &Writer) -> Value {
    let (changed, removed) = fields::difference(old, &new);
    let mut all = owners(old);
    for owner in &mut all {
        owner.fields.0.retain(|path| !changed.0.contains(path) && !removed.0.contains(path));
    }
    let mut own = Owner::new(writer, "Update");
    if let Some(found) = all.iter_mut().find(|owner| owner.is_same_manager(&own)) {
        found.fields.0.extend(changed.0);
    } else {
        own.fields = changed;
        all.push(own);
    }
    set_owners(&mut new, &all);
    new
}

/// Returns the object after an apply of `config` to `live`, which is null where there is none.
pub(super) fn applied(live: &Value, config: &Value, writer: &Writer, force: bool) -> Result<Value, StatusError> {
    let wanted = Fields::of(config);
    let mut object = live.clone();
    merge(&mut object, config, "");
    let mut all = owners(live);
    let mut own = Owner::new(writer, "Apply");
    let before = all
        .iter()
        .position(|owner| owner.is_same_manager(&own))
        .map(|place| all.remove(place).fields)
        .unwrap_or_default();

    let taken = |path: &FieldPath| wanted.0.contains(path) && !fields::same(live, &object, path);
    let conflicts: Vec<(String, String)> = all
        .iter()
        .flat_map(|owner| owner.fields.0.iter().map(move |path| (owner, path)))
        .filter(|(_, path)| taken(path))
        .map(|(owner, path)| (owner.description(), format_path(path)))
        .collect();
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    for owner in &mut all {
        owner.fields.0.retain(|path| !taken(path));
    }
    // An item is removed before its fields: without its key it would not be found.
    let mut dropped: Vec<&FieldPath> = before.0.difference(&wanted.0).collect();
    dropped.sort_by_key(|path| path.len());
    for path in dropped {
        let kept = wanted.has_within(path) || all.iter().any(|owner| owner.fields.has_within(path));
        if !kept && !is_key_of_kept_item(path, &wanted, &all) {
            remove(&mut object, path);
        }
    }
    own.fields = wanted;
    all.push(own);
    set_owners(&mut object, &all);
    Ok(object)
}

/// Returns whether the field is part of the key of an item that stays.
fn is_key_of_kept_item(path: &FieldPath, wanted: &Fields, others: &[Owner]) -> bool {
    let [parent @ .., FieldStep::Item(key), FieldStep::Field(name)] = path.as_slice() else { return false };
    let item = [parent, &[FieldStep::Item(key.clone())]].concat();
    let of_key = serde_json::from_str::<Value>(key).is_ok_and(|key| key.get(name).is_some());
    of_key && (wanted.has_within(&item) || others.iter().any(|owner| owner.fields.has_within(&item)))
}

fn conflict(conflicts: &[(String, String)]) -> StatusError {
    let mut lines = format!("Apply failed with {} conflict", conflicts.len());
    lines.push_str(if conflicts.len() == 1 { ": " } else { "s: " });
    let text: Vec<String> =
        conflicts.iter().map(|(manager, path)| format!("conflict with {manager}: {path}")).collect();
    lines.push_str(&text.join("\n"));
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(manager, path)| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": path}))
        .collect();
    StatusError { details: Some(Box::new(json!({ "causes": causes }))), ..StatusError::new(409, "Conflict", lines) }
}

/// Formats a path as `.webhooks[name="x"].clientConfig.caBundle`.
fn format_path(path: &[FieldStep]) -> String {
    let step = |step: &FieldStep| match step {
        FieldStep::Field(name) => format!(".{name}"),
        FieldStep::Item(key) => {
            let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let fields: Vec<String> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", fields.join(","))
        }
        FieldStep::Value(value) => format!("[={value}]"),
    };
    path.iter().map(step).collect()
}

/// Merges `config` into `target`: maps by field, lists by key, everything else as a whole.
fn merge(target: &mut Value, config: &Value, field: &str) {
    match (target, config) {
        (Value::Object(target), Value::Object(config)) if !fields::is_atomic_map(field) => {
            for (key, value) in config {
                merge(target.entry(key.clone()).or_insert(Value::Null), value, key);
            }
        }
        (Value::Array(target), Value::Array(config)) => match fields::list_kind(field, config) {
            ListKind::Keyed(keys) => {
                for item in config {
                    let key = fields::item_key(item, keys);
                    match target.iter_mut().find(|found| fields::item_key(found, keys) == key) {
                        Some(found) => merge(found, item, ""),
                        None => target.push(item.clone()),
                    }
                }
            }
            ListKind::Set => {
                let new: Vec<Value> = config.iter().filter(|value| !target.contains(value)).cloned().collect();
                target.extend(new);
            }
            ListKind::Atomic => target.clone_from(config),
        },
        (target, config) => target.clone_from(config),
    }
}

/// Applies a strategic merge patch: like a server-side apply, but null removes a field and `$patch: delete` an item.
pub(super) fn strategic_merge(target: &mut Value, patch: &Value) {
    merge(target, patch, "");
    apply_removals(target);
}

/// Carries out the removals that a merged patch asks for.
fn apply_removals(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| !value.is_null() && !key.starts_with('$'));
            map.values_mut().for_each(apply_removals);
        }
        Value::Array(items) => {
            items.retain(|item| item["$patch"] != "delete");
            items.iter_mut().for_each(apply_removals);
        }
        _ => {}
    }
}

/// Removes the value at a path, and maps that become empty.
fn remove(object: &mut Value, path: &[FieldStep]) {
    let Some((step, parent)) = path.split_last() else { return };
    let place = match (step, parent.last()) {
        (FieldStep::Field(name), _) => name.clone(),
        (item, Some(FieldStep::Field(list))) => {
            let found = fields::at(object, parent).and_then(|values| fields::position(values, list, item));
            let Some(found) = found else { return };
            found.to_string()
        }
        _ => return,
    };
    let Some(holder) = at_mut(object, parent) else { return };
    let empty = match holder {
        Value::Object(map) => {
            map.shift_remove(&place);
            map.is_empty()
        }
        Value::Array(items) => {
            place.parse().ok().filter(|place| *place < items.len()).map(|place: usize| items.remove(place));
            items.is_empty()
        }
        _ => false,
    };
    if empty && matches!(parent.last(), Some(FieldStep::Field(_))) {
        remove(object, parent);
    }
}

fn at_mut<'a>(object: &'a mut Value, path: &[FieldStep]) -> Option<&'a mut Value> {
    let mut field = "";
    let mut value = object;
    for step in path {
        value = match step {
            FieldStep::Field(name) => {
                field = name;
                value.get_mut(name)?
            }
            step => {
                let place = fields::position(value, field, step)?;
                &mut value[place]
            }
        };
    }
    Some(value)
}

#[cfg(test)]
#[path = "apply/tests.rs"]
mod tests;
