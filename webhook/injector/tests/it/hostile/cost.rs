//! No pod takes more than its share: time and memory of reviews of hostile pods.

use std::time::{Duration, Instant};

use allocation_counter::measure;
use serde_json::{Map, Value, json};
use weir_injector::admission::Review;
use weir_injector::patch::{diff, to_json};
use weir_injector::settings::NativeSidecars;
use weir_injector::{InjectOutcome, InjectRequest, inject};

use super::{ORIGINAL, STATUS, injected, settings};

/// Time for one review in a debug build on a busy machine, ten times what it takes.
const TIME: Duration = Duration::from_secs(10);
/// Memory at the peak per byte of the review.
const MEMORY: u64 = 12;
/// Where decoding alone takes more (many small values): copies of the decoded pod. They are the review's, the result, the restored pod,
/// and its comparison with the result.
const COPIES: u64 = 5;
/// Memory that any review may take.
const FLOOR: u64 = 16 << 20;

/// Answers a review as the webhook does, and asserts that it is cheap; returns the patch, or the reason of the denial.
fn answer(what: &str, pod: &Value) -> Result<usize, String> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u", "kind": {"version": "v1", "kind": "Pod"}, "operation": "CREATE", "object": pod},
    });
    let body = review.to_string().into_bytes();
    let settings = settings(true, NativeSidecars::On);
    let mut result = Err(String::new());
    let mut object = 0;
    let decoded =
        measure(|| object = Review::decode(&body).map_or(0, |review| std::hint::black_box(review).request.uid.len()));
    assert_eq!(object, 1);
    let start = Instant::now();
    let used = measure(|| {
        let review = Review::decode(&body).unwrap();
        let request = InjectRequest { pod: review.request.object, ..InjectRequest::default() };
        result = match inject(&request, &settings) {
            Ok(InjectOutcome::Injected { pod, .. }) => Ok(to_json(&diff(&request.pod, &pod)).unwrap().len()),
            Ok(InjectOutcome::Skipped { reason, .. }) => Err(format!("skipped: {reason:?}")),
            Err(error) => Err(error.to_string()),
        };
    });
    let (took, bytes) = (start.elapsed(), body.len() as u64);
    let factor = |used: u64| used / bytes.max(1);
    eprintln!(
        "{what}: {} KiB, {took:?}, memory x{} (decoding x{}), {}",
        bytes / 1024,
        factor(used.bytes_max),
        factor(decoded.bytes_max),
        result.as_ref().map_or_else(|text| text.chars().take(100).collect(), |bytes| format!("patch of {bytes} bytes"))
    );
    assert!(took < TIME, "{what}: {took:?}");
    let limit = (MEMORY * bytes).max(decoded.bytes_max * COPIES) + FLOOR;
    assert!(used.bytes_max < limit, "{what}: {} bytes for {bytes}", used.bytes_max);
    result
}

fn plain() -> Value {
    json!({"metadata": {"name": "web", "annotations": {}, "labels": {}}, "spec": {"containers": [{"name": "app", "image": "a"}]}})
}

