//! A client for the calls of the Container Runtime Interface (v1) that a kubelet makes for one pod.

mod messages;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use self::messages::{
    Capability, CheckpointContainerRequest, ContainerConfig, ContainerStatusRequest, ContainerStatusResponse,
    CreateContainerRequest, Empty, ExecSyncRequest, Id, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, ListPodSandboxResponse, Name, PodSandboxStatusRequest,
    PodSandboxStatusResponse, RunPodSandboxRequest, StatusRequest, StatusResponse, StopContainerRequest,
    UpdateContainerResourcesRequest,
};
pub use self::messages::{
    ExecOutput, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A container to start.
#[derive(Debug, Clone, Default)]
pub struct Container<'a> {
    /// Its name in the pod.
    pub name: &'a str,
    /// Reference of an imported image.
    pub image: &'a str,
    /// Command line.
    pub command: &'a [&'a str],
    /// User and group id it runs as.
    pub uid: i64,
    /// Files of the machine that are mounted.
    pub mounts: Vec<Mount>,
    /// Arguments, after the command or the entrypoint of the image.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Whether it is in the node's network.
    pub host_network: bool,
    /// Its rights; by default those that the runtime grants.
    pub security: Security,
}

/// The rights of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// Capabilities beyond the runtime's.
    pub add: Vec<String>,
    /// Dropped capabilities; `ALL` for all.
    pub drop: Vec<String>,
    /// Whether its root file system is read-only.
    pub read_only_root: bool,
    /// Whether it cannot gain privileges by executing a program.
    pub no_new_privileges: bool,
    /// Whether the runtime's default seccomp profile applies.
    pub seccomp_default: bool,
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// It runs, with this pid on the node.
    Running(u32),
    /// It has exited with this status.
    Exited(i32),
    /// It has been created, or is unknown to the runtime.
    Other,
}

/// The status of a running sandbox.
#[derive(Debug, Clone)]
pub struct SandboxStatus {
    /// Addresses, IPv4 first in a dual-stack network.
    pub addresses: Vec<std::net::IpAddr>,
    /// Path of its network namespace, in the runtime's mount namespace.
    pub netns: String,
}

