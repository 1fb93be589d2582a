//! The webhook as processes, called over TLS by several clients at once: throughput, latency, CPU time and memory of one replica, two
//! replicas, and one that watches a large cluster; the time until ready; the cost of another revision. The last table is the arithmetic
//! of docs/capacity.md with the figures of this run.
//!
//! The clients run on the same processors and parse responses as an API server does, so the webhook could do more than is shown; its own
//! CPU time per review says how much. `make bench` builds the binary.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_benches::{Samples, binary};
use weir_lab::webhook::{Client, Webhook, admission_review};

const CLIENTS: usize = 8;
const REVIEWS: usize = 2_000;
/// The cluster that is watched.
const NODES: usize = 5_000;
const NAMESPACES: usize = 2_000;
/// The cluster of docs/capacity.md.
const PODS: f64 = 150_000.0;
/// `_SC_CLK_TCK` of Linux on every platform that Rust has.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() -> anyhow::Result<()> {
    // `cargo test` runs benches with --test. Without the binary there is nothing to check.
    if std::env::args().any(|arg| arg == "--test") {
        return Ok(());
    }
    let binary = binary("WEIR_WEBHOOK")?;
    let quiet = ["--log-level", "warn"];
    let review = review();

    println!("\n{} reviews over TLS, {CLIENTS} connections, clients on the same processors\n", CLIENTS * REVIEWS);
    println!(
        "| | reviews/s | p50 us | p99 us | p99.9 us | processor us per review | resident before, after, peak MiB |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let alone = Replicas::start(&binary, 1, &quiet)?;
    let (load, _) = alone.measure("one replica", &review)?;
    drop(alone);
    Replicas::start(&binary, 2, &quiet)?.measure("two replicas", &review)?;

    let dir = tempfile::tempdir()?;
    let cluster = large_cluster()?;
    let kubeconfig = cluster.kubeconfig(dir.path())?;
    let kubeconfig = kubeconfig.to_str().context("the path is not UTF-8")?;
    let watching = [
        "--log-level",
        "warn",
        "--kubeconfig",
        kubeconfig,
        "--namespace",
        "weir-system",
        "--injector-config-map",
        "weir-webhook",
        "--watch",
        "proxyconfigs,nodes,namespaces",
    ];
    let watcher = Replicas::start(&binary, 1, &watching)?;
    let name = format!("one replica that follows {NODES} nodes, {NAMESPACES} namespaces");
    let (_, resident) = watcher.measure(&name, &review)?;
    let heartbeats = heartbeats(&cluster, &watcher)?;

    println!("\n| from start to ready | ms |\n|---|---:|");
    for (name, flags) in [("built-in settings", &quiet[..]), ("following that cluster", &watching[..])] {
        let started = Instant::now();
        let ready = Replicas::start(&binary, 1, flags)?;
        println!("| {name} | {} |", started.elapsed().as_millis());
        drop(ready);
    }
    let revision = Replicas::start(&binary, 1, &[&quiet[..], &["--revision", "canary"]].concat())?;
    let idle = revision.pods[0].memory("VmRSS")?;
    println!("\nOne more revision without reviews: {idle:.1} MiB resident for each replica.");
    println!(
        "{NODES} heartbeats of nodes, as they come in five minutes: {:.0} ms of processor time.",
        heartbeats.as_secs_f64() * 1e3
    );

    println!("\n| {PODS:.0} pods recreated | |\n|---|---:|");
    println!("| processor time of the webhook | {:.0} s |", load.cpu_us * PODS / 1e6);
    println!("| with one processor | {:.0} s, {:.0} reviews/s |", load.cpu_us * PODS / 1e6, 1e6 / load.cpu_us);
    println!("| from the API server | {:.0} MB of reviews |", load.review_bytes * PODS / 1e6);
    println!("| to the API server | {:.0} MB of answers |", load.response_bytes * PODS / 1e6);
    println!("| resident, following the cluster | {resident:.1} MiB |");
    Ok(())
}

/// Returns the review of a pod of a Deployment.
fn review() -> Value {
    let env: Vec<_> =
        (0..10).map(|n| json!({ "name": format!("SETTING_{n}"), "value": format!("value {n}") })).collect();
    admission_review(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "web-6d4b75cb6d-", "namespace": "shop", "labels": { "app": "web", "version": "v1" } },
        "spec": { "containers": [{ "name": "web", "image": "shop/web:1", "env": env, "ports": [{ "containerPort": 8080 }] }] },
    }))
}

/// The cost of one review.
struct Load {
    /// CPU time of the webhook, in microseconds.
    cpu_us: f64,
    /// Bytes of the review.
    review_bytes: f64,
    /// Bytes of the response.
    response_bytes: f64,
}

/// Running webhooks.
struct Replicas {
    pods: Vec<Pod>,
}

