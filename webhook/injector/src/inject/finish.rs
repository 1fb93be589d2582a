//! The last steps on a pod that has its sidecar: what needs the whole pod rather than a part of the overlay.
//!
//! ```text
//! env ─▶ prometheus ─▶ probes ─▶ status, annotations ─▶ order
//! ```
//!
//! Each step takes the pod and what it needs to know, and gives back what the user should hear.

pub mod env;
pub mod order;
pub mod probes;
pub mod prometheus;
pub mod status;

use serde_json::{Map, Value, json};

use super::containers;

/// Name of the proxy container.
const PROXY: &str = "istio-proxy";

/// The proxy container: the first of that name among the containers, else among the init containers.
fn proxy_mut(pod: &mut Value) -> Option<&mut Map<String, Value>> {
    let spec = pod.get_mut("spec")?.as_object_mut()?;
    let list = ["containers", "initContainers"].into_iter().find(|list| {
        let containers = spec.get(*list).and_then(Value::as_array);
        containers.is_some_and(|containers| containers.iter().any(is_proxy))
    })?;
    spec.get_mut(list)?.as_array_mut()?.iter_mut().find(|container| is_proxy(container))?.as_object_mut()
}

/// The same one, to read it.
pub(super) fn proxy(pod: &Value) -> Option<&Map<String, Value>> {
    containers::find(pod, PROXY)?.as_object()
}

fn is_proxy(container: &Value) -> bool {
    container.get("name").is_some_and(|name| name == PROXY)
}

/// The value of a variable of a container that is written as text. Of two, the last counts, as for the kubelet.
pub(super) fn variable<'a>(container: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    let env = container.get("env")?.as_array()?;
    env.iter().rev().find(|variable| variable["name"] == name)?.get("value")?.as_str()
}

/// Sets a variable of a container as the last one; a variable of that name goes.
fn set_variable(container: &mut Map<String, Value>, name: &str, value: &str) {
    let env = env_mut(container);
    env.retain(|variable| variable["name"] != name);
    env.push(json!({"name": name, "value": value}));
}

/// The variables of a container, to change them.
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

/// `metadata.<field>` of a pod (annotations, labels), made where it is absent.
///
/// `None` only where the pod or its metadata is no object.
fn texts_mut<'a>(pod: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let metadata = pod.as_object_mut()?.entry("metadata").or_insert_with(|| json!({})).as_object_mut()?;
    let texts = metadata.entry(field).or_insert_with(|| json!({}));
    if texts.is_null() {
        *texts = json!({});
    }
    texts.as_object_mut()
}

fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

/// Sets an annotation of a pod.
pub fn annotate(pod: &mut Value, name: &str, value: &str) {
    if let Some(annotations) = texts_mut(pod, "annotations") {
        annotations.insert(name.to_owned(), value.into());
    }
}

/// Sets a label of a pod.
pub fn label(pod: &mut Value, name: &str, value: &str) {
    if let Some(labels) = texts_mut(pod, "labels") {
        labels.insert(name.to_owned(), value.into());
    }
}

/// Truth values as Go's `strconv.ParseBool` reads them, which is what users of Istio's annotations know.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
