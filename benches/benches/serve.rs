//! The webhook as a process, asked over TLS by several clients at once: reviews per second, latency, memory.
//!
//! The clients run on the same processors, and each of them writes its review and parses the answer as an API server would, so the
//! server could do more than is shown here. `make bench` builds the binary it is given.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;
use weir_benches::Samples;
use weir_lab::webhook::{Client, Webhook, review_of};

const CLIENTS: usize = 8;
const REVIEWS: usize = 2_000;

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` starts benches with --test: nothing to check here without the binary.
    if std::env::args().any(|arg| arg == "--test") {
        return Ok(());
    }
    let binary = PathBuf::from(std::env::var_os("WEIR_WEBHOOK").context("WEIR_WEBHOOK is not set; run `make bench`")?);
    ensure!(binary.is_file(), "WEIR_WEBHOOK={}: no such file", binary.display());
    let dir = tempfile::tempdir()?;
    let webhook = Webhook::start(&binary, dir.path(), &["--log-level", "warn"])?;
    let env: Vec<_> =
        (0..10).map(|n| json!({ "name": format!("SETTING_{n}"), "value": format!("value {n}") })).collect();
    let review = review_of(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "web-6d4b75cb6d-", "namespace": "shop", "labels": { "app": "web", "version": "v1" } },
        "spec": { "containers": [{ "name": "web", "image": "shop/web:1", "env": env, "ports": [{ "containerPort": 8080 }] }] },
    }));

    let started = Instant::now();
    let clients = std::thread::scope(|scope| -> anyhow::Result<Vec<Samples>> {
        let ask = || -> anyhow::Result<Samples> {
            let client = Client::new(webhook.url(), &dir.path().join("webhook-ca.crt"))?;
            let mut samples = Samples::default();
            for _ in 0..REVIEWS {
                let asked = Instant::now();
                let answer = client.review(&review)?;
                samples.push(asked.elapsed());
                ensure!(answer["response"]["patch"].is_string(), "no patch: {answer}");
            }
            Ok(samples)
        };
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client panicked"))))
            .collect()
    })?;
    let took = started.elapsed();

    let samples: Samples = clients.into_iter().collect();
    let status = fs::read_to_string(format!("/proc/{}/status", webhook.pid()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?.trim();
    let total = CLIENTS * REVIEWS;
    println!("\n{total} reviews over TLS, {CLIENTS} connections, clients on the same processors\n");
    println!("| reviews/s | p50 us | p99 us | p99.9 us | peak resident |\n|---:|---:|---:|---:|---:|");
    #[allow(clippy::cast_precision_loss, reason = "some thousands")]
    let rate = total as f64 / took.as_secs_f64();
    let [p50, p99, p999] = [500, 990, 999].map(|permille| samples.permille_us(permille));
    println!("| {rate:.0} | {p50} | {p99} | {p999} | {peak} |");
    Ok(())
}
