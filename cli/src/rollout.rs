//! Waits until workloads are ready, and says why pods are not.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::console::print_line;
use crate::duration;
use crate::failure::Failure;
use crate::objects::{DAEMON_SET, ObjectRef, POD, ResourceKind};

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Limit of pods that are named.
const MAX_PODS: usize = 5;

/// Limit for the requests of a command, without the time for rollouts.
pub(crate) const REQUESTS_TIMEOUT: Duration = Duration::from_mins(2);

/// Options for the time of a rollout.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WaitArgs {
    /// Wait until the workloads are ready
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    pub(crate) wait: bool,

    /// Wait at most this long
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
}

impl WaitArgs {
    /// Returns the limit for steps that are waited for even with `--wait=false`.
    pub(crate) fn required_timeout(&self) -> Duration {
        if self.wait { self.timeout } else { REQUESTS_TIMEOUT.min(self.timeout) }
    }
}

/// Progress of a rollout.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Ready,
    Waiting(String),
}

/// Waits until all workloads are ready.
///
/// # Errors
/// Every workload that is not ready in time, with the problems of its pods.
pub(crate) async fn wait(cluster: &Cluster, workloads: &[&ObjectRef], timeout: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    let mut pending: Vec<(&ObjectRef, String)> = workloads.iter().map(|what| (*what, String::new())).collect();
    loop {
        let mut waiting = Vec::new();
        for (what, printed) in pending {
            let found = cluster.object(what).await?;
            match found.as_ref().map_or_else(|| Progress::Waiting("not found".to_owned()), progress) {
                Progress::Ready => print_line(&format!("{what} is ready"))?,
                Progress::Waiting(missing) => {
                    if missing != printed {
                        print_line(&format!("waiting for {what}: {missing}"))?;
                    }
                    waiting.push((what, missing));
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let mut wrong = Vec::new();
            for (what, missing) in waiting {
                wrong.push(format!("{what} was not ready in {} s: {missing}", timeout.as_secs()));
                wrong.extend(pod_problems(cluster, what).await);
            }
            return Err(Failure::findings(wrong));
        }
        pending = waiting;
        sleep(POLL_INTERVAL).await;
    }
}

/// Waits until no object with the labels is left.
///
/// # Errors
/// The objects that are left after the timeout.
pub(crate) async fn wait_gone(
    cluster: &Cluster,
    kind: ResourceKind,
    namespace: &str,
    labels: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = cluster.objects(kind, namespace, labels).await?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let names: Vec<&str> =
                left.iter().filter_map(|object| object["metadata"]["name"].as_str()).take(MAX_PODS).collect();
            return Err(Failure::findings(vec![format!(
                "{} pods still running after {} s: {}",
                left.len(),
                timeout.as_secs(),
                names.join(", ")
            )]));
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn progress(workload: &Value) -> Progress {
    let number = |path: &str| workload.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let waiting = |text: String| Progress::Waiting(text);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return waiting("waiting for the controller".to_owned());
    }
    let (wanted, updated, available) = if workload["kind"] == "DaemonSet" {
        (
            number("/status/desiredNumberScheduled"),
            number("/status/updatedNumberScheduled"),
            number("/status/numberAvailable"),
        )
    } else {
        // The API server's default.
        let wanted = workload.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
        (wanted, number("/status/updatedReplicas"), number("/status/availableReplicas"))
    };
    if updated < wanted {
        waiting(format!("{updated} of {wanted} updated"))
    } else if available < wanted {
        waiting(format!("{available} of {wanted} ready"))
    } else {
        Progress::Ready
    }
}

/// Returns why pods of a workload are not ready.
async fn pod_problems(cluster: &Cluster, what: &ObjectRef) -> Vec<String> {
    let Ok(Some(object)) = cluster.object(what).await else { return Vec::new() };
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let labels: Vec<String> =
        labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    let pods = cluster.objects(POD, &what.namespace, &labels.join(",")).await.unwrap_or_default();
    if pods.is_empty() {
        let kind = if what.kind == DAEMON_SET { "daemonset" } else { "deployment" };
        return vec![format!("no pods found: kubectl -n {} describe {kind} {}", what.namespace, what.name)];
    }
    let mut problems: Vec<String> = pods.iter().filter_map(pod_problem).collect();
    let more = problems.len().saturating_sub(MAX_PODS);
    problems.truncate(MAX_PODS);
    if more > 0 {
        problems.push(format!("and {more} more pods"));
    }
    problems
}

/// Returns why a pod is not ready; `None` if it is.
fn pod_problem(pod: &Value) -> Option<String> {
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
    let why = why.unwrap_or_else(|| "running but not ready; its /readyz says why".to_owned());
    Some(format!("pod {name}{node}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workload_is_ready_when_the_applied_generation_is() {
        let deployment = |generation: i64, updated: i64, available: i64| {
            progress(&json!({
                "kind": "Deployment",
                "metadata": {"generation": generation},
                "spec": {"replicas": 2},
                "status": {"observedGeneration": 3, "updatedReplicas": updated, "availableReplicas": available},
            }))
        };
        assert_eq!(deployment(3, 2, 2), Progress::Ready);
        assert_eq!(deployment(4, 2, 2), Progress::Waiting("waiting for the controller".to_owned()));
        assert_eq!(deployment(3, 1, 3), Progress::Waiting("1 of 2 updated".to_owned()));
        assert_eq!(deployment(3, 2, 1), Progress::Waiting("1 of 2 ready".to_owned()));
        // No nodes.
        assert_eq!(progress(&json!({"kind": "DaemonSet", "status": {}})), Progress::Ready);
    }

    #[test]
    fn unready_pod_is_reported_with_its_reason() {
        let pod = |status: Value| {
            pod_problem(&json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status}))
        };
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
