//! The webhook's use of its API server: reconcile loops and watches, as flags ask for them.
//!
//! ```text
//! flags ──ControllerConfig──▶ start ──▶ ControllerContext (clients, events, metrics, health) ──▶ tasks
//!
//! settings_watch: ConfigMaps, ProxyConfigs, nodes, namespaces ──▶ SettingsBuilder
//! ca: Secret, Lease ──▶ serving certificate, trust bundle ─┐
//! CA file ──▶ trust bundle ────────────────────────────────┴─▶ ca_bundle: caBundle of webhook configurations
//! ```
//!
//! Without any of those flags there is no controller, no client, and no permission that the webhook needs. Reviews need no controller:
//! while the API server is away, the last state is used.

pub mod ca;
pub mod ca_bundle;
mod config;
pub mod lease;
pub mod settings_watch;

use std::sync::Arc;

use tokio::sync::watch;
use weir_runtime::events::{self, EventRecorder, Reporter};
use weir_runtime::tasks::Tasks;
use weir_runtime::{CancellationToken, ClientFactory};

use self::ca_bundle::{TrustBundle, TrustFetcher};
pub use self::config::{ControllerConfig, ControllerConfigError};
use crate::health::ServerHealth;
use crate::metrics::Metrics;
use crate::tls::ServedCertificate;

/// Handles that every controller shares.
#[derive(Clone)]
pub struct ControllerContext {
    /// Creates clients.
    pub client_factory: ClientFactory,
    /// Namespace of the webhook.
    pub namespace: String,
    /// Name of this replica.
    pub pod_name: String,
    /// Queues Kubernetes events.
    pub events: EventRecorder,
    /// Registers metrics.
    pub metrics: Arc<Metrics>,
    /// Registers conditions.
    pub health: Arc<ServerHealth>,
    /// Cancelled at shutdown.
    pub shutdown: CancellationToken,
}

/// Starts the controllers. `served` is the certificate of the TLS port.
///
/// # Errors
/// No API server is configured, or a file is unusable. A server that does not respond is not an error: controllers retry.
pub async fn start(
    config: ControllerConfig,
    metrics: &Arc<Metrics>,
    health: &Arc<ServerHealth>,
    served: &ServedCertificate,
    tasks: &Tasks,
) -> Result<(), String> {
    let (kubeconfig, namespace, pod_name) = (config.kubeconfig, config.namespace, config.pod_name);
    let client_factory = weir_runtime::client::client_factory(kubeconfig.as_deref()).await?;
    let (events, publisher) = metrics.with_registry(|registry| events::channel(registry, "weir_webhook"));
    let reporter = Reporter { controller: "weir-webhook".to_owned(), instance: Some(pod_name.clone()) };
    let context = ControllerContext {
        client_factory: Arc::clone(&client_factory),
        namespace,
        pod_name,
        events,
        metrics: Arc::clone(metrics),
        health: Arc::clone(health),
        shutdown: tasks.shutdown_token(),
    };
    if let Some(watch) = config.watch {
        settings_watch::spawn(watch, &context, tasks);
    }
    tasks.spawn("events", publisher.run(client_factory, reporter, tasks.shutdown_token()));

    let Some(mode) = config.ca_bundle_mode else { return Ok(()) };
    let (trust, trusted) = watch::channel(None);
    let fetcher = match &config.ca {
        Some(ca) => {
            ca::trust_fetcher(Arc::clone(&context.client_factory), context.namespace.clone(), ca.secret.clone())
        }
        None => cached_trust(trusted.clone()),
    };
    let reconciler = ca_bundle::CaBundleReconciler::new(
        context.clone(),
        &config.revision,
        mode,
        Arc::clone(served),
        (trusted, fetcher),
        tasks,
    );
    if let Some(options) = config.ca {
        let status = reconciler.status_reader();
        let ca = ca::CaReconciler::new(context, options, Arc::clone(served), trust, status);
        tasks.spawn("ca-controller", ca.run());
    } else if let Some(file) = config.ca_file {
        let file = ca_bundle::CaFile::open(file, trust)?;
        tasks.spawn("ca-file-watch", file.run(context, config.poll_interval));
    }
    tasks.spawn("ca-bundle-controller", reconciler.run());
    Ok(())
}

/// Returns the trust bundle in memory, where there is no other source.
fn cached_trust(trusted: watch::Receiver<Option<Arc<TrustBundle>>>) -> TrustFetcher {
    Arc::new(move || {
        let cached = trusted.borrow().clone().ok_or_else(|| "CA not loaded yet".to_owned());
        Box::pin(async move { cached })
    })
}
