//! Memory of the binary while it lists the largest objects that etcd takes.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;
use weir_apiserver::ApiServer;

use super::TIMEOUT;
use super::client::get;
use super::process::start;

/// Memory limit of the manifests.
const LIMIT_KIB: u64 = 256 << 10;
/// Largest request to etcd, by its default.
const ETCD_BYTES: usize = 1_500_000;

fn proxy_config(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "ProxyConfig",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}")}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn largest_proxy_configs_are_skipped_by_name() {
    let api = ApiServer::start().unwrap();
    let many: serde_json::Map<_, _> =
        (0..ETCD_BYTES / 14).map(|number| (format!("V{number:06}"), json!("x"))).collect();
    for number in 0..60 {
        let (name, one) = (format!("large-{number:03}"), "x".repeat(ETCD_BYTES));
        let variables = if number % 2 == 0 { Value::from(many.clone()) } else { json!({ "LARGE": one }) };
        api.put("proxyconfigs", proxy_config("shop", &name, &json!({ "environmentVariables": variables })));
    }
    api.put("proxyconfigs", proxy_config("other", "good", &json!({"environmentVariables": {"A": "b"}})));
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = api.kubeconfig(dir.path()).unwrap();
    let running =
        start(&["--kubeconfig", kubeconfig.to_str().unwrap(), "--namespace", "w", "--watch", "proxyconfigs"]).await;
    let reported = async {
        loop {
            let (status, text) = get(running.http, "/readyz").await;
            if status == StatusCode::OK && text.contains("and 55 more") {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let text = timeout(TIMEOUT * 6, reported).await.expect("it becomes ready, and names what it skips");
    assert!(text.contains("shop/large-000: has 1") && text.contains("the limit is 65536"), "{text}");
    // The same objects by events.
    for number in 0..12 {
        let spec = json!({ "environmentVariables": many });
        api.put("proxyconfigs", proxy_config("shop", &format!("event-{number:03}"), &spec));
    }
    let by_event = async {
        while !get(running.http, "/readyz").await.1.contains("and 67 more") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT * 2, by_event).await.expect("events are skipped too");
    let peak = running.peak_memory();
    println!("peak memory with 72 ProxyConfigs of 1.5 MB: {} MiB", peak >> 10);
    assert!(peak < LIMIT_KIB, "{peak} KiB");
}
