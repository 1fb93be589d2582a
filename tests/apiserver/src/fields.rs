//! Sets of fields, as server-side apply names them in `managedFields`.
//!
//! A path is a list of steps: a field, an item of a list by its key, or a value of a set. A list without keys is one field, and so are
//! the maps that Kubernetes replaces as a whole (structured-merge-diff; field `managedFields` of `ObjectMeta`).

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FieldStep {
    /// `f:NAME`
    Field(String),
    /// `k:{"name":"x"}`, the JSON of the key fields.
    Item(String),
    /// `v:VALUE`, JSON.
    Value(String),
}

pub(super) type FieldPath = Vec<FieldStep>;

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(pub(super) BTreeSet<FieldPath>);

/// Strategy by which a list merges.
pub(super) enum ListKind {
    Keyed(&'static [&'static str]),
    Set,
    Atomic,
}

/// Returns how the list in a field merges; the items tell lists in fields of the same name apart.
pub(super) fn list_kind(field: &str, items: &[Value]) -> ListKind {
    let keys: &'static [&'static str] = match field {
        "webhooks"
        | "matchConditions"
        | "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "secrets" => &["name"],
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "conditions" => &["type"],
        "ownerReferences" => &["uid"],
        "hostAliases" => &["ip"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "ports" if items.iter().all(|item| item.get("containerPort").is_some()) => &["containerPort", "protocol"],
        "ports" => &["port", "protocol"],
        "finalizers" => return ListKind::Set,
        _ => return ListKind::Atomic,
    };
    let mut seen = BTreeSet::new();
    // Items without a key, or with the same key, cannot be told apart.
    let has_unique_key =
        |item: &Value| keys.iter().all(|key| key_value(item, key).is_some()) && seen.insert(item_key(item, keys));
    if items.iter().all(has_unique_key) { ListKind::Keyed(keys) } else { ListKind::Atomic }
}

/// Returns whether the map in a field is owned as a whole.
pub(super) fn is_atomic_map(field: &str) -> bool {
    matches!(
        field,
        "selector"
            | "namespaceSelector"
            | "objectSelector"
            | "labelSelector"
            | "podSelector"
            | "nodeSelector"
            | "roleRef"
    ) || field.ends_with("KeyRef")
}

fn key_value(item: &Value, key: &str) -> Option<Value> {
    // The only key field with a default.
    item.get(key).cloned().or_else(|| (key == "protocol").then(|| json!("TCP")))
}

/// Returns the key fields of an item as JSON.
pub(super) fn item_key(item: &Value, keys: &[&str]) -> String {
    let fields: Map<String, Value> =
        keys.iter().filter_map(|key| Some(((*key).to_owned(), key_value(item, key)?))).collect();
    Value::Object(fields).to_string()
}

/// Returns whether no manager owns a field: it names the object, or the server maintains it.
fn is_unowned(path: &[FieldStep]) -> bool {
    let name = |step: Option<&FieldStep>| match step {
        Some(FieldStep::Field(name)) => name.clone(),
        _ => String::new(),
    };
    match name(path.first()).as_str() {
        "apiVersion" | "kind" => true,
        "metadata" => matches!(
            name(path.get(1)).as_str(),
            "name"
                | "namespace"
                | "uid"
                | "resourceVersion"
                | "generation"
                | "creationTimestamp"
                | "managedFields"
                | "generateName"
                | "deletionTimestamp"
                | "selfLink"
        ),
        _ => false,
    }
}

impl Fields {
    /// Returns all fields of an object.
    pub(super) fn of(object: &Value) -> Self {
        let mut found = BTreeSet::new();
        collect(object, "", &mut Vec::new(), &mut found);
        found.retain(|path| !is_unowned(path));
        Self(found)
    }

    /// Encodes them as `fieldsV1`.
    pub(super) fn to_v1(&self) -> Value {
        let mut root = json!({});
        for path in &self.0 {
            let mut node = &mut root;
            for step in path {
                let key = match step {
                    FieldStep::Field(name) => format!("f:{name}"),
                    FieldStep::Item(key) => format!("k:{key}"),
                    FieldStep::Value(value) => format!("v:{value}"),
                };
                node = &mut node[key];
                if node.is_null() {
                    *node = json!({});
                }
            }
            node["."] = json!({});
        }
        collapse_leaves(&mut root);
        root
    }

