//! The long-running process: ports first, then every task, and shutdown within a bound.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{info, warn};
use weir_runtime::CancellationToken;
use weir_runtime::health::Health;
use weir_runtime::listen::{self, ConnectionMetrics, ListenAddr, Port};
use weir_runtime::logging::LogLevelHandle;
use weir_runtime::tasks::{Tasks, TerminationSignals};

use crate::args::{NodeArgs, RunArgs};
use crate::events::{self, EventRecord, EventRecorder};
use crate::http;
use crate::install::file_system::OsFileSystem;
use crate::install::reconcile;
use crate::install::settings::InstallSettings;
use crate::install::uninstall;
use crate::metrics::MetricsRegistry;
use crate::mode::{self, ModeChoice};
use crate::node_event::{self, NodeEvent};
use crate::pod_tasks;
use crate::task_context::TaskContext;

/// Time for all tasks to stop at shutdown.
const SHUTDOWN_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Pause before another attempt to remove the CNI entry.
const REMOVAL_RETRY: Duration = Duration::from_secs(10);

/// Error that ends the agent.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port cannot be bound.
    #[error("cannot listen on port {port}: {reason}")]
    Bind {
        /// As configured.
        port: u16,
        /// The kernel's reason.
        reason: std::io::Error,
    },
    /// Signal handlers cannot be installed.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    /// A task ended before shutdown. The plugin works without the agent, and the kubelet restarts it.
    #[error("task '{0}' ended unexpectedly")]
    TaskExited(&'static str),
}

/// Runs until SIGTERM or SIGINT. Nothing is removed from the node: plugin and configuration work without an agent.
///
/// # Errors
/// See [`RunError`].
pub async fn run(args: RunArgs, settings: InstallSettings, levels: Option<LogLevelHandle>) -> Result<(), RunError> {
    let mut signals = TerminationSignals::new().map_err(RunError::Signals)?;
    let health = Health::default();
    let mut tasks = Tasks::new(health.clone());
    let shutdown = tasks.shutdown_token();
    let (node_events, recorded) = node_event::channel();
    let metrics = MetricsRegistry::default();
    let context = TaskContext { health: health.clone(), metrics, node_events, shutdown: shutdown.clone() };

    let client_factory = pod_tasks::client_factory().await;
    let mode = ModeChoice::new(args.mode, || mode::probe_nri(&args.nri_socket));
    info!(mode = mode.mode.name(), reason = mode.reason, "chose the way into new pods");
    let pod_tasks = pod_tasks::build(&args, &mode, &client_factory, &context);
    let RunArgs { node: NodeArgs { node_name, .. }, monitoring_port, health_port, check_interval, .. } = args;
    let monitoring = http::monitoring_router(context.metrics.clone(), levels).merge(pod_tasks.router);
    // Nothing is shared between the two, so that scrapes cannot keep the kubelet from probing.
    let health_hosts = if args.health_addr.is_empty() { Vec::new() } else { with_loopback(&args.health_addr) };
    let monitoring_hosts = with_loopback(&args.monitoring_addr);
    for (name, port, hosts, router) in [
        ("health port", health_port, health_hosts, http::health_router(health)),
        ("monitoring port", monitoring_port, monitoring_hosts, monitoring),
    ] {
        if port != 0 {
            let servers: Vec<_> = bind(port, &hosts)
                .await?
                .into_iter()
                .map(|listener| {
                    let (router, metrics) = (router.clone(), ConnectionMetrics::default());
                    let port = Port { listener, tls: None, router, limits: http::LIMITS, metrics };
                    listen::serve(port, shutdown.clone())
                })
                .collect();
            tasks.spawn(name, async move {
                join_all(servers).await;
            });
        }
    }
    match pod_tasks.nri_registered {
        Some(registered) => tasks.spawn("cni-removal", remove_entry(settings, registered, shutdown.clone())),
        None => tasks.spawn("install", reconcile::run(settings, OsFileSystem, check_interval, context)),
    }
    for (name, task) in pod_tasks.tasks {
        tasks.spawn(name, task);
    }
    tasks.spawn("node-events", publish_node_events(recorded, pod_tasks.events, node_name, shutdown));
    info!(version = env!("CARGO_PKG_VERSION"), health_port, monitoring_port, "agent started");

    let ended = tokio::select! {
        name = tasks.next_exit() => Err(RunError::TaskExited(name)),
        () = signals.recv() => Ok(()),
    };
    info!("shutting down; plugin and CNI configuration stay installed");
    tasks.shut_down(SHUTDOWN_GRACE_PERIOD).await;
    ended
}

/// Removes our entry from the node's CNI configuration once the agent is registered at the runtime. Until shutdown, older agents do not
/// install it again.
async fn remove_entry(settings: InstallSettings, mut registered: watch::Receiver<bool>, shutdown: CancellationToken) {
    let work = async {
        let _ = registered.wait_for(|registered| *registered).await;
        loop {
            let settings = settings.clone();
            let removed =
                tokio::task::spawn_blocking(move || uninstall::remove_entry_only(&settings, &OsFileSystem)).await;
            match removed.unwrap_or_else(|error| Err(vec![error.to_string()])) {
                Ok((files, registration)) => {
                    if !files.is_empty() {
                        info!(files = files.join(", "), "removed the entry from the CNI configuration");
                    }
                    // While it lives, older agents do not install again.
                    let _registration = registration;
                    std::future::pending::<()>().await;
                }
                Err(errors) => warn!(errors = errors.join("; "), "cannot remove the CNI entry; retrying"),
            }
            sleep(REMOVAL_RETRY).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

/// Returns the addresses and those of loopback, which `kubectl port-forward` needs.
fn with_loopback(hosts: &[IpAddr]) -> Vec<IpAddr> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let mut all: Vec<IpAddr> = hosts.to_vec();
    all.extend(loopback.into_iter().filter(|address| !hosts.contains(address)));
    all
}

/// Binds a port on these addresses; without any, on all. An address of loopback that the node does not have is left out.
async fn bind(port: u16, hosts: &[IpAddr]) -> Result<Vec<TcpListener>, RunError> {
    let failed = |reason| RunError::Bind { port, reason };
    if hosts.is_empty() {
        return Ok(vec![listen::bind(ListenAddr::any(port)).await.map_err(failed)?]);
    }
    let mut listeners = Vec::new();
    for host in hosts {
        match listen::bind(SocketAddr::new(*host, port).into()).await {
            Ok(listener) => listeners.push(listener),
            Err(error) if host.is_loopback() && error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(error) => return Err(failed(io::Error::new(error.kind(), format!("{host}: {error}")))),
        }
    }
    Ok(listeners)
}

/// Writes node events to the log, and as Kubernetes events on the node.
async fn publish_node_events(
    mut recorded: mpsc::Receiver<NodeEvent>,
    events: EventRecorder,
    node: String,
    shutdown: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            event = recorded.recv() => event,
            () = shutdown.cancelled() => return,
        };
        // The context of a task holds a sender for as long as the agent runs.
        let Some(NodeEvent { reason, message }) = event else { return };
        let warning = reason.is_warning();
        if warning {
            warn!(reason = reason.name(), message, "node event");
        } else {
            info!(reason = reason.name(), message, "node event");
        }
        if !node.is_empty() {
            let regarding = events::node_reference(&node);
            events.record(EventRecord { regarding, warning, reason: reason.name(), note: message });
        }
    }
}
