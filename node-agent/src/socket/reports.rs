//! What the plugin reports: counted, timed, and remembered as far as it says where a pod is.

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
use weir_protocol::agent::{OUTCOMES, Outcome, Report, VERSION};
use weir_protocol::version::Verb;

use super::listen::{self, Bound};
use crate::metrics::Metrics;
use crate::stop::Stop;

/// Largest report: GC names every sandbox of the node.
const MAX_BYTES: usize = 128 << 10;
/// How many pods are remembered; a node has a few hundred at most.
const MAX_ATTACHMENTS: usize = 4096;
/// How long a socket that somebody removed may be missing.
const LOOK: Duration = Duration::from_secs(5);
/// Bounds of the histograms, in seconds: from a plugin that only passes to one that waits for the agent.
const BUCKETS: [f64; 13] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

/// Where a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Id of its sandbox.
    pub container: String,
    /// Its network namespace, as the host calls it.
    pub netns: PathBuf,
}

/// By the plugin's word: which pod is in which namespace. Clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Attachments {
    by_uid: Arc<Mutex<HashMap<String, Attachment>>>,
}

impl Attachments {
    /// Where the pod of that uid is.
    pub fn of(&self, uid: &str) -> Option<Attachment> {
        self.by_uid().get(uid).cloned()
    }

