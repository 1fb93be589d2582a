//! The taint of a node that is not ready for pods of the mesh. Nodes are born with it (autoscaler, kubelet flag, cloud provider); the agent
//! takes it away when it is ready, and puts it back, if that is wanted, when it no longer is.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client, Error};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::health::Health;
use crate::pods::Connect;
use crate::stop::Stop;

/// Our own taint.
pub const TAINT: &str = "weir.dev/not-ready";
/// The one that Istio's controller takes away.
pub const ISTIO_TAINT: &str = "cni.istio.io/not-ready";

/// How often readiness is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the node is looked at while nothing changes: somebody may have tainted it again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long an agent has to be unready before the taint comes back.
const BROKEN: Duration = Duration::from_secs(30);
/// For one request.
const WAIT: Duration = Duration::from_secs(10);

/// Takes the taint away, and puts it back.
pub struct Tainter {
    /// Makes clients.
    pub connect: Connect,
    /// Name of the node.
    pub node: String,
    /// Keys that are taken away; the first one is put back.
    pub keys: Vec<String>,
    /// Whether it is put back.
    pub when_broken: bool,
    /// Readiness of the agent.
    pub health: Health,
}

/// The change of the node's taints that is needed, as a JSON patch which does nothing where somebody else changed them since; `None` where
/// none is needed. `present` is `spec.taints`.
pub fn removal(present: Option<&Value>, keys: &[String]) -> Option<Value> {
    let taints = present?.as_array()?;
    let kept: Vec<&Value> = taints.iter().filter(|taint| !is_one_of(taint, keys)).collect();
    (kept.len() < taints.len()).then(|| {
        json!([
            { "op": "test", "path": "/spec/taints", "value": taints },
            { "op": "replace", "path": "/spec/taints", "value": kept },
        ])
    })
}

/// The change that adds the taint, as a merge patch for this version of the node; `None` where it is there.
pub fn addition(present: Option<&Value>, key: &str, version: &str) -> Option<Value> {
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

impl Tainter {
    /// Follows readiness until told to stop.
    pub async fn run(self, stop: Stop) {
        tokio::select! {
            () = self.follow() => {}
            () = stop.requested() => {}
        }
    }

    async fn follow(&self) {
        let mut settled: Option<(bool, Instant)> = None;
        let mut unready_since: Option<Instant> = None;
        let mut was_ready = false;
        loop {
            let ready = self.health.readiness().ready;
            was_ready |= ready;
            if ready {
                unready_since = None;
            } else {
                unready_since.get_or_insert_with(Instant::now);
            }
            // Before it was ready once the node keeps the taint that it was born with.
            let broken = self.when_broken && was_ready && unready_since.is_some_and(|since| since.elapsed() >= BROKEN);
            let due = settled.is_none_or(|(state, at)| state != ready || at.elapsed() >= AGAIN);
            if (ready || broken) && due {
                match timeout(WAIT, self.settle(ready)).await {
                    Ok(Ok(())) => settled = Some((ready, Instant::now())),
                    Ok(Err(error)) => {
                        warn!(node = self.node, %error, "cannot change the taints of the node; trying again");
                    }
                    Err(_) => warn!(node = self.node, "the API server takes too long to change the taints of the node"),
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Makes the taints fit.
    ///
    /// # Errors
    /// The API server's; a conflict is one, too, and goes away with the next attempt.
    pub async fn settle(&self, ready: bool) -> Result<(), Error> {
        let client: Client = (self.connect)().map_err(|reason| Error::Service(reason.into()))?;
        // As it is, not as a typed value: the patch tests for what the server holds, to the letter.
        let nodes: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<Node>(&()));
        let node = nodes.get(&self.node).await?;
        let present = node.data["spec"].get("taints");
        let params = PatchParams::default();
        if ready {
            let Some(patch) = removal(present, &self.keys) else { return Ok(()) };
            let patch = serde_json::from_value(patch).map_err(Error::SerdeError)?;
            nodes.patch(&self.node, &params, &Patch::<()>::Json(patch)).await?;
            info!(node = self.node, "the agent is ready: the node takes pods of the mesh now");
        } else if let Some(key) = self.keys.first() {
            let version = node.metadata.resource_version.unwrap_or_default();
            let Some(patch) = addition(present, key, &version) else { return Ok(()) };
            nodes.patch(&self.node, &params, &Patch::Merge(patch)).await?;
            warn!(node = self.node, key, "the agent is not ready: the node takes no new pods");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<String> {
        vec![TAINT.to_owned(), ISTIO_TAINT.to_owned()]
    }

    #[test]
    fn takes_away_exactly_its_own_taints_and_only_if_nobody_else_changed_them() {
        let other = json!({"key": "dedicated", "value": "db", "effect": "NoExecute"});
        let taints =
            json!([{"key": TAINT, "effect": "NoSchedule"}, other, {"key": ISTIO_TAINT, "effect": "NoExecute"}]);
        let patch = removal(Some(&taints), &keys()).unwrap();
        let mut node = json!({"spec": {"taints": taints}});
        let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
        json_patch::patch(&mut node, &patch).unwrap();
        assert_eq!(node["spec"]["taints"], json!([other]));
        let mut changed = json!({"spec": {"taints": [other]}});
        assert!(json_patch::patch(&mut changed, &patch).is_err());
        for nothing in [None, Some(&json!([])), Some(&json!(null)), Some(&json!([other]))] {
            assert_eq!(removal(nothing, &keys()), None);
        }
    }

    #[test]
    fn puts_it_back_beside_the_others_once() {
        let other = json!([{"key": "dedicated", "effect": "NoSchedule"}]);
        let patch = addition(Some(&other), TAINT, "7").unwrap();
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["spec"]["taints"].as_array().map(Vec::len), Some(2));
        assert_eq!(addition(Some(&patch["spec"]["taints"]), TAINT, "8"), None);
        assert!(addition(None, TAINT, "1").is_some());
    }
}
