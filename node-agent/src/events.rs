//! Kubernetes events on pods and on the node.

use k8s_openapi::api::core::v1::ObjectReference;
pub use weir_runtime::events::{EventPublisher, EventRecord, EventRecorder, Reporter};

use crate::metrics::MetricsRegistry;

/// Returns both ends of the queue of events, and registers its metrics.
pub fn channel(metrics: &MetricsRegistry) -> (EventRecorder, EventPublisher) {
    metrics.register(|registry| weir_runtime::events::channel(registry, "weir_agent"))
}

/// Returns the reporting controller of the events.
pub fn reporter(node: &str) -> Reporter {
    Reporter { controller: "weir-agent".to_owned(), instance: Some(node.to_owned()) }
}

/// Returns a reference to the node, in the form of the kubelet's events.
pub fn node_reference(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    }
}
