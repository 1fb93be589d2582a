//! Configuration that is followed in a cluster.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::time::timeout;
use weir_apiserver::ApiServer;
use weir_webhook::server::Server;

use super::client::{Client, get};
use super::{H2, PATIENCE, review, start, wait_for_metric};

/// A cluster, a webhook that follows it, and somebody who asks the webhook.
struct Followed {
    api: ApiServer,
    server: Server,
    client: Client,
    _dir: tempfile::TempDir,
}

async fn follow(api: ApiServer, flags: &[&str]) -> Followed {
    let dir = tempfile::tempdir().unwrap();
    let (ca, kubeconfig): (PathBuf, PathBuf) = (dir.path().join("ca.pem"), api.kubeconfig(dir.path()).unwrap());
    let fixed =
        ["--ca-out", ca.to_str().unwrap(), "--kubeconfig", kubeconfig.to_str().unwrap(), "--namespace", "weir-system"];
    let server = start(&[&fixed[..], flags].concat()).await;
    let client = Client::new(server.https(), &[&std::fs::read_to_string(&ca).unwrap()], H2);
    Followed { api, server, client, _dir: dir }
}

fn map(namespace: &str, name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": name}, "data": data})
}

impl Followed {
    async fn readyz(&self) -> (bool, String) {
        let (status, detail) = get(self.server.http().unwrap(), "/readyz").await;
        (status.is_success(), detail)
    }