/// A CNI plugin that a runtime would call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedPlugin {
    /// Its type.
    pub kind: String,
    /// Its conflist entry as the runtime has read it, JSON.
    pub source: String,
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
    /// When no runtime listens there.
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let path = path.to_owned();
        let channel = runtime.block_on(
            // The URI is not used: the connector decides.
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

    /// Returns why the runtime's network is not ready; `None` if it is.
    ///
    /// # Errors
    /// When the call fails.
    pub fn network_not_ready(&self) -> anyhow::Result<Option<String>> {
        let response: StatusResponse =
            self.call("/runtime.v1.RuntimeService/Status", StatusRequest { verbose: false })?;
        let conditions = response.status.unwrap_or_default().conditions;
        let network = conditions.into_iter().find(|c| c.kind == "NetworkReady").context("no condition NetworkReady")?;
        Ok((!network.status).then_some(network.message))
    }

    /// Returns the CNI plugins that the runtime would call now, in order, from its memory rather than its configuration directory.
    ///
    /// # Errors
    /// When the call fails, or the response is incomplete.
    pub fn loaded_plugins(&self) -> anyhow::Result<Vec<LoadedPlugin>> {
        let response: StatusResponse =
            self.call("/runtime.v1.RuntimeService/Status", StatusRequest { verbose: true })?;
        let config: serde_json::Value = serde_json::from_str(response.info.get("cniconfig").context("no cniconfig")?)?;
        let networks = config["Networks"].as_array().into_iter().flatten();
        let plugins = networks.filter_map(|network| network.pointer("/Config/Plugins")?.as_array()).flatten();
        let plugins = plugins.filter_map(|plugin| {
            Some(LoadedPlugin {
                kind: plugin.pointer("/Network/type")?.as_str()?.to_owned(),
                source: plugin["Source"].as_str()?.to_owned(),
            })
        });
        // The first network is the runtime's own loopback.
        Ok(plugins.filter(|plugin| plugin.kind != "loopback").collect())
    }

    /// Creates a sandbox: network namespace and CNI ADD. Returns its id.
    ///
    /// # Errors
    /// The runtime's status; its message has the error of a failing plugin.
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
        Ok(self.sandboxes_of_pods()?.into_iter().map(|(id, _)| id).collect())
    }

    /// Ids of all sandboxes with the names of their pods.
    ///
    /// # Errors
    /// The runtime's status.
    pub fn sandboxes_of_pods(&self) -> Result<Vec<(String, String)>, tonic::Status> {
        let response: ListPodSandboxResponse = self.call("/runtime.v1.RuntimeService/ListPodSandbox", Empty {})?;
        Ok(response.items.into_iter().map(|item| (item.id, item.metadata.unwrap_or_default().name)).collect())
    }

    /// Addresses and network namespace of a sandbox.
    ///
    /// # Errors
    /// When the call fails, or the response is incomplete.
    pub fn sandbox_status(&self, id: &str) -> anyhow::Result<SandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let response: PodSandboxStatusResponse = self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request)?;
        let network = response.status.and_then(|status| status.network).context("no network in the sandbox status")?;
        let addresses = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|ip| &ip.id));
        let info: serde_json::Value = serde_json::from_str(response.info.get("info").context("no verbose info")?)?;
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
                image: Some(ImageSpec {
                    image: container.image.to_owned(),
                    user_specified_image: container.image.to_owned(),
                }),
                command: container.command.iter().map(|&word| word.to_owned()).collect(),
                args: container.args.clone(),
                envs: container.env.iter().cloned().map(|(key, value)| KeyValue { key, value }).collect(),
                mounts: container.mounts.clone(),
                log_path: format!("{}.log", container.name),
                linux: Some(LinuxContainerConfig {
                    security_context: Some(LinuxContainerSecurityContext {
                        capabilities: Some(Capability {
                            add: container.security.add.clone(),
                            drop: container.security.drop.clone(),
                        }),
                        namespace_options: Some(NamespaceOption::network(container.host_network)),
                        run_as_user: id.clone(),
                        readonly_rootfs: container.security.read_only_root,
                        no_new_privs: container.security.no_new_privileges,
                        run_as_group: id,
                        seccomp: container.security.seccomp_default.then_some(Empty {}),
                    }),
                }),
            }),
            sandbox_config: Some(config.clone()),
        };
        let created: Id = self.call("/runtime.v1.RuntimeService/CreateContainer", request)?;
        self.call::<_, Empty>("/runtime.v1.RuntimeService/StartContainer", created.clone())?;
        Ok(created.id)
    }

    /// Returns the state of a container.
    ///
    /// # Errors
    /// When the call fails, or the response is incomplete.
    pub fn container_state(&self, id: &str) -> anyhow::Result<ContainerState> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let response: ContainerStatusResponse = self.call("/runtime.v1.RuntimeService/ContainerStatus", request)?;
        let status = response.status.context("no status")?;
        Ok(match status.state {
            1 => {
                let info: serde_json::Value =
                    serde_json::from_str(response.info.get("info").context("no verbose info")?)?;
                ContainerState::Running(u32::try_from(info["pid"].as_u64().context("no pid")?)?)
            }
            2 => ContainerState::Exited(status.exit_code),
            _ => ContainerState::Other,
        })
    }

    /// Stops a container: SIGTERM, then SIGKILL after `seconds`.
    ///
    /// # Errors
    /// The runtime's status.
    pub fn stop_container(&self, id: &str, seconds: i64) -> Result<(), tonic::Status> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: seconds };
        self.call::<_, Empty>("/runtime.v1.RuntimeService/StopContainer", request).map(|_| ())
    }

    /// Changes the processor shares of a running container, as a kubelet does when a pod is resized in place.
    ///
    /// # Errors
    /// The runtime's status.
    pub fn resize_container(&self, id: &str, cpu_shares: i64) -> Result<(), tonic::Status> {
        let linux = Some(LinuxContainerResources { cpu_shares });
        let request = UpdateContainerResourcesRequest { container_id: id.to_owned(), linux };
        self.call::<_, Empty>("/runtime.v1.RuntimeService/UpdateContainerResources", request).map(|_| ())
    }

    /// Writes the state of a running container to an archive.
    ///
    /// # Errors
    /// The runtime's status, also where it or the machine has no checkpoints.
    pub fn checkpoint_container(&self, id: &str, archive: &Path) -> Result<(), tonic::Status> {
        let location = archive.display().to_string();
        let request = CheckpointContainerRequest { container_id: id.to_owned(), location };
        self.call::<_, Empty>("/runtime.v1.RuntimeService/CheckpointContainer", request).map(|_| ())
    }

    /// Runs a command in a container, for at most 10 s.
    ///
    /// # Errors
    /// The runtime's status. A command that fails is not an error.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<ExecOutput, tonic::Status> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        self.call(
            "/runtime.v1.RuntimeService/ExecSync",
            ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 10 },
        )
    }
}
