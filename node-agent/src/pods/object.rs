//! A pod as the API server sends it, read as far as it is needed, and what is kept of it.

use std::borrow::Cow;
use std::net::IpAddr;

use iptables_rules::annotations::ProxySpec;
use iptables_rules::names::annotation;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::core::{NamespaceResourceScope, ObjectMeta, Resource};
use serde::Deserialize;
use serde_json::Value;
use weir_protocol::decision::{Decision, ProxyFacts, SkipReason, SpecFacts, capture_variables, decide};

/// The kubelet's own id of a pod from a file; `K8S_POD_UID` is that, and not the uid of its mirror in the API.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Exit code of the injector's validation container for "the rules are not there" (Istio's `istio-validation`).
const VALIDATION_FAILED: i64 = 126;
/// Name of that container.
const VALIDATION: &str = "istio-validation";
/// The proxy's container.
const PROXY: &str = "istio-proxy";

/// What is read of a pod. Unknown fields are skipped while reading, so that a page of pods costs little more than what is kept.
#[derive(Debug, Clone, Deserialize)]
pub struct PodObject {
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
    containers: Option<Vec<Value>>,
    init_containers: Option<Vec<Value>>,
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

/// Who made a pod and would make it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// `ReplicaSet`, `Job`, ...
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What is kept of a pod: enough to answer about it and to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// The uid by which the kubelet and the plugin know a static pod.
    pub static_uid: Option<String>,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// All its addresses; none before its sandbox is made.
    pub ips: Vec<IpAddr>,
    /// Ids of its containers, without the runtime's prefix; for pods of the mesh only.
    pub containers: Vec<String>,
    /// It has come to its end, or is about to.
    pub ending: bool,
    /// Its validation container has found that the rules are missing.
    pub failed_validation: bool,
    /// Its controller.
    pub owner: Option<Owner>,
    /// What the plugin has to do with it.
    pub decision: Decision,
}

impl PodFacts {
    /// Decides about a pod and keeps what is needed. Pods of these namespaces are left alone.
    pub fn of(pod: PodObject, exclude_namespaces: &[String]) -> Self {
        let PodObject { metadata, spec, status } = pod;
        let annotations = metadata.annotations.unwrap_or_default();
        let namespace = metadata.namespace.unwrap_or_default();
        let labels = metadata.labels.unwrap_or_default();
        let decision = if spec.host_network == Some(true) {
            Decision::Skip(SkipReason::HostNetwork)
        } else if exclude_namespaces.contains(&namespace) {
            Decision::Skip(SkipReason::ExcludedNamespace)
        } else {
            decide(&annotations, Some(&spec.facts(labels.get(annotation::INJECT))))
        };
        let meshed = !matches!(decision, Decision::Skip(_));
        let owner =
            metadata.owner_references.unwrap_or_default().into_iter().find(|owner| owner.controller == Some(true));
        Self {
            uid: metadata.uid.unwrap_or_default(),
            static_uid: annotations.get(CONFIG_HASH).cloned(),
            namespace,
            name: metadata.name.unwrap_or_default(),
            version: metadata.resource_version.unwrap_or_default(),
            ending: metadata.deletion_timestamp.is_some()
                || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ips: if meshed { status.ips() } else { Vec::new() },
            containers: if meshed { status.containers() } else { Vec::new() },
            failed_validation: meshed && status.failed_validation(),
            owner: owner.filter(|_| meshed).map(|owner| Owner { kind: owner.kind, name: owner.name, uid: owner.uid }),
            decision,
        }
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether the plugin and the kubelet mean this pod by that uid.
    pub fn has_uid(&self, uid: &str) -> bool {
        self.uid == uid || self.static_uid.as_deref() == Some(uid)
    }

    /// For events about it.
    pub fn reference(&self) -> ObjectReference {
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
        let all = || self.init_containers.iter().chain(&self.containers).flatten();
        let named = |name: &str| all().find(|container| container["name"] == name);
        SpecFacts {
            istio_init: named("istio-init").is_some(),
            proxy: named(PROXY).map(proxy_facts),
            inject_label: inject_label.cloned(),
        }
    }
}

fn proxy_facts(container: &Value) -> ProxyFacts {
    let args = container["args"].as_array();
    let arg = |index: usize| args.and_then(|args| args.get(index)).and_then(Value::as_str);
    let role = if arg(0) == Some("proxy") { arg(1).map(str::to_owned) } else { None };
    let spec = ProxySpec::of_container(container).map(|mut spec| {
        let known: Vec<&str> = capture_variables().collect();
        spec.env.retain(|name, _| known.contains(&name.as_str()));
        spec
    });
    ProxyFacts { role, spec }
}

impl Status {
    fn ips(&self) -> Vec<IpAddr> {
        let all = self.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_ref()).chain(&self.pod_ip);
        let mut ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    }

