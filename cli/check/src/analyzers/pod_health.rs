//! Health of the pods of webhook and agents.

use k8s_openapi::jiff::Timestamp;

use crate::fault;
use crate::finding::{FindingObject, Findings};
use crate::snapshot::own::OwnPod;
use crate::snapshot::reports::{PodReport, Readiness};

/// A younger pod may still be starting, in seconds.
const STARTUP_SECONDS: i64 = 60;

/// Reasons for which a container waits and that do not go away by themselves.
const STUCK_REASONS: [&str; 7] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// The health of a pod.
pub(super) enum PodHealth {
    Healthy,
    /// A container does not start or crashes; the text says why.
    Crashing(String),
    /// The pod is not ready; the text says why.
    NotReady(String),
}

impl PodHealth {
    pub(super) fn new(pod: &OwnPod, report: Option<&PodReport>, now: i64) -> Self {
        if let Some(text) = stuck_container(pod) {
            Self::Crashing(text)
        } else if !pod.is_ready() && !is_starting(pod.metadata.creation_timestamp, now) {
            Self::NotReady(format!("not ready: {}", unready_reason(pod, report)))
        } else {
            Self::Healthy
        }
    }
}

pub(super) fn add_crash(pod: &OwnPod, text: String, findings: &mut Findings) {
    let FindingObject { namespace, name, .. } = pod.metadata.object("Pod");
    let fix = format!("kubectl -n {namespace} logs {name} --previous; kubectl -n {namespace} describe pod {name}");
    findings.add_with_fix(&fault::REPLICA_CRASHES, pod.metadata.object("Pod"), text, fix);
}

/// Returns whether an object was created so recently that what it needs may still be starting.
pub(super) fn is_starting(created: Option<Timestamp>, now: i64) -> bool {
    created.is_some_and(|created| now - created.as_second() < STARTUP_SECONDS)
}

fn stuck_container(pod: &OwnPod) -> Option<String> {
    pod.container_statuses().find_map(|status| {
        let waiting = status.state.waiting.as_ref().filter(|it| STUCK_REASONS.contains(&it.reason.as_str()))?;
        let last = status.last_state.terminated.as_ref().filter(|last| !last.reason.is_empty());
        let ended = last.map_or_else(String::new, |last| {
            format!(", last ended with {}, exit code {}", last.reason, last.exit_code)
        });
        let message = waiting.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        Some(format!("{}, {} restarts{ended}{message}", waiting.reason, status.restart_count))
    })
}

/// Returns why a pod is not ready: what it reports itself, else what the cluster reports.
fn unready_reason(pod: &OwnPod, report: Option<&PodReport>) -> String {
    let failures = report.and_then(|report| report.readiness.as_ref()).map(Readiness::failures).unwrap_or_default();
    if !failures.is_empty() {
        return failures.join("; ");
    }
    let mut failed = pod.status.conditions.iter().filter(|condition| condition.status == "False");
    let message = failed.find_map(|condition| condition.message.as_deref());
    message.unwrap_or("the cluster gives no reason").to_owned()
}