struct Pod {
    webhook: Webhook,
    dir: tempfile::TempDir,
}

impl Replicas {
    fn start(binary: &Path, count: usize, flags: &[&str]) -> anyhow::Result<Self> {
        let start = |_| {
            let dir = tempfile::tempdir()?;
            Ok(Pod { webhook: Webhook::start(binary, dir.path(), flags)?, dir })
        };
        Ok(Self { pods: (0..count).map(start).collect::<anyhow::Result<_>>()? })
    }

    /// Sends reviews to all replicas, prints a line, and returns the cost of one review and the resident memory of one replica, in MiB.
    fn measure(&self, name: &str, review: &Value) -> anyhow::Result<(Load, f64)> {
        let before = self.pods[0].memory("VmRSS")?;
        let cpu = self.cpu()?;
        let started = Instant::now();
        let clients = std::thread::scope(|scope| -> anyhow::Result<Vec<Samples>> {
            let threads: Vec<_> = (0..CLIENTS)
                .map(|n| scope.spawn(move || self.pods[n % self.pods.len()].send_reviews(review)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client panicked"))))
                .collect()
        })?;
        let took = started.elapsed();
        let cpu = self.cpu()?.saturating_sub(cpu);
        let samples: Samples = clients.into_iter().collect();
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let total = (CLIENTS * REVIEWS) as f64;
        let [p50, p99, p999] = [500, 990, 999].map(|permille| samples.permille_us(permille));
        let (after, peak) = (self.pods[0].memory("VmRSS")?, self.pods[0].memory("VmHWM")?);
        let cpu_us = cpu.as_secs_f64() * 1e6 / total;
        let rate = total / took.as_secs_f64();
        println!("| {name} | {rate:.0} | {p50} | {p99} | {p999} | {cpu_us:.0} | {before:.1}, {after:.1}, {peak:.1} |");
        let answer = self.pods[0].webhook.review(review)?;
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let [review_bytes, response_bytes] = [review.to_string(), answer.to_string()].map(|text| text.len() as f64);
        Ok((Load { cpu_us, review_bytes, response_bytes }, after))
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        self.pods.iter().map(Pod::cpu).sum()
    }
}

impl Pod {
    fn send_reviews(&self, review: &Value) -> anyhow::Result<Samples> {
        let client = Client::new(self.webhook.url(), &self.dir.path().join("webhook-ca.crt"))?;
        let mut samples = Samples::default();
        for _ in 0..REVIEWS {
            let sent = Instant::now();
            let answer = client.review(review)?;
            samples.push(sent.elapsed());
            ensure!(answer["response"]["patch"].is_string(), "response without a patch: {answer}");
        }
        Ok(samples)
    }

    /// Returns a field of `/proc/PID/status`, in MiB.
    fn memory(&self, name: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.webhook.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).with_context(|| format!("no {name}"))?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }

    /// Returns the CPU time so far, user and system.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.webhook.pid()))?;
        // The name of the program is in parentheses and may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
    }
}

fn node(number: usize, beat: usize) -> Value {
    let images: Vec<Value> = (0..40)
        .map(|n| json!({ "names": [format!("registry.example.org/team/image-{n}@sha256:{n:064}")], "sizeBytes": 1 << 28 }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node-{number}.example.internal"), "uid": format!("uid-{number}") },
        "status": { "nodeInfo": { "kubeletVersion": "v1.33.4" }, "images": images,
            "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": format!("2026-01-01T00:{beat:02}:00Z") }] },
    })
}

fn large_cluster() -> anyhow::Result<ApiServer> {
    let cluster = ApiServer::start()?;
    let values = json!({ "pilot": { "cni": { "enabled": true } } }).to_string();
    let metadata = json!({ "namespace": "weir-system", "name": "weir-webhook", "uid": "map" });
    cluster.put(
        "configmaps",
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "values": values } }),
    );
    for number in 0..NODES {
        cluster.put("nodes", node(number, 0));
    }
    for number in 0..NAMESPACES {
        let annotations = json!({ "openshift.io/sa.scc.uid-range": format!("{number}0000/10000") });
        let metadata =
            json!({ "name": format!("team-{number}"), "uid": format!("ns-{number}"), "annotations": annotations });
        cluster.put("namespaces", json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
    }
    Ok(cluster)
}

/// Returns the CPU time of the webhook for one heartbeat of each node.
fn heartbeats(cluster: &ApiServer, replicas: &Replicas) -> anyhow::Result<Duration> {
    let before = replicas.cpu()?;
    for number in 0..NODES {
        cluster.put("nodes", node(number, 1));
    }
    // Done when the webhook has used no CPU time for a second.
    let mut last = replicas.cpu()?;
    for _ in 0..100 {
        std::thread::sleep(Duration::from_secs(1));
        let now = replicas.cpu()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last.saturating_sub(before))
}
