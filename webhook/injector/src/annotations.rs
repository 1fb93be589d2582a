//! Names of annotations and labels, and access to those of a pod.

use serde_json::{Map, Value};

/// The record of an injection: names of what was added, and the revision (JSON).
pub const STATUS: &str = "sidecar.istio.io/status";
/// Containers as the user declared them before injection (JSON).
pub(crate) const OVERRIDES: &str = "proxy.istio.io/overrides";
/// ProxyConfig of the pod (YAML).
pub(crate) const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Templates to apply, instead of the default ones.
pub(crate) const TEMPLATES: &str = "inject.istio.io/templates";
/// Revision of the injector.
pub(crate) const REVISION: &str = "istio.io/rev";
/// The effective capture configuration, for Weir's CNI plugin.
pub(crate) const CAPTURE: &str = "weir.dev/capture";
/// Record of what `uninject` cannot derive from the injected pod (JSON).
pub(crate) const ORIGINAL: &str = "weir.dev/original";
/// REDIRECT, TPROXY or NONE.
pub(crate) const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
/// Whether the sidecar is native.
pub(crate) const NATIVE_SIDECAR: &str = "sidecar.istio.io/nativeSidecar";
/// Full image reference of the proxy.
pub(crate) const PROXY_IMAGE: &str = "sidecar.istio.io/proxyImage";
/// Image type of the proxy.
pub(crate) const PROXY_IMAGE_TYPE: &str = "sidecar.istio.io/proxyImageType";
/// ConfigMap with a custom Envoy bootstrap.
pub(crate) const BOOTSTRAP_OVERRIDE: &str = "sidecar.istio.io/bootstrapOverride";
/// Additional volumes (JSON object of volume sources by name).
pub(crate) const USER_VOLUME: &str = "sidecar.istio.io/userVolume";
/// Additional mounts of the proxy (JSON object of mounts by volume name).
pub(crate) const USER_VOLUME_MOUNT: &str = "sidecar.istio.io/userVolumeMount";
/// Whether the proxy may bind ports below 1024.
pub(crate) const CAP_NET_BIND_SERVICE: &str = "sidecar.istio.io/capNetBindService";
/// Log levels of the proxy and the agent.
pub(crate) const LOG_LEVEL: &str = "sidecar.istio.io/logLevel";
pub(crate) const COMPONENT_LOG_LEVEL: &str = "sidecar.istio.io/componentLogLevel";
pub(crate) const AGENT_LOG_LEVEL: &str = "sidecar.istio.io/agentLogLevel";
/// Resources of the injected containers.
pub(crate) const PROXY_CPU: &str = "sidecar.istio.io/proxyCPU";
pub(crate) const PROXY_MEMORY: &str = "sidecar.istio.io/proxyMemory";
pub(crate) const PROXY_CPU_LIMIT: &str = "sidecar.istio.io/proxyCPULimit";
pub(crate) const PROXY_MEMORY_LIMIT: &str = "sidecar.istio.io/proxyMemoryLimit";
/// Whether probes of the application go through the agent.
pub(crate) const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
/// Port of the agent's status server, and settings of the proxy's readiness probe.
pub(crate) const STATUS_PORT: &str = "status.sidecar.istio.io/port";
pub(crate) const READINESS_INITIAL_DELAY: &str = "readiness.status.sidecar.istio.io/initialDelaySeconds";
pub(crate) const READINESS_PERIOD: &str = "readiness.status.sidecar.istio.io/periodSeconds";
pub(crate) const READINESS_FAILURES: &str = "readiness.status.sidecar.istio.io/failureThreshold";
/// Which traffic is captured.
pub(crate) const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
pub(crate) const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
pub(crate) const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
pub(crate) const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
pub(crate) const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
pub(crate) const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
pub(crate) const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
pub(crate) const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
pub(crate) const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
/// Whether metrics of the application are merged into the agent's.
pub(crate) const MERGE_METRICS: &str = "prometheus.istio.io/merge-metrics";
/// The container that kubectl uses by default.
pub(crate) const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
pub(crate) const DEFAULT_LOGS_CONTAINER: &str = "kubectl.kubernetes.io/default-logs-container";
/// Networks that Multus attaches.
pub(crate) const MULTUS_NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Datadog's variables (JSON object).
pub(crate) const DATADOG_ENV: &str = "apm.datadoghq.com/env";

/// Network of the pod (a label).
pub(crate) const NETWORK: &str = "topology.istio.io/network";

/// The labels or the annotations of a pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StringMap<'a>(Option<&'a Map<String, Value>>);

impl<'a> StringMap<'a> {
    /// Returns `metadata.<field>` of a pod.
    pub(crate) fn of(pod: &'a Value, field: &str) -> Self {
        Self(pod.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_object))
    }

    pub(crate) fn get(self, key: &str) -> Option<&'a str> {
        self.0?.get(key)?.as_str()
    }

    /// Returns the value of the first of `keys` that is set and not empty.
    pub(crate) fn first_non_empty(self, keys: &[&str]) -> Option<&'a str> {
        keys.iter().find_map(|key| self.get(key).filter(|value| !value.is_empty()))
    }

    /// Iterates over the pairs whose value is a string.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.0.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }
}
