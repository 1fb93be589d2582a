//! Waiting until what runs is ready, and saying what it is that is not.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::say;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::objects::{DAEMON_SET, Kind, POD, Ref};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Reasons that are told of one workload.
const REASONS_MAX: usize = 5;

/// How far a workload has come.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Ready,
    /// What is missing.
    Waiting(String),
}

/// Waits for all of them together.
///
/// # Errors
/// Everything that is not ready in time, with what its pods say.
pub(super) async fn wait(cluster: &Cluster, workloads: &[&Ref], bound: Duration) -> Result<(), Failure> {
    let end = Instant::now() + bound;
    let mut open: Vec<(&Ref, String)> = workloads.iter().map(|what| (*what, String::new())).collect();
    loop {
        let mut waiting = Vec::new();
        for (what, said) in open {
            let found = cluster.object(what).await.map_err(|refused| cluster.failure(what, &refused))?;
            match found.as_ref().map_or_else(|| Progress::Waiting("it is not there".to_owned()), progress) {
                Progress::Ready => say(&format!("{what} is ready"))?,
                Progress::Waiting(missing) => {
                    if missing != said {
                        say(&format!("waiting for {what}: {missing}"))?;
                    }
                    waiting.push((what, missing));
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            let mut wrong = Vec::new();
            for (what, missing) in waiting {
                wrong.push(format!("{what} was not ready in {} s: {missing}", bound.as_secs()));
                wrong.extend(reasons(cluster, what).await);
            }
            return Err(Failure::refused(wrong));
        }
        open = waiting;
        sleep(INTERVAL).await;
    }
}

/// Waits until no pod with the labels is left.
///
/// # Errors
/// Those that are, after the bound.
pub(super) async fn wait_gone(
    cluster: &Cluster,
    kind: Kind,
    namespace: &str,
    labels: &str,
    bound: Duration,
) -> Result<(), Failure> {
    let end = Instant::now() + bound;
    loop {
        let left = cluster.objects(kind, namespace, labels).await;
        let left = left.map_err(|refused| cluster.failure(labels, &refused))?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            let names: Vec<&str> =
                left.iter().filter_map(|object| object["metadata"]["name"].as_str()).take(REASONS_MAX).collect();
            return Err(Failure::refused(vec![format!(
                "{} pods did not end in {} s: {}",
                left.len(),
                bound.as_secs(),
                names.join(", ")
            )]));
        }
        sleep(INTERVAL).await;
    }
}

fn progress(workload: &Value) -> Progress {
    let number = |path: &str| workload.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let waiting = |text: String| Progress::Waiting(text);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return waiting("the cluster has not looked at it yet".to_owned());
    }
    let (wanted, updated, available) = if workload["kind"] == "DaemonSet" {
        (
            number("/status/desiredNumberScheduled"),
            number("/status/updatedNumberScheduled"),
            number("/status/numberAvailable"),
        )
    } else {
        // One where nothing is said, as the API server has it.
        let wanted = workload.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
        (wanted, number("/status/updatedReplicas"), number("/status/availableReplicas"))
    };
    if updated < wanted {
        waiting(format!("{updated} of {wanted} are of the new version"))
    } else if available < wanted {
        waiting(format!("{available} of {wanted} are ready"))
    } else {
        Progress::Ready
    }
}

/// What the pods of a workload are waiting for.
async fn reasons(cluster: &Cluster, what: &Ref) -> Vec<String> {
    let Ok(Some(object)) = cluster.object(what).await else { return Vec::new() };
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let labels: Vec<String> =
        labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    let pods = cluster.objects(POD, &what.namespace, &labels.join(",")).await.unwrap_or_default();
    if pods.is_empty() {
        let kind = if what.kind == DAEMON_SET { "daemonset" } else { "deployment" };
        return vec![format!("it has no pods: kubectl -n {} describe {kind} {}", what.namespace, what.name)];
    }
    let mut reasons: Vec<String> = pods.iter().filter_map(reason).collect();
    let more = reasons.len().saturating_sub(REASONS_MAX);
    reasons.truncate(REASONS_MAX);
    if more > 0 {
        reasons.push(format!("and {more} more pods"));
    }
    reasons
}

/// Why a pod is not ready; `None` where it is.
fn reason(pod: &Value) -> Option<String> {
    let text = |value: &Value, key: &str| value[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        return None;
    }
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let node = pod["spec"]["nodeName"].as_str().map_or(String::new(), |node| format!(" on {node}"));
    let containers = ["/status/initContainerStatuses", "/status/containerStatuses"].into_iter();
    let mut containers = containers.filter_map(|path| pod.pointer(path)?.as_array()).flatten();
    let container = containers.find_map(|container| {
        let state = &container["state"];
        let (state, ended) = [("waiting", false), ("terminated", true)]
            .into_iter()
            .find_map(|(key, ended)| state.get(key).map(|state| (state, ended)))?;
        if ended && state["exitCode"] == 0 {
            return None;
        }
        Some([text(state, "reason"), text(state, "message")].into_iter().flatten().collect::<Vec<_>>().join(": "))
    });
    let unscheduled = || {
        conditions
            .iter()
            .find(|c| c["type"] == "PodScheduled" && c["status"] == "False")
            .and_then(|c| text(c, "message"))
    };
    let why = container.filter(|why| !why.is_empty()).or_else(unscheduled);
    let why = why.unwrap_or_else(|| "it runs and is not ready; its /readyz says why".to_owned());
    Some(format!("pod {name}{node}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_workload_is_ready_when_the_version_that_was_applied_is() {
        let deployment = |generation: i64, updated: i64, available: i64| {
            progress(&json!({
                "kind": "Deployment",
                "metadata": {"generation": generation},
                "spec": {"replicas": 2},
                "status": {"observedGeneration": 3, "updatedReplicas": updated, "availableReplicas": available},
            }))
        };
        assert_eq!(deployment(3, 2, 2), Progress::Ready);
        assert_eq!(deployment(4, 2, 2), Progress::Waiting("the cluster has not looked at it yet".to_owned()));
        assert_eq!(deployment(3, 1, 3), Progress::Waiting("1 of 2 are of the new version".to_owned()));
        assert_eq!(deployment(3, 2, 1), Progress::Waiting("1 of 2 are ready".to_owned()));
        // No node, nothing to wait for.
        assert_eq!(progress(&json!({"kind": "DaemonSet", "status": {}})), Progress::Ready);
    }

    #[test]
    fn a_pod_that_is_not_ready_says_why() {
        let pod =
            |status: Value| reason(&json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status}));
        let pulling = json!({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]});
        assert_eq!(pod(pulling).unwrap(), "pod p on n: ImagePullBackOff: no such image");
        let full =
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]});
        assert!(pod(full).unwrap().ends_with("0/3 nodes are available"));
        let init_done = json!({"initContainerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}],
            "containerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]});
        assert_eq!(pod(init_done).unwrap(), "pod p on n: Error");
        assert!(pod(json!({"containerStatuses": [{"state": {"running": {}}}]})).unwrap().contains("/readyz"));
        assert_eq!(pod(json!({"conditions": [{"type": "Ready", "status": "True"}]})), None);
    }
}
