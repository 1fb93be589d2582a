//! One pod through the webhook, in process: bytes of the review parsed, decided, injected, patched, bytes of the answer written.
//! The cost has to grow with the pod, not with its square. Times are the fastest tenth and the median of as many runs as fit
//! into half a second; allocations are those of one run.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use weir_benches::Samples;
use weir_webhook::inject::{InjectRequest, Outcome, inject};
use weir_webhook::server::review::answer;
use weir_webhook::settings::{NativeSidecars, Settings};

/// Containers, and variables of each.
const SIZES: [(usize, usize); 6] = [(1, 0), (1, 10), (10, 10), (50, 10), (1, 2000), (50, 40)];
const TIME: Duration = Duration::from_millis(500);

/// What is measured: a name, the templates that the pod asks for, and whether it was injected before.
const KINDS: [(&str, &str, NativeSidecars, bool); 7] = [
    ("sidecar", "sidecar", NativeSidecars::On, false),
    ("sidecar, ordinary", "sidecar", NativeSidecars::Off, false),
    ("sidecar, again", "sidecar", NativeSidecars::On, true),
    ("gateway", "gateway", NativeSidecars::On, false),
    ("grpc-agent", "grpc-agent", NativeSidecars::On, false),
    ("grpc-agent, again", "grpc-agent", NativeSidecars::On, true),
    ("grpc-simple", "grpc-simple", NativeSidecars::On, false),
];

/// A pod with so many containers, each with so many variables.
fn pod(template: &str, containers: usize, env: usize) -> Value {
    let env: Vec<Value> =
        (0..env).map(|n| json!({ "name": format!("SETTING_{n}"), "value": format!("value {n}") })).collect();
    let containers: Vec<Value> = (0..containers)
        .map(|n| {
            json!({
                "name": format!("app-{n}"), "image": "shop/web:1.4.2", "env": env,
                "ports": [{ "name": format!("http-{n}"), "containerPort": 8080 + n }],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
                "readinessProbe": { "httpGet": { "path": "/ready", "port": 8080 + n } },
                "volumeMounts": [{ "name": "kube-api-access-x7k2p", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }],
            })
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "web-6d4b75cb6d-", "namespace": "shop", "labels": { "app": "web", "version": "v1", "pod-template-hash": "6d4b75cb6d" },
            "annotations": { "inject.istio.io/templates": template },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4b75cb6d", "uid": "5e2e", "controller": true }],
        },
        "spec": {
            "containers": containers, "serviceAccountName": "web", "restartPolicy": "Always",
            "volumes": [{ "name": "kube-api-access-x7k2p", "projected": { "defaultMode": 420, "sources": [{ "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } }] } }],
        },
    })
}

fn review(pod: &Value) -> Vec<u8> {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "operation": "CREATE", "namespace": "shop",
            "kind": { "group": "", "version": "v1", "kind": "Pod" }, "resource": { "group": "", "version": "v1", "resource": "pods" },
            "object": pod, "oldObject": null, "dryRun": false,
        },
    })
    .to_string()
    .into_bytes()
}

fn injected(pod: Value, settings: &Settings) -> anyhow::Result<Value> {
    let request = InjectRequest { pod, namespace: Some("shop".to_owned()), ..InjectRequest::default() };
    match inject(&request, settings)? {
        Outcome::Injected { pod, .. } => Ok(pod),
        Outcome::Skipped { reason, .. } => anyhow::bail!("skipped: {reason:?}"),
    }
}

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "--test");
    println!(
        "\n| template | containers | variables each | review KiB | p10 us | median us | allocations | KiB at the peak |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for (name, template, native, again) in KINDS {
        let mut settings = Settings::from_documents(None, None).ok().context("the built-in settings are sound")?;
        settings.native_sidecars = native;
        for (containers, env) in SIZES {
            let mut pod = pod(template, containers, env);
            if again {
                pod = injected(pod, &settings)?;
            }
            let body = review(&pod);
            let run = || answer(black_box(&body), BTreeMap::new(), &settings, inject);
            let first = run();
            ensure!(first.status == 200, "{name}: {:?}", first.reply);
            ensure!(first.decision.name() == "injected", "{name}: {:?}", first.reply);
            let allocated = allocation_counter::measure(|| drop(black_box(run().reply.to_json())));
            let mut samples = Samples::default();
            let started = Instant::now();
            while started.elapsed() < TIME && !quick {
                let asked = Instant::now();
                drop(black_box(run().reply.to_json()));
                samples.push(asked.elapsed());
            }
            let (fast, median) = (samples.percentile_us(10), samples.percentile_us(50));
            let (kib, peak) = (body.len() / 1024, allocated.bytes_max / 1024);
            println!(
                "| {name} | {containers} | {env} | {kib} | {fast} | {median} | {} | {peak} |",
                allocated.count_total
            );
        }
    }
    Ok(())
}