    /// Learns from a report.
    pub fn learn(&self, report: &Report) {
        let mut by_uid = self.by_uid();
        match Verb::parse(&report.verb) {
            // Also of a call that failed: the namespace is there, and CHECK knows it as well as ADD.
            Some(Verb::Add | Verb::Check)
                if !report.uid.is_empty()
                    && !report.netns.is_empty()
                    && (by_uid.len() < MAX_ATTACHMENTS || by_uid.contains_key(&report.uid)) =>
            {
                let netns = PathBuf::from(&report.netns);
                by_uid.insert(report.uid.clone(), Attachment { container: report.container.clone(), netns });
            }
            // A sandbox that failed is taken down after its successor may have come.
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    verb: &'static str,
    outcome: &'static str,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    verb: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Staged {
    verb: &'static str,
    stage: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// Hears reports.
#[derive(Debug, Clone)]
pub struct Reports {
    /// What is remembered.
    pub attachments: Attachments,
    calls: Family<Call, Counter>,
    times: Histograms<Timed>,
    stages: Histograms<Staged>,
    malformed: Counter,
}

impl Reports {
    /// With its metrics in the registry.
    pub fn register(metrics: &Metrics) -> Self {
        let reports = Self {
            attachments: Attachments::default(),
            calls: Family::default(),
            times: Family::new_with_constructor(histogram as fn() -> Histogram),
            stages: Family::new_with_constructor(histogram as fn() -> Histogram),
            malformed: Counter::default(),
        };
        metrics.register(|registry| {
            let Self { calls, times, stages, malformed, .. } = reports.clone();
            registry.register("weir_cni_requests", "Calls of the plugin, by verb, outcome and code", calls);
            registry.register("weir_cni_request_duration_seconds", "Time of a call of the plugin", times);
            let help = "Where the time of a call went: deciding, waiting for the agent, in the kernel";
            registry.register("weir_cni_stage_duration_seconds", help, stages);
            registry.register("weir_agent_malformed_reports", "Datagrams that are no report", malformed);
        });
        reports
    }

    /// Counts and remembers one datagram. Labels are only ever words of ours, whatever it holds.
    pub fn hear(&self, datagram: &[u8]) {
        let report = serde_json::from_slice::<Report>(datagram).ok().filter(|report| report.v == VERSION);
        let verb = report.as_ref().and_then(|report| Verb::parse(&report.verb));
        let (Some(report), Some(verb)) = (report, verb) else {
            self.malformed.inc();
            return;
        };
        let verb = verb.as_str();
        let outcome = OUTCOMES.iter().find(|(outcome, _)| *outcome == report.outcome).map_or("", |(_, name)| *name);
        let code = report.code.filter(|code| *code < 1000).unwrap_or(0);
        self.calls.get_or_create(&Call { verb, outcome, code }).inc();
        self.times.get_or_create(&Timed { verb, outcome }).observe(seconds(report.stages.total));
        let stages = &report.stages;
        for (stage, micros) in [("decide", stages.decide), ("agent", stages.agent), ("kernel", stages.kernel)] {
            self.stages.get_or_create(&Staged { verb, stage }).observe(seconds(micros));
        }
        self.attachments.learn(&report);
        let (namespace, pod, micros) = (&report.namespace, &report.name, report.stages.total);
        if report.outcome == Outcome::Failed {
            info!(verb, code, namespace, pod, micros, "a call of the plugin failed");
        } else {
            debug!(verb, outcome, namespace, pod, micros, "a call of the plugin");
        }
    }

    /// Hears until told to stop.
    pub async fn serve(self, path: PathBuf, stop: Stop) {
        tokio::select! {
            () = self.receive(&path) => {}
            () = stop.requested() => {}
        }
    }

    async fn receive(&self, path: &Path) {
        let mut bytes = vec![0; MAX_BYTES];
        let mut bound: Option<Bound<_>> = None;
        loop {
            let socket = match bound.take() {
                Some(socket) => socket,
                None => listen::until_bound(path, Bound::datagram).await,
            };
            match timeout(LOOK, socket.socket.recv(&mut bytes)).await {
                Ok(Ok(count)) => self.hear(&bytes[..count]),
                Ok(Err(error)) => {
                    warn!(%error, "cannot hear reports of the plugin");
                    tokio::time::sleep(LOOK).await;
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
mod tests {
    use super::*;

    fn report(verb: &str, uid: &str, container: &str) -> Report {
        let netns = format!("/run/netns/{container}");
        let (verb, uid, container) = (verb.to_owned(), uid.to_owned(), container.to_owned());
        Report { v: VERSION, verb, uid, container, netns, outcome: Outcome::Installed, ..Report::default() }
    }

    #[test]
    fn remembers_where_a_pod_is_until_it_is_gone() {
        let attachments = Attachments::default();
        attachments.learn(&report("ADD", "u1", "a"));
        attachments.learn(&report("ADD", "u2", "b"));
        // A second sandbox of the pod; then the first one is taken down.
        attachments.learn(&report("ADD", "u1", "c"));
        attachments.learn(&report("DEL", "u1", "a"));
        assert_eq!(attachments.of("u1").map(|found| found.netns), Some(PathBuf::from("/run/netns/c")));
        attachments.learn(&Report { valid: Some(vec!["c".to_owned()]), ..report("GC", "", "") });
        assert_eq!(attachments.of("u2"), None);
        attachments.learn(&report("GC", "", ""));
        attachments.learn(&report("DEL", "", "c"));
        assert_eq!(attachments.of("u1"), None);
        for number in 0..2 * MAX_ATTACHMENTS {
            attachments.learn(&report("ADD", &number.to_string(), "x"));
        }
        assert_eq!(attachments.by_uid().len(), MAX_ATTACHMENTS);
    }

    #[test]
    fn counts_calls_and_takes_no_label_from_outside() {
        let metrics = Metrics::default();
        let reports = Reports::register(&metrics);
        reports.hear(&serde_json::to_vec(&report("ADD", "u1", "a")).unwrap());
        reports.hear(br#"{"v":1,"verb":"ADD","outcome":"failed","code":11,"us":{"decide":5,"agent":2000000,"kernel":0,"total":2000005}}"#);
        for nonsense in [
            &b"{"[..],
            b"",
            br#"{"v":2,"verb":"ADD","outcome":"done","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#,
            br#"{"v":1,"verb":"\"}","outcome":"done","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#,
            br#"{"v":1,"verb":"ADD","outcome":"perhaps","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#,
        ] {
            reports.hear(nonsense);
        }
        let text = metrics.render();
        for line in [
            r#"weir_cni_requests_total{verb="ADD",outcome="installed",code="0"} 1"#,
            r#"weir_cni_requests_total{verb="ADD",outcome="failed",code="11"} 1"#,
            r#"weir_cni_request_duration_seconds_count{verb="ADD",outcome="failed"} 1"#,
            r#"weir_cni_stage_duration_seconds_bucket{le="2.0",verb="ADD",stage="agent"} 2"#,
            "weir_agent_malformed_reports_total 5",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
