//! One of the threads that do a kubelet's work: pods come and go, and each is looked at.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::json;
use weir_tests::cri;
use weir_tests::webhook::Webhook;

use crate::ledger::{Ledger, Rules, Stamp, Verdict};
use crate::node::{BOUND, Node};

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
    let webhook = Webhook::start()?;
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
        let pod = webhook.admit(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "namespace": "shop", "labels": { "app": "web" }, "annotations": annotations },
            "spec": { "containers": [{ "name": "web", "image": "web:1", "ports": [{ "containerPort": 8080 }] }] },
        }))?;
        let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
        let annotations: Vec<(String, String)> =
            annotations.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
        let capture = pod["metadata"]["annotations"]["weir.dev/capture"].as_str().unwrap_or_default();
        let capture =
            CaptureConfig::from_capture_annotation(capture).map_err(|errors| anyhow::anyhow!("{name}: {errors:?}"))?;
        let expected = plan(&capture).map_err(|settings| anyhow::anyhow!("{name}: {settings:?}"))?;
        recipes.push(Recipe { name, annotations, expected: Some(expected) });
    }
    recipes.push(Recipe { name: "bare", annotations: vec![], expected: None });
    recipes.push(Recipe { name: "other", annotations: vec![("team".into(), "shop".into())], expected: None });
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
    let worker = Worker { node, ledger, recipes, cri: node.runtime.connect()? };
    let (meshed, others): (Vec<usize>, Vec<usize>) = (0..recipes.len()).partition(|&i| recipes[i].expected.is_some());
    let mut alive: VecDeque<Pod> = VecDeque::new();
    let mut serial = 0;
    while !stop.load(Ordering::Relaxed) {
        if ledger.stamp().out() {
            // A kubelet starts nothing while the runtime is away or its network is not ready.
            std::thread::sleep(PAUSE);
            continue;
        }
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
}

impl Worker<'_> {
    fn meshed(&self, recipe: usize) -> bool {
        self.recipes[recipe].expected.is_some()
    }

    fn start(&self, name: &str, recipe: usize) -> Option<Pod> {
        let meshed = self.meshed(recipe);
        let since = self.ledger.stamp();
        let failed = |call: &str, why: &str| self.ledger.failed(name, meshed, call, since, why);
        let config = self.node.runtime.pod(name, self.recipes[recipe].annotations.iter().cloned());
        self.node.want(name, true);
        let id = match self.cri.run_pod_sandbox(&config) {
            Ok(id) => id,
            Err(status) => {
                failed("run", status.message());
                self.node.want(name, false);
                return None;
            }
        };
        let started = Instant::now();
        // From here on the pod exists, whatever else fails.
        let mut pod =
            Pod { name: name.to_owned(), id, netns: String::new(), recipe, since, started, state: State::Unsettled };
        let looked = self.cri.sandbox_status(&pod.id).and_then(|status| {
            pod.netns = status.netns;
            self.look(&pod)
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
                while self.ledger.stamp().out() {
                    std::thread::sleep(PAUSE);
                }
                let since = self.ledger.stamp();
                match call(&self.cri, &pod.id) {
                    Ok(()) => break,
                    Err(status) => self.ledger.failed(&pod.name, meshed, name, since, status.message()),
                }
                std::thread::sleep(PAUSE);
            }
        }
        self.node.want(&pod.name, false);
    }
}
