//! A thread that does a kubelet's work: it creates and removes pods, and checks the rules of each.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::{Value, json};
use weir_tests::TIMEOUT;
use weir_tests::agent::NODE;
use weir_tests::cri::{self, PodSandboxConfig};
use weir_tests::webhook::{self, Webhook};

use super::ledger::{FollowUp, Ledger, Moment, Rules};
use super::node::Node;

/// Running pods of each worker.
const MAX_RUNNING: usize = 3;

/// Attempts of a call.
const ATTEMPTS: usize = 50;

const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A kind of pod.
#[derive(Debug, Clone)]
pub(crate) struct PodTemplate {
    name: &'static str,
    annotations: Vec<(String, String)>,
    /// The pod as the API server stores it, without its name, uid, node and status.
    object: Value,
    /// The expected rules; `None` outside the mesh.
    expected: Option<RuleSet>,
}

/// A running pod.
struct Pod {
    name: String,
    id: String,
    netns: String,
    template: usize,
    since: Moment,
    started: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its rules are complete, and have to stay so.
    Complete,
    /// The agent has to restore its rules.
    AwaitingRepair,
    /// Nothing is guaranteed for it.
    Unchecked,
}

/// Returns three kinds of meshed pods, as the webhook injects them, and two kinds outside the mesh.
pub(crate) fn pod_templates() -> anyhow::Result<Vec<PodTemplate>> {
    let server = Webhook::start()?;
    let meshed = [
        ("plain", json!({})),
        (
            "excludes",
            json!({ "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16,fd01::/32",
                             "traffic.sidecar.istio.io/excludeInboundPorts": "9000" }),
        ),
        ("dns", json!({ "proxy.istio.io/config": "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n" })),
    ];
    let mut templates = Vec::new();
    for (name, mut annotations) in meshed {
        // The proxy accepts both families.
        annotations["weir.dev/ipv6"] = "capture".into();
        let pod = server.admit(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "namespace": "shop", "labels": { "app": "web" }, "annotations": annotations },
            "spec": { "containers": [{ "name": "web", "image": "web:1", "ports": [{ "containerPort": 8080 }] }] },
        }))?;
        let annotations = webhook::annotations(&pod);
        let capture = pod["metadata"]["annotations"]["weir.dev/capture"].as_str().unwrap_or_default();
        let capture =
            CaptureConfig::from_capture_annotation(capture).map_err(|errors| anyhow::anyhow!("{name}: {errors:?}"))?;
        let expected = plan(&capture).map_err(|settings| anyhow::anyhow!("{name}: {settings:?}"))?;
        templates.push(PodTemplate { name, annotations, object: pod, expected: Some(expected) });
    }
    for (name, annotations) in [("bare", vec![]), ("other", vec![("team".to_owned(), "shop".to_owned())])] {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "annotations": annotations.iter().cloned().collect::<HashMap<_, _>>() },
            "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
        });
        templates.push(PodTemplate { name, annotations, object, expected: None });
    }
    Ok(templates)
}

/// Creates and removes pods until `stop` is set, then removes the remaining ones.
pub(crate) fn run(
    node: &Node,
    ledger: &Ledger,
    templates: &[PodTemplate],
    stop: &AtomicBool,
    number: usize,
) -> anyhow::Result<()> {
    let worker = Worker { node, ledger, templates, cri: node.runtime.connect()?, connected: Cell::new(0) };
    let (meshed, others): (Vec<usize>, Vec<usize>) =
        (0..templates.len()).partition(|&i| templates[i].expected.is_some());
    let mut alive: VecDeque<Pod> = VecDeque::new();
    let mut serial = 0;
    while !stop.load(Ordering::Relaxed) {
        // Every second pod is outside the mesh, and each kind has its turn.
        let kinds = if serial % 2 == 0 { &meshed } else { &others };
        let template = kinds[(serial / 2 + number) % kinds.len()];
        alive.extend(worker.start(&format!("w{number}-{serial}-{}", templates[template].name), template));
        serial += 1;
        for pod in &mut alive {
            worker.check_repair(pod);
        }
        // Pods that await a repair stay until it is done, or the timeout is over.
        let awaits_repair = |pod: &Pod| pod.state == State::AwaitingRepair && pod.started.elapsed() <= TIMEOUT;
        while alive.iter().filter(|pod| !awaits_repair(pod)).count() > MAX_RUNNING
            && let Some(oldest) = alive.iter().position(|pod| !awaits_repair(pod))
        {
            if let Some(pod) = alive.remove(oldest) {
                worker.remove(&pod);
            }
        }
    }
    for pod in &alive {
        worker.remove(pod);
    }
    Ok(())
}

struct Worker<'a> {
    node: &'a Node,
    ledger: &'a Ledger,
    templates: &'a [PodTemplate],
    cri: cri::Client,
    /// Number of outages after which the connection was found to work.
    connected: Cell<u64>,
}

