//! Reduces objects of the API server to what settings are built from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ObjectReference};
use kube::core::{ClusterResourceScope, DynamicObject, ObjectMeta, PartialObjectMeta, Resource};
use serde::Deserialize;
use weir_injector::settings::{NamespaceFacts, ProxyConfigResources};

use super::{GROUP, VERSION};

/// A node without most of its fields, which are skipped while parsing.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct NodeObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    node_info: NodeInfo,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeInfo {
    kubelet_version: String,
}

impl Resource for NodeObject {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Name, kubelet version and networks of the pods of a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NodeVersion {
    pub(super) name: String,
    pub(super) kubelet: String,
    pub(super) pod_cidrs: Vec<String>,
}

impl From<NodeObject> for NodeVersion {
    fn from(node: NodeObject) -> Self {
        Self {
            name: node.metadata.name.unwrap_or_default(),
            kubelet: node.status.node_info.kubelet_version,
            pod_cidrs: node.spec.pod_cidrs,
        }
    }
}

/// Uid and data of a ConfigMap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ConfigMapData {
    pub(super) uid: String,
    pub(super) data: BTreeMap<String, String>,
}

impl From<ConfigMap> for ConfigMapData {
    fn from(map: ConfigMap) -> Self {
        Self { uid: map.metadata.uid.unwrap_or_default(), data: map.data.unwrap_or_default() }
    }
}

/// A `ProxyConfig` resource.
#[derive(Debug, PartialEq)]
pub(super) struct ParsedProxyConfig {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// The resource alone, or everything that is wrong with it.
    pub(super) parsed: Result<ProxyConfigResources, String>,
}

impl From<DynamicObject> for ParsedProxyConfig {
    fn from(object: DynamicObject) -> Self {
        let ObjectMeta { namespace, name, uid, .. } = object.metadata.clone();
        let parsed = serde_json::to_value(object).map_err(|error| error.to_string()).and_then(|mut object| {
            // Items of a list need not repeat the list's kind.
            object["apiVersion"] = format!("{GROUP}/{VERSION}").into();
            object["kind"] = "ProxyConfig".into();
            ProxyConfigResources::from_objects([&object])
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        });
        let text = Option::unwrap_or_default;
        Self { namespace: text(namespace), name: text(name), uid: text(uid), parsed }
    }
}

impl ParsedProxyConfig {
    pub(super) fn object_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some("ProxyConfig".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// Returns a namespace's name, and what pods depend on of it.
pub(super) fn namespace_facts(namespace: PartialObjectMeta<Namespace>) -> (String, NamespaceFacts) {
    let ObjectMeta { name, annotations, labels, .. } = namespace.metadata;
    (name.unwrap_or_default(), NamespaceFacts::new(annotations.unwrap_or_default(), labels.unwrap_or_default()))
}
