//! Builds the tasks about this node's pods: cache, sockets, repair, events, startup taint.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use kube::Api;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio::time::sleep;
use weir_kernel::backend::BackendOptions;
use weir_protocol::agent::REPORT_SOCKET;
use weir_runtime::CancellationToken;
use weir_runtime::listen::PeerAddr;

use crate::args::{InstallArgs, RunArgs};
use crate::connections::ConnectionObserver;
use crate::events::{self, EventRecorder};
use crate::health::{Condition, ReadinessImpact};
use crate::metrics::MetricsRegistry;
use crate::mode::{Mode, ModeChoice};
use crate::nri::{NriMetrics, NriPlugin, PodCapture};
use crate::pods::{ClientFactory, PodCache, PodFacts, PodObject, PodReflector};
use crate::repair::{
    FallbackRunner, Monitors, PodList, PodStates, RepairMetrics, RepairOptions, Repairer, VerifiedRules, Visits,
};
use crate::socket::{Attachments, CallReportServer, FetchPod, IO_TIMEOUT, PluginVersion, PodQueryServer, QueryMetrics};
use crate::taint::TaintReconciler;
use crate::task_context::TaskContext;

/// Interval at which condition and age of the cache are updated.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Age from which a cache without errors is called stale; bookmarks come about every minute.
const STALE_AFTER: Duration = Duration::from_mins(5);

/// Most skipped pods that the condition names.
const MAX_SHOWN: usize = 5;

