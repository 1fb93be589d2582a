//! The figures of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::check::CheckRun;
use crate::plan::Size;
use crate::pods::Census;
use crate::proc::Memory;

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Processors and their model.
    pub(crate) machine: String,
    /// Size of the cluster.
    pub(crate) size: Size,
    /// Creation of the pods.
    pub(crate) creation: Creation,
    /// Reviews, as the API server and as the webhook measured them.
    pub(crate) webhook: Webhook,
    /// The agents while no pod changed.
    pub(crate) idle: AgentLoad,
    /// The agents while each pod of their nodes was replaced.
    pub(crate) churn: AgentLoad,
    /// Memory of an agent with the pods of its node, in MiB.
    pub(crate) agent_memory: Memory,
    /// Watches that stand for the other agents.
    pub(crate) watches: Watches,
    /// Leases renewed, writes of nodes that failed.
    pub(crate) heartbeats: [u64; 2],
    /// Meshed pods of the real agents' nodes that they do not know, or pods of others that they know.
    pub(crate) agent_pods_wrong: Vec<String>,
    /// The pods in the end.
    pub(crate) census: Census,
    /// `weir check`.
    pub(crate) check: CheckRun,
    /// The API server.
    pub(crate) server: Process,
    /// Its etcd.
    pub(crate) etcd: Process,
}

/// Creation of the pods.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Creation {
    /// From the first creation to the last status.
    pub(crate) seconds: f64,
    /// Pods created, bound and running in a second.
    pub(crate) pods_per_second: f64,
    /// Latency of a creation as the client sees it, in milliseconds.
    pub(crate) p50_ms: f64,
    /// The same, for 99 % of all.
    pub(crate) p99_ms: f64,
    /// Creations, bindings and statuses that failed: the first ones.
    pub(crate) failures: Vec<String>,
}

/// Reviews.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Webhook {
    /// Reviews during the creation.
    pub(crate) reviews: f64,
    /// Calls as the API server measured them (`apiserver_admission_webhook_admission_duration_seconds`), in milliseconds.
    pub(crate) server_p50_ms: f64,
    /// The same, for 99 % of all.
    pub(crate) server_p99_ms: f64,
    /// Calls that failed or were denied, by the API server's metrics.
    pub(crate) rejected: f64,
    /// Reviews as the webhook measured them (`sidecar_injection_time_seconds`), in milliseconds.
    pub(crate) own_p50_ms: f64,
    /// The same, for 99 % of all.
    pub(crate) own_p99_ms: f64,
    /// Processor time of all replicas for one review, in microseconds.
    pub(crate) cpu_us_per_review: f64,
    /// Memory of the replica that has most of it, in MiB.
    pub(crate) memory: Memory,
}

/// What the real agents asked of the API server.
#[derive(Debug, Default, Serialize)]
pub(crate) struct AgentLoad {
    /// Time.
    pub(crate) seconds: f64,
    /// Requests of all agents, by verb and resource.
    pub(crate) requests: BTreeMap<String, u64>,
    /// Requests of one agent in an hour.
    pub(crate) requests_per_hour: f64,
    /// Bytes of one agent in an hour, both directions, TLS included.
    pub(crate) bytes_per_hour: f64,
    /// Bytes for each pod that was replaced; 0 while none was.
    pub(crate) bytes_per_pod: f64,
    /// Processor time of one agent in an hour, in seconds.
    pub(crate) cpu_seconds_per_hour: f64,
}

/// Watches that stand for agents.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Watches {
    /// Watches.
    pub(crate) count: u64,
    /// Events about pods.
    pub(crate) events: u64,
    /// Bytes of events.
    pub(crate) bytes: u64,
    /// Events about pods of other nodes.
    pub(crate) foreign: u64,
    /// Requests that failed.
    pub(crate) failures: u64,
}

/// A process for context.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Process {
    /// Processor time during the creation, as a part of one processor.
    pub(crate) processors_at_creation: f64,
    /// Processor time while no pod changed, as a part of one processor.
    pub(crate) processors_idle: f64,
    /// Memory, in MiB.
    pub(crate) memory: Memory,
}

impl Report {
    /// Formats the report as a table of Markdown.
    pub(crate) fn table(&self) -> String {
        let Self {
            machine,
            size,
            creation,
            webhook,
            idle,
            churn,
            agent_memory,
            watches,
            heartbeats,
            census,
            check,
            ..
        } = self;
        let mut out = format!("{} nodes, {} pods, {machine}\n\n| | |\n|---|---:|\n", size.nodes, size.pods);
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "| {name} | {value} |");
        };
        row("pods created, bound and running", format!("{:.0}/s, {:.0} s", creation.pods_per_second, creation.seconds));
        row(
            "creation as the client sees it, p50, p99",
            format!("{:.1} ms, {:.0} ms", creation.p50_ms, creation.p99_ms),
        );
        row(
            "pods injected, unchanged, wrong",
            format!("{}, {}, {}", census.injected, census.unchanged, census.wrong.len()),
        );
        row("pods that failed to start", creation.failures.len().to_string());
        row(
            "call of the webhook as the API server sees it, p50, p99",
            format!("{:.1} ms, {:.1} ms", webhook.server_p50_ms, webhook.server_p99_ms),
        );
        row(
            "review as the webhook sees it, p50, p99",
            format!("{:.2} ms, {:.2} ms", webhook.own_p50_ms, webhook.own_p99_ms),
        );
        row(
            "webhook: reviews, processor time for each",
            format!("{:.0}, {:.0} us", webhook.reviews, webhook.cpu_us_per_review),
        );
        row(
            "webhook: memory at the end, peak",
            format!("{:.1} MiB, {:.1} MiB", webhook.memory.now, webhook.memory.peak),
        );
        row("agent, no pod changes: requests per hour", format!("{:.0} {:?}", idle.requests_per_hour, idle.requests));
        row(
            "agent, no pod changes: bytes, processor time per hour",
            format!("{:.0} KB, {:.2} s", idle.bytes_per_hour / 1e3, idle.cpu_seconds_per_hour),
        );
        row("agent, pods replaced: bytes for each", format!("{:.1} KB", churn.bytes_per_pod / 1e3));
        row("agent, pods replaced: requests of all", format!("{:?}", churn.requests));
        row("agent: memory at the end, peak", format!("{:.1} MiB, {:.1} MiB", agent_memory.now, agent_memory.peak));
        row(
            "watches of other agents: events, bytes",
            format!("{}: {}, {:.0} MB", watches.count, watches.events, to_mb(watches.bytes)),
        );
        row("leases renewed, failed", format!("{}, {}", heartbeats[0], heartbeats[1]));
        row(
            "weir check: time, processor time, peak memory",
            format!("{:.1} s, {:.1} s, {:.0} MiB", check.seconds, check.cpu_seconds, check.peak_mib),
        );
        for (name, process) in [("kube-apiserver", &self.server), ("etcd", &self.etcd)] {
            let Process { processors_at_creation, processors_idle, memory } = process;
            row(
                &format!("{name}: processors at creation, idle"),
                format!("{processors_at_creation:.2}, {processors_idle:.2}"),
            );
            row(&format!("{name}: memory at the end, peak"), format!("{:.0} MiB, {:.0} MiB", memory.now, memory.peak));
        }
        for failure in &creation.failures {
            let _ = writeln!(out, "failure: {failure}");
        }
        for finding in &check.findings {
            let _ = writeln!(out, "finding: {finding}");
        }
        out
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn to_mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Returns the number and the model of the processors.
pub(crate) fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{processors} processors ({})", model.unwrap_or("unknown model"))
}
