//! Reasons for which the pods of a workload are not ready.

use serde_json::Value;

use super::MAX_PODS;
use crate::cluster::Cluster;
use crate::objects::{DAEMON_SET, EVENT, ObjectRef, POD};

/// Waiting reasons of containers that stay as they are.
const FINAL_REASONS: [&str; 2] = ["InvalidImageName", "ErrImageNeverPull"];
/// Parts of a pull error about an image that does not exist.
const NO_SUCH_IMAGE: [&str; 3] = ["not found", "manifest unknown", "repository does not exist"];
/// Parts of the message with which the API server rejects pods for good.
const REJECTIONS: [&str; 4] = ["denied the request", "is forbidden", "violates PodSecurity", "Invalid value"];
/// Limit of the text that a container has left, in characters.
const MAX_TEXT: usize = 400;

/// A problem of a pod, or of creating one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) text: String,
    /// True if the cluster says more than "not ready".
    pub(super) is_known: bool,
    /// True if waiting does not solve it.
    pub(super) is_final: bool,
}

impl Problem {
    fn new(text: String) -> Self {
        Self { text, is_known: true, is_final: false }
    }
}

/// Returns why pods of a workload are not ready. What cannot be read is left out.
pub(super) async fn of_workload(cluster: &Cluster, what: &ObjectRef, workload: Option<&Value>) -> Vec<Problem> {
    let Some(workload) = workload else { return Vec::new() };
    let labels = workload.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let labels: Vec<String> =
        labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    let pods = cluster.objects(POD, &what.namespace, &labels.join(",")).await.unwrap_or_default();
    let mut problems: Vec<Problem> = pods.iter().filter_map(of_pod).collect();
    problems.extend(rejected_pods(workload));
    if pods.is_empty() && problems.is_empty() && what.kind == DAEMON_SET {
        let events = cluster.objects(EVENT, &what.namespace, "").await.unwrap_or_default();
        problems.extend(events.iter().filter_map(|event| failed_create(event, &what.name)).next_back());
    }
    if pods.is_empty() && problems.is_empty() {
        let kind = if what.kind == DAEMON_SET { "daemonset" } else { "deployment" };
        let text = format!("no pods found: kubectl -n {} describe {kind} {}", what.namespace, what.name);
        return vec![Problem { is_known: false, ..Problem::new(text) }];
    }
    let more = problems.len().saturating_sub(MAX_PODS);
    problems.truncate(MAX_PODS);
    if more > 0 {
        problems.push(Problem { is_known: false, ..Problem::new(format!("and {more} more pods")) });
    }
    problems
}

/// Returns why a Deployment cannot create pods.
fn rejected_pods(workload: &Value) -> Option<Problem> {
    let conditions = workload.pointer("/status/conditions")?.as_array()?;
    let failure = conditions.iter().find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True")?;
    Some(rejection(failure["message"].as_str()?))
}

/// Returns why a DaemonSet cannot create pods, if the event says so.
fn failed_create(event: &Value, name: &str) -> Option<Problem> {
    let involved = &event["involvedObject"];
    let is_about = event["reason"] == "FailedCreate" && involved["kind"] == "DaemonSet" && involved["name"] == name;
    is_about.then(|| event["message"].as_str().map(rejection)).flatten()
}

fn rejection(message: &str) -> Problem {
    // A quota may be raised, or free again, meanwhile.
    let is_final = REJECTIONS.iter().any(|part| message.contains(part)) && !message.contains("exceeded quota");
    Problem { is_final, ..Problem::new(format!("pods cannot be created: {}", excerpt(message))) }
}

/// Returns why a pod is not ready; `None` if it is.
fn of_pod(pod: &Value) -> Option<Problem> {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        return None;
    }
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let node = pod["spec"]["nodeName"].as_str().map_or(String::new(), |node| format!(" on {node}"));
    let pod_text = |why: &str| Problem::new(format!("pod {name}{node}: {why}"));
    let containers = ["/status/initContainerStatuses", "/status/containerStatuses"].into_iter();
    let mut containers = containers.filter_map(|path| pod.pointer(path)?.as_array()).flatten();
    if let Some((why, is_final)) = containers.find_map(of_container) {
        return Some(Problem { is_final, ..pod_text(&why) });
    }
    let unscheduled = conditions.iter().find(|c| c["type"] == "PodScheduled" && c["status"] == "False");
    if let Some(message) = unscheduled.and_then(|condition| condition["message"].as_str()) {
        return Some(pod_text(message));
    }
    Some(Problem { is_known: false, ..pod_text("running but not ready; its /readyz says why") })
}

