//! Kubernetes events on pods and on the node.

use k8s_openapi::api::core::v1::ObjectReference;
pub use weir_runtime::events::{Events, Reporter, Teller, Told};

use crate::metrics::Metrics;

/// Both ends, with metrics.
pub fn channel(metrics: &Metrics) -> (Events, Teller) {
    metrics.register(|registry| weir_runtime::events::channel(registry, "weir_agent"))
}

/// Who tells them.
pub fn reporter(node: &str) -> Reporter {
    Reporter { controller: "weir-agent".to_owned(), instance: Some(node.to_owned()) }
}

/// The node, as the kubelet refers to it in events.
pub fn node_reference(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    }
}
