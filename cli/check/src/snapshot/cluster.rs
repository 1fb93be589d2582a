//! Objects of the cluster: namespaces, nodes, ConfigMaps, permissions.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

use super::object::{Metadata, StatusCondition, StringMap, timestamp};

/// A namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Namespace {
    pub(crate) metadata: NamespaceMetadata,
    status: NamespaceStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NamespaceMetadata {
    pub(crate) name: String,
    pub(crate) labels: StringMap,
    pub(crate) annotations: BTreeMap<String, String>,
    managed_fields: Vec<ManagedFields>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamespaceStatus {
    phase: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ManagedFields {
    #[serde(deserialize_with = "timestamp")]
    time: Option<Timestamp>,
    fields_v1: OwnedFields,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OwnedFields {
    #[serde(rename = "f:metadata")]
    metadata: OwnedMetadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OwnedMetadata {
    #[serde(rename = "f:labels")]
    labels: StringMap,
}

impl Namespace {
    pub(crate) fn is_terminating(&self) -> bool {
        self.status.phase == "Terminating"
    }

    /// Returns when one of these labels was last set, according to the managed fields.
    pub(crate) fn labelled_at(&self, labels: &[&str]) -> Option<Timestamp> {
        let sets = |fields: &&ManagedFields| {
            labels.iter().any(|label| fields.fields_v1.metadata.labels.contains_key(&format!("f:{label}")))
        };
        self.metadata.managed_fields.iter().filter(sets).filter_map(|fields| fields.time).max()
    }
}

/// A node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) spec: NodeSpec,
    pub(crate) status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSpec {
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Taint {
    pub(crate) key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeStatus {
    pub(crate) conditions: Vec<StatusCondition>,
    pub(crate) node_info: NodeInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeInfo {
    pub(crate) kubelet_version: String,
    pub(crate) container_runtime_version: String,
    pub(crate) kernel_version: String,
    pub(crate) operating_system: String,
}

/// A ConfigMap.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigMap {
    pub(crate) metadata: Metadata,
    pub(crate) data: BTreeMap<String, String>,
}

/// An RBAC rule that is bound to a service account.
#[derive(Debug, Clone)]
pub(crate) struct PermissionRule {
    /// `NAMESPACE/NAME` of the service account; `*` as name or namespace matches any.
    pub(crate) account: String,
    /// Namespace in which the rule applies; `None` for the whole cluster.
    pub(crate) namespace: Option<String>,
    pub(crate) rule: PolicyRule,
}

/// A rule of a Role or ClusterRole.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PolicyRule {
    pub(crate) api_groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) verbs: Vec<String>,
    pub(crate) resource_names: Vec<String>,
}
