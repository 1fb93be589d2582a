//! The node agent beside CRI-O, whose pods have no process of their own: it installs the plugin, and restores rules in pods without
//! processes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_kernel::{netns, nft};
use weir_tests::agent::{self, Agent, NODE};
use weir_tests::cri::Container;
use weir_tests::cri_runtime::{BUSYBOX, CriRuntime, RuntimeRelease};
use weir_tests::try_wait_until;

const NETWORK: &str = "10-test.conflist";
/// The agent's monitoring port, in the node's network.
const MONITORING_PORT: u16 = 8001;

/// Returns a dual-stack network without an entry of ours.
fn network() -> String {
    let list = json!({
        "cniVersion": "1.0.0", "name": "test", "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.79.0.0/24" }], [{ "subnet": "fd79::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    });
    format!("{list:#}\n")
}

fn annotations() -> Vec<(String, String)> {
    vec![
        ("sidecar.istio.io/status".to_owned(), r#"{"containers":["istio-proxy"],"revision":"default"}"#.to_owned()),
        ("weir.dev/capture".to_owned(), r#"{"v":1,"proxyUids":[1337]}"#.to_owned()),
    ]
}

/// Returns the differences from the rules that [`annotations`] ask for.
fn drift(path: &Path) -> Vec<String> {
    netns::run_in(path, || nft::verify(&plan(&CaptureConfig::default()).unwrap())).unwrap().unwrap()
}

/// Returns whether a process of this machine is in the namespace.
fn has_a_process(path: &Path) -> bool {
    let netns = fs::metadata(path).unwrap().ino();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .into_iter()
        .any(|process| fs::metadata(process.path().join("ns/net")).is_ok_and(|meta| meta.ino() == netns))
}

/// Waits until the rules of the only pod are in place, and returns how the agent has found its namespace.
fn found_by(runtime: &CriRuntime, agent: &Agent) -> String {
    let ask = || weir_lab::http::get(([127, 0, 0, 1], MONITORING_PORT).into(), "/pods");
    try_wait_until("the agent reports the pod as ok", || {
        let answer = netns::run_in(&runtime.node_netns(), ask)?;
        let listing: Value = answer.ok().and_then(|answer| serde_json::from_str(&answer.body).ok()).unwrap_or_default();
        let pod = &listing["pods"][0];
        Ok(pod["foundBy"]
            .as_str()
            .filter(|_| pod["state"] == "ok")
            .map(str::to_owned)
            .ok_or_else(|| format!("{listing}\n{}", agent.log())))
    })
    .unwrap()
}

#[test]
fn agent_restores_rules_of_crio_pods_without_a_process() {
    if !RuntimeRelease::CriO.available_or_skip() {
        return;
    }
    let runtime = CriRuntime::start_release(RuntimeRelease::CriO, &[(NETWORK, &network())], None).unwrap();
    let api = ApiServer::start().unwrap();
    api.kubeconfig(runtime.dir()).unwrap();
    let _forward = runtime.forward(api.port()).unwrap();
    let start = |flags: &[&str]| {
        let flags = [&["--repair-interval=1s"], flags].concat();
        let mut agent = Agent::start(&runtime, &weir_tests::bin("weir-cni"), 8000, &flags).unwrap();
        agent.wait_until_ready(&runtime).unwrap();
        agent
    };
    let agent = start(&[]);
    let plugins = || -> Value { serde_json::from_slice(&fs::read(runtime.conf_dir().join(NETWORK)).unwrap()).unwrap() };
    assert_eq!(plugins()["plugins"][1]["type"], "weir-cni");

    // A pod outside of the mesh is not touched, one of the mesh has its rules. CRI-O takes a moment to reload its configuration.
    let config = runtime.pod("web", annotations());
    let (id, path) = try_wait_until("CRI-O calls the plugin", || {
        let id = runtime.cri.run_pod_sandbox(&config)?;
        let path = runtime.host_path(&runtime.cri.sandbox_status(&id)?.netns);
        let drift = drift(&path);
        if drift.is_empty() {
            return Ok(Ok((id, path)));
        }
        runtime.cri.stop_pod_sandbox(&id)?;
        runtime.cri.remove_pod_sandbox(&id)?;
        Ok(Err(format!("{drift:?}")))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", runtime.log()));
    let bare = runtime.cri.run_pod_sandbox(&runtime.pod("bare", [])).unwrap();
    let bare_path = runtime.host_path(&runtime.cri.sandbox_status(&bare).unwrap().netns);
    assert!(netns::run_in(&bare_path, nft::read_back).unwrap().unwrap().tables.is_empty());
    assert!(!has_a_process(&path), "this test is about sandboxes without a process");

    let ips: Vec<Value> =
        runtime.cri.sandbox_status(&id).unwrap().addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let annotations: serde_json::Map<_, _> =
        annotations().into_iter().map(|(key, value)| (key, value.into())).collect();
    api.put(
        "pods",
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": "web", "uid": "web-uid", "annotations": annotations },
            "spec": { "nodeName": NODE, "restartPolicy": "Never", "containers": [{ "name": "web", "image": BUSYBOX }, { "name": "istio-proxy", "image": BUSYBOX }] },
            "status": { "phase": "Pending", "podIP": ips[0]["ip"], "podIPs": ips },
        }),
    );

    // A restarted agent does not know the reports of earlier calls: it has to find the namespace itself.
    agent.kill().unwrap();
    for (flags, expected) in
        [(["--netns-dirs=/nonexistent"], "runtime"), (["--runtime-state-dirs=/nonexistent"], "netns folder")]
    {
        let flush = || Command::new("nft").args(["delete", "table", "inet", "weir"]).status();
        assert!(netns::run_in(&path, flush).unwrap().unwrap().success());
        let agent = start(&[flags[0], &format!("--monitoring-port={MONITORING_PORT}")]);
        assert_eq!(found_by(&runtime, &agent), expected);
        assert_eq!(drift(&path), Vec::<String>::new());
        assert!(agent.terminate().unwrap().success());
    }

    // Containers of the pod are captured, and CRI-O removes pods also after the plugin has been uninstalled.
    let container = Container {
        name: "web",
        image: BUSYBOX,
        command: &["/bin/sh", "-c", "trap exit TERM; sleep 600 & wait"],
        ..Container::default()
    };
    runtime.cri.start_container(&id, &config, &container).unwrap();
    assert!(has_a_process(&path) && drift(&path).is_empty());
    let uninstall =
        agent::command(&runtime, "uninstall", &weir_tests::bin("weir-cni")).unwrap().arg("--wait=0s").output().unwrap();
    assert!(plugins()["plugins"].as_array().unwrap().len() == 1, "{}", String::from_utf8_lossy(&uninstall.stderr));
    for id in [id, bare] {
        runtime.cri.stop_pod_sandbox(&id).unwrap_or_else(|status| panic!("{}\n{}", status.message(), runtime.log()));
        runtime.cri.remove_pod_sandbox(&id).unwrap();
    }
    assert_eq!(runtime.cri.sandboxes().unwrap(), Vec::<String>::new());
}
