//! Fake nodes: what kubelets write while nothing happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::api::{Api, JSON};
use crate::plan::{node, node_name, node_status};

/// Interval at which a kubelet renews the Lease of its node.
const LEASE_INTERVAL: Duration = Duration::from_secs(10);
/// Renewals for each update of an unchanged status: five minutes.
const RENEWALS_PER_STATUS: u32 = 30;
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// What all nodes have written.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    /// Renewals of Leases that succeeded.
    pub(crate) renewed: AtomicU64,
    /// Writes that failed.
    pub(crate) failed: AtomicU64,
}

/// Returns the time now, to the microsecond.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}

/// Creates a node, ready, and its Lease.
pub(crate) async fn create(api: &Api, number: usize) -> anyhow::Result<()> {
    api.post("/api/v1/nodes", &node(number)).await?;
    api.patch_status(&format!("/api/v1/nodes/{}", node_name(number)), &node_status(number, &now())).await?;
    api.post(LEASES, &lease(number, None)).await?;
    Ok(())
}

fn lease(number: usize, version: Option<&str>) -> Value {
    let name = node_name(number);
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name, "namespace": "kube-node-lease", "resourceVersion": version },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now() },
    })
}

#[derive(Deserialize)]
struct Stored {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

/// Renews the Lease of a node and updates its status until the runtime ends. `phase` of 0 to 1 spreads the nodes over the interval.
pub(crate) async fn beat(api: Api, number: usize, phase: f64, heartbeats: Arc<Heartbeats>) {
    let path = format!("{LEASES}/{}", node_name(number));
    let mut version: Option<String> = None;
    let mut due = Instant::now() + LEASE_INTERVAL.mul_f64(phase);
    // Statuses are spread, too.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 30")]
    let mut renewals = (f64::from(RENEWALS_PER_STATUS) * phase) as u32;
    loop {
        sleep_until(due).await;
        due += LEASE_INTERVAL;
        renewals += 1;
        let renew = async {
            let body = match &version {
                None => api.send("GET", &path, JSON, Vec::new()).await?,
                Some(version) => api.send("PUT", &path, JSON, lease(number, Some(version)).to_string().into()).await?,
            };
            version = Some(serde_json::from_slice::<Stored>(&body)?.metadata.resource_version);
            if renewals.is_multiple_of(RENEWALS_PER_STATUS) {
                let status =
                    json!({ "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": now() }] });
                api.patch_status(&format!("/api/v1/nodes/{}", node_name(number)), &status).await?;
            }
            anyhow::Ok(())
        };
        let result = renew.await;
        if result.is_err() {
            version = None;
        }
        let counter = if result.is_ok() { &heartbeats.renewed } else { &heartbeats.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
