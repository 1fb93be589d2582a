//! Limits on the shape of a pod, checked before anything is built, so that one pod costs no more than its share.
//!
//! Each limit is far above what a node can run, and all together fit the 1.5 MiB that etcd takes for an object.

use serde_json::Value;

use crate::annotations::{STATUS, StringMap};
use crate::containers::ContainerList;

/// Containers in each list. A template that adds to every container multiplies what was sent.
pub(crate) const MAX_CONTAINERS: usize = 1000;
/// Volumes of a pod.
pub(crate) const MAX_VOLUMES: usize = 5000;
/// Ports of all containers together.
pub(crate) const MAX_PORTS: usize = 10_000;
/// Variables of all containers together.
pub(crate) const MAX_VARIABLES: usize = 20_000;
/// Mounts of all containers together.
pub(crate) const MAX_MOUNTS: usize = 20_000;
/// Labels of a pod, and annotations of a pod.
pub(crate) const MAX_METADATA_KEYS: usize = 5000;
/// Entries of every other list of the spec, of the metadata and of a container.
pub(crate) const MAX_ENTRIES: usize = 10_000;
/// Values in a pod, all in all: each takes about 100 bytes of memory, whatever it takes in the review.
pub(crate) const MAX_VALUES: usize = 150_000;
/// Size of the record `sidecar.istio.io/status` in bytes: names of containers and volumes.
pub(crate) const MAX_STATUS_BYTES: usize = 32 * 1024;

/// Returns a finding for each limit that a pod exceeds.
pub(crate) fn exceeded(pod: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    let mut check = |what: &str, number: usize, unit: &str, limit: usize| {
        if number > limit {
            findings.push(format!("{what} has {number} {unit}; the limit is {limit}"));
        }
    };
    let length = |value: &Value| match value {
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    };
    for field in ["labels", "annotations"] {
        check(&format!("metadata.{field}"), length(&pod["metadata"][field]), "entries", MAX_METADATA_KEYS);
    }
    let status = StringMap::of(pod, "annotations").get(STATUS).map_or(0, str::len);
    check(&format!("annotation '{STATUS}'"), status, "bytes", MAX_STATUS_BYTES);
    let spec = &pod["spec"];
    check("spec.volumes", length(&spec["volumes"]), "volumes", MAX_VOLUMES);
    let (mut ports, mut variables, mut mounts) = (0, 0, 0);
    for list in ContainerList::BOTH {
        let containers = list.of(pod);
        check(&format!("spec.{}", list.field()), containers.len(), "containers", MAX_CONTAINERS);
        for (field, value) in containers.iter().take(MAX_CONTAINERS).filter_map(Value::as_object).flatten() {
            match field.as_str() {
                "ports" => ports += length(value),
                "env" => variables += length(value),
                "volumeMounts" => mounts += length(value),
                _ if length(value) > MAX_ENTRIES => {
                    check(&format!("a container's {field:.40}"), length(value), "entries", MAX_ENTRIES);
                }
                _ => {}
            }
        }
    }
    check("the pod", ports, "ports", MAX_PORTS);
    check("the pod", variables, "environment variables", MAX_VARIABLES);
    check("the pod", mounts, "volume mounts", MAX_MOUNTS);
    let counted = |field: &str| matches!(field, "containers" | "initContainers" | "volumes" | "labels" | "annotations");
    for (parent, object) in [("", pod), ("metadata.", &pod["metadata"]), ("spec.", spec)] {
        check(
            if parent.is_empty() { "the pod" } else { parent.trim_end_matches('.') },
            length(object),
            "entries",
            MAX_ENTRIES,
        );
        for (field, value) in object.as_object().into_iter().flatten().take(MAX_ENTRIES) {
            if !counted(field) && length(value) > MAX_ENTRIES {
                check(&format!("{parent}{field:.40}"), length(value), "entries", MAX_ENTRIES);
            }
        }
    }
    if findings.is_empty() && count(pod, MAX_VALUES + 1) > MAX_VALUES {
        findings.push(format!("the pod has more than {MAX_VALUES} values, all fields and items counted"));
    }
    findings
}

/// Counts the values in a value, up to about `limit`.
fn count(value: &Value, limit: usize) -> usize {
    let add = |sum: usize, value: &Value| if sum > limit { sum } else { sum + count(value, limit - sum.min(limit)) };
    match value {
        Value::Array(items) => items.iter().fold(1, add),
        Value::Object(fields) => fields.values().fold(1, add),
        _ => 1,
    }
}
