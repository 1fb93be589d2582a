//! Weir's own workloads: webhook and agents, their pods, Secrets and PodDisruptionBudgets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Deserializer};

use super::object::{LabelSelector, Metadata, StatusCondition, is_ready};

/// A Deployment or DaemonSet of Weir, or a Deployment of the control plane.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Controller {
    pub(crate) metadata: Metadata,
    pub(crate) spec: ControllerSpec,
    status: ControllerStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ControllerSpec {
    replicas: Option<u64>,
    pub(crate) selector: LabelSelector,
    pub(crate) template: PodTemplate,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ControllerStatus {
    replicas: u64,
    updated_replicas: u64,
    ready_replicas: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodTemplate {
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) host_network: bool,
    pub(crate) service_account_name: Option<String>,
    pub(crate) init_containers: Vec<Container>,
    pub(crate) containers: Vec<Container>,
    pub(crate) volumes: Vec<Volume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<EnvVar>,
    pub(crate) env_from: Vec<EnvFrom>,
    pub(crate) ports: Vec<ContainerPort>,
    pub(crate) volume_mounts: Vec<VolumeMount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EnvFrom {
    pub(crate) config_map_ref: Option<NameReference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NameReference {
    pub(crate) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerPort {
    name: String,
    container_port: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VolumeMount {
    pub(crate) name: String,
    pub(crate) mount_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) config_map: Option<ConfigMapVolume>,
    pub(crate) secret: Option<SecretVolume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigMapVolume {
    pub(crate) name: String,
    pub(crate) items: Vec<KeyToPath>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KeyToPath {
    pub(crate) key: String,
    pub(crate) path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SecretVolume {
    pub(crate) secret_name: String,
}

impl Controller {
    pub(crate) fn replicas(&self) -> u64 {
        self.spec.replicas.unwrap_or(1)
    }

    pub(crate) fn has_ready_replica(&self) -> bool {
        self.status.ready_replicas > 0
    }

    pub(crate) fn is_rolling_out(&self) -> bool {
        self.status.updated_replicas < self.status.replicas
    }
}

impl PodSpec {
    /// Returns the number of a named port.
    pub(crate) fn port(&self, name: &str) -> Option<u64> {
        named_port(self.init_containers.iter().chain(&self.containers), name)
    }
}

fn named_port<'a>(containers: impl IntoIterator<Item = &'a Container>, name: &str) -> Option<u64> {
    let mut ports = containers.into_iter().flat_map(|container| &container.ports);
    ports.find(|port| port.name == name).map(|port| port.container_port)
}

/// A pod of the webhook or the agent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct OwnPod {
    pub(crate) metadata: Metadata,
    spec: OwnPodSpec,
    pub(crate) status: PodStatus,
}

/// An agent runs on every node, so less is kept of its pods than of a template.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OwnPodSpec {
    node_name: Option<String>,
    containers: Vec<PodContainer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodContainer {
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    phase: String,
    pub(crate) conditions: Vec<StatusCondition>,
    init_container_statuses: Vec<ContainerStatus>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerStatus {
    pub(crate) name: String,
    pub(crate) restart_count: u64,
    pub(crate) state: ContainerState,
    pub(crate) last_state: ContainerState,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerState {
    pub(crate) waiting: Option<Waiting>,
    pub(crate) terminated: Option<Terminated>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Terminated {
    #[serde(default)]
    pub(crate) reason: String,
    pub(crate) exit_code: i64,
}

impl OwnPod {
    pub(crate) fn node(&self) -> Option<&str> {
        self.spec.node_name.as_deref()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.status.phase == "Running"
    }

    pub(crate) fn is_ready(&self) -> bool {
        is_ready(&self.status.conditions)
    }

    pub(crate) fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Returns the number of a named port.
    pub(crate) fn port(&self, name: &str) -> Option<u64> {
        let mut ports = self.spec.containers.iter().flat_map(|container| &container.ports);
        ports.find(|port| port.name == name).map(|port| port.container_port)
    }

    pub(crate) fn container_statuses(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.status.init_container_statuses.iter().chain(&self.status.container_statuses)
    }
}

/// A PodDisruptionBudget.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DisruptionBudget {
    pub(crate) metadata: Metadata,
    pub(crate) spec: DisruptionBudgetSpec,
    pub(crate) status: DisruptionBudgetStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DisruptionBudgetSpec {
    pub(crate) selector: LabelSelector,
    pub(crate) min_available: Option<IntOrString>,
    pub(crate) max_unavailable: Option<IntOrString>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DisruptionBudgetStatus {
    pub(crate) desired_healthy: Option<u64>,
}

/// The certificates in a Secret of the webhook. Private keys are not kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WebhookSecret {
    pub(crate) metadata: Metadata,
    pub(crate) data: SecretCertificates,
}

/// PEM texts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SecretCertificates {
    /// The certificate chain that is served, leaf first.
    #[serde(rename = "tls.crt", deserialize_with = "base64")]
    pub(crate) served_chain: Option<Vec<u8>>,
    /// The certificate of the built-in CA that signs.
    #[serde(rename = "current.crt", deserialize_with = "base64")]
    pub(crate) signing_ca: Option<Vec<u8>>,
}

fn base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| STANDARD.decode(text).ok()))
}
