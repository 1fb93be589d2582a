//! Servers of the two sockets of the CNI plugin.
//!
//! ```text
//! agent.sock ──▶ one query a connection ──▶ PodCache, or the API server for a pod that is too new ──▶ answer
//! report.sock ──reports.rs──▶ metrics by verb and outcome; Attachments: the network namespace of each pod
//! ```
//!
//! Only root can connect: by the mode of directory and socket, and by the credentials of the peer. Connections, query size and every wait
//! are limited; an answer takes less time than the plugin waits for it.

mod listen;
mod reports;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};
use weir_protocol::agent::{PROTOCOL_VERSION, PodAnswer, PodQuery, QUERY_MAX_BYTES};
use weir_protocol::decision::CaptureDecision;

pub use self::listen::BoundSocket;
pub use self::reports::{Attachment, Attachments, CallReportServer, PluginVersion};
use crate::metrics::MetricsRegistry;
use crate::pods::{PodCache, PodFacts};
use weir_runtime::CancellationToken;

/// Most concurrent queries; further ones are rejected.
const MAX_CONNECTIONS: usize = 64;
/// Default limit for reading a query, and for writing an answer.
pub const IO_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval at which the socket is checked for having been removed.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Function that gets a pod by namespace and name from the API server.
pub type FetchPod = Arc<dyn Fn(String, String) -> FetchPodFuture + Send + Sync>;
/// Result of [`FetchPod`]: the pod, `None` where it does not exist, or an error message.
pub type FetchPodFuture = std::pin::Pin<Box<dyn Future<Output = Result<Option<PodFacts>, String>> + Send>>;

/// Server of `agent.sock`.
#[derive(Clone)]
pub struct PodQueryServer {
    /// Pods of the node.
    pub pods: PodCache,
    /// Gets pods that the watch has not delivered yet.
    pub fetch: Option<FetchPod>,
    /// Time for one answer; less than the plugin waits.
    pub budget: Duration,
    /// Limit for reading a query, and for writing an answer.
    pub io_timeout: Duration,
    /// Counters of the answers.
    pub metrics: QueryMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    outcome: &'static str,
}

/// Metrics of the queries.
#[derive(Debug, Clone, Default)]
pub struct QueryMetrics {
    queries: Family<QueryLabels, Counter>,
}

impl QueryMetrics {
    /// Registers the metrics.
    pub fn register(metrics: &MetricsRegistry) -> Self {
        let this = Self::default();
        for outcome in ["capture", "skip", "refuse", "unknown", "malformed", "broken", "forbidden", "busy"] {
            drop(this.queries.get_or_create(&QueryLabels { outcome }));
        }
        metrics.register(|registry| {
            let help = "Pod queries of the CNI plugin, by outcome";
            registry.register("weir_agent_pod_queries", help, this.queries.clone());
        });
        this
    }

    fn record(&self, outcome: &'static str) {
        self.queries.get_or_create(&QueryLabels { outcome }).inc();
    }
}

impl PodQueryServer {
    /// Answers a query. Waits within the budget for a pod that is not in the cache yet.
    pub async fn answer(&self, query: &PodQuery) -> PodAnswer {
        if query.v != PROTOCOL_VERSION {
            let reason = format!("unsupported query version {} (supported: {PROTOCOL_VERSION})", query.v);
            return PodAnswer::Unknown { reason };
        }
        let PodQuery { uid, namespace, name, .. } = query;
        let deadline = Instant::now() + self.budget;
        // The agent's watch and the kubelet's receive a new pod at about the same time.
        let mut changes = self.pods.subscribe();
        let watch_deadline = Instant::now() + self.budget / 3;
        loop {
            changes.borrow_and_update();
            if let Some(pod) = self.pods.find(uid, namespace, name) {
                return answer_for(&pod);
            }
            tokio::select! {
                change = changes.changed() => if change.is_err() { break },
                () = sleep_until(watch_deadline) => break,
            }
        }
        let missing = match &self.fetch {
            None => "pod is not in the agent's cache yet".to_owned(),
            Some(fetch) => match timeout_at(deadline, fetch(namespace.clone(), name.clone())).await {
                Ok(Ok(Some(pod))) if uid.is_empty() || pod.has_uid(uid) => return answer_for(&pod),
                Ok(Ok(Some(pod))) => format!("pod of that name has another uid: {}", pod.uid),
                Ok(Ok(None)) => "pod not found in the API server".to_owned(),
                Ok(Err(error)) => format!("cannot get the pod from the API server: {error}"),
                Err(_) => "cannot get the pod from the API server: timed out".to_owned(),
            },
        };
        let reason = match self.pods.last_error().filter(|_| self.fetch.is_none()) {
            Some(error) => format!("{missing}; {error}"),
            None => missing,
        };
        PodAnswer::Unknown { reason }
    }

