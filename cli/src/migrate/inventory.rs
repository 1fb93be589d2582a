//! What a cluster has of Istio and Weir: control planes, injectors, their configurations, CNI plugins and namespaces.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value};
use weir_injector::selection::configurations::OWNER_REVISION_LABEL;
use weir_injector::selection::{INJECTION_LABEL, Labels, REVISION_LABEL, RequestedInjector, requested_injector};

use super::injector::{Injector, Vendor};
use super::object::{annotation, label, labels, name, namespace};
use crate::revisions::DEFAULT;

/// Label of istiod's Deployments and of istio-cni's DaemonSets.
pub(super) const ISTIOD: (&str, &str) = ("app", "istiod");
pub(super) const ISTIO_CNI: (&str, &str) = ("k8s-app", "istio-cni-node");
/// Label of namespaces and pods in ambient mode.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Annotation of pods whose traffic goes to ztunnel.
const AMBIENT_REDIRECTION: &str = "ambient.istio.io/redirection";
/// Namespaces of the cluster itself, which no injector selects.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Base name of the injector's ConfigMaps.
pub(super) const INJECTOR_MAP: &str = "istio-sidecar-injector";

/// Objects of a cluster, as the API server returns them.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) namespaces: Vec<Value>,
    pub(super) configurations: Vec<Value>,
    /// ConfigMaps of the control plane's namespace, and those of istio-cni.
    pub(super) config_maps: Vec<Value>,
    pub(super) proxy_configs: Vec<Value>,
    pub(super) nodes: Vec<Value>,
    /// Deployments, StatefulSets, DaemonSets, Jobs and CronJobs.
    pub(super) controllers: Vec<Value>,
    pub(super) pods: Vec<Value>,
    /// Addresses of the cluster's DNS.
    pub(super) dns_servers: Vec<IpAddr>,
}

/// A Deployment of istiod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ControlPlane {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) revision: String,
    /// Tag of its image.
    pub(super) version: String,
}

/// A ConfigMap of an injector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InjectorConfig {
    pub(super) name: String,
    pub(super) revision: String,
    /// Tag of the proxy's image.
    pub(super) version: String,
    /// Names of its templates.
    pub(super) templates: Vec<String>,
    /// Reasons for which Weir rejects it.
    pub(super) errors: Vec<String>,
}

/// A DaemonSet of istio-cni.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CniPlugin {
    pub(super) namespace: String,
    pub(super) name: String,
    /// True if it serves ambient mode, so that it has to stay.
    pub(super) is_ambient: bool,
}

/// How pods of a namespace get into the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OptIn {
    /// By a label of the namespace, which Istio's injector selects.
    Istio(String),
    /// By a label of the namespace, which Weir's webhook selects.
    Weir(String),
    /// By a label of the namespace that no injector selects.
    Nobody(String),
    /// By labels of pods only.
    Pods,
    /// A label of the namespace keeps its pods out.
    OptedOut,
    /// In ambient mode.
    Ambient,
    /// Not at all.
    None,
}

impl OptIn {
    /// Returns the name in output.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Istio(_) => "istio",
            Self::Weir(_) => "weir",
            Self::Nobody(_) => "unserved",
            Self::Pods => "by-pods",
            Self::OptedOut => "opted-out",
            Self::Ambient => "ambient",
            Self::None => "none",
        }
    }

    /// Describes it, with the label.
    pub(super) fn description(&self) -> String {
        match self {
            Self::Istio(by) => format!("{by} (Istio)"),
            Self::Weir(by) => format!("{by} (Weir)"),
            Self::Nobody(by) => format!("{by} (no injector)"),
            Self::Pods => "labels of pods".to_owned(),
            Self::OptedOut => "opted out".to_owned(),
            Self::Ambient => "ambient mode".to_owned(),
            Self::None => "not in the mesh".to_owned(),
        }
    }
}