    /// Until readiness is that and says that.
    async fn wait_until(&self, ready: bool, text: &str) {
        let shown = async {
            loop {
                let (is_ready, detail) = self.readyz().await;
                if is_ready == ready && detail.contains(text) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let in_time = timeout(PATIENCE, shown).await.is_ok();
        assert!(in_time, "not {ready} with {text:?}: {:?}", self.readyz().await);
    }

    /// What the webhook makes of a pod: its status and the patch.
    async fn ask(&self) -> (u16, String) {
        let (status, answer) = self.client.post("/inject?timeout=10s", review("v1").to_string()).await;
        let patch = answer["response"]["patch"].as_str().unwrap_or_default();
        let patch = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, patch).unwrap();
        (status.as_u16(), String::from_utf8(patch).unwrap())
    }

    /// Until the patch has that in it.
    async fn wait_for_patch(&self, text: &str) {
        let patched = async {
            while !self.ask().await.1.contains(text) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let in_time = timeout(PATIENCE, patched).await.is_ok();
        assert!(in_time, "no {text:?} in {:?}; {:?}", self.ask().await, self.readyz().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_of_istio_are_followed_and_a_bad_one_keeps_the_last() {
    let flags = [
        "--injector-config-map",
        "istio-sidecar-injector",
        "--mesh-config-map",
        "istio",
        "--istio-namespace",
        "istio-system",
    ];
    let followed = follow(ApiServer::start().unwrap(), &flags).await;
    // Refused rather than injected with what is built in.
    followed.wait_until(false, "ConfigMap istio-system/istio is not there").await;
    assert_eq!(followed.ask().await.0, 503);

    let values = |tag: &str| {
        let values = json!({"global": {"tag": tag, "imagePulPolicy": "Always"}, "pilot": {"cni": {"enabled": true}}});
        map(
            "istio-system",
            "istio-sidecar-injector",
            &json!({"values": values.to_string(), "config": "policy: enabled"}),
        )
    };
    followed.api.put("configmaps", values("one"));
    followed.api.put("configmaps", map("istio-system", "other", &json!({"mesh": "trustDomain: not.ours"})));
    followed.api.put(
        "configmaps",
        map("istio-system", "istio", &json!({"mesh": "trustDomain: example.org", "meshNetworks": ""})),
    );
    followed.wait_until(true, "[+]settings: ok").await;
    let (status, patch) = followed.ask().await;
    assert_eq!(status, 200);
    assert!(patch.contains("proxyv2:one") && patch.contains("example.org"), "{patch}");

    followed.api.put("configmaps", values("two"));
    followed.wait_for_patch("proxyv2:two").await;

    // All that is wrong, in both, and the last good one stays.
    followed
        .api
        .put("configmaps", map("istio-system", "istio-sidecar-injector", &json!({"values": "global: {tag: [1]}"})));
    followed.wait_until(true, "values: global.tag").await;
    assert!(followed.ask().await.1.contains("proxyv2:two"));
    let refused = "weir_webhook_reloads_total{source=\"settings\",result=\"refused\"} 1";
    wait_for_metric(&followed.server, refused).await;
    let told = async {
        while !followed.api.list("events").iter().any(|event| {
            event["reason"] == "ConfigurationRefused" && event["regarding"]["name"] == "istio-sidecar-injector"
        }) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, told).await.is_ok(), "{:?}", followed.api.list("events"));

    followed.api.put("configmaps", values("three"));
    followed.wait_for_patch("proxyv2:three").await;
    followed.wait_until(true, "[+]settings: ok").await;

    // Somebody deletes it: what was last good goes on to be used.
    followed.api.remove("configmaps", "istio-system", "istio");
    followed.wait_until(true, "ConfigMap istio-system/istio is not there").await;
    assert!(followed.ask().await.1.contains("example.org"));
    followed.server.shutdown(std::future::pending()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_api_server_it_waits_and_later_serves_on_without_it() {
    let api = ApiServer::absent().unwrap();
    let followed = follow(api, &["--injector-config-map", "weir-webhook", "--watch", "nodes"]).await;
    followed.wait_until(false, "[-]injector-config-map").await;
    followed.api.put("configmaps", map("weir-system", "weir-webhook", &json!({"values": "global: {tag: mine}"})));
    followed.api.put(
        "nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old"},
        "status": {"nodeInfo": {"kubeletVersion": "v1.30.1"}, "images": [{"names": ["a"]}]}}),
    );
    followed.api.appear().unwrap();
    followed.wait_until(true, "[+]settings: ok").await;
    let (_, patch) = followed.ask().await;
    assert!(patch.contains("proxyv2:mine") && !patch.contains(r#""restartPolicy":"Always""#), "{patch}");

    followed.api.disappear();
    followed.wait_until(true, "what was known before goes on to be used").await;
    assert!(followed.ask().await.1.contains("proxyv2:mine"));

    // The node is new when the API server is back.
    followed.api.put(
        "nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old"},
        "status": {"nodeInfo": {"kubeletVersion": "v1.33.4"}}}),
    );
    followed.api.appear().unwrap();
    followed.wait_for_patch(r#""restartPolicy":"Always""#).await;
    followed.server.shutdown(std::future::pending()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_configs_appear_with_their_definition_and_a_bad_one_is_told_of() {
    let api = ApiServer::cluster().unwrap();
    api.put(
        "namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
        "annotations": {"openshift.io/sa.scc.uid-range": "1000620000/10000", "other": "x"}}}),
    );
    let values = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "weir-system", "name": "w"},
        "data": {"values": "global: {platform: openshift}"}});
    api.put("configmaps", values);
    let followed = follow(api, &["--injector-config-map", "w", "--watch", "proxyconfigs,namespaces"]).await;
    followed.wait_until(true, "[+]settings: ok").await;
    let (_, patch) = followed.ask().await;
    assert!(patch.contains(r#""runAsUser":1000629999"#), "{patch}");

    followed.api.put("customresourcedefinitions", json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "proxyconfigs.networking.istio.io"},
        "spec": {"group": "networking.istio.io", "scope": "Namespaced", "names": {"plural": "proxyconfigs", "kind": "ProxyConfig"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true}]},
    }));
    let resource = |name: &str, spec: &Value| json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "ProxyConfig", "metadata": {"namespace": "shop", "name": name, "uid": name}, "spec": spec});
    followed.api.put("proxyconfigs", resource("ours", &json!({"environmentVariables": {"FROM_RESOURCE": "yes"}})));
    followed.api.put("proxyconfigs", resource("bad", &json!({"concurrency": "many"})));
    followed.wait_for_patch("FROM_RESOURCE").await;
    let refused = "weir_webhook_reloads_total{source=\"proxyconfigs\",result=\"refused\"} 1";
    wait_for_metric(&followed.server, refused).await;
    followed.server.shutdown(std::future::pending()).await;
}
