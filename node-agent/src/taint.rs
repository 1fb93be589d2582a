//! Startup taint of the node. Nodes are created with it (by autoscaler, kubelet flag or cloud provider); the agent removes it when it is ready,
//! and can add it again when it stays unready.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client, Error};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::health::Health;
use crate::pods::ClientFactory;
use weir_runtime::CancellationToken;

/// Our own taint.
pub const TAINT: &str = "weir.dev/not-ready";
/// The taint that Istio's controller removes.
pub const ISTIO_TAINT: &str = "cni.istio.io/not-ready";

/// Interval at which readiness is checked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which the node is checked while readiness does not change: a node that is created again under its name has its startup
/// taint again. Each check is a request of some 10 KB, on every node of the cluster.
const RESYNC_INTERVAL: Duration = Duration::from_mins(2);
/// Time for which the agent has to be unready before the taint is added again.
const UNREADY_GRACE_PERIOD: Duration = Duration::from_secs(30);
/// Limit for one reconcile.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes the startup taint, and adds it again.
pub struct TaintReconciler {
    /// Creates clients.
    pub client_factory: ClientFactory,
    /// Name of the node.
    pub node: String,
    /// Keys to remove; the first is added again.
    pub keys: Vec<String>,
    /// Whether the taint is added again when the agent stays unready.
    pub when_broken: bool,
    /// Readiness of the agent.
    pub health: Health,
}

/// Returns the JSON patch that removes taints with these keys from `spec.taints`, and fails where they have changed since; `None` where
/// there is none to remove.
pub fn removal_patch(present: Option<&Value>, keys: &[String]) -> Option<Value> {
    let taints = present?.as_array()?;
    let kept: Vec<&Value> = taints.iter().filter(|taint| !is_one_of(taint, keys)).collect();
    (kept.len() < taints.len()).then(|| {
        json!([
            { "op": "test", "path": "/spec/taints", "value": taints },
            { "op": "replace", "path": "/spec/taints", "value": kept },
        ])
    })
}

/// Returns the merge patch that adds the taint to this version of the node; `None` where the node has it.
pub fn addition_patch(present: Option<&Value>, key: &str, version: &str) -> Option<Value> {
    let mut taints = present.and_then(Value::as_array).cloned().unwrap_or_default();
    if taints.iter().any(|taint| taint["key"] == key) {
        return None;
    }
    taints.push(json!({ "key": key, "value": "true", "effect": "NoSchedule" }));
    Some(json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } }))
}

fn is_one_of(taint: &Value, keys: &[String]) -> bool {
    taint["key"].as_str().is_some_and(|key| keys.iter().any(|ours| ours == key))
}