/// A task and its name.
pub type NamedTask = (&'static str, Pin<Box<dyn Future<Output = ()> + Send>>);

/// Tasks about this node's pods, and what other tasks need of them.
pub struct PodTasks {
    /// Tasks to run.
    pub tasks: Vec<NamedTask>,
    /// Routes `GET /pods` and `GET /status`, for the monitoring port.
    pub router: Router,
    /// Records Kubernetes events.
    pub events: EventRecorder,
    /// Set to true when the agent is an NRI plugin and has been registered.
    pub nri_registered: Option<watch::Receiver<bool>>,
}

/// State of the route `GET /pods`.
#[derive(Debug, Clone)]
struct PodListState {
    node: String,
    pods: PodCache,
    states: PodStates,
    repairs: bool,
}

/// State of the route `GET /status`.
#[derive(Debug, Clone)]
struct NodeStatus {
    plugin_version: PluginVersion,
    mode: ModeChoice,
}

/// Returns a factory of API clients. Where no API server is configured, each client is an error.
pub async fn client_factory() -> ClientFactory {
    weir_runtime::client::inferred_client_factory().await.unwrap_or_else(|error| Arc::new(move || Err(error.clone())))
}

/// Builds the tasks.
pub fn build(args: &RunArgs, mode: &ModeChoice, client_factory: &ClientFactory, context: &TaskContext) -> PodTasks {
    let TaskContext { metrics, shutdown, .. } = context;
    let node = args.node.node_name.clone();
    let has_node_name = !node.is_empty();
    let entry = args.install.entry();
    let (pods, states) = (PodCache::default(), PodStates::default());
    let (events, publisher) = events::channel(metrics);
    let reports = CallReportServer::register(metrics);
    let (attachments, plugin_version) = (reports.attachments.clone(), reports.plugin_version.clone());
    let queries = PodQueryServer {
        pods: pods.clone(),
        fetch: has_node_name.then(|| fetch_pod(client_factory, &entry.exclude_namespaces)),
        // The rest of the plugin's timeout is for connecting and for the transfer.
        budget: entry.agent_timeout * 3 / 4,
        io_timeout: IO_TIMEOUT,
        metrics: QueryMetrics::register(metrics),
    };
    let namespaces = attachments.clone();
    let report_socket = args.install.cni_agent_run_dir.join(REPORT_SOCKET);
    let nri = (mode.mode == Mode::Nri).then(|| nri(args, context, &queries, &attachments));
    if nri.is_some() {
        // The agent itself reads the annotations.
        plugin_version.set(env!("CARGO_PKG_VERSION"));
    }
    let publish = publisher.run(Arc::clone(client_factory), events::reporter(&node), shutdown.clone());
    let mut tasks: Vec<NamedTask> = vec![
        ("pod-queries", Box::pin(queries.serve(entry.agent_socket, shutdown.clone()))),
        ("call-reports", Box::pin(reports.serve(report_socket, shutdown.clone()))),
        ("events", Box::pin(publish)),
    ];
    let nri_registered = nri.map(|plugin| {
        let registered = plugin.registered.subscribe();
        tasks.push(("nri", Box::pin(plugin.run(shutdown.clone()))));
        registered
    });
    let impact = if has_node_name { ReadinessImpact::Blocking } else { ReadinessImpact::Advisory };
    let condition = context.health.register("pods", impact, "CacheNotSynced", "pod cache is not synced yet");
    if has_node_name {
        tasks.push(("pod-cache-health", cache_health(metrics, pods.clone(), condition, shutdown.clone())));
        let reflector = PodReflector {
            client_factory: Arc::clone(client_factory),
            node: node.clone(),
            exclude_namespaces: entry.exclude_namespaces,
            pods: pods.clone(),
        };
        tasks.push(("pods", Box::pin(reflector.run(shutdown.clone()))));
        tasks.extend(repair(args, client_factory, context, &pods, attachments, &states, &events));
        tasks.extend(taint(args, client_factory, context));
    } else {
        condition.set_failed(
            "NodeNameMissing",
            "NODE_NAME is not set: the agent installs the plugin, but cannot answer pod queries or repair rules",
        );
    }
    let meshed_pods = pods.clone();
    let repairs = has_node_name && args.node.repair_enabled && args.node.repair_repair_pods;
    let router = Router::new().route("/pods", get(list)).with_state(PodListState { node, pods, states, repairs });
    let observer = ConnectionObserver {
        pods: meshed_pods,
        attachments: namespaces,
        netns_paths: args.node.netns_paths(&args.install.host_root),
        visits: Visits::default(),
    };
    // Namespaces of pods can be entered where their rules may be repaired.
    let router = if repairs { router.merge(observer.router()) } else { router };
    let router = router.route("/status", get(status).with_state(NodeStatus { plugin_version, mode: mode.clone() }));
    PodTasks { tasks, router, events, nri_registered }
}

/// Builds the task of the NRI plugin.
fn nri(args: &RunArgs, context: &TaskContext, queries: &PodQueryServer, attachments: &Attachments) -> NriPlugin {
    let InstallArgs { backend, visibility, host_root, .. } = &args.install;
    let impact = ReadinessImpact::Blocking;
    NriPlugin {
        socket: args.nri_socket.clone(),
        capture: PodCapture {
            exclude_namespaces: args.install.entry().exclude_namespaces,
            options: BackendOptions { backend: *backend, visibility: *visibility, variant: None },
            queries: queries.clone(),
            attachments: attachments.clone(),
            netns_paths: args.node.netns_paths(host_root),
            visits: Visits::default(),
            metrics: NriMetrics::register(&context.metrics),
        },
        condition: context.health.register(
            "nri",
            impact,
            "NotRegistered",
            "not registered at the container runtime yet",
        ),
        registered: watch::Sender::new(false),
    }
}

fn repair(
    args: &RunArgs,
    client_factory: &ClientFactory,
    context: &TaskContext,
    pods: &PodCache,
    attachments: Attachments,
    states: &PodStates,
    events: &EventRecorder,
) -> Option<NamedTask> {
    let flags = &args.node;
    let repairer = flags.repair_enabled.then(|| Repairer {
        pods: pods.clone(),
        attachments,
        options: RepairOptions {
            in_place: flags.repair_repair_pods,
            interval: flags.repair_interval,
            backend: args.install.backend,
            netns_paths: flags.netns_paths(&args.install.host_root),
        },
        states: states.clone(),
        metrics: RepairMetrics::register(&context.metrics),
        events: events.clone(),
        visits: Visits::default(),
        monitors: Monitors::default(),
        verified: VerifiedRules::default(),
    })?;
    let runner = |fallback| FallbackRunner::new(Arc::clone(client_factory), fallback, flags.limits());
    Some(("repair", Box::pin(repairer.run(flags.fallback().map(runner), context.shutdown.clone()))))
}

fn taint(args: &RunArgs, client_factory: &ClientFactory, context: &TaskContext) -> Option<NamedTask> {
    let flags = &args.node;
    let reconciler = flags.taint_enabled.then(|| TaintReconciler {
        client_factory: Arc::clone(client_factory),
        node: flags.node_name.clone(),
        keys: flags.taint_names.clone(),
        when_broken: flags.taint_when_broken,
        health: context.health.clone(),
    })?;
    Some(("taint", Box::pin(reconciler.run(context.shutdown.clone()))))
}

/// Returns a function that gets a pod from the API server.
fn fetch_pod(client_factory: &ClientFactory, exclude_namespaces: &[String]) -> FetchPod {
    let (client_factory, exclude) = (Arc::clone(client_factory), exclude_namespaces.to_vec());
    Arc::new(move |namespace, name| {
        let (client, exclude) = (client_factory(), exclude.clone());
        Box::pin(async move {
            let pod = Api::<PodObject>::namespaced(client?, &namespace).get_opt(&name).await;
            pod.map(|pod| pod.map(|pod| PodFacts::from_pod(pod, &exclude))).map_err(|error| error.to_string())
        })
    })
}

/// Updates condition and age of the pod cache until shutdown.
///
/// A cache that was synced once stays ok: pods with our annotation need no agent, and the node must not become unready because the API
/// server does.
fn cache_health(
    metrics: &MetricsRegistry,
    pods: PodCache,
    condition: Condition,
    shutdown: CancellationToken,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let age = Gauge::<i64>::default();
    metrics.register(|registry| {
        let help = "Seconds since the last response of the API server about pods of this node; -1 before the first";
        registry.register("weir_agent_pod_cache_age_seconds", help, age.clone());
    });
    Box::pin(async move {
        while !shutdown.is_cancelled() {
            age.set(report_cache_health(&pods, &condition));
            tokio::select! {
                () = sleep(POLL_INTERVAL) => {}
                () = shutdown.cancelled() => {}
            }
        }
    })
}

/// Sets the condition. Returns the age of the cache in seconds, or -1.
fn report_cache_health(pods: &PodCache, condition: &Condition) -> i64 {
    let age = pods.age();
    let seconds = age.map_or(-1, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
    match (pods.is_synced(), pods.last_error()) {
        (true, None) if age.is_some_and(|age| age >= STALE_AFTER) => {
            let message = format!("cache synced, but no response of the API server for {seconds} s");
            condition.set_ok("CacheStale", message);
        }
        (true, None) if !pods.skipped().is_empty() => {
            let skipped = pods.skipped();
            let (count, shown) =
                (skipped.len(), skipped.iter().take(MAX_SHOWN).cloned().collect::<Vec<_>>().join("; "));
            condition.set_degraded("PodsSkipped", format!("{count} pods cannot be watched over: {shown}"));
        }
        (true, None) => condition.set_ok("CacheSynced", "cache synced"),
        (true, Some(error)) => condition.set_ok("CacheStale", format!("cache synced, but {seconds} s old: {error}")),
        (false, error) => {
            let message = error.unwrap_or_else(|| "pod cache is not synced yet".to_owned());
            condition.set_failed("CacheNotSynced", message);
        }
    }
    seconds
}

/// Answers `GET /status`: what this node understands, for those that decide which annotations may be written.
async fn status(State(NodeStatus { plugin_version, mode }): State<NodeStatus>) -> Response {
    let agent = env!("CARGO_PKG_VERSION");
    let ModeChoice { mode, reason } = mode;
    let plugin = plugin_version.get();
    let status = serde_json::json!({ "agentVersion": agent, "pluginVersion": plugin, "mode": mode.name(), "modeReason": reason });
    Json(status).into_response()
}

async fn list(State(state): State<PodListState>, Extension(PeerAddr(peer)): Extension<PeerAddr>) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "/pods is served on loopback only; use kubectl port-forward\n").into_response();
    }
    let PodListState { node, pods, states, repairs } = state;
    let list = PodList {
        node,
        synced: pods.is_synced(),
        age_seconds: pods.age().map(|age| age.as_secs()),
        trouble: pods.last_error(),
        repairs,
        pods: states.all(),
    };
    Json(list).into_response()
}
