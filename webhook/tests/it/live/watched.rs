//! Injector settings from the cluster.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::time::timeout;
use weir_apiserver::{ApiServer, ForwardProxy};
use weir_webhook::run::Server;

use super::client::{Client, get};
use super::{H2, TIMEOUT, review, start, wait_for_metric};

/// A cluster, a webhook that watches it, and a client of the webhook.
struct Watched {
    api: ApiServer,
    server: Server,
    client: Client,
    _dir: tempfile::TempDir,
}

async fn watch(api: ApiServer, flags: &[&str]) -> Watched {
    watch_with(api, flags, |api, dir| api.kubeconfig(dir).unwrap()).await
}

async fn watch_with(api: ApiServer, flags: &[&str], kubeconfig: impl Fn(&ApiServer, &Path) -> PathBuf) -> Watched {
    let dir = tempfile::tempdir().unwrap();
    let (ca, kubeconfig) = (dir.path().join("ca.pem"), kubeconfig(&api, dir.path()));
    let fixed =
        ["--ca-out", ca.to_str().unwrap(), "--kubeconfig", kubeconfig.to_str().unwrap(), "--namespace", "weir-system"];
    let server = start(&[&fixed[..], flags].concat()).await;
    let client = Client::new(server.https(), &[&std::fs::read_to_string(&ca).unwrap()], H2);
    Watched { api, server, client, _dir: dir }
}

fn map(namespace: &str, name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": name}, "data": data})
}

impl Watched {
    async fn readyz(&self) -> (bool, String) {
        let (status, detail) = get(self.server.http().unwrap(), "/readyz").await;
        (status.is_success(), detail)
    }

