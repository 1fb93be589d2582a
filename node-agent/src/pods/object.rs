//! Parses a pod of the API server as far as needed, and reduces it to [`PodFacts`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use iptables_rules::names::annotation;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::core::{NamespaceResourceScope, ObjectMeta, Resource};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::{Value, json};
use weir_protocol::decision::{CaptureDecision, ProxyFacts, SkipReason, SpecFacts, capture_env_vars, decide_capture};

/// Annotation of a static pod's mirror with the kubelet's uid of the pod, which is its `K8S_POD_UID`.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Exit code of `istio-validation` for missing rules.
const VALIDATION_FAILED: i64 = 126;
/// Init container of Istio's injector that validates the rules.
const VALIDATION: &str = "istio-validation";
/// Container of the proxy.
const PROXY: &str = "istio-proxy";

/// The fields that are parsed of a pod; others are skipped, to save memory.
#[derive(Debug, Clone, Deserialize)]
pub struct PodObject {
    #[serde(deserialize_with = "trimmed_metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    host_network: Option<bool>,
    containers: Containers,
    init_containers: Containers,
}

/// The part of `metadata` that is read: `managedFields` are often larger than the rest of a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

fn trimmed_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let metadata = Metadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        deletion_timestamp: metadata.deletion_timestamp,
        annotations: metadata.annotations,
        labels: metadata.labels,
        owner_references: metadata.owner_references,
        ..ObjectMeta::default()
    })
}

/// Parts of a list of containers that are kept.
#[derive(Debug, Clone, Default)]
struct Containers {
    has_istio_init: bool,
    /// `istio-proxy`, without what says nothing about capture.
    proxy: Option<Value>,
}

