//! A large cluster: what is kept of it does not grow with its pods, and nobody waits for one agent after the other.
//!
//! `WEIR_CHECK_NODES` (default 100) makes it larger; there are four pods for each node, as in a cluster of 5,000 and 20,000.

use std::cell::Cell;
use std::time::Duration;

use serde_json::{Value, json};

use super::fixture::{Fixture, plain_pod, pod_of};
use super::{gather, scope};
use crate::check::gather::Scope;
use crate::check::gather::read::{Answer, Ask};
use crate::check::judge::judge;

/// Pods of one owner.
const REPLICAS: usize = 10;

/// A cluster whose nodes and pods are made while they are asked for.
struct Large {
    small: Fixture,
    nodes: usize,
    agent: Value,
    web: Value,
    /// Requests that wait for their answer at this moment, and the most there were.
    waiting: Cell<(usize, usize)>,
}

impl Large {
    fn new(nodes: usize) -> Self {
        let mut small = Fixture::healthy();
        let agent = pod_of(small.get("daemonsets", "weir-node", "weir-agent"), "any", "any");
        let web = small.injected(&plain_pod("shop", "any", "any"));
        Self { small, nodes, agent, web, waiting: Cell::default() }
    }

    /// The object of that number.
    fn made(&self, resource: &str, number: usize) -> Value {
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

impl Ask for Large {
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
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
                let ready = if bare.ends_with("readyz") {
                    "[+]install: done\n"
                } else {
                    "weir_agent_meshed_pods{state=\"ok\"} 4\n"
                };
                return Ok(Answer { code: 200, text: ready.to_owned() });
            }
            _ => return self.small.ask(method, path, body).await,
        };
        let number = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.parse::<usize>().ok());
        let from = number("continue=").unwrap_or(0);
        let until = (from + number("limit=").expect("pages")).min(total);
        let items: Vec<Value> = (from..until).map(|number| self.made(resource, number)).collect();
        let next = if until < total { until.to_string() } else { String::new() };
        Ok(Answer { code: 200, text: json!({"items": items, "metadata": {"continue": next}}).to_string() })
    }
}

#[test]
fn a_large_cluster_is_checked_within_bounds() {
    let nodes = std::env::var("WEIR_CHECK_NODES").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let large = Large::new(nodes);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let started = std::time::Instant::now();
    // Far longer than it takes: everything is made in this process, and that is what takes the time.
    let scope = Scope { reports: Duration::from_mins(30), ..scope() };
    let snapshot = runtime.block_on(gather(&large, &scope)).unwrap();
    let gathered = started.elapsed();
    let findings = judge(&snapshot).into_sorted(&[]);
    assert!(findings.is_empty(), "{findings:#?}");
    let pods = snapshot.pods.as_ref().unwrap();
    assert_eq!(pods.len(), (4 * nodes).div_ceil(REPLICAS), "one for each owner");
    assert_eq!(pods.iter().map(|pod| pod.alike + 1).sum::<usize>(), 4 * nodes);
    let bytes: usize = pods.iter().filter_map(|pod| pod.whole.as_ref()).map(|text| text.len()).sum();
    assert!(bytes / pods.len() < 32 * 1024, "{bytes} bytes for {} pods", pods.len());
    assert_eq!(snapshot.reports.len(), nodes + 2);
    let (_, most) = large.waiting.get();
    assert!((2..=48).contains(&most), "{most} requests at once");
    eprintln!("{nodes} nodes: {gathered:?} to read, {:?} in all, {bytes} bytes of pods", started.elapsed());
}
