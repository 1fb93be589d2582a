//! Watches as the agents of the other nodes have them, without the rest of an agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::Request;
use serde::Deserialize;
use tokio::time::sleep;

use crate::api::Api;
use crate::report::Watches;

/// The path and the parameters of the agent (`Reflector` of weir-runtime).
const PODS: &str = "/api/v1/pods";
const PAGE_SIZE: u32 = 100;
const WATCH_TIMEOUT_SECONDS: u32 = 240;
const RETRY: Duration = Duration::from_secs(1);

/// What all watches have received.
#[derive(Debug, Default)]
pub(crate) struct WatchCounts {
    /// Watches whose first list has succeeded.
    pub(crate) started: AtomicU64,
    /// Events about pods.
    pub(crate) events: AtomicU64,
    /// Bytes of events.
    pub(crate) bytes: AtomicU64,
    /// Events about pods of other nodes: there must be none.
    pub(crate) foreign: AtomicU64,
    /// Requests that failed.
    pub(crate) failures: AtomicU64,
}

impl WatchCounts {
    /// Returns the counts so far.
    pub(crate) fn figures(&self) -> Watches {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Watches {
            count: load(&self.started),
            events: load(&self.events),
            bytes: load(&self.bytes),
            foreign: load(&self.foreign),
            failures: load(&self.failures),
        }
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
}

/// Watches the pods of a node until the runtime ends.
pub(crate) async fn watch(api: Api, node: String, counts: Arc<WatchCounts>) {
    let selector = format!("spec.nodeName={node}");
    let (mut version, mut is_started) = (None, false);
    loop {
        let result = match version.as_mut() {
            None => list(&api, &selector).await.map(|listed| {
                version = Some(listed);
                counts.started.fetch_add(u64::from(!is_started), Ordering::Relaxed);
                is_started = true;
            }),
            Some(version) => follow(&api, &selector, &node, version, &counts).await,
        };
        if result.is_err() {
            // Also when the version is too old, which is an event that is no object.
            version = None;
            counts.failures.fetch_add(1, Ordering::Relaxed);
            sleep(RETRY).await;
        }
    }
}

async fn list(api: &Api, selector: &str) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct List {
        metadata: Metadata,
    }
    let params = ListParams::default().fields(selector).limit(PAGE_SIZE);
    let request = Request::new(PODS).list(&params)?.map(Body::from);
    let body = api.client().send(request).await?.into_body().collect().await?.to_bytes();
    Ok(serde_json::from_slice::<List>(&body)?.metadata.resource_version)
}

async fn follow(
    api: &Api,
    selector: &str,
    node: &str,
    version: &mut String,
    counts: &WatchCounts,
) -> anyhow::Result<()> {
    let params = WatchParams::default().fields(selector).timeout(WATCH_TIMEOUT_SECONDS);
    let request = Request::new(PODS).watch(&params, version)?.map(Body::from);
    let response = api.client().send(request).await?;
    anyhow::ensure!(response.status().is_success(), "watch: {}", response.status());
    let mut body = response.into_body().into_data_stream();
    let mut pending = Vec::new();
    while let Some(part) = body.next().await {
        pending.extend_from_slice(&part?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let event: Event = serde_json::from_slice(&line)?;
            version.clone_from(&event.object.metadata.resource_version);
            counts.bytes.fetch_add(line.len() as u64, Ordering::Relaxed);
            if event.kind != "BOOKMARK" {
                counts.events.fetch_add(1, Ordering::Relaxed);
                counts.foreign.fetch_add(u64::from(event.object.spec.node_name != node), Ordering::Relaxed);
            }
        }
    }
    Ok(())
}
