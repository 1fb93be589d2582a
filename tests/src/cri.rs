//! The few calls of the Container Runtime Interface (v1) that a kubelet makes for one pod.
//!
//! The messages are cut down to the fields used here: protobuf drops unknown fields, so neither the whole API nor its compiler is
//! needed. Field numbers are those of `runtime/v1/api.proto`.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

/// No call of a test takes longer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Name, namespace and uid of a pod.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// Pod name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pod uid.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Pod namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// What a pod is made of, before its containers.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    /// Its identity.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// Host name in the pod.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Annotations, as the kubelet passes them from the pod.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    /// Linux settings.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// Linux settings of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    /// cgroup below which the sandbox lives.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

/// A request or an answer that holds one id: sandbox or container.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional_ips: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<Name>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainerConfig>,
}

/// A message whose first field is a name: `ContainerMetadata`, `ImageSpec`.
#[derive(Clone, PartialEq, Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

/// A file or folder of the machine in a container.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// Where it appears.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// What appears there.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Whether it cannot be written.
    #[prost(bool, tag = "3")]
    pub readonly: bool,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainerConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxContainerSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainerSecurityContext {
    #[prost(message, optional, tag = "5")]
    run_as_user: Option<Int64Value>,
    #[prost(message, optional, tag = "12")]
    run_as_group: Option<Int64Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Int64Value {
    #[prost(int64, tag = "1")]
    value: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

/// What a command in a container said.
#[derive(Clone, PartialEq, Message)]
pub struct ExecOutput {
    /// Its standard output.
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    /// Its standard error.
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    /// Its exit status.
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeCondition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "4")]
    message: String,
}

/// A message without fields, or whose fields do not matter here.
#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// A container to start.
#[derive(Debug, Clone, Default)]
pub struct Container<'a> {
    /// Its name in the pod.
    pub name: &'a str,
    /// Reference of an imported image.
    pub image: &'a str,
    /// Command line.
    pub command: &'a [&'a str],
    /// User and group it runs as.
    pub uid: i64,
    /// Files of the machine it sees.
    pub mounts: Vec<Mount>,
}

/// What is known of a sandbox that runs.
#[derive(Debug, Clone)]
pub struct SandboxStatus {
    /// Addresses, IPv4 first where the network is dual stack.
    pub addresses: Vec<std::net::IpAddr>,
    /// Path of its network namespace, in the runtime's mount namespace.
    pub netns: String,
}

