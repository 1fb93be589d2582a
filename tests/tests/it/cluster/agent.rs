//! The node agent with only the rights that its manifests grant: it watches the pods of its node, restores their rules, records events and
//! removes the startup taint.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_kernel::nft;
use weir_lab::{Netns, http};
use weir_tests::wait_until;

use super::api_server::{Cluster, on_both};
use super::kubectl::Kubectl;

on_both!(agent_with_its_own_rights_restores_rules_and_removes_taint);

const NODE: &str = "node-1";
const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/shop/pods";
/// The manifests with all optional features of the agent.
const OVERLAY: &str = "resources: [../manifests/node/base]\n\
    components: [../manifests/node/components/repair, ../manifests/node/components/taint, ../manifests/node/components/delete-pods]\n";

/// The agent as a process on a node that is a directory.
struct Agent {
    child: Child,
    monitoring: u16,
    dir: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    fn start(kubeconfig: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for dir in ["etc/cni/net.d", "opt/cni/bin", "netns"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::write(
            root.join("etc/cni/net.d/10-net.conflist"),
            r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#,
        )
        .unwrap();
        let monitoring = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let child = Command::new(weir_tests::bin("weir-agent"))
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("NODE_NAME", NODE)
            .args([
                "run".to_owned(),
                format!("--host-root={}", root.display()),
                format!("--plugin-source={}", weir_tests::bin("weir-cni").display()),
                format!("--cni-agent-run-dir={}", root.join("run").display()),
                format!("--monitoring-port={monitoring}"),
            ])
            .args(["--health-port=0", "--host-proc-dir=/proc", "--netns-dirs=/netns"])
            .args(["--taint-enabled", "--repair-interval=1s"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(root.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, monitoring, dir }
    }

    /// Returns `/pods` of its monitoring port.
    fn pods(&self) -> Value {
        let answer = http::get((Ipv4Addr::LOCALHOST, self.monitoring).into(), "/pods").ok();
        answer.and_then(|answer| serde_json::from_str(&answer.body).ok()).unwrap_or_default()
    }

    /// Waits until the only pod of the node has a state, or until there is no pod (`null`).
    fn wait_for_state(&self, state: &Value) {
        wait_until("the agent reports the state of the pod", || {
            let listing = self.pods();
            if listing["synced"] == true && listing["pods"][0]["state"] == *state {
                return Ok(());
            }
            Err(format!("{listing}\n{}", fs::read_to_string(self.dir.path().join("log")).unwrap()))
        });
    }
}

fn agent_with_its_own_rights_restores_rules_and_removes_taint(cluster: &Cluster) {
    let Some(kubectl) = Kubectl::new_or_skip(cluster.kubeconfig()) else { return };
    if !weir_tests::privileged() {
        return;
    }
    // Without controllers, the manifests create only the account and its rights.
    let objects = rendered(OVERLAY);
    let (namespaces, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object["kind"] == "Namespace");
    for objects in [namespaces, others] {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        kubectl.ok(&["apply", "--server-side", "--validate=false", "-f", "-"], &list.to_string());
    }
    let kubeconfig = cluster.kubeconfig_with("agent", &cluster.service_account_token("weir-node", "weir-agent"));
    let taints =
        json!([{"key": "weir.dev/not-ready", "effect": "NoSchedule"}, {"key": "theirs", "effect": "NoExecute"}]);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"taints": taints}});
    cluster.post(NODES, &node).expect_ok();

    // A running pod without its rules, and one of another node.
    cluster.create_namespace("shop", &json!({}));
    for (name, node, ip) in [("web", NODE, "10.0.0.7"), ("far", "node-2", "10.0.0.8")] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": {
                "sidecar.istio.io/status": r#"{"containers":["istio-proxy"],"revision":"default"}"#,
                "weir.dev/capture": r#"{"v":1,"proxyUids":[1337]}"#,
            }},
            "spec": {"nodeName": node, "tolerations": [{"operator": "Exists"}], "containers": [
                {"name": "app", "image": "app"}, {"name": "istio-proxy", "image": "proxy"}]},
        });
        cluster.post(PODS, &pod).expect_ok();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        cluster.merge_patch(&format!("{PODS}/{name}/status"), &status).expect_ok();
    }
    let netns = Netns::new("pod").unwrap();
    let address = || Command::new("ip").args(["address", "add", "10.0.0.7/32", "dev", "lo"]).status();
    assert!(netns.run(address).unwrap().unwrap().success());
    let verify = || nft::verify(&plan(&CaptureConfig::default()).unwrap()).unwrap();
    assert_ne!(netns.run(verify).unwrap(), Vec::<String>::new());

    let agent = Agent::start(&kubeconfig);
    std::os::unix::fs::symlink(netns.path(), agent.dir.path().join("netns/cni-1")).unwrap();
    agent.wait_for_state(&json!("ok"));
    let listing = agent.pods();
    assert_eq!(
        (listing["pods"].as_array().unwrap().len(), &listing["pods"][0]["name"]),
        (1, &json!("web")),
        "{listing}"
    );
    assert_eq!(netns.run(verify).unwrap(), Vec::<String>::new());

    wait_until("the repair is recorded as an event", || {
        let events = cluster.get("/apis/events.k8s.io/v1/namespaces/shop/events").expect_ok();
        let is_recorded =
            |event: &Value| event["reason"] == "CaptureRulesRepaired" && event["regarding"]["name"] == "web";
        events["items"].as_array().unwrap().iter().any(is_recorded).then_some(()).ok_or_else(|| events.to_string())
    });
    wait_until("the startup taint is removed", || {
        let node = cluster.get(&format!("{NODES}/{NODE}")).expect_ok();
        let left: Vec<&Value> = node["spec"]["taints"].as_array().unwrap().iter().map(|taint| &taint["key"]).collect();
        // A real server adds a taint of its own to a new node.
        let ours = left.contains(&&json!("weir.dev/not-ready"));
        if !ours && left.contains(&&json!("theirs")) { Ok(()) } else { Err(format!("{left:?}")) }
    });

    // Drift, changes and deletion of the pod are noticed.
    let drift = || Command::new("nft").args(["flush", "table", "inet", "weir"]).status();
    assert!(netns.run(drift).unwrap().unwrap().success());
    wait_until("the rules are restored", || {
        let differences = netns.run(verify).unwrap();
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    });
    cluster.delete(&format!("{PODS}/web?gracePeriodSeconds=0")).expect_ok();
    agent.wait_for_state(&Value::Null);
    cluster.merge_patch(&format!("{PODS}/far/status"), &json!({"status": {"podIP": "10.0.0.9"}})).expect_ok();
    assert_eq!(agent.pods()["synced"], true);
}

/// Renders an overlay of the manifests.
fn rendered(kustomization: &str) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let copied = Command::new("cp").arg("-r").arg(manifests).arg(dir.path().join("manifests")).status().unwrap();
    assert!(copied.success());
    let overlay = dir.path().join("overlay");
    fs::create_dir(&overlay).unwrap();
    fs::write(overlay.join("kustomization.yaml"), kustomization).unwrap();
    let output = Command::new("kubectl").arg("kustomize").arg(&overlay).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}
