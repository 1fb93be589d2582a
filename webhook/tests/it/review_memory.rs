//! The memory of one review, measured: what `JsonSize` estimates is enough for every shape of pod, and it is a small multiple of the body.

use std::collections::BTreeMap;

use allocation_counter::measure;
use serde_json::{Map, Value, json};
use weir_injector::settings::Settings;
use weir_injector::{InjectOutcome, InjectRequest, inject};
use weir_webhook::server::json_size::JsonSize;
use weir_webhook::server::review::handle;

fn settings() -> Settings {
    Settings::from_values_and_mesh(Some(&json!({"pilot": {"cni": {"enabled": true}}})), None).unwrap()
}

fn review(pod: &Value) -> Vec<u8> {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "uid-1", "operation": "CREATE", "namespace": "shop", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": pod},
    })
    .to_string()
    .into_bytes()
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "web", "annotations": {}, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]},
    })
}

fn with(pointer: &str, key: &str, value: Value) -> Value {
    let mut pod = pod();
    pod.pointer_mut(pointer).unwrap()[key] = value;
    pod
}

fn many(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

fn map(count: usize) -> Value {
    Value::Object((0..count).map(|n| (format!("k{n}"), "v".into())).collect::<Map<_, _>>())
}

/// Turns every list around, as another webhook might.
fn reversed(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().rev().map(reversed).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, reversed(value))).collect(),
        other => other,
    }
}

