//! One of the threads that do a kubelet's work: pods come and go, and each is looked at.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::{Value, json};
use weir_tests::agent::{BOUND, NODE};
use weir_tests::cri::{self, PodSandboxConfig};
use weir_tests::webhook::{self, Webhook};

use crate::ledger::{Ledger, Rules, Stamp, Verdict};
use crate::node::Node;

/// So many pods of each worker live at the same time.
const ALIVE: usize = 3;

/// A failed call is tried again so often.
const TRIES: usize = 50;

/// Before something is tried or looked at again.
const PAUSE: Duration = Duration::from_millis(20);

/// A kind of pod.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    name: &'static str,
    annotations: Vec<(String, String)>,
    /// As the API server has such a pod, without what makes it this one.
    object: Value,
    /// Its rules; `None` outside the mesh.
    expected: Option<RuleSet>,
}

/// A pod that runs.
struct Pod {
    name: String,
    id: String,
    netns: String,
    recipe: usize,
    since: Stamp,
    started: Instant,
    state: State,
}

/// Where a pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its rules are as they should be, and have to stay so.
    Settled,
    /// It is owed its rules.
    Owed,
    /// Nothing can be said of it.
    Unsettled,
}

/// Pods of the mesh in three variants, as the webhook makes them, and two outside of it.
pub(crate) fn recipes() -> anyhow::Result<Vec<Recipe>> {
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
    let mut recipes = Vec::new();
    for (name, annotations) in meshed {
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
        recipes.push(Recipe { name, annotations, object: pod, expected: Some(expected) });
    }
    for (name, annotations) in [("bare", vec![]), ("other", vec![("team".to_owned(), "shop".to_owned())])] {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "annotations": annotations.iter().cloned().collect::<HashMap<_, _>>() },
            "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
        });
        recipes.push(Recipe { name, annotations, object, expected: None });
    }
    Ok(recipes)
}

/// Creates and removes pods until told to stop; then removes those that are left.
pub(crate) fn work(
    node: &Node,
    ledger: &Ledger,
    recipes: &[Recipe],
    stop: &AtomicBool,
    number: usize,
) -> anyhow::Result<()> {
    let worker = Worker { node, ledger, recipes, cri: node.runtime.connect()?, connected: Cell::new(0) };
    let (meshed, others): (Vec<usize>, Vec<usize>) = (0..recipes.len()).partition(|&i| recipes[i].expected.is_some());
    let mut alive: VecDeque<Pod> = VecDeque::new();
    let mut serial = 0;
    while !stop.load(Ordering::Relaxed) {
        // Every second one is outside the mesh, and each kind has its turn.
        let kinds = if serial % 2 == 0 { &meshed } else { &others };
        let recipe = kinds[(serial / 2 + number) % kinds.len()];
        alive.extend(worker.start(&format!("w{number}-{serial}-{}", recipes[recipe].name), recipe));
        serial += 1;
        for pod in &mut alive {
            worker.settle(pod);
        }
        // Those that are owed their rules stay until they have them, or the time is over.
        let owed = |pod: &Pod| pod.state == State::Owed && pod.started.elapsed() <= BOUND;
        while alive.iter().filter(|pod| !owed(pod)).count() > ALIVE
            && let Some(oldest) = alive.iter().position(|pod| !owed(pod))
        {
            if let Some(pod) = alive.remove(oldest) {
                worker.end(&pod);
            }
        }
    }
    for pod in &alive {
        worker.end(pod);
    }
    Ok(())
}

struct Worker<'a> {
    node: &'a Node,
    ledger: &'a Ledger,
    recipes: &'a [Recipe],
    cri: cri::Client,
    /// Outages after which the connection was found to work again.
    connected: Cell<u64>,
}

