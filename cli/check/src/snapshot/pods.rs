//! Users' pods that injection concerns: one per owner and sidecar, with the number of similar ones.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use weir_injector::finish::status::{InjectionStatus, STATUS};

use super::object::{StringMap, parse_text, timestamp};
use super::own::ContainerStatus;
use crate::finding::FindingObject;

/// A pod, and the number of similar ones.
#[derive(Debug)]
pub(crate) struct MeshPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: StringMap,
    pub(crate) created: Option<Timestamp>,
    pub(crate) owner: Option<OwnerReference>,
    pub(crate) host_network: bool,
    /// Names of its containers and init containers.
    pub(crate) containers: Vec<String>,
    /// Whether it has the annotation `weir.dev/capture`.
    pub(crate) is_captured: bool,
    /// Why a node cannot pull the image of an injected container.
    pub(crate) pull_failure: Option<String>,
    /// The record of its injection.
    pub(crate) status: Option<InjectionStatus>,
    /// The fields that decide about injection, as the injector takes them.
    pub(crate) reduced: Value,
    /// The whole pod as JSON text, if it has a record of its injection.
    pub(crate) full: Option<Box<str>>,
    /// Number of further pods with the same owner and the same sidecar.
    pub(crate) similar: usize,
}

/// The controller of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct OwnerReference {
    pub(crate) kind: String,
    pub(crate) name: String,
    uid: String,
}

impl MeshPod {
    pub(crate) fn object(&self) -> FindingObject {
        FindingObject::new("Pod", &self.namespace, &self.name)
    }
}

/// Which pods are kept.
#[derive(Debug)]
pub(crate) struct PodFilter {
    /// Namespaces whose unlabelled pods may be injected; `None` for all.
    pub(crate) namespaces: Option<HashSet<String>>,
}

/// Annotations that decide about a pod or record what was decided.
const ANNOTATIONS: [&str; 4] = ["sidecar.istio.io/inject", "kubernetes.io/config.mirror", STATUS, CAPTURE];
const CAPTURE: &str = "weir.dev/capture";
/// Names of the containers that an injection adds.
pub(crate) const INJECTED_CONTAINERS: [&str; 3] = ["istio-proxy", "istio-init", "istio-validation"];
/// Reasons for which a container waits whose image cannot be pulled.
const PULL_FAILURES: [&str; 4] = ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"];
/// Labels about injection.
const LABELS: [&str; 3] = ["sidecar.istio.io/inject", "istio.io/rev", "istio-injection"];

/// Keeps one pod per owner and sidecar, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct PodDeduplicator {
    kept: Vec<MeshPod>,
    positions: HashMap<(String, String), usize>,
}