/// The fields that are parsed of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    args: Option<Vec<String>>,
    env: Option<Vec<EnvVar>>,
    security_context: Option<SecurityContext>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EnvVar {
    name: String,
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecurityContext {
    run_as_user: Value,
    run_as_group: Value,
}

impl<'de> Deserialize<'de> for Containers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reduce;
        impl<'de> Visitor<'de> for Reduce {
            type Value = Containers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of containers")
            }

            fn visit_unit<E>(self) -> Result<Containers, E> {
                Ok(Containers::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Containers, A::Error> {
                let mut found = Containers::default();
                while let Some(container) = list.next_element::<Container>()? {
                    found.has_istio_init |= container.name == "istio-init";
                    if container.name == PROXY && found.proxy.is_none() {
                        found.proxy = Some(reduced(container));
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_any(Reduce)
    }
}

/// Returns what of `istio-proxy` decides about capture, in the form of a container.
fn reduced(container: Container) -> Value {
    let Container { name, args, env, security_context } = container;
    let known: Vec<&str> = capture_env_vars().collect();
    let env = env.unwrap_or_default().into_iter().filter(|entry| known.contains(&entry.name.as_str()));
    let env: Vec<Value> = env.map(|EnvVar { name, value }| json!({ "name": name, "value": value })).collect();
    let args: Vec<String> = args.unwrap_or_default().into_iter().take(2).collect();
    let SecurityContext { run_as_user, run_as_group } = security_context.unwrap_or_default();
    let user = json!({ "runAsUser": run_as_user, "runAsGroup": run_as_group });
    json!({ "name": name, "args": args, "env": env, "securityContext": user })
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Clone, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    state: ContainerState,
    last_state: ContainerState,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terminated {
    exit_code: i64,
}

impl Resource for PodObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Controller that would create the pod again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// `ReplicaSet`, `Job`, ...
    pub kind: String,
    /// Name of the controller.
    pub name: String,
    /// Uid of the controller.
    pub uid: String,
}

/// Parts of a pod that are kept: enough to answer queries and to repair its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// Uid of a static pod on the node.
    pub config_hash: Option<String>,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// Addresses; none before its sandbox is created. Only for pods that are or were meshed.
    pub ips: Vec<IpAddr>,
    /// Ids of its containers, without the runtime's prefix. Only for pods that are or were meshed.
    pub container_ids: Vec<String>,
    /// Whether the pod has ended or is being deleted.
    pub is_terminating: bool,
    /// Whether `istio-validation` has found that rules are missing.
    pub failed_validation: bool,
    /// Controller. Only for pods that are or were meshed.
    pub owner: Option<Owner>,
    /// Whether it is captured, and with which configuration.
    pub decision: CaptureDecision,
    /// Whether only its annotations or labels, which can be changed, keep it from being captured: it has a container `istio-proxy`, and
    /// the plugin may have captured it.
    pub was_capturable: bool,
}

impl PodFacts {
    /// Reduces a pod and decides about it. Pods of `exclude_namespaces` are skipped.
    pub fn from_pod(pod: PodObject, exclude_namespaces: &[String]) -> Self {
        let PodObject { metadata, spec, status } = pod;
        let annotations = metadata.annotations.unwrap_or_default();
        let namespace = metadata.namespace.unwrap_or_default();
        let labels = metadata.labels.unwrap_or_default();
        let facts = spec.facts(labels.get(annotation::INJECT));
        let decision = if spec.host_network == Some(true) {
            CaptureDecision::Skip(SkipReason::HostNetwork)
        } else if exclude_namespaces.contains(&namespace) {
            CaptureDecision::Skip(SkipReason::ExcludedNamespace)
        } else {
            decide_capture(&annotations, Some(&facts))
        };
        let was_capturable = matches!(
            decision,
            CaptureDecision::Skip(
                SkipReason::NotInjected
                    | SkipReason::InjectionOff
                    | SkipReason::ModeNone
                    | SkipReason::NotSidecarTemplate(_)
            )
        ) && facts.proxy.is_some()
            && !facts.istio_init;
        let meshed = was_capturable || !matches!(decision, CaptureDecision::Skip(_));
        let owner =
            metadata.owner_references.unwrap_or_default().into_iter().find(|owner| owner.controller == Some(true));
        Self {
            uid: metadata.uid.unwrap_or_default(),
            config_hash: annotations.get(CONFIG_HASH).cloned(),
            namespace,
            name: metadata.name.unwrap_or_default(),
            resource_version: metadata.resource_version.unwrap_or_default(),
            is_terminating: metadata.deletion_timestamp.is_some()
                || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ips: if meshed { status.ips() } else { Vec::new() },
            container_ids: if meshed { status.container_ids() } else { Vec::new() },
            failed_validation: meshed && status.failed_validation(),
            owner: owner.filter(|_| meshed).map(|owner| Owner { kind: owner.kind, name: owner.name, uid: owner.uid }),
            decision,
            was_capturable,
        }
    }

    /// Returns `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Returns whether the kubelet and the plugin use that uid for this pod.
    pub fn has_uid(&self, uid: &str) -> bool {
        self.uid == uid || self.config_hash.as_deref() == Some(uid)
    }

    /// Returns a reference for events.
    pub fn object_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

impl Spec {
    fn facts(&self, inject_label: Option<&String>) -> SpecFacts {
        let Self { init_containers, containers, .. } = self;
        SpecFacts {
            istio_init: init_containers.has_istio_init || containers.has_istio_init,
            proxy: init_containers.proxy.as_ref().or(containers.proxy.as_ref()).map(ProxyFacts::from_container),
            inject_label: inject_label.cloned(),
        }
    }
}

impl Status {
    fn ips(&self) -> Vec<IpAddr> {
        let all = self.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_ref()).chain(&self.pod_ip);
        let mut ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    }

    fn container_ids(&self) -> Vec<String> {
        let all = self.container_statuses.iter().chain(&self.init_container_statuses).flatten();
        let ids = all.filter_map(|status| status.container_id.as_deref());
        ids.filter_map(|id| id.split_once("://")).map(|(_, id)| id.to_owned()).filter(|id| !id.is_empty()).collect()
    }

    /// Returns whether `istio-validation` failed, now or before its last restart.
    fn failed_validation(&self) -> bool {
        let all = self.init_container_statuses.iter().flatten().filter(|status| status.name == VALIDATION);
        all.into_iter().any(|status| match (&status.state.terminated, &status.last_state.terminated) {
            (Some(Terminated { exit_code }), _) | (None, Some(Terminated { exit_code })) => {
                *exit_code == VALIDATION_FAILED
            }
            (None, None) => false,
        })
    }
}

/// Reduces a pod in JSON, for tests.
#[cfg(test)]
pub(crate) fn facts(pod: Value) -> PodFacts {
    PodFacts::from_pod(serde_json::from_value(pod).unwrap(), &["kube-system".to_owned()])
}

#[cfg(test)]
mod tests;
