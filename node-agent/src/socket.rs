//! The sockets on which the plugin asks about pods and reports its calls.
//!
//! ```text
//! agent.sock ──▶ one question a connection ──▶ Pods (or, where the pod is too new, the API server) ──▶ answer
//! report.sock ──reports.rs──▶ metrics by verb and outcome; Attachments: which pod is in which namespace
//! ```
//!
//! Only root may connect: by the mode of folder and socket, and by the credentials of the peer. The number of connections, the size of a
//! question and every wait have bounds, and all bounds together are shorter than the plugin's own.

mod listen;
mod reports;

use std::io;
use std::path::{Path, PathBuf};
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
use weir_protocol::agent::{Answer, QUESTION_MAX_BYTES, Question, VERSION};
use weir_protocol::decision::Decision;

pub use self::listen::Bound;
pub use self::reports::{Attachment, Attachments, Reports};
use crate::metrics::Metrics;
use crate::pods::{PodFacts, Pods};
use crate::stop::Stop;

/// Connections at once; more are told to come again.
const CONNECTIONS: usize = 64;
/// For a question to arrive, and for an answer to be taken.
const TRANSFER: Duration = Duration::from_millis(500);
/// How long a socket that somebody removed may be missing.
const LOOK: Duration = Duration::from_secs(5);

/// A second source, for pods that the watch has not brought yet.
pub type Fetch = Arc<dyn Fn(String, String) -> Fetched + Send + Sync>;
/// The pod, `None` where there is none; an error is a reason in words.
pub type Fetched = std::pin::Pin<Box<dyn Future<Output = Result<Option<PodFacts>, String>> + Send>>;

/// Answers questions.
#[derive(Clone)]
pub struct Answerer {
    /// The pods of the node.
    pub pods: Pods,
    /// The API server itself.
    pub fetch: Option<Fetch>,
    /// For one answer; less than the plugin waits.
    pub budget: Duration,
    /// What is counted.
    pub counts: Counts,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    outcome: &'static str,
}

/// Counters of questions.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    questions: Family<Answered, Counter>,
}

impl Counts {
    /// Counters in the registry.
    pub fn register(metrics: &Metrics) -> Self {
        let counts = Self::default();
        metrics.register(|registry| {
            let help = "Questions of the plugin, by the agent's answer";
            registry.register("weir_agent_questions", help, counts.questions.clone());
        });
        counts
    }

    fn count(&self, outcome: &'static str) {
        self.questions.get_or_create(&Answered { outcome }).inc();
    }
}

impl Answerer {
    /// What the plugin has to do with a pod. Waits for one that is not known yet, within the budget.
    pub async fn answer(&self, question: &Question) -> Answer {
        if question.v != VERSION {
            let reason = format!("the agent speaks version {VERSION} of the question, not {}", question.v);
            return Answer::Unknown { reason };
        }
        let Question { uid, namespace, name, .. } = question;
        let end = Instant::now() + self.budget;
        // The watch brings a new pod to us at about the time at which it brings it to the kubelet.
        let mut changes = self.pods.subscribe();
        let watched = Instant::now() + self.budget / 3;
        loop {
            changes.borrow_and_update();
            if let Some(pod) = self.pods.find(uid, namespace, name) {
                return answer_of(&pod);
            }
            tokio::select! {
                news = changes.changed() => if news.is_err() { break },
                () = sleep_until(watched) => break,
            }
        }
        let missing = match &self.fetch {
            None => "the agent has not seen the pod yet".to_owned(),
            Some(fetch) => match timeout_at(end, fetch(namespace.clone(), name.clone())).await {
                Ok(Ok(Some(pod))) if uid.is_empty() || pod.has_uid(uid) => return answer_of(&pod),
                Ok(Ok(Some(pod))) => format!("the API server knows another pod of that name, {}", pod.uid),
                Ok(Ok(None)) => "the API server knows no such pod".to_owned(),
                Ok(Err(reason)) => format!("the agent cannot ask the API server: {reason}"),
                Err(_) => "the API server does not answer the agent in time".to_owned(),
            },
        };
        let reason = match self.pods.trouble().filter(|_| !missing.contains("API server")) {
            Some(trouble) => format!("{missing}; {trouble}"),
            None => missing,
        };
        Answer::Unknown { reason }
    }

