//! Waits until workloads are ready, and says why pods are not.

mod problems;

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::console::print_line;
use crate::duration;
use crate::failure::Failure;
use crate::objects::{ObjectRef, ResourceKind};

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Limit of pods that are named.
const MAX_PODS: usize = 5;

/// Limit for the requests of a command, without the time for rollouts.
pub(crate) const REQUESTS_TIMEOUT: Duration = Duration::from_mins(2);

/// Time for a person to confirm.
pub(crate) const CONFIRM_TIMEOUT: Duration = Duration::from_mins(10);

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

/// Waits until all workloads are ready. Prints the problems of their pods as they appear, and gives up early on one that waiting does
/// not solve.
///
/// # Errors
/// Every workload that is not ready in time, with the problems of its pods.
pub(crate) async fn wait(cluster: &Cluster, workloads: &[&ObjectRef], timeout: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    let mut pending: Vec<(&ObjectRef, String)> = workloads.iter().map(|what| (*what, String::new())).collect();
    let mut printed_problems = BTreeSet::new();
    loop {
        let mut waiting = Vec::new();
        let mut problems = Vec::new();
        for (what, printed) in pending {
            let found = cluster.object(what).await?;
            match found.as_ref().map_or_else(|| Some("not found".to_owned()), missing) {
                None => print_line(&format!("{what} is ready"))?,
                Some(missing) => {
                    if missing != printed {
                        print_line(&format!("waiting for {what}: {missing}"))?;
                    }
                    problems.push(problems::of_workload(cluster, what, found.as_ref()).await);
                    waiting.push((what, missing));
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let is_final = problems.iter().flatten().any(|problem| problem.is_final);
        if is_final || started.elapsed() >= timeout {
            let seconds = started.elapsed().as_secs();
            let mut wrong = Vec::new();
            for ((what, missing), problems) in waiting.iter().zip(&problems) {
                wrong.push(format!("{what} was not ready in {seconds} s: {missing}"));
                wrong.extend(problems.iter().map(|problem| problem.text.clone()));
            }
            if is_final {
                wrong.push("waiting any longer would not help".to_owned());
            }
            return Err(Failure::findings(wrong));
        }
        for problem in problems.into_iter().flatten().filter(|problem| problem.is_known) {
            if printed_problems.insert(problem.text.clone()) {
                print_line(&format!("  {}", problem.text))?;
            }
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
                "{} {} still exist after {} s: {}",
                left.len(),
                kind.plural,
                timeout.as_secs(),
                names.join(", ")
            )]));
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Returns the problems of a workload's pods that waiting does not solve.
pub(crate) async fn final_problems(cluster: &Cluster, what: &ObjectRef, workload: &Value) -> Vec<String> {
    let problems = problems::of_workload(cluster, what, Some(workload)).await;
    problems.into_iter().filter(|problem| problem.is_final).map(|problem| problem.text).collect()
}

/// Numbers of a workload's pods: wanted, updated, available, and all of them.
fn pods(workload: &Value) -> [i64; 4] {
    let number = |path: &str| workload.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    if workload["kind"] == "DaemonSet" {
        let updated = number("/status/updatedNumberScheduled");
        return [number("/status/desiredNumberScheduled"), updated, number("/status/numberAvailable"), updated];
    }
    // The API server's default.
    let wanted = workload.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    [wanted, number("/status/updatedReplicas"), number("/status/availableReplicas"), number("/status/replicas")]
}

/// Returns the number of pods that a workload wants and that are not available.
pub(crate) fn unavailable(workload: &Value) -> u64 {
    let [wanted, _, available, _] = pods(workload);
    u64::try_from(wanted - available).unwrap_or(0)
}

/// Returns what is missing until a rollout is complete; `None` if it is.
pub(crate) fn missing(workload: &Value) -> Option<String> {
    let number = |path: &str| workload.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return Some("waiting for the controller".to_owned());
    }
    let [wanted, updated, available, all] = pods(workload);
    if updated < wanted {
        Some(format!("{updated} of {wanted} updated"))
    } else if available < wanted {
        Some(format!("{available} of {wanted} ready"))
    } else {
        (all > updated).then(|| format!("{} old pods are still running", all - updated))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workload_is_ready_when_the_applied_generation_is() {
        let deployment = |generation: i64, updated: i64, available: i64| {
            missing(&json!({
                "kind": "Deployment",
                "metadata": {"generation": generation},
                "spec": {"replicas": 2},
                "status": {"observedGeneration": 3, "updatedReplicas": updated, "availableReplicas": available},
            }))
        };
        assert_eq!(deployment(3, 2, 2), None);
        assert_eq!(deployment(4, 2, 2), Some("waiting for the controller".to_owned()));
        assert_eq!(deployment(3, 1, 3), Some("1 of 2 updated".to_owned()));
        assert_eq!(deployment(3, 2, 1), Some("1 of 2 ready".to_owned()));
        // No nodes.
        assert_eq!(missing(&json!({"kind": "DaemonSet", "status": {}})), None);
    }
}