/// Finds the Deployments of istiod.
pub(super) fn control_planes(objects: &Objects) -> Vec<ControlPlane> {
    let is_istiod = |object: &&Value| object["kind"] == "Deployment" && label(object, ISTIOD.0) == Some(ISTIOD.1);
    let found = objects.controllers.iter().filter(is_istiod);
    found
        .map(|object| ControlPlane {
            namespace: namespace(object).to_owned(),
            name: name(object).to_owned(),
            revision: label(object, REVISION_LABEL).unwrap_or(DEFAULT).to_owned(),
            version: image_tag(object.pointer("/spec/template/spec/containers/0/image")),
        })
        .collect()
}

fn image_tag(image: Option<&Value>) -> String {
    let image = image.and_then(Value::as_str).unwrap_or_default();
    let image = image.split('@').next().unwrap_or_default();
    image
        .rsplit_once(':')
        .filter(|(_, tag)| !tag.contains('/'))
        .map_or_else(|| "unknown".to_owned(), |(_, tag)| tag.to_owned())
}

/// Finds the DaemonSets of istio-cni.
pub(super) fn cni_plugins(objects: &Objects) -> Vec<CniPlugin> {
    let is_cni = |object: &&Value| object["kind"] == "DaemonSet" && label(object, ISTIO_CNI.0) == Some(ISTIO_CNI.1);
    let has_ambient_pods = objects.pods.iter().any(|pod| annotation(pod, AMBIENT_REDIRECTION) == Some("enabled"));
    let has_ambient_namespaces = objects.namespaces.iter().any(is_ambient);
    let found = objects.controllers.iter().filter(is_cni);
    found
        .map(|object| {
            let enabled = |value: &Value| value == "true" || *value == true;
            let env = object.pointer("/spec/template/spec/containers/0/env").and_then(Value::as_array);
            let by_env =
                env.into_iter().flatten().any(|item| item["name"] == "AMBIENT_ENABLED" && enabled(&item["value"]));
            let map = objects
                .config_maps
                .iter()
                .find(|map| name(map) == "istio-cni-config" && namespace(map) == namespace(object));
            let by_map = map.is_some_and(|map| enabled(&map["data"]["AMBIENT_ENABLED"]));
            CniPlugin {
                namespace: namespace(object).to_owned(),
                name: name(object).to_owned(),
                is_ambient: by_env || by_map || has_ambient_pods || has_ambient_namespaces,
            }
        })
        .collect()
}

fn is_ambient(namespace: &Value) -> bool {
    label(namespace, DATAPLANE_MODE) == Some("ambient")
}

/// Returns how pods of a namespace get into the mesh; `has_mesh_pods` says whether it has pods with a sidecar.
pub(super) fn opt_in(namespace: &Value, injectors: &[Injector], has_mesh_pods: bool) -> OptIn {
    let labels = labels(namespace);
    let none = Map::new();
    if SYSTEM.contains(&name(namespace)) {
        return OptIn::None;
    }
    let by = match requested_injector(Labels { namespace: &labels, pod: &none }) {
        RequestedInjector::NamespaceOptOut(_) => return OptIn::OptedOut,
        RequestedInjector::NamespaceEnabled => format!("{INJECTION_LABEL}=enabled"),
        RequestedInjector::NamespaceRevision(revision) => format!("{REVISION_LABEL}={revision}"),
        _ => "enableNamespacesByDefault".to_owned(),
    };
    let selecting =
        |vendor| injectors.iter().any(|injector| injector.vendor == vendor && injector.selects(&labels, &none));
    let is_labelled = !by.starts_with("enable");
    if selecting(Vendor::Istio) {
        OptIn::Istio(by)
    } else if selecting(Vendor::Weir) {
        OptIn::Weir(by)
    } else if is_ambient(namespace) {
        OptIn::Ambient
    } else if is_labelled {
        OptIn::Nobody(by)
    } else if has_mesh_pods {
        OptIn::Pods
    } else {
        OptIn::None
    }
}