impl Worker<'_> {
    /// Waits until the runtime is available and returns that moment. The first call after an outage fails, so it is made here.
    fn wait_for_runtime(&self) -> Moment {
        loop {
            let now = self.ledger.now();
            if !now.is_in_outage() && self.connected.get() == now.outages() {
                return now;
            }
            if !now.is_in_outage() && self.cri.network_not_ready().is_ok() {
                self.connected.set(now.outages());
            } else {
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }

    fn meshed(&self, template: usize) -> bool {
        self.templates[template].expected.is_some()
    }

    fn start(&self, name: &str, template: usize) -> Option<Pod> {
        let meshed = self.meshed(template);
        let since = self.wait_for_runtime();
        let failed = |call: &str, why: &str| self.ledger.failed(name, meshed, call, since, why);
        let config = self.node.runtime.pod(name, self.templates[template].annotations.iter().cloned());
        self.node.set_wanted(name, true);
        self.store_pod(&config, template, &[]);
        let id = match self.cri.run_pod_sandbox(&config) {
            Ok(id) => id,
            Err(status) => {
                failed("run", status.message());
                self.delete_pod(name);
                return None;
            }
        };
        let started = Instant::now();
        // From here on the pod exists, whatever else fails.
        let mut pod =
            Pod { name: name.to_owned(), id, netns: String::new(), template, since, started, state: State::Unchecked };
        let rules = self.cri.sandbox_status(&pod.id).and_then(|status| {
            pod.netns = status.netns;
            let rules = self.read_rules(&pod);
            self.store_pod(&config, template, &status.addresses);
            rules
        });
        match rules {
            Ok(rules) => {
                pod.state = match self.ledger.started(name, meshed, since, &rules) {
                    FollowUp::AwaitRepair => State::AwaitingRepair,
                    FollowUp::None if rules == Rules::Complete => State::Complete,
                    FollowUp::None => State::Unchecked,
                };
            }
            Err(error) => failed("read rules", &format!("{error:#}")),
        }
        Some(pod)
    }

    /// Stores a pod in the API server: when it is bound to the node, and when it has its addresses.
    fn store_pod(&self, config: &PodSandboxConfig, template: usize, addresses: &[IpAddr]) {
        let mut object = self.templates[template].object.clone();
        let metadata = config.metadata.clone().unwrap_or_default();
        object["metadata"]["name"] = metadata.name.into();
        object["metadata"]["uid"] = metadata.uid.into();
        object["spec"]["nodeName"] = NODE.into();
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        object["status"] = json!({ "phase": "Pending", "podIP": addresses.first(), "podIPs": ips });
        self.node.api.put("pods", object);
    }

    fn delete_pod(&self, pod: &str) {
        self.node.set_wanted(pod, false);
        self.node.api.remove("pods", "shop", pod);
    }

    fn read_rules(&self, pod: &Pod) -> anyhow::Result<Rules> {
        self.node.rules(&pod.netns, self.templates[pod.template].expected.as_ref())
    }

    /// Returns whether a reboot has ended the pod. The runtime still has to remove it, but it has no namespace.
    fn is_gone(&self, pod: &Pod) -> bool {
        self.ledger.now().is_after_a_reboot(pod.since)
    }

    /// Checks whether the rules of a pod that awaits a repair are complete.
    fn check_repair(&self, pod: &mut Pod) {
        if pod.state != State::AwaitingRepair {
            return;
        }
        match self.read_rules(pod) {
            Ok(Rules::Complete) => {
                pod.state = State::Complete;
                self.ledger.repaired(pod.started.elapsed());
            }
            Ok(Rules::Differ(_)) => {}
            Err(_) if self.is_gone(pod) => {
                pod.state = State::Unchecked;
                self.ledger.not_repaired(&pod.name, false);
            }
            Err(error) => self.ledger.failed(&pod.name, true, "read rules", pod.since, &format!("{error:#}")),
        }
    }

    /// Checks a pod once more, then stops and removes it, with retries.
    fn remove(&self, pod: &Pod) {
        let meshed = self.meshed(pod.template);
        match pod.state {
            State::Complete if !self.is_gone(pod) => match self.read_rules(pod) {
                Ok(rules) => self.ledger.checked_again(&pod.name, &rules),
                Err(_) if self.is_gone(pod) => {}
                Err(error) => self.ledger.failed(&pod.name, meshed, "read rules", pod.since, &format!("{error:#}")),
            },
            State::AwaitingRepair => self.ledger.not_repaired(&pod.name, pod.started.elapsed() > TIMEOUT),
            State::Complete | State::Unchecked => {}
        }
        for (name, call) in [
            ("stop", cri::Client::stop_pod_sandbox as fn(&cri::Client, &str) -> _),
            ("remove", cri::Client::remove_pod_sandbox),
        ] {
            for _ in 0..ATTEMPTS {
                let since = self.wait_for_runtime();
                match call(&self.cri, &pod.id) {
                    Ok(()) => break,
                    Err(status) => self.ledger.failed(&pod.name, meshed, name, since, status.message()),
                }
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
        self.delete_pod(&pod.name);
    }
}
