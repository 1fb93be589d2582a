//! Weir by each of its configurations and ways of installation: a new pod is in the mesh, and `weir check` finds nothing.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use weir_cluster::Cluster;
use weir_cluster::plan::Tools;

use crate::mesh::{alone_or_skip, install, weir};
use crate::scenario::{Scenario, is_from_the_mesh};

/// Restores the installation of the other tests, also after a failure.
struct Restored(&'static Cluster);

impl Drop for Restored {
    fn drop(&mut self) {
        let restored = weir(self.0, &["uninstall", "-y", "--timeout", "120s"]).and_then(|_| install(self.0));
        if !thread::panicking() {
            restored.unwrap();
        }
    }
}

/// A pod that is created now is in the mesh, and `weir check` has nothing but advice.
fn assert_healthy(cluster: &'static Cluster, name: &str) {
    for (namespace, object) in [("weir-system", "deployment/weir-webhook"), ("weir-node", "daemonset/weir-agent")] {
        cluster.kubectl(&["--namespace", namespace, "rollout", "status", object, "--timeout=120s"], "").unwrap();
    }
    let mesh = Scenario::with_web(cluster, name);
    mesh.wait_for("deploy/client", &["http://web/headers"], "a new pod is in the mesh", is_from_the_mesh);
    let started = Instant::now();
    loop {
        let report = weir(cluster, &["check", "--output", "json"]).map(|text| found(&text));
        if report.as_ref().is_ok_and(Vec::is_empty) {
            return;
        }
        assert!(started.elapsed() < Duration::from_mins(1), "{report:?}");
        thread::sleep(Duration::from_secs(2));
    }
}

/// Returns the findings of a report that are more than advice.
fn found(report: &str) -> Vec<serde_json::Value> {
    let report: serde_json::Value = serde_json::from_str(report).unwrap_or_else(|error| panic!("{error}: {report}"));
    assert_eq!(report["complete"], true, "{report}");
    report["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] != "info").cloned().collect()
}

/// Returns the arguments of the webhook.
fn webhook_args(cluster: &Cluster) -> String {
    let path = "jsonpath={.spec.template.spec.containers[0].args}";
    cluster.kubectl(&["-n", "weir-system", "get", "deployment/weir-webhook", "-o", path], "").unwrap()
}

#[test]
fn installation_that_follows_istios_config_maps_is_healthy() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let _restored = Restored(cluster);
    weir(cluster, &["install", "--yes", "--set", "images.hub=localhost", "--set", "config.from=istio"]).unwrap();
    assert!(webhook_args(cluster).contains("--injector-config-map=istio-sidecar-injector"));
    assert_healthy(cluster, "from-istio");
}

#[test]
fn installation_by_kustomize_is_healthy() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let _restored = Restored(cluster);
    weir(cluster, &["uninstall", "-y", "--timeout", "120s"]).unwrap();
    // The images in there have the names of those that `make images` builds.
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests");
    let parts = ["node/overlays/kubeadm", "overlays/istio-config"].map(|part| format!("{manifests}/{part}"));
    for part in &parts {
        cluster.kubectl(&["apply", "-k", part], "").unwrap();
    }
    assert_healthy(cluster, "kustomize");
    for part in parts.iter().rev() {
        cluster.kubectl(&["delete", "-k", part, "--timeout=120s"], "").unwrap();
    }
}

#[test]
fn installation_by_helm_is_healthy() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let _restored = Restored(cluster);
    weir(cluster, &["uninstall", "-y", "--timeout", "120s"]).unwrap();
    // The namespaces stay, and Helm installs into them.
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/chart");
    let values = json!({"images": {"hub": "localhost"}, "config": {"from": "istio"}});
    helm(cluster, "install", &json!({"chart": chart, "name": "weir", "values": values, "create_namespace": true}));
    assert!(webhook_args(cluster).contains("--injector-config-map=istio-sidecar-injector"));
    assert_healthy(cluster, "helm");
    // Removed as the documentation says: the plugin first.
    let off = json!({"webhook": {"enabled": false}, "node": {"uninstall": true}});
    helm(cluster, "upgrade", &json!({"chart": chart, "name": "weir", "values": off, "reuse_values": true}));
    let removal = ["-n", "weir-node", "rollout", "status", "daemonset/weir-uninstall", "--timeout=120s"];
    cluster.kubectl(&removal, "").unwrap();
    helm(cluster, "uninstall", &json!({"name": "weir", "wait": "watcher", "timeout": 120}));
}

/// Runs an action of Helm's library, which PyPI has, with its arguments.
fn helm(cluster: &Cluster, action: &str, args: &serde_json::Value) {
    const SCRIPT: &str = "import helm_python, json, sys
getattr(helm_python.Config(namespace='weir-system'), sys.argv[1])(**json.loads(sys.argv[2]))";
    let mut python = Command::new(Tools::of_checkout().path("helm/bin/python"));
    python.args(["-c", SCRIPT, action, &args.to_string()]).env("KUBECONFIG", cluster.kubeconfig());
    let output = weir_lab::process::run(&mut python, b"", Duration::from_mins(3)).unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "helm {action} {args}: {stdout}{stderr}");
}