    async fn connection(self, mut stream: UnixStream) {
        let outcome = match self.exchange(&mut stream).await {
            Ok(outcome) => outcome,
            Err(error) => {
                debug!(%error, "a question came to nothing");
                "broken"
            }
        };
        self.counts.count(outcome);
    }

    async fn exchange(&self, stream: &mut UnixStream) -> io::Result<&'static str> {
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
            warn!(peer, "a user that is not root asked about a pod");
            return Ok("forbidden");
        }
        let line =
            timeout(TRANSFER, read_line(stream)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (answer, outcome) = match serde_json::from_slice::<Question>(&line) {
            Ok(question) => {
                let answer = self.answer(&question).await;
                debug!(namespace = question.namespace, pod = question.name, %answer, "asked about a pod");
                let outcome = match &answer {
                    Answer::Skip { .. } => "skip",
                    Answer::Capture { .. } => "capture",
                    Answer::Refuse { .. } => "refuse",
                    Answer::Unknown { .. } => "unknown",
                };
                (answer, outcome)
            }
            Err(error) => (Answer::Unknown { reason: format!("the question cannot be read: {error}") }, "malformed"),
        };
        write_answer(stream, &answer).await?;
        Ok(outcome)
    }

    /// Serves until told to stop.
    pub async fn serve(self, path: PathBuf, stop: Stop) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let accept = async {
            let mut listener = None;
            loop {
                let bound = match listener.take() {
                    Some(bound) => bound,
                    None => listen::until_bound(&path, Bound::stream).await,
                };
                match timeout(LOOK, bound.socket.accept()).await {
                    Ok(Ok((stream, _))) => {
                        match Arc::clone(&slots).try_acquire_owned() {
                            Ok(slot) => {
                                let answerer = self.clone();
                                tokio::spawn(async move {
                                    let _slot = slot;
                                    answerer.connection(stream).await;
                                });
                            }
                            Err(_) => self.turn_away(&stream),
                        }
                        listener = Some(bound);
                    }
                    Ok(Err(error)) => {
                        warn!(%error, "cannot accept a connection of the plugin");
                        tokio::time::sleep(TRANSFER).await;
                        listener = Some(bound);
                    }
                    // Nothing came: is the socket still there?
                    Err(_) => listener = bound.is_reachable(&path).then_some(bound),
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = stop.requested() => {}
        }
    }

    /// Says that there is no room, if that can be said at once.
    fn turn_away(&self, stream: &UnixStream) {
        self.counts.count("busy");
        let answer = Answer::Unknown { reason: "the agent is too busy".to_owned() };
        let mut line = serde_json::to_vec(&answer).unwrap_or_default();
        line.push(b'\n');
        let _ = stream.try_write(&line);
    }
}

/// What is said about a pod that is known.
fn answer_of(pod: &PodFacts) -> Answer {
    match &pod.decision {
        Decision::Skip(reason) => Answer::Skip { reason: reason.to_string() },
        Decision::Capture(config, _) => Answer::Capture { capture: config.to_capture_annotation() },
        Decision::Refused(errors) => Answer::Refuse { findings: errors.iter().map(ToString::to_string).collect() },
        Decision::BadSpec(findings) => Answer::Refuse { findings: findings.clone() },
        // With the specification there is nothing left to need.
        Decision::NeedsSpec(hints) => Answer::Unknown { reason: hints.join(", ") },
    }
}

/// Up to the end of the line; the end of the stream will do, too.
async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let count = stream.read(&mut chunk).await?;
        let end = chunk[..count].iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(count)]);
        if line.len() > QUESTION_MAX_BYTES {
            return Err(io::Error::other(format!("a question of more than {QUESTION_MAX_BYTES} bytes")));
        }
        if end.is_some() || count == 0 {
            return Ok(line);
        }
    }
}

async fn write_answer(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(TRANSFER, stream.write_all(&line)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Makes the folder of the sockets, for root alone, if it is not there.
///
/// # Errors
/// When it cannot be made.
pub fn prepare(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)
}

#[cfg(test)]
mod tests;
