//! The measured cases: reviews of pods of every kind and size.

use std::collections::BTreeMap;
use std::hint::black_box;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, Settings};
use weir_injector::{InjectOutcome, InjectRequest, inject};
use weir_webhook::server::review::handle;

/// Numbers of containers, and of variables in each.
const SIZES: [(usize, usize); 6] = [(1, 0), (1, 10), (10, 10), (50, 10), (1, 2000), (50, 40)];

/// Name, templates, native sidecars, and whether the pod was injected before.
const KINDS: [(&str, &str, NativeSidecars, bool); 7] = [
    ("sidecar", "sidecar", NativeSidecars::On, false),
    ("sidecar, ordinary", "sidecar", NativeSidecars::Off, false),
    ("sidecar, again", "sidecar", NativeSidecars::On, true),
    ("gateway", "gateway", NativeSidecars::On, false),
    ("grpc-agent", "grpc-agent", NativeSidecars::On, false),
    ("grpc-agent, again", "grpc-agent", NativeSidecars::On, true),
    ("grpc-simple", "grpc-simple", NativeSidecars::On, false),
];

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
        InjectOutcome::Injected { pod, .. } => Ok(pod),
        InjectOutcome::Skipped { reason, .. } => anyhow::bail!("skipped: {reason:?}"),
    }
}

/// One review with its settings.
pub(crate) struct Case {
    body: Vec<u8>,
    settings: Settings,
    /// The first columns of a table.
    pub(crate) label: String,
}

impl Case {
    /// Handles the review; returns the bytes of the response.
    pub(crate) fn run(&self) -> Vec<u8> {
        handle(black_box(&self.body), BTreeMap::new(), &self.settings, inject).response.to_json()
    }
}

/// Calls `measure` for each case with this name, or for all without one, after checking that its pod is injected. A case is named
/// like the first columns of its row: `sidecar, again 10 10`.
pub(crate) fn each(only: Option<&str>, mut measure: impl FnMut(&Case)) -> anyhow::Result<()> {
    for (name, template, native, again) in KINDS {
        for (containers, env) in SIZES {
            if only.is_some_and(|only| only != format!("{name} {containers} {env}")) {
                continue;
            }
            let mut settings =
                Settings::from_values_and_mesh(None, None).ok().context("the built-in settings are valid")?;
            settings.native_sidecars = native;
            let mut pod = pod(template, containers, env);
            if again {
                pod = injected(pod, &settings)?;
            }
            let body = review(&pod);
            let first = handle(&body, BTreeMap::new(), &settings, inject);
            ensure!(first.status == 200 && first.outcome.name() == "injected", "{name}: {:?}", first.response);
            let label = format!("| {name} | {containers} | {env} | {} |", body.len() / 1024);
            measure(&Case { body, settings, label });
        }
    }
    Ok(())
}
