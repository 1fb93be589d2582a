//! Running pods while components are killed, switched off and uninstalled, under traffic.

mod faults;
mod istio;
mod upgrade;
mod webhook;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weir_cluster::Cluster;
use weir_cluster::images::APP;
use weir_cluster::plan::NODES;

use crate::mesh::{alone_or_skip, install, shared_or_skip, weir};
use crate::scenario::{Scenario, WEB, client, deployment, is_from_the_mesh, parse};

impl Scenario {
    /// Creates the namespace with `web` and a client. The server stops only when clients have heard of it, and one of its pods is always
    /// there, as with a service that is updated without failures.
    fn with_patient_web(cluster: &'static Cluster, name: &str) -> Self {
        let this = Self::new(cluster, name);
        let patient = |version| {
            deployment("web", version, "")
                .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 15")
                .replace(
                    "        args: [serve",
                    "        lifecycle: {preStop: {sleep: {seconds: 5}}}\n        args: [serve",
                )
        };
        let one_stays = "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}}";
        this.apply(&[&patient("v1"), &patient("v2"), &client("client", ""), WEB, one_stays].join("\n---\n"));
        this.wait_for_rollouts();
        this
    }

    /// Replaces the pods of every Deployment.
    fn restart(&self) {
        self.kubectl(&["rollout", "restart", "deployment"]);
        let names = self.kubectl(&["get", "deployments", "-o", "name"]);
        names.lines().for_each(|name| drop(self.kubectl(&["rollout", "status", name, "--timeout=180s"])));
    }
}

/// Requests from a meshed pod, one after the other. The pod sends them by itself: a stream of `kubectl exec` ends with the node's kubelet.
struct Traffic<'a> {
    mesh: &'a Scenario,
    started: Instant,
    is_expected: fn(&str) -> bool,
}

impl<'a> Traffic<'a> {
    fn start(mesh: &'a Scenario) -> Self {
        Self::start_to(mesh, "http://web/", |response| response.starts_with("200 v"))
    }

    fn start_to(mesh: &'a Scenario, url: &str, is_expected: fn(&str) -> bool) -> Self {
        mesh.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: traffic}}
spec:
  restartPolicy: Never
  containers:
  - name: app
    image: {APP}
    command: [sh, -c, \"until [ -e /tmp/end ]; do /bin/app load --for 2s {url} || exit; done\"]"
        ));
        mesh.wait_for_pod("traffic");
        Self { mesh, started: Instant::now(), is_expected }
    }

    /// Ends it; every request must have been answered by the service.
    #[track_caller]
    fn assert_unharmed(self) {
        self.mesh.kubectl(&["exec", "traffic", "-c", "app", "--", "sh", "-c", ">/tmp/end"]);
        self.mesh.kubectl(&["wait", "pod/traffic", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=180s"]);
        let log = self.mesh.kubectl(&["logs", "traffic", "-c", "app"]);
        let responses = parse(&log);
        assert!(responses.keys().all(|response| (self.is_expected)(response)), "{log}");
        let counts = log.lines().filter_map(|line| line.split_once('\t')?.0.parse::<usize>().ok());
        let total: usize = counts.sum();
        assert!(total > 100, "{log}");
        eprintln!("{}: {total} requests, no failure, in {:.0?}", self.mesh.namespace, self.started.elapsed());
    }
}

/// A new pod starts and is captured.
fn assert_new_pods_are_meshed(mesh: &Scenario, name: &str) {
    mesh.apply(&client(name, ""));
    mesh.wait_for_rollouts();
    mesh.wait_for(&format!("deploy/{name}"), &["http://web/headers"], "a new pod is in the mesh", is_from_the_mesh);
}

/// Runs a command of the node in the network namespace of the first pod that a selector matches, and returns what it prints.
fn run_in_network(mesh: &Scenario, selector: &str, command: &str) -> String {
    let place = "jsonpath={.items[0].spec.nodeName} {.items[0].status.podIP}";
    let place = mesh.kubectl(&["get", "pods", "--selector", selector, "-o", place]);
    let (node, ip) = place.trim().split_once(' ').unwrap();
    let script = format!(
        "for netns in /run/netns/*; do if nsenter --net=$netns ip -o address | grep -qwF {ip}; then exec nsenter --net=$netns {command}; fi; done; exit 1"
    );
    mesh.cluster.machine(node).run(&["sh", "-c", &script], "").unwrap()
}

fn wait_for_agents(cluster: &Cluster) {
    cluster.kubectl(&["-n", "weir-node", "rollout", "status", "daemonset/weir-agent", "--timeout=180s"], "").unwrap();
}

#[test]
fn replicas_of_the_webhook_are_on_different_nodes() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let path = "jsonpath={range .items[*]}{.spec.nodeName}{'\\n'}{end}";
    let label = "app.kubernetes.io/name=weir-webhook";
    let nodes = cluster.kubectl(&["-n", "weir-system", "get", "pods", "-l", label, "-o", path], "").unwrap();
    let different: HashSet<&str> = nodes.lines().collect();
    assert!(different.len() > 1, "{nodes}");
}

