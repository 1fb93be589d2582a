//! The last steps of an injection: those that need the whole pod with its sidecar.
//!
//! ```text
//! env ─▶ prometheus ─▶ probes ─▶ status, annotations ─▶ order
//! ```
//!
//! Each step takes the pod and its options, and returns warnings for the user.

pub mod env;
pub mod order;
pub mod probes;
pub mod prometheus;
pub mod status;

use iptables_rules::text::parse_bool;
use serde_json::{Map, Value, json};

use crate::containers::{self, PROXY_CONTAINER};

/// Returns the proxy container: the first one with its name in the containers, else in the init containers.
fn proxy_mut(pod: &mut Value) -> Option<&mut Map<String, Value>> {
    let spec = pod.get_mut("spec")?.as_object_mut()?;
    let list = ["containers", "initContainers"].into_iter().find(|list| {
        let containers = spec.get(*list).and_then(Value::as_array);
        containers.is_some_and(|containers| containers.iter().any(is_proxy))
    })?;
    spec.get_mut(list)?.as_array_mut()?.iter_mut().find(|container| is_proxy(container))?.as_object_mut()
}

/// Returns the proxy container for reading.
pub(crate) fn proxy(pod: &Value) -> Option<&Map<String, Value>> {
    containers::find(pod, PROXY_CONTAINER)?.as_object()
}

fn is_proxy(container: &Value) -> bool {
    container.get("name").is_some_and(|name| name == PROXY_CONTAINER)
}

/// Returns the literal value of a container's variable. The last of two wins, as for the kubelet.
pub(crate) fn variable<'a>(container: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    let env = container.get("env")?.as_array()?;
    env.iter().rev().find(|variable| variable["name"] == name)?.get("value")?.as_str()
}

/// Sets a variable of a container, as the last one.
fn set_variable(container: &mut Map<String, Value>, name: &str, value: &str) {
    let env = env_mut(container);
    env.retain(|variable| variable["name"] != name);
    env.push(json!({"name": name, "value": value}));
}

/// Returns the variables of a container for changes.
fn env_mut(container: &mut Map<String, Value>) -> &mut Vec<Value> {
    list_mut(container.entry("env").or_insert(Value::Null))
}

fn list_mut(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was made a list above"),
    }
}

/// Returns `metadata.<field>` of a pod (annotations, labels), and creates it if it is absent. `None` if the pod or its metadata
/// is not an object.
fn string_map_mut<'a>(pod: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let metadata = pod.as_object_mut()?.entry("metadata").or_insert_with(|| json!({})).as_object_mut()?;
    let map = metadata.entry(field).or_insert_with(|| json!({}));
    if map.is_null() {
        *map = json!({});
    }
    map.as_object_mut()
}

fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

/// Sets an annotation of a pod.
pub fn annotate(pod: &mut Value, name: &str, value: &str) {
    if let Some(annotations) = string_map_mut(pod, "annotations") {
        annotations.insert(name.to_owned(), value.into());
    }
}

/// Sets a label of a pod.
pub fn label(pod: &mut Value, name: &str, value: &str) {
    if let Some(labels) = string_map_mut(pod, "labels") {
        labels.insert(name.to_owned(), value.into());
    }
}
