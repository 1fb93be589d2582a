//! A cluster at one moment, as typed values. What could not be read is `None`, and listed in `read_failures`.
//!
//! Every object is parsed once, by [`object::parse`], into a struct with only the fields that analyzers read. Raw JSON remains where the injector
//! takes it: pods, ProxyConfigs and settings documents.

pub(crate) mod cluster;
pub(crate) mod network;
pub(crate) mod object;
pub(crate) mod own;
pub(crate) mod pods;
pub(crate) mod reports;
pub(crate) mod webhooks;
pub(crate) mod workloads;

use std::collections::BTreeMap;

use serde_json::Value;

use cluster::{ConfigMap, Namespace, Node, PermissionRule};
use network::{EndpointSlice, NetworkPolicy, Service};
use own::{Controller, DisruptionBudget, OwnPod, WebhookSecret};
use pods::MeshPod;
use reports::PodReport;
use webhooks::WebhookConfiguration;
use workloads::{FailedCreate, Workload};

/// The namespaces of an installation.
#[derive(Debug, Clone, Default)]
pub struct InstallNamespaces {
    /// Namespace of the webhook.
    pub webhook: String,
    /// Namespace of the node agents.
    pub agent: String,
    /// Namespace of Istio's control plane.
    pub istio: String,
}

/// Everything that is analyzed.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub(crate) install_namespaces: InstallNamespaces,
    /// Seconds since 1970.
    pub(crate) now: i64,
    /// The revision that is to be installed, for a check before an installation.
    pub(crate) pre_install_revision: Option<String>,
    /// `gitVersion` of the API server; empty if unknown.
    pub(crate) server_version: String,
    pub(crate) read_failures: Vec<ReadFailure>,
    /// All MutatingWebhookConfigurations, not only Weir's.
    pub(crate) configurations: Option<Vec<WebhookConfiguration>>,
    /// Names of all ValidatingAdmissionPolicies.
    pub(crate) policies: Option<Vec<String>>,
    /// Names of the ValidatingAdmissionPolicies that have a binding.
    pub(crate) bound_policies: Option<Vec<String>>,
    pub(crate) namespaces: Option<Vec<Namespace>>,
    pub(crate) nodes: Option<Vec<Node>>,
    pub(crate) proxy_configs: Option<Vec<Value>>,
    /// Services of the control plane's namespace.
    pub(crate) istio_services: Option<Vec<Service>>,
    /// Deployments of the control plane's namespace.
    pub(crate) istio_deployments: Option<Vec<Controller>>,
    pub(crate) webhook: NamespaceObjects,
    pub(crate) agent: NamespaceObjects,
    /// ConfigMaps with configuration, of all three namespaces.
    pub(crate) config_maps: Option<Vec<ConfigMap>>,
    pub(crate) secrets: Option<Vec<WebhookSecret>>,
    /// Permissions of the service accounts of webhook and agent.
    pub(crate) permissions: Option<Vec<PermissionRule>>,
    /// Users' workloads that have an injection label or whose pods cannot be created.
    pub(crate) workloads: Option<Vec<Workload>>,
    pub(crate) failed_creates: Option<Vec<FailedCreate>>,
    /// Pods that injection concerns.
    pub(crate) pods: Option<Vec<MeshPod>>,
    /// Reports of the pods of webhook and agents, by pod name.
    pub(crate) reports: BTreeMap<String, PodReport>,
    pub(crate) dry_runs: Vec<DryRunResult>,
    /// Permissions that an installation needs and the user lacks.
    pub(crate) missing_permissions: Vec<String>,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadFailure {
    /// Objects that were to be read, such as `pods of weir-system`.
    pub(crate) what: String,
    pub(crate) reason: String,
}

/// Objects in a namespace of Weir. The lists after `pods` are read for the webhook only: nothing calls the agents.
#[derive(Debug, Default)]
pub(crate) struct NamespaceObjects {
    /// Deployments of the webhook's namespace, DaemonSets of the agents'.
    pub(crate) controllers: Option<Vec<Controller>>,
    pub(crate) pods: Option<Vec<OwnPod>>,
    pub(crate) services: Option<Vec<Service>>,
    pub(crate) slices: Option<Vec<EndpointSlice>>,
    pub(crate) policies: Option<Vec<NetworkPolicy>>,
    pub(crate) budgets: Option<Vec<DisruptionBudget>>,
}

/// The outcome of creating a pod with `dryRun=All`.
#[derive(Debug, Clone)]
pub(crate) struct DryRunResult {
    /// Revision whose webhook entries select the pod.
    pub(crate) revision: String,
    pub(crate) namespace: String,
    pub(crate) outcome: DryRunOutcome,
}

/// Answer of the API server to a dry-run pod.
#[derive(Debug, Clone)]
pub(crate) enum DryRunOutcome {
    /// The pod after admission.
    Admitted(Value),
    Rejected {
        /// HTTP status.
        code: u16,
        message: String,
    },
}