    /// Decodes `fieldsV1`.
    pub(super) fn from_v1(value: &Value) -> Self {
        let mut found = BTreeSet::new();
        collect_v1(value, &mut Vec::new(), &mut found);
        Self(found)
    }

    /// Returns whether the path, or one below it, is in the set.
    pub(super) fn has_within(&self, path: &[FieldStep]) -> bool {
        self.0.range(path.to_vec()..).next().is_some_and(|found| found.starts_with(path))
    }
}

/// Writes leaves as `{}`, not as `{".": {}}`.
fn collapse_leaves(node: &mut Value) {
    let Some(map) = node.as_object_mut() else { return };
    if map.len() == 1 {
        map.remove(".");
    }
    map.iter_mut().filter(|(key, _)| *key != ".").for_each(|(_, child)| collapse_leaves(child));
}

fn collect_v1(node: &Value, path: &mut FieldPath, found: &mut BTreeSet<FieldPath>) {
    let Some(map) = node.as_object() else { return };
    if !path.is_empty() && (map.is_empty() || map.contains_key(".")) {
        found.insert(path.clone());
    }
    for (key, child) in map {
        let step = match key.split_once(':') {
            Some(("f", name)) => FieldStep::Field(name.to_owned()),
            Some(("k", key)) => FieldStep::Item(key.to_owned()),
            Some(("v", value)) => FieldStep::Value(value.to_owned()),
            _ => continue,
        };
        path.push(step);
        collect_v1(child, path, found);
        path.pop();
    }
}

fn collect(value: &Value, field: &str, path: &mut FieldPath, found: &mut BTreeSet<FieldPath>) {
    match value {
        Value::Object(map) if !map.is_empty() && !is_atomic_map(field) => {
            for (key, child) in map {
                path.push(FieldStep::Field(key.clone()));
                collect(child, key, path, found);
                path.pop();
            }
        }
        Value::Array(items) if !items.is_empty() => match list_kind(field, items) {
            ListKind::Keyed(keys) => {
                for item in items {
                    path.push(FieldStep::Item(item_key(item, keys)));
                    found.insert(path.clone());
                    collect(item, "", path, found);
                    path.pop();
                }
            }
            ListKind::Set => {
                found
                    .extend(items.iter().map(|item| [path.as_slice(), &[FieldStep::Value(item.to_string())]].concat()));
            }
            ListKind::Atomic => drop(found.insert(path.clone())),
        },
        _ => drop(found.insert(path.clone())),
    }
}

/// Returns the value at a path.
pub(super) fn at<'a>(object: &'a Value, path: &[FieldStep]) -> Option<&'a Value> {
    path.iter()
        .try_fold((object, ""), |(value, field), step| match step {
            FieldStep::Field(name) => Some((value.get(name)?, name.as_str())),
            FieldStep::Item(_) | FieldStep::Value(_) => Some((&value[position(value, field, step)?], "")),
        })
        .map(|(value, _)| value)
}

/// Returns the index of the item that a step names.
pub(super) fn position(list: &Value, field: &str, step: &FieldStep) -> Option<usize> {
    let items = list.as_array()?;
    match (step, list_kind(field, items)) {
        (FieldStep::Item(key), ListKind::Keyed(keys)) => items.iter().position(|item| item_key(item, keys) == *key),
        (FieldStep::Value(value), ListKind::Set) => {
            let value: Value = serde_json::from_str(value).ok()?;
            items.iter().position(|item| *item == value)
        }
        _ => None,
    }
}

/// Returns whether two objects are equal at a path; items of lists are compared by their presence only.
pub(super) fn same(one: &Value, other: &Value, path: &[FieldStep]) -> bool {
    let (one, other) = (at(one, path), at(other, path));
    match path.last() {
        Some(FieldStep::Field(_)) | None => one == other,
        Some(_) => one.is_some() == other.is_some(),
    }
}

/// Returns the fields that were added or changed, and those that were removed.
pub(super) fn difference(old: &Value, new: &Value) -> (Fields, Fields) {
    let (before, after) = (Fields::of(old), Fields::of(new));
    let differs = |path: &&FieldPath| !before.0.contains(*path) || !same(old, new, path);
    let changed = after.0.iter().filter(differs).cloned().collect();
    (Fields(changed), Fields(before.0.difference(&after.0).cloned().collect()))
}