#[test]
fn agent_away_and_back() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "agent-away");
    let traffic = Traffic::start(&mesh);
    // A selector that no node has: the agents end.
    let selector = |value: &str| {
        format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"weir-test/away":{value}}}}}}}}}}}"#)
    };
    let patch = |value: &str| {
        cluster
            .kubectl(&["-n", "weir-node", "patch", "daemonset/weir-agent", "--type=merge", "-p", &selector(value)], "")
            .unwrap();
    };
    patch("\"yes\"");
    let started = Instant::now();
    loop {
        let pods = cluster.kubectl(&["-n", "weir-node", "get", "pods", "-o", "name"], "").unwrap();
        if pods.trim().is_empty() {
            break;
        }
        assert!(started.elapsed() < Duration::from_mins(2), "agents do not end: {pods}");
        thread::sleep(Duration::from_millis(500));
    }
    assert_new_pods_are_meshed(&mesh, "without-agent");
    patch("null");
    wait_for_agents(cluster);
    assert_new_pods_are_meshed(&mesh, "with-agent");
    traffic.assert_unharmed();
}

#[test]
fn kubelets_and_runtimes_are_killed() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "kill");
    let traffic = Traffic::start(&mesh);
    for node in NODES {
        for process in [node.runtime.daemon(), "kubelet"] {
            cluster.node(node).kill(process).unwrap();
            thread::sleep(Duration::from_secs(1));
        }
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"], "").unwrap();
    assert_new_pods_are_meshed(&mesh, "after-kill");
    traffic.assert_unharmed();
}

#[test]
fn webhook_replica_is_killed_while_pods_are_created() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "webhook-killed");
    let traffic = Traffic::start(&mesh);
    let pods = cluster.kubectl(&["-n", "weir-system", "get", "pods", "-o", "name"], "").unwrap();
    let victim = pods.lines().next().unwrap();
    cluster.kubectl(&["-n", "weir-system", "delete", victim, "--grace-period=0", "--force"], "").unwrap();
    mesh.kubectl(&["scale", "deployment/web-v1", "--replicas=6"]);
    mesh.wait_for_rollouts();
    let containers = mesh.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={range .items[*]}{.spec.initContainers[*].name}{'\\n'}{end}",
    ]);
    assert!(containers.lines().all(|names| names.contains("istio-proxy")), "{containers}");
    traffic.assert_unharmed();
    cluster
        .kubectl(&["-n", "weir-system", "rollout", "status", "deployment/weir-webhook", "--timeout=120s"], "")
        .unwrap();
}

#[test]
fn node_comes_back_after_a_power_cut() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "power-cut");
    let node = NODES[1];
    cluster.node(node).power_off().unwrap();
    thread::sleep(Duration::from_secs(5));
    cluster.power_on(node).unwrap();
    cluster.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s"], "").unwrap();
    wait_for_agents(cluster);
    let name = format!("on-{}", node.name());
    mesh.apply(&client(&name, "").replace(
        "      terminationGracePeriodSeconds",
        &format!("      nodeName: {}\n      terminationGracePeriodSeconds", node.name()),
    ));
    mesh.wait_for_rollouts();
    mesh.wait_for(
        &format!("deploy/{name}"),
        &["http://web/headers"],
        "a pod of the node is in the mesh",
        is_from_the_mesh,
    );
}

/// Collects the images of all pods of Weir, until it is done.
fn watch_images(cluster: &Cluster, is_done: &AtomicBool) -> HashSet<String> {
    let path = "jsonpath={.items[*].spec['initContainers','containers'][*].image}";
    let mut all = HashSet::new();
    while !is_done.load(Ordering::Relaxed) {
        for namespace in ["weir-system", "weir-node"] {
            let images = cluster.kubectl(&["-n", namespace, "get", "pods", "-o", path], "").unwrap();
            all.extend(images.split_whitespace().map(str::to_owned));
        }
        thread::sleep(Duration::from_millis(200));
    }
    all
}

#[test]
fn uninstall_with_running_pods_and_reinstall() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "reinstall");
    let traffic = Traffic::start(&mesh);
    let is_done = AtomicBool::new(false);
    let (uninstalled, images) = thread::scope(|scope| {
        let images = scope.spawn(|| watch_images(cluster, &is_done));
        let uninstalled = weir(cluster, &["uninstall", "-y", "--purge", "--timeout", "120s"]);
        is_done.store(true, Ordering::Relaxed);
        (uninstalled, images.join().unwrap())
    });
    let sockets = NODES.map(|node| cluster.node(node).run(&["sh", "-c", "ls -A /run/weir || true"], ""));
    let restored = install(cluster);
    let daemon_sets = cluster.kubectl(&["-n", "weir-node", "get", "daemonsets", "-o", "name"], "").unwrap();
    // Whatever the outcome, the other tests need the plugin.
    cluster.kubectl(&["-n", "weir-node", "delete", "daemonset", "weir-uninstall", "--ignore-not-found"], "").unwrap();
    assert_new_pods_are_meshed(&mesh, "reinstalled");
    traffic.assert_unharmed();
    restored.unwrap();
    uninstalled.unwrap();
    assert_eq!(daemon_sets.trim(), "daemonset.apps/weir-agent", "nothing of the removal is left beside the agent");
    assert!(images.len() > 1 && images.iter().all(|image| image.starts_with("localhost/weir-")), "{images:?}");
    for (node, left) in NODES.into_iter().zip(sockets) {
        assert_eq!(left.unwrap().trim(), "", "files in /run/weir of {}", node.name());
    }
}
