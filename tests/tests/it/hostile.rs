//! A hostile tenant against the binaries: forged records, huge reviews, requests that never end, idle connections, sandboxes with hostile
//! annotations, a full table and the largest pods, all at once. Meanwhile honest reviews succeed, probes are answered, honest pods start
//! with their rules and keep them, and memory stays below the limits of the manifests.
//!
//! ```text
//! weir-attacker ── a quarter of two processors ──▶ weir-webhook (256 MiB) ◀── honest reviews, probes
//!        └───────── hostile ADDs, idle connections ──▶ node.rs: weir-agent (128 MiB), weir-cni ◀── honest ADDs, drift
//! ```
//!
//! `WEIR_HOSTILE_SECONDS` makes it longer (15 s), and its goals strict: without it, times are only bounded generously.

mod node;
mod tally;

use std::fs;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;
use weir_tests::cgroup::Cgroup;
use weir_tests::review_client::{ReviewTarget, probe};

use node::Node;
use tally::{Tally, send_honest_reviews, send_probes};

/// Memory limit of the webhook's manifests.
const MEMORY_LIMIT: u64 = 256 << 20;
/// Processor time of the attack, in percent of one processor: a quarter of two.
const ATTACK_PERCENT: u64 = 50;
/// Honest pods on the node at the same time.
const PODS: usize = 20;

struct Webhook {
    child: Child,
    https: SocketAddr,
    http: SocketAddr,
    ca: PathBuf,
    _memory: Option<Cgroup>,
    _dir: tempfile::TempDir,
}

fn free_addr() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Moves a process into a control group. Where there are none, only the measured peak is compared with the limit.
fn confined(group: io::Result<Cgroup>, pid: u32) -> Option<Cgroup> {
    let confined = group.and_then(|group| group.add(pid).map(|()| group));
    if let Err(error) = &confined {
        weir_lab::skip_or_fail(format_args!("process {pid} cannot be limited: {error}"));
    }
    confined.ok()
}

fn is_strict() -> bool {
    std::env::var_os("WEIR_HOSTILE_SECONDS").is_some()
}