impl TaintReconciler {
    /// Keeps the taints in step with readiness until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.run_forever() => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn run_forever(&self) {
        let mut schedule = Schedule::default();
        loop {
            let ready = self.health.readiness().ready;
            if schedule.is_due(ready, self.when_broken, Instant::now()) {
                match timeout(REQUEST_TIMEOUT, self.reconcile(ready)).await {
                    Ok(Ok(())) => schedule.reconciled = Some((ready, Instant::now())),
                    Ok(Err(error)) => warn!(node = self.node, %error, "cannot update node taints; retrying"),
                    Err(_) => warn!(node = self.node, error = "timed out", "cannot update node taints; retrying"),
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Removes the taints of a ready agent, or adds that of an unready one.
    ///
    /// # Errors
    /// Any error of the API server, also a conflict.
    pub async fn reconcile(&self, ready: bool) -> Result<(), Error> {
        let client: Client = (self.client_factory)().map_err(|reason| Error::Service(reason.into()))?;
        // Not as a typed value: the patch compares with exactly what the server holds.
        let nodes: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<Node>(&()));
        let node = nodes.get(&self.node).await?;
        let present = node.data["spec"].get("taints");
        let params = PatchParams::default();
        if ready {
            let Some(patch) = removal_patch(present, &self.keys) else { return Ok(()) };
            let patch = serde_json::from_value(patch).map_err(Error::SerdeError)?;
            nodes.patch(&self.node, &params, &Patch::<()>::Json(patch)).await?;
            info!(node = self.node, keys = self.keys.join(","), "removed startup taint");
        } else if let Some(key) = self.keys.first() {
            let version = node.metadata.resource_version.unwrap_or_default();
            let Some(patch) = addition_patch(present, key, &version) else { return Ok(()) };
            nodes.patch(&self.node, &params, &Patch::Merge(patch)).await?;
            warn!(node = self.node, key, "added startup taint");
        }
        Ok(())
    }
}

/// When the taints have to be reconciled.
#[derive(Debug, Default)]
struct Schedule {
    /// Readiness and time of the last reconcile.
    reconciled: Option<(bool, Instant)>,
    unready_since: Option<Instant>,
    was_ready: bool,
}

impl Schedule {
    fn is_due(&mut self, ready: bool, when_broken: bool, now: Instant) -> bool {
        self.was_ready |= ready;
        if ready {
            self.unready_since = None;
        } else {
            self.unready_since.get_or_insert(now);
        }
        // Until the agent was ready once, the node keeps the taint that it started with.
        let broken = when_broken
            && self.was_ready
            && self.unready_since.is_some_and(|since| now.duration_since(since) >= UNREADY_GRACE_PERIOD);
        let changed =
            self.reconciled.is_none_or(|(state, at)| state != ready || now.duration_since(at) >= RESYNC_INTERVAL);
        (ready || broken) && changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<String> {
        vec![TAINT.to_owned(), ISTIO_TAINT.to_owned()]
    }

    #[test]
    fn only_own_taints_are_removed_and_only_if_unchanged() {
        let other = json!({"key": "dedicated", "value": "db", "effect": "NoExecute"});
        let taints =
            json!([{"key": TAINT, "effect": "NoSchedule"}, other, {"key": ISTIO_TAINT, "effect": "NoExecute"}]);
        let patch = removal_patch(Some(&taints), &keys()).unwrap();
        let mut node = json!({"spec": {"taints": taints}});
        let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
        json_patch::patch(&mut node, &patch).unwrap();
        assert_eq!(node["spec"]["taints"], json!([other]));
        let mut changed = json!({"spec": {"taints": [other]}});
        assert!(json_patch::patch(&mut changed, &patch).is_err());
        for nothing in [None, Some(&json!([])), Some(&json!(null)), Some(&json!([other]))] {
            assert_eq!(removal_patch(nothing, &keys()), None);
        }
    }

    #[test]
    fn taint_is_added_once_beside_the_others() {
        let other = json!([{"key": "dedicated", "effect": "NoSchedule"}]);
        let patch = addition_patch(Some(&other), TAINT, "7").unwrap();
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["spec"]["taints"].as_array().map(Vec::len), Some(2));
        assert_eq!(addition_patch(Some(&patch["spec"]["taints"]), TAINT, "8"), None);
        assert!(addition_patch(None, TAINT, "1").is_some());
    }

    #[test]
    fn taint_is_added_only_after_the_grace_period_and_a_ready_agent() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::default();
        assert!(!schedule.is_due(false, true, at(0)) && !schedule.is_due(false, true, at(100)), "never ready yet");
        assert!(schedule.is_due(true, true, at(101)));
        schedule.reconciled = Some((true, at(101)));
        assert!(!schedule.is_due(true, true, at(102)));
        assert!(!schedule.is_due(false, true, at(103)) && !schedule.is_due(false, true, at(132)));
        assert!(schedule.is_due(false, true, at(133)));
        assert!(!schedule.is_due(false, false, at(133)), "only where it is asked for");
        assert!(!schedule.is_due(true, true, at(220)));
        assert!(schedule.is_due(true, true, at(221)), "resync");
    }
}
