//! Messages of ttrpc and of NRI v1alpha1 with the fields that are used. Protobuf ignores unknown fields, so neither the whole API nor a
//! protobuf compiler is needed. Numbers are those of `request.proto` of ttrpc and `api.proto` of NRI.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use prost::Message;

/// Event before the first container of a pod starts, when its network is complete.
pub(super) const RUN_POD_SANDBOX: i32 = 1;
/// Event when a pod has ended.
pub(super) const STOP_POD_SANDBOX: i32 = 2;

/// Returns the bit of an event in [`ConfigureResponse::events`].
pub(super) const fn event_bit(event: i32) -> i32 {
    1 << (event - 1)
}

/// Request of ttrpc.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) payload: prost::bytes::Bytes,
    #[prost(int64, tag = "4")]
    pub(super) timeout_nano: i64,
}

/// Response of ttrpc.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) payload: prost::bytes::Bytes,
}

/// Status of a call, `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RegisterPluginRequest {
    #[prost(string, tag = "1")]
    pub(super) plugin_name: String,
    /// Two digits; plugins are called in ascending order.
    #[prost(string, tag = "2")]
    pub(super) plugin_idx: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigureRequest {
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
    /// Milliseconds; 0 where the runtime is too old to tell.
    #[prost(int64, tag = "5")]
    pub(super) request_timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigureResponse {
    /// Bits of the events to subscribe to.
    #[prost(int32, tag = "2")]
    pub(super) events: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SynchronizeRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) pods: Vec<PodSandbox>,
    /// Whether another request with more pods follows.
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SynchronizeResponse {
    /// As in the request, for a plugin that can handle several.
    #[prost(bool, tag = "2")]
    pub(super) more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StateChangeEvent {
    #[prost(int32, tag = "1")]
    pub(super) event: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) pod: Option<PodSandbox>,
}

/// A pod sandbox of the runtime.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandbox {
    /// Id of the sandbox.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Name of the pod.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Uid of the pod; of a static pod, the kubelet's own.
    #[prost(string, tag = "3")]
    pub uid: String,
    /// Namespace of the pod.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Annotations that the pod had when its sandbox was created.
    #[prost(btree_map = "string, string", tag = "6")]
    pub annotations: BTreeMap<String, String>,
    /// Linux settings.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandbox>,
    /// Pid of the sandbox's own process; 0 where it has none.
    #[prost(uint32, tag = "9")]
    pub pid: u32,
    /// Addresses of the pod; none where the runtime is too old to tell.
    #[prost(string, repeated, tag = "10")]
    pub ips: Vec<String>,
}

/// Linux settings of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandbox {
    /// Its namespaces.
    #[prost(message, repeated, tag = "5")]
    pub namespaces: Vec<LinuxNamespace>,
}

/// A namespace of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxNamespace {
    /// Its kind, such as `network`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Path on the host; empty for a namespace without a name.
    #[prost(string, tag = "2")]
    pub path: String,
}

impl PodSandbox {
    /// Returns `namespace/name`.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Returns the addresses; those that are not valid are left out.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.ips.iter().filter_map(|ip| ip.parse().ok()).collect()
    }

    /// Returns the pod's network namespace, a path of the host; `None` where the pod is in the host's network.
    pub(super) fn netns(&self) -> Option<PathBuf> {
        let namespaces = &self.linux.as_ref()?.namespaces;
        let network = namespaces.iter().find(|namespace| namespace.kind == "network")?;
        Some(match network.path.as_str() {
            "" => Path::new("/proc").join(self.pid.to_string()).join("ns/net"),
            path => PathBuf::from(path),
        })
    }
}
