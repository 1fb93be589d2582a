//! A large cluster: the snapshot does not grow with the number of pods, and agents are asked concurrently.
//!
//! `WEIR_CHECK_NODES` sets its size (default 100); there are four pods for each node, as in a cluster of 5,000 and 20,000.

use std::cell::Cell;
use std::time::Duration;

use serde_json::{Value, json};

use super::fixture::{Fixture, plain_pod, pod_of};
use super::{collected, parameter, scope};
use crate::collect::api::{ApiReader, ApiResponse, ApiTransport};
use crate::snapshot::pods::{PodDeduplicator, PodFilter};
use crate::{CheckScope, analyze};

/// Pods per owner.
const REPLICAS: usize = 10;

/// An API server with one list.
struct OneList(String);

impl ApiTransport for OneList {
    async fn send(&self, _: &str, _: &str, _: Option<&Value>) -> Result<ApiResponse, String> {
        Ok(ApiResponse { code: 200, body: self.0.clone() })
    }
}

#[test]
fn a_page_takes_little_more_memory_than_its_text() {
    let pod = Fixture::healthy().injected(&plain_pod("shop", "web", "web"));
    let list = OneList(json!({"items": vec![&pod; 500], "metadata": {"continue": ""}}).to_string());
    let reader = ApiReader::new(&list, Duration::from_secs(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut pods = PodDeduplicator::default();
    let allocated = allocation_counter::measure(|| {
        let filter = PodFilter { namespaces: None };
        assert!(runtime.block_on(reader.for_each("pods", "/api/v1/pods", |pod| pods.add(pod, &filter))));
    });
    let text = list.0.len() as u64;
    assert!(allocated.bytes_max < text + text / 4, "{} bytes for {text}", allocated.bytes_max);
    let [pod] = pods.into_pods().try_into().expect("one owner");
    assert_eq!(pod.similar, 499);
}

/// A cluster whose nodes and pods are created when they are listed.
struct Large {
    small: Fixture,
    nodes: usize,
    agent: Value,
    web: Value,
    /// Concurrent requests: now, and at most.
    waiting: Cell<(usize, usize)>,
}

impl Large {
    fn new(nodes: usize) -> Self {
        let mut small = Fixture::healthy();
        let agent = pod_of(small.get("daemonsets", "weir-node", "weir-agent"), "any", "any");
        let web = small.injected(&plain_pod("shop", "any", "any"));
        Self { small, nodes, agent, web, waiting: Cell::default() }
    }

    /// Creates an object by its number.
    fn object(&self, resource: &str, number: usize) -> Value {
        let mut object = match resource {
            "nodes" => self.small.find("nodes", "", "node-1").unwrap().clone(),
            "agents" => self.agent.clone(),
            _ => self.web.clone(),
        };
        let node = format!("large-{}", if resource == "pods" { number % self.nodes } else { number });
        match resource {
            "nodes" => object["metadata"]["name"] = node.into(),
            "agents" => {
                object["metadata"]["name"] = format!("weir-agent-{number}").into();
                object["spec"]["nodeName"] = node.into();
            }
            _ => {
                object["metadata"]["name"] = format!("web-{number}").into();
                object["spec"]["nodeName"] = node.into();
                let owner = number / REPLICAS;
                object["metadata"]["ownerReferences"][0]["name"] = format!("web-{owner}").into();
                object["metadata"]["ownerReferences"][0]["uid"] = format!("uid-{owner}").into();
            }
        }
        object
    }
}

impl ApiTransport for Large {
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<ApiResponse, String> {
        let (now, most) = self.waiting.get();
        self.waiting.set((now + 1, most.max(now + 1)));
        tokio::task::yield_now().await;
        let (waiting, most) = self.waiting.get();
        self.waiting.set((waiting - 1, most));
        let (bare, query) = path.split_once('?').unwrap_or((path, ""));
        let (resource, total) = match bare {
            "/api/v1/nodes" => ("nodes", self.nodes),
            "/api/v1/pods" => ("pods", 4 * self.nodes),
            "/api/v1/namespaces/weir-node/pods" => ("agents", self.nodes),
            _ if bare.contains("/pods/weir-agent-") => {
                let body = if bare.ends_with("readyz") {
                    r#"{"ready":true,"conditions":[]}"#
                } else {
                    "weir_agent_meshed_pods{state=\"ok\"} 4\n"
                };
                return Ok(ApiResponse { code: 200, body: body.to_owned() });
            }
            _ => return self.small.send(method, path, body).await,
        };
        let from = parameter(query, "continue").unwrap_or(0);
        let until = (from + parameter(query, "limit").expect("pages")).min(total);
        let items: Vec<Value> = (from..until).map(|number| self.object(resource, number)).collect();
        let next = if until < total { until.to_string() } else { String::new() };
        Ok(ApiResponse { code: 200, body: json!({"items": items, "metadata": {"continue": next}}).to_string() })
    }
}

#[test]
fn a_large_cluster_is_checked_within_limits() {
    let nodes = std::env::var("WEIR_CHECK_NODES").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let large = Large::new(nodes);
    let started = std::time::Instant::now();
    // Far longer than needed: creating the objects takes most of the time.
    let scope = CheckScope { pod_report_timeout: Duration::from_mins(30), ..scope() };
    let snapshot = collected(&large, &scope).unwrap();
    let collected = started.elapsed();
    let findings = analyze(&snapshot);
    assert!(findings.is_empty(), "{findings:#?}");
    let pods = snapshot.pods.as_ref().unwrap();
    assert_eq!(pods.len(), (4 * nodes).div_ceil(REPLICAS), "one for each owner");
    assert_eq!(pods.iter().map(|pod| pod.similar + 1).sum::<usize>(), 4 * nodes);
    let bytes: usize = pods.iter().filter_map(|pod| pod.full.as_ref()).map(|text| text.len()).sum();
    assert!(bytes / pods.len() < 32 * 1024, "{bytes} bytes for {} pods", pods.len());
    assert_eq!(snapshot.reports.len(), nodes + 2);
    let (_, most) = large.waiting.get();
    assert!((2..=48).contains(&most), "{most} concurrent requests");
    eprintln!("{nodes} nodes: {collected:?} to collect, {:?} in all, {bytes} bytes of pods", started.elapsed());
}
