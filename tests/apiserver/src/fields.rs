//! Which fields an object has, as server-side apply names them, and which managers own them.
//!
//! A path is a list of steps: a field, an item of a list by its key, or a value of a set. Lists without a key are one field, and so
//! are the maps that Kubernetes replaces as a whole (structured-merge-diff; field `managedFields` of `ObjectMeta`).

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// `f:NAME`
    Field(String),
    /// `k:{"name":"x"}`, the JSON of the key fields.
    Item(String),
    /// `v:VALUE`, JSON.
    Value(String),
}

pub(super) type Path = Vec<Step>;

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(pub(super) BTreeSet<Path>);

/// How a list merges.
pub(super) enum ListKind {
    Keyed(&'static [&'static str]),
    Set,
    Atomic,
}

/// How the list in this field merges; what its items look like tells lists of the same name apart.
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
    // Without its key an item cannot be told from others; of two alike neither.
    let told =
        |item: &Value| keys.iter().all(|key| key_value(item, key).is_some()) && seen.insert(item_key(item, keys));
    if items.iter().all(told) { ListKind::Keyed(keys) } else { ListKind::Atomic }
}

/// Maps that one manager owns whole.
pub(super) fn atomic_map(field: &str) -> bool {
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
    // The one key field with a default.
    item.get(key).cloned().or_else(|| (key == "protocol").then(|| json!("TCP")))
}

/// JSON of the key fields of an item.
pub(super) fn item_key(item: &Value, keys: &[&str]) -> String {
    let fields: Map<String, Value> =
        keys.iter().filter_map(|key| Some(((*key).to_owned(), key_value(item, key)?))).collect();
    Value::Object(fields).to_string()
}

/// Fields that nobody owns: they name the object, or the server keeps them.
fn nobodys(path: &[Step]) -> bool {
    let name = |step: Option<&Step>| match step {
        Some(Step::Field(name)) => name.clone(),
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
    /// All fields of an object.
    pub(super) fn of(object: &Value) -> Self {
        let mut found = BTreeSet::new();
        collect(object, "", &mut Vec::new(), &mut found);
        found.retain(|path| !nobodys(path));
        Self(found)
    }

    /// As `fieldsV1` has them.
    pub(super) fn to_v1(&self) -> Value {
        let mut root = json!({});
        for path in &self.0 {
            let mut node = &mut root;
            for step in path {
                let key = match step {
                    Step::Field(name) => format!("f:{name}"),
                    Step::Item(key) => format!("k:{key}"),
                    Step::Value(value) => format!("v:{value}"),
                };
                node = &mut node[key];
                if node.is_null() {
                    *node = json!({});
                }
            }
            node["."] = json!({});
        }
        lone_dots(&mut root);
        root
    }

    /// From `fieldsV1`.
    pub(super) fn from_v1(value: &Value) -> Self {
        let mut found = BTreeSet::new();
        read(value, &mut Vec::new(), &mut found);
        Self(found)
    }

    /// Whether the path, or something below it, is among them.
    pub(super) fn touch(&self, path: &[Step]) -> bool {
        self.0.range(path.to_vec()..).next().is_some_and(|found| found.starts_with(path))
    }
}

/// A leaf is `{}`, not `{".": {}}`.
fn lone_dots(node: &mut Value) {
    let Some(map) = node.as_object_mut() else { return };
    if map.len() == 1 {
        map.remove(".");
    }
    map.iter_mut().filter(|(key, _)| *key != ".").for_each(|(_, child)| lone_dots(child));
}

fn read(node: &Value, path: &mut Path, found: &mut BTreeSet<Path>) {
    let Some(map) = node.as_object() else { return };
    if !path.is_empty() && (map.is_empty() || map.contains_key(".")) {
        found.insert(path.clone());
    }
    for (key, child) in map {
        let step = match key.split_once(':') {
            Some(("f", name)) => Step::Field(name.to_owned()),
            Some(("k", key)) => Step::Item(key.to_owned()),
            Some(("v", value)) => Step::Value(value.to_owned()),
            _ => continue,
        };
        path.push(step);
        read(child, path, found);
        path.pop();
    }
}

fn collect(value: &Value, field: &str, path: &mut Path, found: &mut BTreeSet<Path>) {
    match value {
        Value::Object(map) if !map.is_empty() && !atomic_map(field) => {
            for (key, child) in map {
                path.push(Step::Field(key.clone()));
                collect(child, key, path, found);
                path.pop();
            }
        }
        Value::Array(items) if !items.is_empty() => match list_kind(field, items) {
            ListKind::Keyed(keys) => {
                for item in items {
                    path.push(Step::Item(item_key(item, keys)));
                    found.insert(path.clone());
                    collect(item, "", path, found);
                    path.pop();
                }
            }
            ListKind::Set => {
                found.extend(items.iter().map(|item| [path.as_slice(), &[Step::Value(item.to_string())]].concat()));
            }
            ListKind::Atomic => drop(found.insert(path.clone())),
        },
        _ => drop(found.insert(path.clone())),
    }
}

/// What stands at a path.
pub(super) fn at<'a>(object: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter()
        .try_fold((object, ""), |(value, field), step| match step {
            Step::Field(name) => Some((value.get(name)?, name.as_str())),
            Step::Item(_) | Step::Value(_) => Some((&value[position(value, field, step)?], "")),
        })
        .map(|(value, _)| value)
}

/// Where a list has the item of a step.
pub(super) fn position(list: &Value, field: &str, step: &Step) -> Option<usize> {
    let items = list.as_array()?;
    match (step, list_kind(field, items)) {
        (Step::Item(key), ListKind::Keyed(keys)) => items.iter().position(|item| item_key(item, keys) == *key),
        (Step::Value(value), ListKind::Set) => {
            let value: Value = serde_json::from_str(value).ok()?;
            items.iter().position(|item| *item == value)
        }
        _ => None,
    }
}

/// Whether both have the same at a path; an item is told by its being there alone.
pub(super) fn same(one: &Value, other: &Value, path: &[Step]) -> bool {
    let (one, other) = (at(one, path), at(other, path));
    match path.last() {
        Some(Step::Field(_)) | None => one == other,
        Some(_) => one.is_some() == other.is_some(),
    }
}

/// The fields of `new` that `old` has not, or has otherwise; and those of `old` that `new` has no more.
pub(super) fn difference(old: &Value, new: &Value) -> (Fields, Fields) {
    let (before, after) = (Fields::of(old), Fields::of(new));
    let differs = |path: &&Path| !before.0.contains(*path) || !same(old, new, path);
    let changed = after.0.iter().filter(differs).cloned().collect();
    (Fields(changed), Fields(before.0.difference(&after.0).cloned().collect()))
}