/// A connection to a runtime's socket. Calls block.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let path = path.to_owned();
        let channel = runtime.block_on(
            // The address is a formality: the connector decides.
            Endpoint::from_static("http://localhost").timeout(CALL_TIMEOUT).connect_with_connector(tower::service_fn(
                move |_| {
                    let path = path.clone();
                    async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
                },
            )),
        )?;
        Ok(Self { runtime, channel })
    }

    fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.runtime.block_on(async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            Ok(grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(method), codec).await?.into_inner())
        })
    }

    /// Why the runtime's network is not ready; `None` when it is.
    ///
    /// # Errors
    /// When the call fails.
    pub fn network_not_ready(&self) -> anyhow::Result<Option<String>> {
        let answer: StatusResponse =
            self.call("/runtime.v1.RuntimeService/Status", StatusRequest { verbose: false })?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let network = conditions.into_iter().find(|c| c.kind == "NetworkReady").context("no condition NetworkReady")?;
        Ok((!network.status).then_some(network.message))
    }

    /// Types of the CNI plugins that the runtime would call now, in order: what it has in memory, not what its folder holds.
    ///
    /// # Errors
    /// When the call fails, or the answer lacks what is asked for.
    pub fn loaded_plugins(&self) -> anyhow::Result<Vec<String>> {
        let answer: StatusResponse = self.call("/runtime.v1.RuntimeService/Status", StatusRequest { verbose: true })?;
        let config: serde_json::Value = serde_json::from_str(answer.info.get("cniconfig").context("no cniconfig")?)?;
        // The first network is loopback, of the runtime's own making.
        let networks = config["Networks"].as_array().into_iter().flatten();
        let plugins = networks.filter_map(|network| network.pointer("/Config/Plugins")?.as_array()).flatten();
        let types = plugins.filter_map(|plugin| plugin.pointer("/Network/type")?.as_str());
        Ok(types.filter(|kind| *kind != "loopback").map(str::to_owned).collect())
    }

    /// Creates a sandbox: network namespace and CNI ADD. Returns its id.
    ///
    /// # Errors
    /// The runtime's status; its message holds what a failing plugin said.
    pub fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<String, tonic::Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        Ok(self.call::<_, Id>("/runtime.v1.RuntimeService/RunPodSandbox", request)?.id)
    }

    /// Stops a sandbox: its containers, then CNI DEL.
    ///
    /// # Errors
    /// The runtime's status.
    pub fn stop_pod_sandbox(&self, id: &str) -> Result<(), tonic::Status> {
        self.call::<_, Empty>("/runtime.v1.RuntimeService/StopPodSandbox", Id { id: id.to_owned() }).map(|_| ())
    }

    /// Removes a sandbox; the runtime sends one more CNI DEL.
    ///
    /// # Errors
    /// The runtime's status.
    pub fn remove_pod_sandbox(&self, id: &str) -> Result<(), tonic::Status> {
        self.call::<_, Empty>("/runtime.v1.RuntimeService/RemovePodSandbox", Id { id: id.to_owned() }).map(|_| ())
    }

    /// Ids of all sandboxes.
    ///
    /// # Errors
    /// The runtime's status.
    pub fn sandboxes(&self) -> Result<Vec<String>, tonic::Status> {
        let answer: ListPodSandboxResponse = self.call("/runtime.v1.RuntimeService/ListPodSandbox", Empty {})?;
        Ok(answer.items.into_iter().map(|item| item.id).collect())
    }

    /// Addresses and network namespace of a sandbox.
    ///
    /// # Errors
    /// When the call fails, or the answer lacks what is asked for.
    pub fn sandbox_status(&self, id: &str) -> anyhow::Result<SandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer: PodSandboxStatusResponse = self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request)?;
        let network = answer.status.and_then(|status| status.network).context("no network in the sandbox status")?;
        let addresses = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|ip| &ip.id));
        let info: serde_json::Value = serde_json::from_str(answer.info.get("info").context("no verbose info")?)?;
        let namespaces = info.pointer("/runtimeSpec/linux/namespaces").and_then(serde_json::Value::as_array);
        let netns = namespaces
            .and_then(|all| all.iter().find(|namespace| namespace["type"] == "network"))
            .and_then(|namespace| namespace["path"].as_str())
            .context("no network namespace in the sandbox info")?;
        Ok(SandboxStatus {
            addresses: addresses.map(|ip| ip.parse()).collect::<Result<_, _>>()?,
            netns: netns.to_owned(),
        })
    }

    /// Creates and starts a container in a sandbox. Returns its id.
    ///
    /// # Errors
    /// The runtime's status.
    pub fn start_container(
        &self,
        sandbox: &str,
        config: &PodSandboxConfig,
        container: &Container<'_>,
    ) -> Result<String, tonic::Status> {
        let id = Some(Int64Value { value: container.uid });
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(ContainerConfig {
                metadata: Some(Name { name: container.name.to_owned() }),
                image: Some(Name { name: container.image.to_owned() }),
                command: container.command.iter().map(|&word| word.to_owned()).collect(),
                mounts: container.mounts.clone(),
                linux: Some(LinuxContainerConfig {
                    security_context: Some(LinuxContainerSecurityContext { run_as_user: id.clone(), run_as_group: id }),
                }),
            }),
            sandbox_config: Some(config.clone()),
        };
        let created: Id = self.call("/runtime.v1.RuntimeService/CreateContainer", request)?;
        self.call::<_, Empty>("/runtime.v1.RuntimeService/StartContainer", created.clone())?;
        Ok(created.id)
    }

    /// Runs a command in a container, for 10 s at most.
    ///
    /// # Errors
    /// The runtime's status; a command that fails is no error here.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<ExecOutput, tonic::Status> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        self.call(
            "/runtime.v1.RuntimeService/ExecSync",
            ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 10 },
        )
    }
}
