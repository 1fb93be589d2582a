//! The whole way: a review in, a pod with its sidecar out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::client::Client;
use super::{H1, H2, metrics, review, start, wait_for_metric};

/// Applies the patch of a response to the pod of its review.
fn patched(review: &Value, answer: &Value) -> Value {
    let mut pod = review["request"]["object"].clone();
    if let Some(patch) = answer["response"]["patch"].as_str() {
        let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
    }
    pod
}

#[tokio::test]
async fn injection_works_in_both_versions_and_protocols() {
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    let server = start(&["--ca-out", ca_file.to_str().unwrap()]).await;
    let ca = std::fs::read_to_string(&ca_file).unwrap();
    for (version, alpn) in [("v1", H1), ("v1", H2), ("v1beta1", H1), ("v1", &[])] {
        let client = Client::new(server.https(), &[&ca], alpn);
        let review = review(version);
        let (status, answer) = client.post("/inject/net/n1", review.to_string()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(answer["apiVersion"], review["apiVersion"]);
        assert_eq!(answer["response"]["allowed"], true, "{answer}");
        let pod = patched(&review, &answer);
        let spec = &pod["spec"];
        let containers = spec["containers"].as_array().into_iter().chain(spec["initContainers"].as_array()).flatten();
        let names: Vec<_> = containers.filter_map(|container| container["name"].as_str()).collect();
        assert!(names.contains(&"istio-proxy") && names.contains(&"web"), "{names:?}");
        assert!(pod["metadata"]["annotations"]["sidecar.istio.io/status"].is_string(), "{pod}");
        assert!(pod["metadata"]["annotations"]["weir.dev/capture"].is_string(), "{pod}");
        assert!(pod.to_string().contains(&json!({"name": "ISTIO_META_NETWORK", "value": "n1"}).to_string()), "{pod}");
    }
    let metrics = metrics(&server).await;
    for line in [
        "sidecar_injection_requests_total 4",
        "sidecar_injection_success_total 4",
        "weir_webhook_injected_total 4",
        "sidecar_injection_time_seconds_count 4",
        "sidecar_injection_failure_total{reason=\"denied\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line:?} is missing in\n{metrics}");
    }
    assert_eq!(server.shutdown(std::future::pending()).await, 0);
}

#[tokio::test]
async fn second_injection_has_no_patch() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let server = start(&["--ca-out", ca.to_str().unwrap()]).await;
    let client = Client::new(server.https(), &[&std::fs::read_to_string(&ca).unwrap()], H1);
    let mut review = review("v1");
    let (_, first) = client.post("/inject", review.to_string()).await;
    review["request"]["object"] = patched(&review, &first);
    let (_, second) = client.post("/inject", review.to_string()).await;
    assert_eq!(second["response"]["allowed"], true);
    assert_eq!(patched(&review, &second), review["request"]["object"]);
    assert_eq!(second["response"]["patch"], Value::Null, "not even a patch");
    server.shutdown(std::future::pending()).await;
}

#[tokio::test]
async fn denial_names_every_bad_annotation_and_skip_warns() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let server = start(&["--ca-out", ca.to_str().unwrap()]).await;
    let client = Client::new(server.https(), &[&std::fs::read_to_string(&ca).unwrap()], H1);
    let mut bad = review("v1");
    bad["request"]["object"]["metadata"]["annotations"] = json!({
        "traffic.sidecar.istio.io/excludeOutboundPorts": "http",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/99",
    });
    let (status, answer) = client.post("/inject", bad.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["response"]["allowed"], false);
    let text = answer["response"]["status"]["message"].as_str().unwrap();
    for part in ["excludeOutboundPorts", "http", "includeOutboundIPRanges", "10.0.0.0/99"] {
        assert!(text.contains(part), "{text:?} should contain {part:?}");
    }

    let mut host = review("v1");
    host["request"]["object"]["spec"]["hostNetwork"] = json!(true);
    let (_, answer) = client.post("/inject", host.to_string()).await;
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"]["warnings"][0].as_str().unwrap().contains("host network"), "{answer}");
    let metrics = metrics(&server).await;
    assert!(metrics.contains("sidecar_injection_failure_total{reason=\"denied\"} 1"), "{metrics}");
    assert!(metrics.contains("sidecar_injection_skip_total{reason=\"host_network\"} 1"), "{metrics}");
    server.shutdown(std::future::pending()).await;
}

#[tokio::test]
async fn changed_values_are_used_and_bad_ones_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (values, ca) = (dir.path().join("values"), dir.path().join("ca.pem"));
    let write = |text: &str| std::fs::write(&values, text).unwrap();
    write("global: {hub: one.example}\n");
    let server = start(&["--values", values.to_str().unwrap(), "--ca-out", ca.to_str().unwrap()]).await;
    let client = Client::new(server.https(), &[&std::fs::read_to_string(&ca).unwrap()], H1);
    let pod = async || {
        let review = review("v1");
        let (_, answer) = client.post("/inject", review.to_string()).await;
        patched(&review, &answer).to_string()
    };
    assert!(pod().await.contains("one.example/"));
    write("global: {hub: two.example}\n");
    wait_for_metric(&server, "weir_webhook_reloads_total{source=\"settings\",result=\"replaced\"} 1").await;
    assert!(pod().await.contains("two.example/"));
    write("global: [\n");
    wait_for_metric(&server, "weir_webhook_reloads_total{source=\"settings\",result=\"refused\"} 1").await;
    assert!(pod().await.contains("two.example/"));
    server.shutdown(std::future::pending()).await;
}
