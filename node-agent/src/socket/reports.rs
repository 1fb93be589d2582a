//! Server of `report.sock`: metrics of the plugin's calls, and the network namespaces of pods.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use weir_protocol::agent::{CallOutcome, CallReport, PROTOCOL_VERSION, REPORT_MAX_BYTES};
use weir_protocol::version::Verb;

use super::listen::{self, BoundSocket};
use crate::metrics::MetricsRegistry;
use crate::repair::InstalledConfigs;
use weir_runtime::CancellationToken;

/// Most attachments that are kept; a node has a few hundred pods at most.
const MAX_ATTACHMENTS: usize = 4096;
/// Interval at which the socket is checked for having been removed.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Upper bounds in seconds, from a skipped pod to a call that waits for the agent.
const BUCKETS: [f64; 13] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

/// An attachment of the plugin to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Id of the sandbox.
    pub container: String,
    /// Network namespace, a path of the host.
    pub netns: PathBuf,
}

/// Attachments by pod uid, as reported by the plugin. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Attachments {
    /// Configurations that pods were started with.
    pub configs: InstalledConfigs,
    by_uid: Arc<Mutex<HashMap<String, Attachment>>>,
}

impl Attachments {
    /// Returns the attachment of the pod with that uid.
    pub fn get(&self, uid: &str) -> Option<Attachment> {
        self.by_uid().get(uid).cloned()
    }

    /// Updates the attachments from a report.
    pub fn apply(&self, report: &CallReport) {
        if let (Some(Verb::Add), Some(capture)) = (Verb::parse(&report.verb), &report.capture) {
            self.configs.record_report(&report.uid, capture);
        }
        let mut by_uid = self.by_uid();
        match Verb::parse(&report.verb) {
            // Also from a failed call: its namespace exists.
            Some(Verb::Add | Verb::Check)
                if !report.uid.is_empty()
                    && !report.netns.is_empty()
                    && (by_uid.len() < MAX_ATTACHMENTS || by_uid.contains_key(&report.uid)) =>
            {
                let netns = PathBuf::from(&report.netns);
                by_uid.insert(report.uid.clone(), Attachment { container: report.container.clone(), netns });
            }
            // By sandbox: DEL of a failed sandbox may come after ADD of its successor.
            Some(Verb::Del) => by_uid.retain(|_, attachment| attachment.container != report.container),
            Some(Verb::Gc) => {
                if let Some(valid) = &report.valid {
                    by_uid.retain(|_, attachment| valid.contains(&attachment.container));
                }
            }
            _ => {}
        }
    }

    fn by_uid(&self) -> MutexGuard<'_, HashMap<String, Attachment>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Version of the plugin that made the last call; clones share it.
#[derive(Debug, Clone, Default)]
pub struct PluginVersion(Arc<Mutex<Option<String>>>);

impl PluginVersion {
    /// Longest version that is kept.
    const MAX_BYTES: usize = 64;

    /// Returns the version; `None` before the first report, or where the plugin is too old to report it.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, version: &str) {
        let version = Some(version.to_owned()).filter(|version| (1..=Self::MAX_BYTES).contains(&version.len()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    verb: &'static str,
    outcome: &'static str,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    verb: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    verb: &'static str,
    stage: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// Server of `report.sock`.
#[derive(Debug, Clone)]
pub struct CallReportServer {
    /// Attachments from the reports.
    pub attachments: Attachments,
    /// Version of the plugin from the reports.
    pub plugin_version: PluginVersion,
    calls: Family<CallLabels, Counter>,
    times: Histograms<OutcomeLabels>,
    stages: Histograms<StageLabels>,
    malformed: Counter,
}

impl CallReportServer {
    /// Creates the server and registers its metrics.
    pub fn register(metrics: &MetricsRegistry) -> Self {
        let reports = Self {
            attachments: Attachments::default(),
            plugin_version: PluginVersion::default(),
            calls: Family::default(),
            times: Family::new_with_constructor(histogram as fn() -> Histogram),
            stages: Family::new_with_constructor(histogram as fn() -> Histogram),
            malformed: Counter::default(),
        };
        // Other verbs, outcomes and codes appear with their first call.
        let verb = Verb::Add.as_str();
        for outcome in [CallOutcome::Installed, CallOutcome::Failed].map(CallOutcome::name) {
            drop(reports.calls.get_or_create(&CallLabels { verb, outcome, code: 0 }));
            drop(reports.times.get_or_create(&OutcomeLabels { verb, outcome }));
        }
        for stage in ["decide", "agent", "kernel"] {
            drop(reports.stages.get_or_create(&StageLabels { verb, stage }));
        }
        metrics.register(|registry| {
            let Self { calls, times, stages, malformed, .. } = reports.clone();
            registry.register("weir_cni_requests", "CNI calls, by verb, outcome and error code", calls);
            registry.register("weir_cni_request_duration_seconds", "Duration of a CNI call", times);
            let help = "Duration of a CNI call by stage: decide, agent, kernel";
            registry.register("weir_cni_stage_duration_seconds", help, stages);
            registry.register(
                "weir_agent_malformed_reports",
                "Datagrams on report.sock that cannot be parsed",
                malformed,
            );
        });
        reports
    }

    /// Handles one datagram. Labels never contain text from it.
    pub fn handle(&self, datagram: &[u8]) {
        let report = serde_json::from_slice::<CallReport>(datagram).ok().filter(|report| report.v == PROTOCOL_VERSION);
        let verb = report.as_ref().and_then(|report| Verb::parse(&report.verb));
        let (Some(report), Some(verb)) = (report, verb) else {
            self.malformed.inc();
            return;
        };
        let verb = verb.as_str();
        let outcome = report.outcome.name();
        let code = report.code.filter(|code| *code < 1000).unwrap_or(0);
        self.calls.get_or_create(&CallLabels { verb, outcome, code }).inc();
        self.times.get_or_create(&OutcomeLabels { verb, outcome }).observe(seconds(report.stages.total));
        let stages = &report.stages;
        for (stage, micros) in [("decide", stages.decide), ("agent", stages.agent), ("kernel", stages.kernel)] {
            self.stages.get_or_create(&StageLabels { verb, stage }).observe(seconds(micros));
        }
        self.attachments.apply(&report);
        self.plugin_version.set(&report.version);
        let (namespace, pod, micros) = (&report.namespace, &report.name, report.stages.total);
        if report.outcome == CallOutcome::Failed {
            info!(verb, code, namespace, pod, micros, "CNI call failed");
        } else {
            debug!(verb, outcome, namespace, pod, micros, "CNI call");
        }
    }

    /// Serves until shutdown.
    pub async fn serve(self, path: PathBuf, shutdown: CancellationToken) {
        tokio::select! {
            () = self.receive(&path) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn receive(&self, path: &Path) {
        let mut bytes = vec![0; REPORT_MAX_BYTES];
        let mut bound: Option<BoundSocket<_>> = None;
        loop {
            let socket = match bound.take() {
                Some(socket) => socket,
                None => listen::bind_with_retry(path, BoundSocket::datagram).await,
            };
            match timeout(POLL_INTERVAL, socket.socket.recv(&mut bytes)).await {
                Ok(Ok(count)) => self.handle(&bytes[..count]),
                Ok(Err(error)) => {
                    warn!(%error, "cannot receive call reports; retrying");
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                Err(_) if !socket.is_reachable(path) => continue,
                Err(_) => {}
            }
            bound = Some(socket);
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds of a call; 2^52 of them are 140 years")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests;