/// A pod, as far as it is read to decide whether it is kept.
#[derive(Deserialize)]
struct PodDocument {
    metadata: PodMetadata,
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodMetadata {
    namespace: String,
    name: String,
    labels: StringMap,
    annotations: StringMap,
    #[serde(deserialize_with = "timestamp")]
    creation_timestamp: Option<Timestamp>,
    #[serde(deserialize_with = "timestamp")]
    deletion_timestamp: Option<Timestamp>,
    owner_references: Vec<OwnerReference>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    host_network: bool,
    os: Value,
    node_selector: Value,
    init_containers: Vec<Container>,
    containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    init_container_statuses: Vec<ContainerStatus>,
    container_statuses: Vec<ContainerStatus>,
}

impl PodStatus {
    /// Returns why a node cannot pull the image of an injected container.
    fn pull_failure(&self) -> Option<String> {
        let statuses = self.init_container_statuses.iter().chain(&self.container_statuses);
        let mut injected = statuses.filter(|status| INJECTED_CONTAINERS.contains(&status.name.as_str()));
        injected.find_map(|status| {
            let waiting =
                status.state.waiting.as_ref().filter(|waiting| PULL_FAILURES.contains(&waiting.reason.as_str()))?;
            let message = waiting.message.as_deref().unwrap_or("the node gives no reason");
            Some(format!("container {}: {}: {message}", status.name, waiting.reason))
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: Value,
    env: Vec<Value>,
    args: Vec<Value>,
}

impl PodDeduplicator {
    /// Adds a pod, given as JSON text, unless it has finished, is being deleted, or the filter leaves it out.
    ///
    /// # Errors
    /// The pod cannot be parsed.
    pub(crate) fn add(&mut self, pod: &str, filter: &PodFilter) -> Result<(), String> {
        let PodDocument { metadata, spec, status } = parse_text(pod)?;
        let is_finished = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        if is_finished || metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let is_meshed = filter.namespaces.as_ref().is_none_or(|names| names.contains(&metadata.namespace));
        let has_any = |map: &StringMap, keys: &[&str]| keys.iter().any(|key| map.contains_key(*key));
        if !is_meshed && !has_any(&metadata.labels, &LABELS) && !has_any(&metadata.annotations, &ANNOTATIONS) {
            return Ok(());
        }
        let mut annotations = metadata.annotations;
        annotations.retain(|key, _| ANNOTATIONS.contains(&key.as_str()));
        let containers: Vec<Value> = spec.containers.iter().map(reduced_container).collect();
        let init_containers: Vec<Value> = spec.init_containers.iter().map(reduced_container).collect();
        let pull_failure = status.pull_failure();
        let is_pulled = pull_failure.is_none();
        let sidecar = json!([metadata.labels, annotations, containers, init_containers, spec.host_network, is_pulled]);
        let owner = metadata.owner_references.into_iter().next();
        let owner_id = owner.as_ref().map_or(&metadata.name, |owner| &owner.uid);
        let key = (format!("{}/{owner_id}", metadata.namespace), sidecar.to_string());
        let free = match self.positions.entry(key) {
            Entry::Occupied(found) => {
                self.kept[*found.get()].similar += 1;
                return Ok(());
            }
            Entry::Vacant(free) => free,
        };
        free.insert(self.kept.len());
        let is_captured = annotations.contains_key(CAPTURE);
        let reduced = json!({
            "metadata": {
                "namespace": metadata.namespace, "name": metadata.name, "labels": metadata.labels, "annotations": annotations,
            },
            "spec": {
                "hostNetwork": spec.host_network, "os": spec.os, "nodeSelector": spec.node_selector,
                "containers": containers, "initContainers": init_containers,
            },
        });
        let status = InjectionStatus::of_pod(&reduced);
        self.kept.push(MeshPod {
            full: if status.is_some() { Some(full_text(parse_text(pod)?)) } else { None },
            namespace: metadata.namespace,
            name: metadata.name,
            labels: metadata.labels,
            created: metadata.creation_timestamp,
            owner,
            host_network: spec.host_network,
            containers: spec
                .init_containers
                .into_iter()
                .chain(spec.containers)
                .map(|container| container.name)
                .collect(),
            is_captured,
            pull_failure,
            status,
            reduced,
            similar: 0,
        });
        Ok(())
    }

    pub(crate) fn into_pods(self) -> Vec<MeshPod> {
        self.kept
    }
}

/// Returns the fields of a container that tell one sidecar from another.
fn reduced_container(container: &Container) -> Value {
    let mut reduced = Map::from_iter([
        ("name".to_owned(), Value::from(container.name.as_str())),
        ("image".to_owned(), container.image.clone()),
    ]);
    // The variables that an injector computes identify a sidecar without a record.
    if container.name == "istio-proxy" {
        let computed =
            |variable: &&Value| ["PROXY_CONFIG", "ISTIO_META_POD_PORTS"].iter().any(|name| variable["name"] == *name);
        reduced.insert("env".to_owned(), container.env.iter().filter(computed).cloned().collect());
    }
    if container.name == "istio-init" || container.name == "istio-validation" {
        reduced.insert("args".to_owned(), json!([container.args.first()]));
    }
    Value::Object(reduced)
}

/// Returns a pod as JSON text, without status and managed fields.
fn full_text(mut pod: Value) -> Box<str> {
    if let Some(object) = pod.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    pod.to_string().into_boxed_str()
}