impl Worker<'_> {
    /// Waits until the runtime is there, and this moment. A connection from before an outage breaks at its first use: that is done here.
    fn ready(&self) -> Stamp {
        loop {
            let now = self.ledger.stamp();
            if !now.out() && self.connected.get() == now.outages() {
                return now;
            }
            if !now.out() && self.cri.network_not_ready().is_ok() {
                self.connected.set(now.outages());
            } else {
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn meshed(&self, recipe: usize) -> bool {
        self.recipes[recipe].expected.is_some()
    }

    fn start(&self, name: &str, recipe: usize) -> Option<Pod> {
        let meshed = self.meshed(recipe);
        let since = self.ready();
        let failed = |call: &str, why: &str| self.ledger.failed(name, meshed, call, since, why);
        let config = self.node.runtime.pod(name, self.recipes[recipe].annotations.iter().cloned());
        self.node.want(name, true);
        self.tell(&config, recipe, &[]);
        let id = match self.cri.run_pod_sandbox(&config) {
            Ok(id) => id,
            Err(status) => {
                failed("run", status.message());
                self.forget(name);
                return None;
            }
        };
        let started = Instant::now();
        // From here on the pod exists, whatever else fails.
        let mut pod =
            Pod { name: name.to_owned(), id, netns: String::new(), recipe, since, started, state: State::Unsettled };
        let looked = self.cri.sandbox_status(&pod.id).and_then(|status| {
            pod.netns = status.netns;
            let rules = self.look(&pod);
            self.tell(&config, recipe, &status.addresses);
            rules
        });
        match looked {
            Ok(rules) => {
                pod.state = match self.ledger.started(name, meshed, since, &rules) {
                    Verdict::Owed => State::Owed,
                    Verdict::Done if rules == Rules::Right => State::Settled,
                    Verdict::Done => State::Unsettled,
                };
            }
            Err(error) => failed("look", &format!("{error:#}")),
        }
        Some(pod)
    }

    /// Tells the API server of a pod, as a kubelet does: when it is bound to the node, and when it has its addresses.
    fn tell(&self, config: &PodSandboxConfig, recipe: usize, addresses: &[IpAddr]) {
        let mut object = self.recipes[recipe].object.clone();
        let metadata = config.metadata.clone().unwrap_or_default();
        object["metadata"]["name"] = metadata.name.into();
        object["metadata"]["uid"] = metadata.uid.into();
        object["spec"]["nodeName"] = NODE.into();
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        object["status"] = json!({ "phase": "Pending", "podIP": addresses.first(), "podIPs": ips });
        self.node.api.put("pods", object);
    }

    fn forget(&self, pod: &str) {
        self.node.want(pod, false);
        self.node.api.remove("pods", "shop", pod);
    }

    fn look(&self, pod: &Pod) -> anyhow::Result<Rules> {
        self.node.rules(&pod.netns, self.recipes[pod.recipe].expected.as_ref())
    }

    /// Whether a reboot has ended the pod. The runtime remembers it, and it has to be removed, but there is nothing to look at.
    fn gone(&self, pod: &Pod) -> bool {
        self.ledger.stamp().is_after_a_reboot(pod.since)
    }

    /// Looks whether a pod that is owed its rules has got them.
    fn settle(&self, pod: &mut Pod) {
        if pod.state != State::Owed {
            return;
        }
        match self.look(pod) {
            Ok(Rules::Right) => {
                pod.state = State::Settled;
                self.ledger.repaired(pod.started.elapsed());
            }
            Ok(Rules::Wrong(_)) => {}
            Err(_) if self.gone(pod) => {
                pod.state = State::Unsettled;
                self.ledger.not_repaired(&pod.name, false);
            }
            Err(error) => self.ledger.failed(&pod.name, true, "look", pod.since, &format!("{error:#}")),
        }
    }

    /// Looks at it once more, then stops and removes it, as often as it takes.
    fn end(&self, pod: &Pod) {
        let meshed = self.meshed(pod.recipe);
        match pod.state {
            State::Settled if !self.gone(pod) => match self.look(pod) {
                Ok(rules) => self.ledger.seen_again(&pod.name, &rules),
                Err(_) if self.gone(pod) => {}
                Err(error) => self.ledger.failed(&pod.name, meshed, "look", pod.since, &format!("{error:#}")),
            },
            State::Owed => self.ledger.not_repaired(&pod.name, pod.started.elapsed() > BOUND),
            State::Settled | State::Unsettled => {}
        }
        for (name, call) in [
            ("stop", cri::Client::stop_pod_sandbox as fn(&cri::Client, &str) -> _),
            ("remove", cri::Client::remove_pod_sandbox),
        ] {
            for _ in 0..TRIES {
                let since = self.ready();
                match call(&self.cri, &pod.id) {
                    Ok(()) => break,
                    Err(status) => self.ledger.failed(&pod.name, meshed, name, since, status.message()),
                }
                std::thread::sleep(PAUSE);
            }
        }
        self.forget(&pod.name);
    }
}
