//! One pod through the webhook, in process: bytes of the review parsed, decided, injected, patched, bytes of the answer written.
//! The cost has to grow with the pod, not with its square.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};
use weir_webhook::inject::inject;
use weir_webhook::server::review::answer;
use weir_webhook::settings::Settings;

/// A review of a pod with so many containers, each with so many variables.
fn review(containers: usize, env: usize) -> Vec<u8> {
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
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "web-6d4b75cb6d-", "namespace": "shop", "labels": { "app": "web", "version": "v1", "pod-template-hash": "6d4b75cb6d" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4b75cb6d", "uid": "5e2e", "controller": true }],
        },
        "spec": {
            "containers": containers, "serviceAccountName": "web", "restartPolicy": "Always",
            "volumes": [{ "name": "kube-api-access-x7k2p", "projected": { "defaultMode": 420, "sources": [{ "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } }] } }],
        },
    });
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

#[expect(clippy::expect_used, reason = "a bench without settings has nothing to measure")]
fn reviews(criterion: &mut Criterion) {
    let settings = Settings::from_documents(None, None).expect("the built-in settings are sound");
    let mut group = criterion.benchmark_group("review to response");
    for (containers, env) in [(1, 10), (10, 10), (50, 10), (1, 200), (1, 2000)] {
        let body = review(containers, env);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(
            BenchmarkId::from_parameter(format!("{containers} containers, {env} env each")),
            &body,
            |bencher, body| {
                bencher.iter(|| {
                    let answer = answer(black_box(body), BTreeMap::new(), &settings, inject);
                    assert_eq!(answer.status, 200);
                    black_box(answer.reply.to_json())
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, reviews);
criterion_main!(benches);
