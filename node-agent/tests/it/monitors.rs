//! Changes in the network namespaces of pods are repaired when they happen.

use std::path::Path;
use std::time::{Duration, Instant};

use iptables_rules::backend::Backend;
use serde_json::json;
use tokio::task::JoinHandle;
use weir_agent::events;
use weir_agent::metrics::MetricsRegistry;
use weir_agent::pods::PodCache;
use weir_agent::repair::{
    Monitors, PodStates, RepairMetrics, RepairOptions, Repairer, RuleState, VerifiedRules, Visits,
};
use weir_agent::socket::Attachments;
use weir_lab::{Netns, privilege};
use weir_protocol::agent::CallReport;
use weir_runtime::CancellationToken;

use crate::follow::until;
use crate::repair::{facts, inside, netns_paths, object, pod_netns, ruleset};

/// Limit of one repair: far above what it takes, far below the interval.
const LIMIT: Duration = Duration::from_secs(2);

/// A repairer at work, whose interval is never reached.
struct Node {
    pods: PodCache,
    attachments: Attachments,
    states: PodStates,
    monitors: Monitors,
    metrics: MetricsRegistry,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    _root: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let metrics = MetricsRegistry::default();
        let (pods, attachments, states) = (PodCache::default(), Attachments::default(), PodStates::default());
        let (monitors, shutdown) = (Monitors::default(), CancellationToken::new());
        let (events, _publisher) = events::channel(&metrics);
        let repairer = Repairer {
            pods: pods.clone(),
            attachments: attachments.clone(),
            options: RepairOptions {
                in_place: true,
                interval: Duration::from_hours(1),
                backend: Backend::Auto,
                netns_paths: netns_paths(root.path()),
            },
            states: states.clone(),
            metrics: RepairMetrics::register(&metrics),
            events,
            visits: Visits::default(),
            monitors: monitors.clone(),
            verified: VerifiedRules::default(),
        };
        let task = tokio::spawn(repairer.run(None, shutdown.clone()));
        Self { pods, attachments, states, monitors, metrics, shutdown, task, _root: root }
    }

    /// Adds pods and waits until they are monitored.
    async fn add(&self, count: usize) -> Vec<Netns> {
        let mut all = Vec::new();
        let namespaces: Vec<Netns> = (0..count).map(|number| pod_netns(&address(number))).collect();
        for (number, netns) in namespaces.iter().enumerate() {
            self.report(number, &netns.path());
            all.push(facts(object(&name(number), &address(number))));
        }
        self.pods.replace(all);
        until("all pods are monitored", || self.monitors.len() == count && self.repairs() as usize == count).await;
        namespaces
    }

    fn report(&self, number: usize, netns: &Path) {
        let (verb, uid) = ("ADD".to_owned(), format!("uid-{}", name(number)));
        let netns = netns.display().to_string();
        self.attachments.apply(&CallReport { v: 1, verb, uid, netns, ..CallReport::default() });
    }

    fn repairs(&self) -> u32 {
        self.states.all().iter().map(|pod| pod.repairs).sum()
    }

    /// Damages a pod and waits until it is repaired.
    async fn attack(&self, netns: &Netns, damage: &[&str]) -> Duration {
        let before = self.repairs();
        inside(netns, damage[0], &damage[1..]);
        let begun = Instant::now();
        while self.repairs() == before {
            assert!(begun.elapsed() < LIMIT, "not repaired: {damage:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        begun.elapsed()
    }
}

fn name(number: usize) -> String {
    format!("web-{number}")
}

fn address(number: usize) -> String {
    format!("10.0.{}.{}", number / 250, number % 250 + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_repaired_at_once() {
    if !privilege::available_or_skip() {
        return;
    }
    let node = Node::start();
    let namespaces = node.add(30).await;
    let complete = ruleset(&namespaces[7]);
    for damage in [
        &["nft", "flush", "ruleset"][..],
        &["nft", "delete", "table", "inet", "weir"],
        &["nft", "flush", "chain", "inet", "weir", "ISTIO_OUTPUT"],
        &["nft", "insert", "rule", "inet", "weir", "ISTIO_OUTPUT", "accept"],
        &["ip", "addr", "del", "::6/128", "dev", "lo"],
    ] {
        node.attack(&namespaces[7], damage).await;
        assert_eq!(ruleset(&namespaces[7]), complete, "{damage:?}");
    }
    // The agent's own repairs are no changes, and neither are rules of others.
    let metrics = node.metrics.render();
    assert!(metrics.contains("weir_agent_repair_window_seconds_count 5"), "{metrics}");
    inside(&namespaces[3], "iptables-nft", &["-A", "OUTPUT", "-j", "ACCEPT"]);
    inside(&namespaces[3], "iptables-nft", &["-F"]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.repairs(), 35);
    node.shutdown.cancel();
    node.task.await.unwrap();
    assert!(node.monitors.is_empty(), "open sockets keep namespaces alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_routes_of_tproxy_are_repaired_at_once() {
    if !privilege::available_or_skip() {
        return;
    }
    let node = Node::start();
    let netns = pod_netns(&address(0));
    node.report(0, &netns.path());
    let mut pod = object(&name(0), &address(0));
    pod["metadata"]["annotations"]["weir.dev/capture"] = json!(r#"{"v":1,"mode":"TPROXY"}"#);
    node.pods.replace(vec![facts(pod)]);
    until("the pod is monitored", || node.monitors.len() == 1).await;
    until("it has its rule", || inside(&netns, "ip", &["rule"]).contains("fwmark")).await;
    let rules = inside(&netns, "ip", &["rule"]);
    let rule = rules.lines().find(|line| line.contains("fwmark")).unwrap();
    let table = rule.split_whitespace().last().unwrap();
    let priority = rule.split(':').next().unwrap();
    until("it is repaired", || node.repairs() == 1).await;
    node.attack(&netns, &["ip", "rule", "del", "pref", priority]).await;
    node.attack(&netns, &["ip", "route", "flush", "table", table]).await;
    assert!(inside(&netns, "ip", &["rule"]).contains("fwmark"));
    assert!(inside(&netns, "ip", &["route", "show", "table", table]).contains("local default"));
}

#[tokio::test(flavor = "multi_thread")]
async fn contention_is_bounded_and_reported() {
    if !privilege::available_or_skip() {
        return;
    }
    let node = Node::start();
    let namespaces = node.add(2).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        inside(&namespaces[0], "nft", &["flush", "ruleset"]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let repairs = node.states.get("uid-web-0").unwrap().repairs;
    assert!((8..=36).contains(&repairs), "{repairs}");
    let metrics = node.metrics.render();
    assert!(metrics.contains("weir_agent_capture_contentions_total 1"), "{metrics}");
    assert!(metrics.contains("weir_agent_capture_contended_pods 1"), "{metrics}");
    // Neighbours are repaired as before.
    assert!(node.attack(&namespaces[1], &["nft", "flush", "ruleset"]).await < LIMIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_pods_that_are_gone_are_released() {
    if !privilege::available_or_skip() {
        return;
    }
    let node = Node::start();
    let namespaces = node.add(3).await;
    let mut terminating = object(&name(0), &address(0));
    terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    terminating["metadata"]["resourceVersion"] = json!("2");
    node.pods.replace(vec![
        facts(terminating),
        facts(object(&name(1), &address(1))),
        facts(object(&name(2), &address(2))),
    ]);
    until("the terminating pod is released", || node.monitors.len() == 2).await;
    // The runtime takes the addresses and the namespace away before the API server knows.
    let mut namespaces = namespaces;
    let gone = namespaces.remove(1);
    inside(&gone, "ip", &["addr", "del", &format!("{}/32", address(1)), "dev", "lo"]);
    drop(gone);
    until("its namespace is released", || node.monitors.len() == 1).await;
    assert_eq!(node.states.get("uid-web-2").map(|pod| pod.state), Some(RuleState::Ok));
}