    async fn handle(self, mut stream: UnixStream) {
        let outcome = match self.exchange(&mut stream).await {
            Ok(outcome) => outcome,
            Err(error) => {
                debug!(%error, "agent query failed");
                "broken"
            }
        };
        self.metrics.record(outcome);
    }

    async fn exchange(&self, stream: &mut UnixStream) -> io::Result<&'static str> {
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
            warn!(uid = peer, "rejected query of a non-root user");
            return Ok("forbidden");
        }
        let line = timeout(self.io_timeout, read_line(stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (answer, outcome) = match serde_json::from_slice::<PodQuery>(&line) {
            Ok(query) => {
                let answer = self.answer(&query).await;
                let outcome = answer.decision();
                debug!(namespace = query.namespace, pod = query.name, answer = outcome, "answered pod query");
                (answer, outcome)
            }
            Err(error) => (PodAnswer::Unknown { reason: format!("cannot parse query: {error}") }, "malformed"),
        };
        timeout(self.io_timeout, write_answer(stream, &answer))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(outcome)
    }

    /// Serves until shutdown.
    pub async fn serve(self, path: PathBuf, shutdown: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accept = async {
            let mut listener = None;
            loop {
                let bound = match listener.take() {
                    Some(bound) => bound,
                    None => listen::bind_with_retry(&path, BoundSocket::stream).await,
                };
                match timeout(POLL_INTERVAL, bound.socket.accept()).await {
                    Ok(Ok((stream, _))) => {
                        match Arc::clone(&slots).try_acquire_owned() {
                            Ok(slot) => {
                                let server = self.clone();
                                tokio::spawn(async move {
                                    let _slot = slot;
                                    server.handle(stream).await;
                                });
                            }
                            Err(_) => self.reject_busy(&stream),
                        }
                        listener = Some(bound);
                    }
                    Ok(Err(error)) => {
                        warn!(%error, "accept failed; retrying");
                        tokio::time::sleep(IO_TIMEOUT).await;
                        listener = Some(bound);
                    }
                    // Another process may have removed the socket.
                    Err(_) => listener = bound.is_reachable(&path).then_some(bound),
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Answers that there are too many queries, without waiting.
    fn reject_busy(&self, stream: &UnixStream) {
        self.metrics.record("busy");
        let answer = PodAnswer::Unknown { reason: "too many concurrent queries".to_owned() };
        let mut line = serde_json::to_vec(&answer).unwrap_or_default();
        line.push(b'\n');
        let _ = stream.try_write(&line);
    }
}

/// Returns the answer for a pod in the cache.
fn answer_for(pod: &PodFacts) -> PodAnswer {
    match &pod.decision {
        CaptureDecision::Skip(reason) => PodAnswer::Skip { reason: reason.to_string() },
        CaptureDecision::Capture(config, _) => PodAnswer::Capture { capture: config.to_capture_annotation() },
        CaptureDecision::InvalidAnnotations(errors) => {
            PodAnswer::Refuse { findings: errors.iter().map(ToString::to_string).collect() }
        }
        CaptureDecision::InvalidSpec(findings) => PodAnswer::Refuse { findings: findings.clone() },
        // The pod waits.
        CaptureDecision::StatusContradicted(fault) => PodAnswer::Unknown { reason: fault.clone() },
        // Not reached: the decision was made with the spec.
        CaptureDecision::NeedsSpec(hints) => PodAnswer::Unknown { reason: hints.join(", ") },
    }
}

/// Reads to the end of the line, or of the stream.
async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let count = stream.read(&mut chunk).await?;
        let end = chunk[..count].iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(count)]);
        if line.len() > QUERY_MAX_BYTES {
            return Err(io::Error::other(format!("query exceeds {QUERY_MAX_BYTES} bytes")));
        }
        if end.is_some() || count == 0 {
            return Ok(line);
        }
    }
}

async fn write_answer(stream: &mut UnixStream, answer: &PodAnswer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

#[cfg(test)]
mod tests;
