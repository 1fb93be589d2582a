use std::collections::BTreeMap;

use serde_json::Value;

use crate::workload::Workload;

/// A pod to inject, with what is known about it.
#[derive(Debug, Clone, Default)]
pub struct InjectRequest {
    /// The pod as the API server or the manifest has it.
    pub pod: Value,
    /// Namespace of the request, for pods that do not name one.
    pub namespace: Option<String>,
    /// Annotations of that namespace, if known; OpenShift has its uid ranges there.
    pub namespace_annotations: BTreeMap<String, String>,
    /// Proxy environment from the webhook's URL (`/inject/cluster/c1/net/n1`), see [`crate::url`].
    pub url_env: BTreeMap<String, String>,
    /// The workload that owns the pod, if the caller knows it from a manifest; else it is derived from the pod.
    pub workload: Option<Workload>,
    /// Whether a manifest is injected, not a pod that is created. As in istioctl, the system namespaces then count only for what
    /// names them itself: pods and pod templates, not workloads.
    pub is_manifest: bool,
}

impl InjectRequest {
    /// Returns the namespace by which it is decided whether pods that name none are injected.
    pub(crate) fn namespace_for_decision(&self) -> Option<&str> {
        self.namespace.as_deref().filter(|_| !(self.is_manifest && self.workload.is_some()))
    }

    /// Returns the namespace of the pod: its own, else that of the request, else Kubernetes' default.
    pub(crate) fn namespace_of_pod(&self) -> &str {
        let own = self.pod["metadata"]["namespace"].as_str().filter(|own| !own.is_empty());
        own.or(self.namespace.as_deref()).unwrap_or("default")
    }
}