    /// Waits until readiness is `ready` and its text contains `text`.
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
        let in_time = timeout(TIMEOUT, shown).await.is_ok();
        assert!(in_time, "not {ready} with {text:?}: {:?}", self.readyz().await);
    }

    /// Has a pod reviewed; returns the status and the patch.
    async fn ask(&self) -> (u16, String) {
        let (status, answer) = self.client.post("/inject?timeout=10s", review("v1").to_string()).await;
        let patch = answer["response"]["patch"].as_str().unwrap_or_default();
        let patch = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, patch).unwrap();
        (status.as_u16(), String::from_utf8(patch).unwrap())
    }

    /// Waits until the patch of a pod contains `text`.
    async fn wait_for_patch(&self, text: &str) {
        let patched = async {
            while !self.ask().await.1.contains(text) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let in_time = timeout(TIMEOUT, patched).await.is_ok();
        assert!(in_time, "no {text:?} in {:?}; {:?}", self.ask().await, self.readyz().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_is_watched_through_the_proxy_of_the_kubeconfig() {
    let api = ApiServer::cluster().unwrap();
    let proxy = ForwardProxy::start(api.addr()).unwrap();
    let values = json!({"global": {"tag": "proxied"}, "pilot": {"cni": {"enabled": false}}}).to_string();
    api.put(
        "configmaps",
        map("mesh", "istio-sidecar-injector", &json!({"values": values, "config": "policy: enabled"})),
    );
    let flags = ["--injector-config-map", "istio-sidecar-injector", "--istio-namespace", "mesh", "--cni-mode", "true"];
    let url = proxy.socks5_url();
    let through = |api: &ApiServer, dir: &Path| {
        api.kubeconfig_through(dir, "https://kubernetes.default.svc", Some(&url)).unwrap()
    };
    let watched = watch_with(api, &flags, through).await;
    watched.wait_for_patch("proxyv2:proxied").await;
    assert!(watched.ask().await.1.contains("istio-validation"), "CNI mode is on by the flag");
    assert_eq!(proxy.targets().first().map(String::as_str), Some("kubernetes.default.svc:443"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_config_map_keeps_the_last_settings() {
    let flags = [
        "--injector-config-map",
        "istio-sidecar-injector",
        "--mesh-config-map",
        "istio",
        "--istio-namespace",
        "istio-system",
    ];
    let watched = watch(ApiServer::start().unwrap(), &flags).await;
    // Rejected rather than injected with built-in defaults.
    watched.wait_until(false, "ConfigMap istio-system/istio not found").await;
    assert_eq!(watched.ask().await.0, 503);

    let values = |tag: &str| {
        let values = json!({"global": {"tag": tag, "imagePulPolicy": "Always"}, "pilot": {"cni": {"enabled": true}}});
        map(
            "istio-system",
            "istio-sidecar-injector",
            &json!({"values": values.to_string(), "config": "policy: enabled"}),
        )
    };
    watched.api.put("configmaps", values("one"));
    watched.api.put("configmaps", map("istio-system", "other", &json!({"mesh": "trustDomain: not.ours"})));
    watched.api.put(
        "configmaps",
        map("istio-system", "istio", &json!({"mesh": "trustDomain: example.org", "meshNetworks": ""})),
    );
    watched.wait_until(true, "[+]settings: ok").await;
    let (status, patch) = watched.ask().await;
    assert_eq!(status, 200);
    assert!(patch.contains("proxyv2:one") && patch.contains("example.org"), "{patch}");

    watched.api.put("configmaps", values("two"));
    watched.wait_for_patch("proxyv2:two").await;

    // Every error is named, and the last good settings stay.
    watched
        .api
        .put("configmaps", map("istio-system", "istio-sidecar-injector", &json!({"values": "global: {tag: [1]}"})));
    watched.wait_until(true, "values: global.tag").await;
    assert!(watched.ask().await.1.contains("proxyv2:two"));
    let refused = "weir_webhook_reloads_total{source=\"settings\",result=\"refused\"} 1";
    wait_for_metric(&watched.server, refused).await;
    let recorded = async {
        while !watched.api.list("events").iter().any(|event| {
            event["reason"] == "ConfigurationRejected" && event["regarding"]["name"] == "istio-sidecar-injector"
        }) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(TIMEOUT, recorded).await.is_ok(), "{:?}", watched.api.list("events"));

    watched.api.put("configmaps", values("three"));
    watched.wait_for_patch("proxyv2:three").await;
    watched.wait_until(true, "[+]settings: ok").await;

    // After a deletion the last good settings stay in use.
    watched.api.remove("configmaps", "istio-system", "istio");
    watched.wait_until(true, "ConfigMap istio-system/istio not found").await;
    assert!(watched.ask().await.1.contains("example.org"));
    watched.server.shutdown(std::future::pending()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_for_the_api_server_and_survives_its_outage() {
    let api = ApiServer::unreachable().unwrap();
    let watched = watch(api, &["--injector-config-map", "weir-webhook", "--watch", "nodes"]).await;
    watched.wait_until(false, "[-]injector-config-map").await;
    watched.api.put("configmaps", map("weir-system", "weir-webhook", &json!({"values": "global: {tag: mine}"})));
    watched.api.put(
        "nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old"},
        "status": {"nodeInfo": {"kubeletVersion": "v1.30.1"}, "images": [{"names": ["a"]}]}}),
    );
    watched.api.start_listening().unwrap();
    watched.wait_until(true, "[+]settings: ok").await;
    let (_, patch) = watched.ask().await;
    assert!(patch.contains("proxyv2:mine") && !patch.contains(r#""restartPolicy":"Always""#), "{patch}");

    watched.api.stop_listening();
    watched.wait_until(true, "using the cached state").await;
    assert!(watched.ask().await.1.contains("proxyv2:mine"));

    // The node is newer when the API server is back.
    watched.api.put(
        "nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old"},
        "status": {"nodeInfo": {"kubeletVersion": "v1.33.4"}}}),
    );
    watched.api.start_listening().unwrap();
    watched.wait_for_patch(r#""restartPolicy":"Always""#).await;
    watched.server.shutdown(std::future::pending()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_configs_are_used_once_their_definition_is_installed() {
    let api = ApiServer::cluster().unwrap();
    api.put(
        "namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
        "annotations": {"openshift.io/sa.scc.uid-range": "1000620000/10000", "other": "x"}}}),
    );
    let values = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "weir-system", "name": "w"},
        "data": {"values": "global: {platform: openshift}"}});
    api.put("configmaps", values);
    let watched = watch(api, &["--injector-config-map", "w", "--watch", "proxyconfigs,namespaces"]).await;
    watched.wait_until(true, "[+]settings: ok").await;
    let (_, patch) = watched.ask().await;
    assert!(patch.contains(r#""runAsUser":1000629999"#), "{patch}");

    watched.api.put("customresourcedefinitions", json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "proxyconfigs.networking.istio.io"},
        "spec": {"group": "networking.istio.io", "scope": "Namespaced", "names": {"plural": "proxyconfigs", "kind": "ProxyConfig"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true}]},
    }));
    let resource = |name: &str, spec: &Value| json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "ProxyConfig", "metadata": {"namespace": "shop", "name": name, "uid": name}, "spec": spec});
    watched.api.put("proxyconfigs", resource("ours", &json!({"environmentVariables": {"FROM_RESOURCE": "yes"}})));
    watched.api.put("proxyconfigs", resource("bad", &json!({"concurrency": "many"})));
    watched.wait_for_patch("FROM_RESOURCE").await;
    let refused = "weir_webhook_reloads_total{source=\"proxyconfigs\",result=\"refused\"} 1";
    wait_for_metric(&watched.server, refused).await;
    watched.server.shutdown(std::future::pending()).await;
}