/// Pods that take most: of many small values, of long ones, and of what is written more than once.
fn hostile_pods() -> Vec<(&'static str, Value)> {
    const APP: &str = "/spec/containers/0";
    let named = |n: usize| format!("V{n}");
    let deep = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!({ "a": [inner] }));
    let variable = |n: usize| json!({"name": named(n), "value": "x"});
    let long = "x".repeat(2 << 20);
    let quotes = "\"\n".repeat(1 << 20);
    let small_containers = |n: usize| {
        many(n, |n| {
            json!({"name": named(n), "image": "i", "env": many(20, variable), "ports": [{"name": "http", "containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": "http"}}, "resources": {"limits": {"cpu": "1"}}})
        })
    };
    let with_proxy = |field: &str, value: Value| {
        let mut pod = pod();
        let proxy = json!({"name": "istio-proxy", "image": "auto", field: value});
        pod["spec"]["containers"].as_array_mut().unwrap().push(proxy);
        pod
    };
    // About 200 KiB of JSON in an annotation.
    let small_maps = |count: usize| many(count, |_| json!({"a": 1})).to_string();
    let annotated = |entries: Value| with("/metadata", "annotations", entries);
    let overrides = |x: Value| json!({"containers": [{"name": "istio-proxy", "image": "auto", "x": x}]}).to_string();
    let text = |count: usize| serde_json::from_str::<Value>(&small_maps(count)).unwrap();
    vec![
        ("overrides", annotated(json!({"proxy.istio.io/overrides": overrides(text(4900))}))),
        ("overrides of many values", annotated(json!({"proxy.istio.io/overrides": overrides(text(25_000))}))),
        (
            "records",
            annotated(
                json!({"sidecar.istio.io/status": r#"{"initContainers":["istio-proxy"]}"#, "proxy.istio.io/overrides": overrides(text(4900)),
                "weir.dev/original": json!({"v": 1, ".spec": {"+": {"x": text(4900)}}}).to_string()}),
            ),
        ),
        ("proxy config", annotated(json!({"proxy.istio.io/config": format!("{{a: {}}}", small_maps(4900))}))),
        (
            "user volumes",
            annotated(
                json!({"sidecar.istio.io/userVolume": map(3000).to_string().replace("\"v\"", r#"{"emptyDir":{}}"#)}),
            ),
        ),
        ("networks", annotated(json!({"k8s.v1.cni.cncf.io/networks": small_maps(4900)}))),
        ("scrape targets", annotated(json!({"prometheus.istio.io/scrape-targets": "1,".repeat(50_000) + "1"}))),
        (
            "recorded probes",
            with_proxy("env", json!([{"name": "ISTIO_KUBE_APP_PROBERS", "value": small_maps(19_000)}])),
        ),
        ("variables", with(APP, "env", many(10_000, variable))),
        (
            "variables of 250 bytes",
            with(APP, "env", many(10_000, |n| json!({"name": named(n), "value": "x".repeat(250)}))),
        ),
        (
            "references",
            with(APP, "env", many(9000, |n| json!({"name": named(n), "valueFrom": {"fieldRef": {"fieldPath": "a"}}}))),
        ),
        ("variables of the proxy", with_proxy("env", many(10_000, variable))),
        ("long variables", with(APP, "env", many(10, |n| json!({"name": named(n), "value": "x".repeat(280 << 10)})))),
        (
            "long variables of the proxy",
            with_proxy("env", many(10, |n| json!({"name": named(n), "value": "x".repeat(280 << 10)}))),
        ),
        ("a long image", with(APP, "image", long.as_str().into())),
        ("quotes", with(APP, "image", quotes.as_str().into())),
        ("quotes of the proxy", with_proxy("workingDir", quotes.as_str().into())),
        (
            "many long items",
            with("/spec", "tolerations", many(1000, |n| json!({"key": format!("{n}{}", "x".repeat(2000))}))),
        ),
        ("small containers", with("/spec", "containers", small_containers(300))),
        ("small init containers", with("/spec", "initContainers", small_containers(300))),
        ("empty containers", with("/spec", "containers", many(1000, |n| json!({"name": named(n)})))),
        ("ports", with(APP, "ports", many(9000, |n| json!({"containerPort": n + 1})))),
        ("volumes", with("/spec", "volumes", many(5000, |n| json!({"name": named(n), "emptyDir": {}})))),
        ("mounts", with(APP, "volumeMounts", many(9000, |n| json!({"name": "v", "mountPath": named(n)})))),
        ("small maps", with("/spec", "x", many(9000, |_| json!({"a": 1})))),
        ("small maps in lists", with("/spec", "x", many(900, |_| many(20, |_| json!({"a": 1}))))),
        ("small lists", with("/spec", "x", many(9000, |_| json!([1])))),
        ("empty maps", with("/spec", "x", many(900, |_| many(50, |_| json!({}))))),
        ("numbers", with("/spec", "x", many(900, |_| many(50, |_| json!(1))))),
        ("strings", with("/spec", "x", many(900, |_| many(50, |_| json!(""))))),
        ("nested values", with("/spec", "x", many(400, |_| deep(55)))),
        ("labels", with("/metadata", "labels", map(4900))),
        ("annotations", with("/metadata", "annotations", map(4900))),
        ("fields", with("/spec", "nodeSelector", map(9900))),
    ]
}

#[test]
fn estimate_is_enough_for_every_review() {
    let settings = settings();
    let mut findings = Vec::new();
    let mut check = |what: &str, pod: &Value| {
        let body = review(pod);
        let mut allowed = false;
        let used = measure(|| {
            let result = handle(&body, BTreeMap::new(), &settings, inject);
            let text = result.response.to_json();
            allowed = text.windows(14).any(|part| part == br#""allowed":true"#);
        });
        let (estimate, bytes) = (JsonSize::scan(&body).memory(), body.len());
        let peak = usize::try_from(used.bytes_max).unwrap() + bytes;
        println!(
            "{what}: {} KiB, peak {} KiB (x{}), estimate {} KiB{}",
            bytes >> 10,
            peak >> 10,
            peak / bytes,
            estimate >> 10,
            if allowed { "" } else { ", denied" }
        );
        if peak > estimate {
            findings.push(format!("{what}: {peak} bytes for {bytes}, estimated {estimate}"));
        }
    };
    for (what, pod) in hostile_pods() {
        check(what, &pod);
        let request = InjectRequest { pod, ..InjectRequest::default() };
        let Ok(InjectOutcome::Injected { pod, .. }) = inject(&request, &settings) else { continue };
        check(&format!("{what}, again"), &pod);
        check(&format!("{what}, again and turned around"), &reversed(pod));
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
