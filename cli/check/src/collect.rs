//! Reads a cluster into a [`Snapshot`].
//!
//! ```text
//! version ─▶ cluster objects, objects of Weir's namespaces, permissions ─▶ pods (page by page), reports, dry runs ─▶ Snapshot
//!                              concurrently, with a limit                    which pods are kept depends on the objects
//! ```

pub(crate) mod api;
mod dry_run;
mod objects;
mod permissions;
mod reports;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;

use crate::snapshot::pods::PodFilter;
use crate::snapshot::{InstallNamespaces, Snapshot};
use api::{ApiReader, ApiTransport};

/// Timeout of one request. Creating the dry-run pod waits for webhooks, each of which may take up to 30 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(35);

/// Scope of a check.
#[derive(Debug, Clone)]
pub struct CheckScope {
    /// The namespaces of the installation.
    pub namespaces: InstallNamespaces,
    /// Checks the workloads of this namespace only.
    pub namespace: Option<String>,
    /// Checks whether the cluster is ready for an installation of this revision, instead of an installation.
    pub pre_install_revision: Option<String>,
    /// Creates dry-run pods in this namespace; in namespaces that are injected if it is empty.
    pub dry_run_namespace: Option<String>,
    /// Timeout of all requests to pods of webhook and agents together.
    pub pod_report_timeout: Duration,
}

/// Error returned when a cluster cannot be checked at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectError {
    /// The API server does not respond.
    #[error("cannot reach the cluster: {0}")]
    Unreachable(String),
    /// The API server does not accept the user's credentials.
    #[error("unauthorized (401 {0}); log in again or choose another --context")]
    Unauthorized(String),
}

/// Reads everything in the scope. What cannot be read becomes a finding.
///
/// # Errors
/// The cluster does not respond or does not accept the credentials.
pub async fn collect(client: &Client, scope: &CheckScope) -> Result<Snapshot, CollectError> {
    Box::pin(collect_from(client, scope)).await
}

pub(crate) async fn collect_from<A: ApiTransport>(transport: &A, scope: &CheckScope) -> Result<Snapshot, CollectError> {
    let reader = ApiReader::new(transport, REQUEST_TIMEOUT);
    let server_version = server_version(&reader).await?;
    let configurations = reader
        .list("MutatingWebhookConfigurations", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations")
        .await;
    // Many clusters let anonymous users read `/version`, but not this.
    if configurations.is_none()
        && let Ok(response) = reader.send("GET", "/api/v1/namespaces?limit=1", None).await
        && response.code == 401
    {
        return Err(CollectError::Unauthorized(response.excerpt()));
    }
    let istio = &scope.namespaces.istio;
    let istio_services = format!("/api/v1/namespaces/{istio}/services");
    let istio_deployments = format!("/apis/apps/v1/namespaces/{istio}/deployments");
    let (namespaces, nodes, istio_services, istio_deployments) = tokio::join!(
        reader.list("namespaces", "/api/v1/namespaces"),
        reader.list("nodes", "/api/v1/nodes"),
        reader.list("services of the control plane", &istio_services),
        reader.list("deployments of the control plane", &istio_deployments),
    );
    let mut snapshot = Snapshot {
        install_namespaces: scope.namespaces.clone(),
        now: Timestamp::now().as_second(),
        pre_install_revision: scope.pre_install_revision.clone(),
        server_version,
        configurations,
        namespaces,
        nodes,
        istio_services,
        istio_deployments,
        ..Snapshot::default()
    };
    if scope.pre_install_revision.is_some() {
        snapshot.missing_permissions = permissions::missing_permissions(&reader, &scope.namespaces).await;
    } else {
        collect_installation(&reader, scope, &mut snapshot).await;
    }
    snapshot.read_failures = reader.into_failures();
    Ok(snapshot)
}

async fn server_version<A: ApiTransport>(reader: &ApiReader<'_, A>) -> Result<String, CollectError> {
    #[derive(Default, serde::Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Version {
        git_version: String,
    }
    let response = reader.send("GET", "/version", None).await.map_err(CollectError::Unreachable)?;
    match response.code {
        200 => Ok(serde_json::from_str::<Version>(&response.body).unwrap_or_default().git_version),
        401 => Err(CollectError::Unauthorized(response.excerpt())),
        code => {
            reader.record_failure("the version of the API server", format!("{code}: {}", response.excerpt()));
            Ok(String::new())
        }
    }
}

async fn collect_installation<A: ApiTransport>(reader: &ApiReader<'_, A>, scope: &CheckScope, snapshot: &mut Snapshot) {
    let namespaces = &scope.namespaces;
    let limit = scope.namespace.as_deref();
    (
        snapshot.webhook,
        snapshot.agent,
        snapshot.policies,
        snapshot.bound_policies,
        snapshot.config_maps,
        snapshot.permissions,
        snapshot.workloads,
        snapshot.failed_creates,
        snapshot.proxy_configs,
    ) = tokio::join!(
        objects::webhook_objects(reader, &namespaces.webhook),
        objects::agent_objects(reader, &namespaces.agent),
        objects::policies(reader),
        objects::bound_policies(reader),
        objects::config_maps(reader, namespaces),
        permissions::service_account_permissions(reader, namespaces),
        objects::workloads(reader, limit),
        objects::failed_creates(reader, limit),
        reader.list_if_known("ProxyConfigs", "/apis/networking.istio.io/v1beta1/proxyconfigs"),
    );
    let filter = PodFilter { namespaces: objects::meshed_namespaces(snapshot) };
    let dry_runs = async {
        match &scope.dry_run_namespace {
            Some(wanted) => dry_run::create_pods(reader, snapshot, wanted, limit).await,
            None => Vec::new(),
        }
    };
    let (pods, reports, dry_runs, secrets) = tokio::join!(
        objects::mesh_pods(reader, limit, &filter),
        reports::pod_reports(reader, snapshot, scope.pod_report_timeout),
        dry_runs,
        objects::webhook_secrets(reader, snapshot),
    );
    (snapshot.pods, snapshot.reports, snapshot.dry_runs, snapshot.secrets) = (pods, reports, dry_runs, Some(secrets));
}
