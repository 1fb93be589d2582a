//! Memory of the agent on a full node, and the addresses on which it listens.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;
use weir_apiserver::ApiServer;

use crate::agent::Agent;
use crate::follow::until;
use crate::repair::object;

/// Memory limit of the manifests, in KiB.
const LIMIT_KIB: u64 = 128 << 10;

/// Returns the most memory that a process ever had, in KiB.
fn peak_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_full_node_of_large_pods_stays_below_the_memory_limit() {
    let server = ApiServer::start().unwrap();
    for number in 0..110 {
        let mut pod = object(&format!("web-{number}"), "10.0.0.7");
        // 1 MB where an author can put it: variables, annotations, and what the API server adds to them.
        let env: Vec<_> = (0..600).map(|n| json!({"name": format!("V{n}"), "value": "x".repeat(1000)})).collect();
        pod["spec"]["containers"][1]["env"] = json!(env);
        pod["metadata"]["annotations"]["example.com/large"] = "y".repeat(200_000).into();
        let fields: serde_json::Map<_, _> = (0..10_000).map(|n| (format!("f:{n}"), json!({}))).collect();
        pod["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Update", "fieldsV1": fields}]);
        server.put("pods", pod);
    }
    let agent = Agent::start(&server, &["--repair-enabled=false"]);
    until("the first list", || agent.pod_list()["synced"] == true).await;
    // A change of every pod, through the watch.
    for number in 0..110 {
        let mut pod = server.get("pods", "shop", &format!("web-{number}")).unwrap();
        pod["status"]["phase"] = "Running".into();
        server.put("pods", pod);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let peak = peak_kib(agent.child.id());
    println!("peak memory: {peak} KiB");
    assert!(peak < LIMIT_KIB, "{peak} KiB; {}", agent.log());
}

#[tokio::test]
async fn metrics_are_on_loopback_unless_an_address_is_named() {
    let server = ApiServer::start().unwrap();
    let agent = Agent::start(&server, &[]);
    until("metrics", || agent.get("/metrics").is_some()).await;
    let status: serde_json::Value = serde_json::from_str(&agent.get("/status").unwrap()).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let expected = json!({"agentVersion": version, "pluginVersion": null, "mode": "cni", "modeReason": "--mode=cni"});
    assert_eq!(status, expected);
    let reachable = |address: Ipv4Addr| TcpStream::connect(SocketAddr::from((address, agent.monitoring))).is_ok();
    // Another address of this host.
    let other = Ipv4Addr::new(127, 0, 0, 9);
    assert!(reachable(Ipv4Addr::LOCALHOST) && !reachable(other));

    let named = Agent::start(&server, &["--monitoring-addr=127.0.0.9"]);
    until("metrics", || named.get("/metrics").is_some()).await;
    assert!(TcpStream::connect(SocketAddr::from((other, named.monitoring))).is_ok());
}