    fn containers(&self) -> Vec<String> {
        let all = self.container_statuses.iter().chain(&self.init_container_statuses).flatten();
        let ids = all.filter_map(|status| status.container_id.as_deref());
        ids.filter_map(|id| id.split_once("://")).map(|(_, id)| id.to_owned()).filter(|id| !id.is_empty()).collect()
    }

    /// The validation container's last word, now or before its last restart.
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

/// For tests of other modules: a pod from JSON.
#[cfg(test)]
pub(crate) fn facts(pod: Value) -> PodFacts {
    PodFacts::of(serde_json::from_value(pod).unwrap(), &["kube-system".to_owned()])
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weir_protocol::decision::Source;

    use super::*;

    /// A pod as Istio's injector leaves it.
    fn injected() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "shop", "name": "web-1", "uid": "u-1", "resourceVersion": "7",
                "annotations": {"sidecar.istio.io/status": r#"{"containers":["istio-proxy"]}"#},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o-1"},
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r-1", "controller": true}],
                "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["proxy", "sidecar", "--domain"],
                "securityContext": {"runAsUser": 1500},
                "env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}, {"name": "POD_NAME", "valueFrom": {"fieldRef": {}}}]}],
                "initContainers": [{"name": "istio-validation"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
                "containerStatuses": [{"name": "app", "containerID": "containerd://abc"}, {"name": "istio-proxy", "containerID": ""}],
                "initContainerStatuses": [{"name": "istio-validation", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 126}}}]},
        })
    }

    #[test]
    fn keeps_what_is_needed() {
        let facts = facts(injected());
        assert_eq!((&*facts.uid, &*facts.version, facts.ending), ("u-1", "7", false));
        assert_eq!(facts.ips, ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert_eq!(facts.containers, ["abc"]);
        assert_eq!(facts.owner.as_ref().map(|owner| &*owner.name), Some("web"));
        assert!(facts.failed_validation);
        match &facts.decision {
            Decision::Capture(config, Source::Specification) => assert_eq!(config.proxy_uids, [1500]),
            other => panic!("not captured: {other:?}"),
        }
    }

    #[test]
    fn decides_by_the_whole_pod() {
        let changed = |pointer: &str, value: Value| {
            let mut pod = injected();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[key] = value;
            facts(pod)
        };
        for (pointer, value, reason) in [
            ("/spec/hostNetwork", json!(true), SkipReason::HostNetwork),
            ("/metadata/namespace", json!("kube-system"), SkipReason::ExcludedNamespace),
            ("/metadata/annotations", json!(null), SkipReason::NotInjected),
            ("/metadata/labels", json!({"sidecar.istio.io/inject": "false"}), SkipReason::InjectionOff),
            ("/spec/initContainers", json!([{"name": "istio-init"}]), SkipReason::InitContainer),
            ("/spec/containers", json!([{"name": "app"}]), SkipReason::NoProxy),
            (
                "/spec/containers",
                json!([{"name": "istio-proxy", "args": ["proxy", "router"]}]),
                SkipReason::OtherRole("router".into()),
            ),
        ] {
            let facts = changed(pointer, value);
            assert_eq!(facts.decision, Decision::Skip(reason));
            assert!(facts.ips.is_empty() && facts.containers.is_empty(), "nothing is kept of others");
        }
        assert!(changed("/status/phase", json!("Succeeded")).ending);
        assert!(changed("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")).ending);
        let mended = json!([{"name": "istio-validation", "state": {"terminated": {"exitCode": 0}},
            "lastState": {"terminated": {"exitCode": 126}}}]);
        assert!(!changed("/status/initContainerStatuses", mended).failed_validation);
    }

    #[test]
    fn knows_a_static_pod_by_the_kubelets_id() {
        let pod = facts(json!({"metadata": {"name": "p", "uid": "mirror", "annotations": {CONFIG_HASH: "hash"}}}));
        assert!(pod.has_uid("hash") && pod.has_uid("mirror") && !pod.has_uid(""));
    }
}
