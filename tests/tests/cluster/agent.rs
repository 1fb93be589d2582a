//! The node agent with the rights that its manifests give it, and no others: it knows the pods of its node, mends them, tells about it,
//! and takes its taint from the node.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_kernel::nft;
use weir_lab::{Netns, http};

use super::cluster::{Cluster, on_both, until};
use super::kubectl::Kubectl;

on_both!(an_agent_with_its_own_rights_mends_its_pods_and_takes_its_taint_away);

const NODE: &str = "node-1";
const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/shop/pods";
/// The manifests with what the agent can do beyond installing.
const OVERLAY: &str = "resources: [../manifests/node/base]\n\
    components: [../manifests/node/components/repair, ../manifests/node/components/taint, ../manifests/node/components/delete-pods]\n";

/// The agent as a process on a node that is a folder.
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
        for folder in ["etc/cni/net.d", "opt/cni/bin", "netns"] {
            fs::create_dir_all(root.join(folder)).unwrap();
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

    /// What `GET /pods` of its monitoring port says.
    fn listing(&self) -> Value {
        let answer = http::get((Ipv4Addr::LOCALHOST, self.monitoring).into(), "/pods").ok();
        answer.and_then(|answer| serde_json::from_str(&answer.body).ok()).unwrap_or_default()
    }

    /// Waits for the only pod of the node to be in a state, or for none (`null`).
    fn wait_for(&self, state: &Value) {
        until("the agent knows its pods", || {
            let listing = self.listing();
            if listing["synced"] == true && listing["pods"][0]["state"] == *state {
                return Ok(());
            }
            Err(format!("{listing}\n{}", fs::read_to_string(self.dir.path().join("log")).unwrap()))
        });
    }
}

fn an_agent_with_its_own_rights_mends_its_pods_and_takes_its_taint_away(cluster: &Cluster) {
    let Some(kubectl) = Kubectl::or_skip(cluster.kubeconfig()) else { return };
    if !weir_tests::privileged() {
        return;
    }
    // Its account and its rights, as they are applied. Without controllers nothing else comes of the manifests.
    let objects = rendered(OVERLAY);
    let (namespaces, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object["kind"] == "Namespace");
    for objects in [namespaces, others] {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        kubectl.ok(&["apply", "--server-side", "--validate=false", "-f", "-"], &list.to_string());
    }
    let kubeconfig = cluster.kubeconfig_with("agent", &cluster.token_of("weir-node", "weir-agent"));
    let taints =
        json!([{"key": "weir.dev/not-ready", "effect": "NoSchedule"}, {"key": "theirs", "effect": "NoExecute"}]);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"taints": taints}});
    cluster.post(NODES, &node).good();

    // A pod that runs on it without its rules, and one of another node.
    cluster.namespace("shop", &json!({}));
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
        cluster.post(PODS, &pod).good();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        cluster.merge(&format!("{PODS}/{name}/status"), &status).good();
    }
    let netns = Netns::new("pod").unwrap();
    let address = || Command::new("ip").args(["address", "add", "10.0.0.7/32", "dev", "lo"]).status();
    assert!(netns.run(address).unwrap().unwrap().success());
    let verify = || nft::verify(&plan(&CaptureConfig::default()).unwrap()).unwrap();
    assert_ne!(netns.run(verify).unwrap(), Vec::<String>::new());

    let agent = Agent::start(&kubeconfig);
    std::os::unix::fs::symlink(netns.path(), agent.dir.path().join("netns/cni-1")).unwrap();
    agent.wait_for(&json!("ok"));
    let listing = agent.listing();
    assert_eq!(
        (listing["pods"].as_array().unwrap().len(), &listing["pods"][0]["name"]),
        (1, &json!("web")),
        "{listing}"
    );
    assert_eq!(netns.run(verify).unwrap(), Vec::<String>::new());

    until("people are told", || {
        let events = cluster.get("/apis/events.k8s.io/v1/namespaces/shop/events").good();
        let told = |event: &Value| event["reason"] == "CaptureRulesRepaired" && event["regarding"]["name"] == "web";
        events["items"].as_array().unwrap().iter().any(told).then_some(()).ok_or_else(|| events.to_string())
    });
    until("its taint is gone, and nobody else's", || {
        let node = cluster.get(&format!("{NODES}/{NODE}")).good();
        let left: Vec<&Value> = node["spec"]["taints"].as_array().unwrap().iter().map(|taint| &taint["key"]).collect();
        // A real server adds one of its own to a node that nothing has reported.
        let ours = left.contains(&&json!("weir.dev/not-ready"));
        if !ours && left.contains(&&json!("theirs")) { Ok(()) } else { Err(format!("{left:?}")) }
    });

    // It follows: a change of the pod is seen, and its end.
    let drift = || Command::new("nft").args(["flush", "table", "inet", "weir"]).status();
    assert!(netns.run(drift).unwrap().unwrap().success());
    until("the rules are back", || {
        let differences = netns.run(verify).unwrap();
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    });
    cluster.delete(&format!("{PODS}/web?gracePeriodSeconds=0")).good();
    agent.wait_for(&Value::Null);
    cluster.merge(&format!("{PODS}/far/status"), &json!({"status": {"podIP": "10.0.0.9"}})).good();
    assert_eq!(agent.listing()["synced"], true);
}

/// What an overlay of the manifests renders to.
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