/// Returns the injectors of all webhook configurations, Istio's first.
pub(super) fn injectors(configurations: &[Value]) -> Vec<Injector> {
    let mut all: Vec<Injector> = configurations.iter().filter_map(Injector::of).collect();
    all.sort_by(|a, b| (a.vendor, &a.configuration).cmp(&(b.vendor, &b.configuration)));
    all
}

/// Returns the revisions of Weir that are installed.
pub(super) fn weir_revisions(configurations: &[Value]) -> Vec<String> {
    let mut all: Vec<String> =
        configurations.iter().filter_map(|object| label(object, OWNER_REVISION_LABEL)).map(str::to_owned).collect();
    all.sort();
    all.dedup();
    all
}

/// Returns the nodes that run CRI-O.
pub(super) fn crio_nodes(nodes: &[Value]) -> Vec<String> {
    let is_crio = |node: &&Value| {
        let runtime = node.pointer("/status/nodeInfo/containerRuntimeVersion").and_then(Value::as_str);
        runtime.is_some_and(|runtime| runtime.starts_with("cri-o"))
    };
    nodes.iter().filter(is_crio).map(|node| name(node).to_owned()).collect()
}

/// Returns the names and versions of the nodes' kubelets.
pub(super) fn kubelets(nodes: &[Value]) -> BTreeMap<String, String> {
    let version = |node: &Value| node.pointer("/status/nodeInfo/kubeletVersion")?.as_str().map(str::to_owned);
    nodes.iter().filter_map(|node| Some((name(node).to_owned(), version(node)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::migrate::tests::istio_configuration;

    #[test]
    fn opt_in_follows_the_webhook_configurations() {
        let injectors = injectors(&[istio_configuration()]);
        let by = |labels: Value, mesh| {
            opt_in(&json!({"metadata": {"name": "shop", "labels": labels}}), &injectors, mesh).description()
        };
        assert_eq!(by(json!({"istio-injection": "enabled"}), false), "istio-injection=enabled (Istio)");
        assert_eq!(by(json!({"istio.io/rev": "gone"}), false), "istio.io/rev=gone (no injector)");
        assert_eq!(by(json!({"istio-injection": "disabled"}), false), "opted out");
        assert_eq!(by(json!({"istio.io/dataplane-mode": "ambient"}), false), "ambient mode");
        assert_eq!(
            (by(json!({}), true).as_str(), by(json!({}), false).as_str()),
            ("labels of pods", "not in the mesh")
        );
    }

    #[test]
    fn plugin_of_ambient_mode_is_recognized() {
        let plugin = json!({"kind": "DaemonSet", "metadata": {"name": "istio-cni-node", "namespace": "istio-system", "labels": {"k8s-app": "istio-cni-node"}}});
        let map = |on: &str| json!({"metadata": {"name": "istio-cni-config", "namespace": "istio-system"}, "data": {"AMBIENT_ENABLED": on}});
        let of = |on: &str| {
            cni_plugins(&Objects {
                controllers: vec![plugin.clone()],
                config_maps: vec![map(on)],
                ..Objects::default()
            })
        };
        assert!(of("true")[0].is_ambient && !of("false")[0].is_ambient);
    }

    #[test]
    fn control_plane_has_revision_and_version() {
        let istiod = json!({"kind": "Deployment", "metadata": {"name": "istiod-1-24", "namespace": "istio-system", "labels": {"app": "istiod", "istio.io/rev": "1-24"}},
            "spec": {"template": {"spec": {"containers": [{"image": "localhost:5000/pilot:1.24.6"}]}}}});
        let found = control_planes(&Objects { controllers: vec![istiod], ..Objects::default() });
        assert_eq!((found[0].revision.as_str(), found[0].version.as_str()), ("1-24", "1.24.6"));
        assert_eq!(image_tag(Some(&json!("localhost:5000/pilot"))), "unknown");
    }
}
