//! Limits on the shape of a pod, checked before anything is built, so that one pod costs no more than its share.
//!
//! Each limit is far above what a node can run, and all together fit the 1.5 MiB that etcd takes for an object.

use serde_json::Value;

use crate::annotations::{self as name, STATUS, StringMap};
use crate::containers::{ContainerList, PROXY_CONTAINER};
use crate::finish::{probes, prometheus};

/// Containers in each list. A template that adds to every container multiplies what was sent.
pub(crate) const MAX_CONTAINERS: usize = 1000;
/// Volumes of a pod.
pub(crate) const MAX_VOLUMES: usize = 5000;
/// Ports of all containers together.
pub(crate) const MAX_PORTS: usize = 10_000;
/// Variables of all containers together.
pub(crate) const MAX_VARIABLES: usize = 10_000;
/// Mounts of all containers together.
pub(crate) const MAX_MOUNTS: usize = 10_000;
/// Labels of a pod, and annotations of a pod.
pub(crate) const MAX_METADATA_KEYS: usize = 5000;
/// Entries of every other list of the spec, of the metadata and of a container.
pub(crate) const MAX_ENTRIES: usize = 10_000;
/// Values in a pod, all in all: each takes about 130 bytes of memory, whatever it takes in the review, and as much in each copy.
pub(crate) const MAX_VALUES: usize = 50_000;
/// Values in a JSON or YAML text that is an annotation: it is parsed several times.
pub(crate) const MAX_TEXT_VALUES: usize = 10_000;
/// Values in a JSON text that is a variable of the proxy: what an injection writes for as many containers as there may be.
pub(crate) const MAX_VARIABLE_VALUES: usize = 80_000;
/// Size of the record `sidecar.istio.io/status` in bytes: names of containers and volumes.
pub(crate) const MAX_STATUS_BYTES: usize = 32 * 1024;

/// Annotations that are JSON or YAML.
const TEXTS: [&str; 7] = [
    name::OVERRIDES,
    name::ORIGINAL,
    name::PROXY_CONFIG,
    name::USER_VOLUME,
    name::USER_VOLUME_MOUNT,
    name::DATADOG_ENV,
    name::MULTUS_NETWORKS,
];
/// Variables of the proxy that are JSON.
const TEXT_VARIABLES: [&str; 3] = [probes::VARIABLE, prometheus::VARIABLE, "PROXY_CONFIG"];

/// Returns a finding for each limit that a pod exceeds.
pub(crate) fn exceeded(pod: &Value) -> Vec<String> {
    let status = StringMap::of(pod, "annotations").get(STATUS);
    let mut limits = Limits { findings: Vec::new(), is_injected: status.is_some() };
    if let Some(bytes) = status.map(str::len).filter(|bytes| *bytes > MAX_STATUS_BYTES) {
        limits.findings.push(format!("annotation '{STATUS}' has {bytes} bytes; the limit is {MAX_STATUS_BYTES}"));
    }
    for field in ["labels", "annotations"] {
        limits.check(&format!("metadata.{field}"), length(&pod["metadata"][field]), "entries", MAX_METADATA_KEYS);
    }
    limits.texts(pod);
    limits.check("spec.volumes", length(&pod["spec"]["volumes"]), "volumes", MAX_VOLUMES);
    limits.containers(pod);
    limits.entries(pod);
    let values = limits.with_additions(MAX_VALUES);
    if limits.findings.is_empty() && count(pod, values + 1) > values {
        limits.findings.push(format!("the pod has more than {values} values, all fields and items counted"));
    }
    limits.findings
}

/// The findings about a pod.
struct Limits {
    findings: Vec<String>,
    is_injected: bool,
}

impl Limits {
    /// Raises a limit for a pod that is injected already: what was added to the largest pod must not keep it from being injected again.
    fn with_additions(&self, limit: usize) -> usize {
        if self.is_injected { limit / 2 * 3 } else { limit }
    }

    fn check(&mut self, what: &str, number: usize, unit: &str, limit: usize) {
        let limit = self.with_additions(limit);
        if number > limit {
            self.findings.push(format!("{what} has {number} {unit}; the limit is {limit}"));
        }
    }

    /// Checks what is parsed a second time.
    fn texts(&mut self, pod: &Value) {
        for (key, text) in TEXTS.iter().filter_map(|key| Some((key, StringMap::of(pod, "annotations").get(key)?))) {
            self.check(&format!("annotation '{key}'"), values_of_text(text), "values", MAX_TEXT_VALUES);
        }
        let containers = ContainerList::BOTH.into_iter().flat_map(|list| list.of(pod));
        let proxies = containers.filter(|container| container["name"] == PROXY_CONTAINER);
        for variable in proxies.filter_map(|proxy| proxy["env"].as_array()).flatten() {
            let name = variable["name"].as_str().unwrap_or_default();
            if let Some(text) = variable["value"].as_str().filter(|_| TEXT_VARIABLES.contains(&name)) {
                let what = format!("variable '{name}' of container '{PROXY_CONTAINER}'");
                self.check(&what, values_of_text(text), "values", MAX_VARIABLE_VALUES);
            }
        }
    }

    fn containers(&mut self, pod: &Value) {
        let (mut ports, mut variables, mut mounts) = (0, 0, 0);
        for list in ContainerList::BOTH {
            let (containers, most) = (list.of(pod), self.with_additions(MAX_CONTAINERS));
            self.check(&format!("spec.{}", list.field()), containers.len(), "containers", MAX_CONTAINERS);
            for (field, value) in containers.iter().take(most).filter_map(Value::as_object).flatten() {
                match field.as_str() {
                    "ports" => ports += length(value),
                    "env" => variables += length(value),
                    "volumeMounts" => mounts += length(value),
                    _ if length(value) > MAX_ENTRIES => {
                        self.check(&format!("a container's {field:.40}"), length(value), "entries", MAX_ENTRIES);
                    }
                    _ => {}
                }
            }
        }
        self.check("the pod", ports, "ports", MAX_PORTS);
        self.check("the pod", variables, "environment variables", MAX_VARIABLES);
        self.check("the pod", mounts, "volume mounts", MAX_MOUNTS);
    }

    /// Checks every list and map that has no limit of its own.
    fn entries(&mut self, pod: &Value) {
        let has_limit =
            |field: &str| matches!(field, "containers" | "initContainers" | "volumes" | "labels" | "annotations");
        for (parent, object) in [("", pod), ("metadata.", &pod["metadata"]), ("spec.", &pod["spec"])] {
            let what = if parent.is_empty() { "the pod" } else { parent.trim_end_matches('.') };
            self.check(what, length(object), "entries", MAX_ENTRIES);
            for (field, value) in object.as_object().into_iter().flatten().take(self.with_additions(MAX_ENTRIES)) {
                if !has_limit(field) && length(value) > MAX_ENTRIES {
                    self.check(&format!("{parent}{field:.40}"), length(value), "entries", MAX_ENTRIES);
                }
            }
        }
    }
}

fn length(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    }
}

/// Returns a finding if the record of what the user declared would be refused by the next injection.
pub(crate) fn exceeded_by_record(text: &str) -> Option<String> {
    let values = values_of_text(text);
    (values > MAX_TEXT_VALUES).then(|| {
        format!("the pod's containers that a template has too have {values} values, which annotation '{}' records; the limit is {MAX_TEXT_VALUES}", name::OVERRIDES)
    })
}

/// Returns how many values a JSON or YAML text has at most, without parsing it.
fn values_of_text(text: &str) -> usize {
    text.bytes().filter(|byte| matches!(byte, b',' | b'{' | b'[' | b'\n')).count()
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