impl Webhook {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (https, http, ca) = (free_addr(), free_addr(), dir.path().join("ca.pem"));
        let child = Command::new(weir_tests::bin("weir-webhook"))
            .args(["--https-addr", &https.to_string(), "--http-addr", &http.to_string(), "--log-level", "error"])
            .arg("--ca-out")
            .arg(&ca)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let memory = confined(Cgroup::with_memory(MEMORY_LIMIT), child.id());
        let begun = Instant::now();
        while probe(http).await.is_none() {
            assert!(begun.elapsed() < weir_tests::TIMEOUT, "the webhook does not start");
            sleep(Duration::from_millis(20)).await;
        }
        Self { child, https, http, ca, _memory: memory, _dir: dir }
    }

    fn target(&self) -> ReviewTarget {
        ReviewTarget::new(self.https, &self.ca).unwrap()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// The attacker's process and its processor time.
struct Attacker {
    child: Child,
    _processor: Option<Cgroup>,
}

impl Attacker {
    fn start(webhook: &Webhook, node: Option<&Node>) -> Self {
        let mut idle = vec![webhook.http, webhook.https];
        idle.extend(node.iter().flat_map(|node| [node.health, node.monitoring]));
        let args = json!({
            "https": webhook.https, "ca": webhook.ca, "idle": idle, "plugin": weir_tests::bin("weir-cni"),
            "netns": node.map(Node::hostile_netns),
        });
        let child = Command::new(env!("CARGO_BIN_EXE_weir-attacker"))
            .arg(args.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let processor = confined(Cgroup::with_processor(ATTACK_PERCENT), child.id());
        Self { child, _processor: processor }
    }

    /// Ends the attack; returns how many reviews and ADDs were answered.
    fn stop(mut self) -> Value {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.child.wait().unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// Returns the highest resident memory of a process so far, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "nginx", "ports": [{"containerPort": 80}]}]},
    })
}

/// Starts and ends honest pods, lets rules drift and changes large pods, until `done`; returns the times of ADDs and of restores.
fn work_on_node(node: &mut Node, done: &AtomicBool) -> (Tally, Tally) {
    let (mut adds, mut restores) = (Tally::default(), Tally::default());
    let mut round = 0;
    while !done.load(Ordering::Relaxed) {
        adds.add(node.add_pod());
        node.delete_oldest(PODS);
        if round % 10 == 9 {
            node.change_large_pod(round / 10);
            restores.add(node.restore());
        }
        round += 1;
        std::thread::sleep(Duration::from_millis(250));
    }
    (adds, restores)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_work_succeeds_during_an_attack() {
    let seconds = std::env::var("WEIR_HOSTILE_SECONDS").map_or(15, |text| text.parse().expect("a number of seconds"));
    let mut webhook = Webhook::start().await;
    let mut node = weir_lab::privilege::available_or_skip().then(Node::start);
    let attacker = Attacker::start(&webhook, node.as_ref());
    let done = Arc::new(AtomicBool::new(false));
    sleep(Duration::from_secs(1)).await;

    let honest: Vec<_> =
        (0..2).map(|_| tokio::spawn(send_honest_reviews(webhook.target(), Arc::clone(&done)))).collect();
    let mut health_ports = vec![webhook.http];
    health_ports.extend(node.as_ref().map(|node| node.health));
    let probes: Vec<_> =
        health_ports.into_iter().map(|addr| tokio::spawn(send_probes(addr, Arc::clone(&done)))).collect();
    let stop = Arc::clone(&done);
    let on_node = std::thread::spawn(move || {
        let times = node.as_mut().map(|node| work_on_node(node, &stop));
        (node, times)
    });
    sleep(Duration::from_secs(seconds)).await;
    done.store(true, Ordering::Relaxed);
    let reviews = Tally::join(honest).await;
    let probes = Tally::join(probes).await;
    let (node, times) = tokio::task::spawn_blocking(|| on_node.join().unwrap()).await.unwrap();
    let hostile = attacker.stop();

    let memory = peak_memory(webhook.child.id());
    println!("{seconds} s; hostile ones answered: {hostile}; peak memory of the webhook {} MiB", memory >> 20);
    println!("reviews: {reviews}\nprobes: {probes}");
    reviews.assert_all_succeeded("reviews");
    probes.assert_no_restart();
    assert!(memory < MEMORY_LIMIT, "{memory} bytes");
    assert!(webhook.child.try_wait().unwrap().is_none(), "the webhook has exited");
    if is_strict() {
        reviews.assert_below("99 % of the reviews", 990, Duration::from_millis(100));
    }
    let (Some(mut node), Some((adds, restores))) = (node, times) else { return };
    println!("ADDs: {adds}\nrestores: {restores}\npeak memory of the agent {} MiB", node.peak_memory() >> 20);
    adds.assert_all_succeeded("ADDs");
    if is_strict() {
        adds.assert_below("every ADD", 1000, Duration::from_millis(50));
        restores.assert_all_succeeded("restores");
    }
    assert_eq!(node.pods_without_rules(), Vec::<usize>::new());
    assert!(node.is_running(), "the agent has exited");
}

/// A pod of about 1.5 MB, the largest request to etcd: of many small fields, or of one long one.
fn largest_pod(name: &str, many_fields: bool) -> Value {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = "node-1".into();
    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/status": "{}"});
    let env: Vec<_> = if many_fields {
        (0..100_000).map(|number| json!({"name": format!("V{number}")})).collect()
    } else {
        vec![json!({"name": "LARGE", "value": "x".repeat(1_500_000)})]
    };
    pod["spec"]["containers"] = json!([{"name": "istio-proxy", "env": env}]);
    pod
}

#[test]
fn agent_lists_a_node_of_the_largest_pods() {
    let (api, dir) = (weir_apiserver::ApiServer::start().unwrap(), tempfile::tempdir().unwrap());
    for number in 0..12 {
        api.put("pods", largest_pod(&format!("p{number:03}"), number % 10 == 0));
    }
    let path = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path.display().to_string()
    };
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let (conf, bin, log) = (path("conf"), path("bin"), fs::File::create(dir.path().join("log")).unwrap());
    let mut agent = Command::new(weir_tests::bin("weir-agent"))
        .env("KUBECONFIG", api.kubeconfig(dir.path()).unwrap())
        .env("NODE_NAME", "node-1")
        .args(["run", "--host-root=/", "--monitoring-port=0", "--repair-enabled=false", "--host-proc-dir=/proc"])
        .arg(format!("--health-port={port}"))
        .args([format!("--mounted-cni-net-dir={conf}"), format!("--cni-net-dir={conf}")])
        .args([format!("--mounted-cni-bin-dir={bin}"), format!("--cni-bin-dir={bin}")])
        .arg(format!("--plugin-source={}", weir_tests::bin("weir-cni").display()))
        .arg(format!("--cni-agent-run-dir={}", path("run")))
        .arg(format!("--netns-dirs={}", path("netns")))
        .stderr(log.try_clone().unwrap())
        .stdout(log)
        .spawn()
        .unwrap();
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let text = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    // A debug build reads 165 MB in a minute on a busy machine.
    let begun = Instant::now();
    let is_synced = || weir_lab::http::get(addr, "/readyz").is_ok_and(|response| response.body.contains("[+]pods:"));
    let mut synced = false;
    while !synced && begun.elapsed() < 4 * weir_tests::TIMEOUT && agent.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(200));
        synced = is_synced();
    }
    let peak = if synced { peak_memory(agent.id()) } else { 0 };
    let _ = agent.kill().and_then(|()| agent.wait());
    assert!(synced, "the agent does not know its pods: {}", text());
    println!("peak memory of the agent with 12 pods of 1.5 MB: {} MiB", peak >> 20);
    assert!(peak < 128 << 20, "{peak} bytes");
}
