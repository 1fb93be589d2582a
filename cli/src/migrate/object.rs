//! Fields of objects as the API server returns them.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::rules::subject::containers;

/// Returns the name of an object.
pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Returns the namespace of an object; empty for cluster-scoped ones.
pub(super) fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// Returns the value of a label.
pub(super) fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"][key].as_str()
}

/// Returns the value of an annotation.
pub(super) fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"][key].as_str()
}

/// Returns the labels of an object.
pub(super) fn labels(object: &Value) -> Map<String, Value> {
    object["metadata"]["labels"].as_object().cloned().unwrap_or_default()
}

/// Returns the container of this name, also among the init containers.
pub(super) fn container<'a>(pod: &'a Value, wanted: &str) -> Option<&'a Value> {
    containers(pod).find(|container| container["name"] == wanted)
}

/// Returns the addresses of a pod, its primary one first.
pub(super) fn addresses(pod: &Value) -> Vec<IpAddr> {
    let list = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|item| item["ip"].as_str()?.parse().ok()).collect()
}

/// Returns whether a pod runs, or is about to.
pub(super) fn is_live(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
        && !matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"))
}
