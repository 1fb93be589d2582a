//! Reports of the pods of webhook and agents, read through the API server.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use super::api::{ApiReader, ApiTransport};
use crate::snapshot::reports::{Metrics, PodReport, Readiness};
use crate::snapshot::{NamespaceObjects, Snapshot};

/// Name of a container port, and its number if the pod does not have that port.
type NamedPort = (&'static str, u64);

/// Reads the reports of all running pods, by pod name. Pods that do not answer in time are left out.
pub(super) async fn pod_reports<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    snapshot: &Snapshot,
    timeout: Duration,
) -> BTreeMap<String, PodReport> {
    let reports = RefCell::new(BTreeMap::new());
    let targets = |namespace: &'_ str, objects: &'_ NamespaceObjects, health: NamedPort, metrics: NamedPort| {
        let running = objects.pods.iter().flatten().filter(|pod| pod.is_running());
        let target = running.map(|pod| {
            let port = |(name, default)| pod.port(name).unwrap_or(default);
            (namespace.to_owned(), pod.metadata.name.clone(), port(health), port(metrics))
        });
        target.collect::<Vec<_>>()
    };
    let namespaces = &snapshot.install_namespaces;
    let webhook = targets(&namespaces.webhook, &snapshot.webhook, ("http", 15014), ("http", 15014));
    let agents = targets(&namespaces.agent, &snapshot.agent, ("health", 8000), ("http-metrics", 15014));
    let requests = webhook.into_iter().chain(agents).map(async |(namespace, pod, health, monitoring)| {
        let (ready, metrics) = tokio::join!(
            reader.pod_proxy_get(&namespace, &pod, health, "readyz?format=json"),
            reader.pod_proxy_get(&namespace, &pod, monitoring, "metrics"),
        );
        let report = PodReport {
            readiness: ready.and_then(|response| Readiness::parse(&response.body)),
            metrics: metrics.map(|response| Metrics::parse(&response.body)),
        };
        reports.borrow_mut().insert(pod, report);
    });
    if tokio::time::timeout(timeout, join_all(requests)).await.is_err() {
        let reason = format!("no response within {} s (--timeout)", timeout.as_secs());
        reader.record_failure("reports of some agents and replicas", reason);
    }
    reports.into_inner()
}
