//! Objects as the API server sends them, read as far as settings are made of them, and what is kept of each.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::core::{ClusterResourceScope, DynamicObject, ObjectMeta, PartialObjectMeta, Resource};
use serde::Deserialize;

use super::{GROUP, VERSION};
use weir_injector::settings::{Namespaces, ProxyConfigResources};

/// What is read of a node; all else, which is most of it, is skipped while reading.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct NodeObject {
    metadata: ObjectMeta,
    #[serde(default)]
    status: Status,
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

/// What is kept of a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeptNode {
    pub(super) name: String,
    /// Of its kubelet.
    pub(super) version: String,
}

impl KeptNode {
    pub(super) fn of(node: NodeObject) -> Self {
        Self { name: node.metadata.name.unwrap_or_default(), version: node.status.node_info.kubelet_version }
    }
}

/// What is kept of a ConfigMap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeptMap {
    pub(super) uid: String,
    pub(super) data: BTreeMap<String, String>,
}

impl KeptMap {
    pub(super) fn of(map: ConfigMap) -> Self {
        Self { uid: map.metadata.uid.unwrap_or_default(), data: map.data.unwrap_or_default() }
    }
}

/// What is kept of a `ProxyConfig` resource.
#[derive(Debug, PartialEq)]
pub(super) struct KeptResource {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Read alone; or everything that is wrong with it.
    pub(super) read: Result<ProxyConfigResources, String>,
}

impl KeptResource {
    pub(super) fn of(object: DynamicObject) -> Self {
        let ObjectMeta { namespace, name, uid, .. } = object.metadata.clone();
        let read = serde_json::to_value(object).map_err(|error| error.to_string()).and_then(|mut object| {
            // Items of a list need not repeat what the list is of.
            object["apiVersion"] = format!("{GROUP}/{VERSION}").into();
            object["kind"] = "ProxyConfig".into();
            ProxyConfigResources::from_objects([&object])
                .map_err(|findings| findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        });
        let text = Option::unwrap_or_default;
        Self { namespace: text(namespace), name: text(name), uid: text(uid), read }
    }
}

/// Name and annotations of a namespace, as far as pods depend on them.
pub(super) fn annotations_of(namespace: PartialObjectMeta<Namespace>) -> (String, BTreeMap<String, String>) {
    let ObjectMeta { name, annotations, .. } = namespace.metadata;
    let mut annotations = annotations.unwrap_or_default();
    annotations.retain(|key, _| Namespaces::READ.contains(&key.as_str()));
    (name.unwrap_or_default(), annotations)
}
