//! Pods: created as a ReplicaSet controller does, bound as a scheduler does, marked running as a kubelet does, and replaced.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use crate::api::{Api, JSON};
use crate::nodes::now;
use crate::plan::{PodSlot, Size, is_opted_in, namespace_name, node_name};

/// Annotation that every injector writes.
const STATUS: &[u8] = b"sidecar.istio.io/status";

/// Latencies of creations, as the client sees them.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Mutex<Vec<Duration>>);

impl Latencies {
    /// Returns the smallest latency that `permille` of all do not exceed, in milliseconds.
    pub(crate) fn permille(&self, permille: usize) -> f64 {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.sort_unstable();
        let index = (all.len() * permille).div_ceil(1000).saturating_sub(1);
        all.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }
}

/// Creates a pod, binds it and marks it running.
pub(crate) async fn start(api: &Api, pod: PodSlot, generation: usize, latencies: &Latencies) -> anyhow::Result<()> {
    let (collection, name) = (pod.collection(), pod.name(generation));
    let body = serde_json::to_vec(&pod.object(generation))?;
    let begun = Instant::now();
    let created = api.send("POST", &collection, JSON, body).await?;
    let took = begun.elapsed();
    latencies.0.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    let is_injected = created.windows(STATUS.len()).any(|window| window == STATUS);
    let target = json!({ "apiVersion": "v1", "kind": "Node", "name": node_name(pod.node) });
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name }, "target": target });
    api.send("POST", &format!("{collection}/{name}/binding"), JSON, binding.to_string().into()).await?;
    api.patch_status(&format!("{collection}/{name}"), &pod.running(is_injected, &now())).await
}

/// Deletes a generation of a pod as its owner and its kubelet do, and starts the next one.
pub(crate) async fn replace(api: &Api, pod: PodSlot, generation: usize, latencies: &Latencies) -> anyhow::Result<()> {
    let path = format!("{}/{}", pod.collection(), pod.name(generation));
    api.send("DELETE", &path, JSON, Vec::new()).await?;
    start(api, pod, generation + 1, latencies).await?;
    api.send("DELETE", &format!("{path}?gracePeriodSeconds=0"), JSON, Vec::new()).await?;
    Ok(())
}

/// The pods that the API server has in the end.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Census {
    /// Pods of namespaces that are opted in, with the sidecar and the capture annotation.
    pub(crate) injected: usize,
    /// Pods of the other namespaces, unchanged.
    pub(crate) unchanged: usize,
    /// Pods that are neither.
    pub(crate) wrong: Vec<String>,
}

#[derive(Deserialize)]
struct PodList {
    metadata: ListMetadata,
    items: Vec<Pod>,
}

#[derive(Deserialize)]
struct ListMetadata {
    #[serde(rename = "continue", default)]
    token: String,
}

#[derive(Deserialize)]
struct Pod {
    metadata: PodMetadata,
    spec: PodSpec,
}

#[derive(Deserialize)]
struct PodMetadata {
    name: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    init_containers: Vec<Container>,
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
}

impl Census {
    /// Lists the pods of all namespaces of the plan.
    pub(crate) async fn take(api: &Api, size: Size) -> anyhow::Result<Self> {
        let mut census = Self::default();
        for namespace in 0..size.namespaces {
            let path = format!("/api/v1/namespaces/{}/pods?limit=500", namespace_name(namespace));
            let mut token = String::new();
            loop {
                let page = api.send("GET", &format!("{path}{token}"), JSON, Vec::new()).await?;
                let page: PodList = serde_json::from_slice(&page)?;
                page.items.iter().for_each(|pod| census.add(namespace, pod));
                if page.metadata.token.is_empty() {
                    break;
                }
                token = format!("&continue={}", page.metadata.token);
            }
        }
        Ok(census)
    }

    fn add(&mut self, namespace: usize, pod: &Pod) {
        let mut containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
        let has_sidecar = containers.any(|container| container.name == "istio-proxy");
        let is_captured = pod.metadata.annotations.contains_key("weir.dev/capture");
        match (is_opted_in(namespace), has_sidecar, is_captured) {
            (true, true, true) => self.injected += 1,
            (false, false, false) => self.unchanged += 1,
            _ => self.wrong.push(format!("{}/{}", namespace_name(namespace), pod.metadata.name)),
        }
    }
}
