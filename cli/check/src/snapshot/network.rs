//! Objects between the API server and the webhook's pods: Services, EndpointSlices, NetworkPolicies.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::object::{LabelSelector, Metadata, StringMap, text};

/// A Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) metadata: Metadata,
    pub(crate) spec: ServiceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceSpec {
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) selector: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServicePort {
    pub(crate) port: u64,
    pub(crate) target_port: Option<IntOrString>,
}

impl Service {
    /// Returns whether the Service selects pods with these labels. Without a selector it selects none.
    pub(crate) fn selects(&self, labels: &StringMap) -> bool {
        let selector = &self.spec.selector;
        !selector.is_empty() && selector.iter().all(|(key, value)| text(labels, key) == Some(value))
    }
}

/// An EndpointSlice.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Metadata,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    conditions: EndpointConditions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EndpointConditions {
    ready: Option<bool>,
}

impl EndpointSlice {
    /// Returns whether the slice has a ready endpoint. An endpoint without the condition counts as ready (EndpointSlice API).
    pub(crate) fn has_ready_endpoint(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.conditions.ready.unwrap_or(true))
    }
}

/// A NetworkPolicy.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkPolicy {
    pub(crate) metadata: Metadata,
    pub(crate) spec: NetworkPolicySpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NetworkPolicySpec {
    pub(crate) pod_selector: LabelSelector,
    pub(crate) policy_types: Option<Vec<String>>,
    pub(crate) ingress: Vec<IngressRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct IngressRule {
    /// Admitted ports; empty for all.
    pub(crate) ports: Vec<PolicyPort>,
    /// Admitted peers; empty for all.
    pub(crate) from: Vec<PolicyPeer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PolicyPort {
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<IntOrString>,
    pub(crate) end_port: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PolicyPeer {
    pub(crate) ip_block: Option<IgnoredAny>,
}