/// Returns why a container does not run, and whether that stays so.
fn of_container(container: &Value) -> Option<(String, bool)> {
    let state = &container["state"];
    let waiting = state.get("waiting");
    let ended = state.get("terminated").filter(|ended| ended["exitCode"] != 0);
    let state = waiting.or(ended)?;
    // The last words of a container that is started again and again.
    let last = waiting.and_then(|_| container.pointer("/lastState/terminated"));
    let texts = [&state["reason"], &state["message"]].into_iter().chain(last.map(|last| &last["message"]));
    let texts: Vec<String> =
        texts.filter_map(Value::as_str).filter(|text| !text.trim().is_empty()).map(excerpt).collect();
    let why = texts.join(": ");
    let reason = state["reason"].as_str().unwrap_or_default();
    // What every container says until the images are there.
    if why.is_empty() || matches!(reason, "ContainerCreating" | "PodInitializing") && texts.len() == 1 {
        return None;
    }
    let is_pull_error = matches!(reason, "ErrImagePull" | "ImagePullBackOff");
    let is_final =
        FINAL_REASONS.contains(&reason) || is_pull_error && NO_SUCH_IMAGE.iter().any(|part| why.contains(part));
    Some((why, is_final))
}

/// Returns a text in one line, and its end if it is long: a log ends with the error.
fn excerpt(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let skipped = line.chars().count().saturating_sub(MAX_TEXT);
    let end: String = line.chars().skip(skipped).collect();
    if skipped > 0 { format!("...{end}") } else { end }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: &Value) -> Option<Problem> {
        of_pod(&json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status}))
    }

    #[test]
    fn unready_pod_is_reported_with_its_reason() {
        let text = |status: Value| pod(&status).unwrap().text;
        let pulling = json!({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "timeout"}}}]});
        assert_eq!(text(pulling), "pod p on n: ImagePullBackOff: timeout");
        let full =
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]});
        assert!(text(full).ends_with("0/3 nodes are available"));
        let init_done = json!({"initContainerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}],
            "containerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]});
        assert_eq!(text(init_done), "pod p on n: Error");
        let crashes = json!({"initContainerStatuses": [{
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            "lastState": {"terminated": {"exitCode": 1, "message": "weir-agent: cannot list\n/host: denied"}},
        }]});
        assert_eq!(text(crashes), "pod p on n: CrashLoopBackOff: back-off 10s: weir-agent: cannot list /host: denied");
        assert!(text(json!({"containerStatuses": [{"state": {"running": {}}}]})).contains("/readyz"));
        assert_eq!(pod(&json!({"conditions": [{"type": "Ready", "status": "True"}]})), None);
    }

    #[test]
    fn problems_that_stay_are_final() {
        let waiting = |reason: &str, message: &str| {
            let state = json!({"waiting": {"reason": reason, "message": message}});
            pod(&json!({"containerStatuses": [{"state": state}]})).unwrap().is_final
        };
        assert!(waiting("InvalidImageName", "couldn't parse image name"));
        assert!(waiting("ErrImagePull", "failed to resolve reference \"r.example/x:1\": r.example/x:1: not found"));
        assert!(!waiting("ErrImagePull", "dial tcp: i/o timeout") && !waiting("CrashLoopBackOff", "back-off"));
        let failure = |message: &str| {
            let condition = json!({"type": "ReplicaFailure", "status": "True", "message": message});
            rejected_pods(&json!({"status": {"conditions": [condition]}})).unwrap().is_final
        };
        assert!(failure("pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\""));
        assert!(!failure("pods \"x\" is forbidden: exceeded quota: small"));
    }
}