fn many(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

#[test]
fn many_names_in_the_status_are_refused() {
    let mut pod = plain();
    let status = json!({"containers": many(25_000, |i| format!("c{i}").into()), "volumes": many(500, |i| format!("v{i}").into())});
    pod["metadata"]["annotations"][STATUS] = status.to_string().into();
    let reason = answer("25,000 status names", &pod).unwrap_err();
    assert!(
        reason.starts_with("annotation 'sidecar.istio.io/status' has ") && reason.ends_with("the limit is 32768"),
        "{reason}"
    );
    // As many as are accepted, with containers to match.
    let names = |count: usize| many(count, |i| format!("c{i}").into());
    pod["metadata"]["annotations"][STATUS] = json!({"containers": names(3500)}).to_string().into();
    pod["spec"]["containers"] =
        many(900, |i| json!({"name": format!("c{i}"), "image": "i", "env": [{"name": "A", "value": "1"}]}));
    answer("3,500 status names", &pod).unwrap();
    pod["metadata"]["annotations"][STATUS] = json!({"containers": many(6000, |_| "a".into())}).to_string().into();
    answer("6,000 equal status names", &pod).unwrap();
}

#[test]
fn many_ports_are_cheap_or_refused() {
    let ports = |count: usize| many(count, |i| json!({"containerPort": i % 65535 + 1, "hostPort": i % 65535 + 1}));
    let of = |count: usize| {
        let mut pod = plain();
        pod["spec"]["containers"][0]["ports"] = ports(count / 2);
        let proxy = json!({"name": "istio-proxy", "image": "auto", "ports": ports(count / 2)});
        pod["spec"]["containers"].as_array_mut().unwrap().push(proxy);
        pod
    };
    assert_eq!(answer("38,000 host ports", &of(38_000)).unwrap_err(), "the pod has 38000 ports; the limit is 10000");
    let reason = answer("6,000 host ports", &of(6000)).unwrap_err();
    assert!(reason.contains("both request host port"), "{reason:.300}");
    assert!(reason.len() < 4 << 20);
}

#[test]
fn many_containers_are_cheap_or_refused() {
    let of = |count: usize| {
        let mut pod = plain();
        pod["spec"]["containers"] = many(count, |i| json!({"name": format!("c{i}"), "image": "i"}));
        pod
    };
    assert_eq!(
        answer("20,000 containers", &of(20_000)).unwrap_err(),
        "spec.containers has 20000 containers; the limit is 1000"
    );
    answer("1,000 containers", &of(1000)).unwrap();
    let mut proxies = of(0);
    proxies["spec"]["containers"] = many(1000, |_| json!({"name": "istio-proxy", "image": "i"}));
    answer("1,000 proxies", &proxies).unwrap_err();
}

#[test]
fn many_variables_are_cheap_or_refused() {
    for (what, distinct) in [("variables", true), ("equal variables", false)] {
        for name in ["app", "istio-proxy"] {
            let of = |count: usize| {
                let mut pod = plain();
                let env =
                    many(count, |i| json!({"name": if distinct { format!("V{i}") } else { "V".into() }, "value": "x"}));
                pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": name, "image": "i", "env": env}));
                if name == "app" {
                    pod["spec"]["containers"].as_array_mut().unwrap().swap_remove(0);
                }
                pod
            };
            assert_eq!(
                answer(&format!("50,000 {what} of {name}"), &of(50_000)).unwrap_err(),
                "the pod has 50000 environment variables; the limit is 10000"
            );
            let small = of(2000);
            answer(&format!("2,000 {what} of {name}"), &small).unwrap();
            let (again, _) = injected(&small, &settings(true, NativeSidecars::On));
            answer(&format!("2,000 {what} of {name}, again"), &again).unwrap();
            if name == "app" {
                answer(&format!("10,000 {what} of {name}"), &of(10_000)).unwrap();
            } else {
                let _ = answer(&format!("10,000 {what} of {name}"), &of(10_000));
            }
        }
    }
}

#[test]
fn many_volumes_and_mounts_are_cheap_or_refused() {
    let of = |count: usize| {
        let mut pod = plain();
        pod["spec"]["volumes"] = many(count, |i| json!({"name": format!("v{i}"), "emptyDir": {}}));
        pod["spec"]["containers"][0]["volumeMounts"] =
            many(count, |i| json!({"name": format!("v{i}"), "mountPath": format!("/v{i}")}));
        pod
    };
    let reason = answer("50,000 volumes and mounts", &of(50_000)).unwrap_err();
    assert!(reason.contains("spec.volumes has 50000 volumes; the limit is 5000"), "{reason}");
    assert!(reason.contains("the pod has 50000 volume mounts; the limit is 10000"), "{reason}");
    answer("5,000 volumes and mounts", &of(5000)).unwrap();
}

#[test]
fn many_labels_and_annotations_are_cheap_or_refused() {
    let map = |count: usize| Value::Object((0..count).map(|i| (format!("k{i}"), "v".into())).collect::<Map<_, _>>());
    for field in ["labels", "annotations"] {
        let mut pod = plain();
        pod["metadata"][field] = map(100_000);
        let reason = answer(&format!("100,000 {field}"), &pod).unwrap_err();
        assert!(reason.contains("the limit is"), "{reason}");
        pod["metadata"][field] = map(5000 - 20);
        answer(&format!("5,000 {field}"), &pod).unwrap();
    }
}

#[test]
fn largest_pods_can_be_injected_again() {
    let named = |n: usize| format!("n{n}");
    let variable = |n: usize| json!({"name": named(n), "value": "x"});
    let mount = |n: usize| json!({"name": "n0", "mountPath": named(n)});
    let probe = json!({"httpGet": {"port": 80}});
    let of = |template: &str, containers: Value, volumes: usize| {
        let mut pod = plain();
        pod["metadata"]["annotations"]["inject.istio.io/templates"] = template.into();
        pod["spec"]["volumes"] = many(volumes, |n| json!({"name": named(n), "emptyDir": {}}));
        pod["spec"]["containers"] = containers;
        pod
    };
    let container = |n: usize, count: usize| {
        json!({"name": named(n), "image": "i", "env": many(count, variable), "volumeMounts": many(count, mount),
            "readinessProbe": probe, "livenessProbe": probe, "startupProbe": probe})
    };
    let proxy = json!({"name": "istio-proxy", "image": "auto", "env": many(3000, variable)});
    let settings = settings(true, NativeSidecars::On);
    for pod in [
        of("sidecar", json!([{"name": "app", "image": "i", "env": many(10_000, variable)}]), 5000),
        of("sidecar", many(1000, |n| container(n, 5)), 0),
        of("sidecar", json!([{"name": "app", "image": "i"}, proxy]), 0),
        // A template for gRPC adds to every container, and its record has them all.
        of("grpc-agent", many(100, |n| container(n, 10)), 1),
    ] {
        let (once, _) = injected(&pod, &settings);
        assert_eq!(injected(&once, &settings).0, once);
    }
}

#[test]
fn many_small_values_are_refused() {
    let mut pod = plain();
    pod["spec"]["affinity"] = json!({"a": {"b": many(400_000, |_| json!(1))}});
    assert_eq!(
        answer("400,000 numbers", &pod).unwrap_err(),
        "the pod has more than 50000 values, all fields and items counted"
    );
}

#[test]
fn findings_do_not_multiply() {
    let mut pod = plain();
    pod["metadata"]["annotations"]["prometheus.istio.io/scrape-targets"] =
        "x:y,".repeat(50_000).trim_end_matches(',').into();
    let reason = answer("50,000 scrape targets", &pod).unwrap_err();
    assert!(reason.len() < 64 * 1024, "{}", reason.len());
    let mut pod = plain();
    let amounts = Value::Object((0..4400).map(|i| (format!("r{i}"), "1".into())).collect::<Map<_, _>>());
    let resources = json!({"requests": amounts, "limits": amounts});
    pod["spec"]["resources"] = json!({"requests": amounts});
    pod["spec"]["containers"] = many(300, |i| json!({"name": format!("c{i}"), "image": "i"}));
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "istio-proxy", "image": "auto", "resources": resources}));
    answer("4,400 resources", &pod).unwrap();
}

#[test]
fn deep_and_long_values_are_cheap() {
    let mut pod = plain();
    // The parser's limit is 128 levels.
    let mut deep = json!(1);
    for _ in 0..50 {
        deep = json!({"a": [deep]});
    }
    pod["spec"]["deep"] = deep.clone();
    answer("deep", &pod).unwrap();
    let record = json!({"v": 1, ".spec": {"+": {"deep": deep}}}).to_string();
    pod["metadata"]["annotations"] = json!({STATUS: "{}", ORIGINAL: record});
    answer("deep record", &pod).unwrap();

    let long = "x".repeat(1 << 20);
    let mut pod = plain();
    pod["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": long}]);
    answer("long value", &pod).unwrap();
    pod["spec"]["containers"][0]["image"] = long.clone().into();
    answer("long image", &pod).unwrap();
    pod["spec"]["containers"][0]["name"] = long.clone().into();
    answer("long name", &pod).unwrap_err();
    let mut pod = plain();
    pod["metadata"]["annotations"][&long] = "x".into();
    answer("long annotation", &pod).unwrap_err();
}
