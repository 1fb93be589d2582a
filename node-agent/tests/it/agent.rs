//! The agent itself, as a process: its socket, its listing, its events, its metrics, against an API server and a real namespace.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_cni::agent::ask;
use weir_lab::{http, privilege};
use weir_protocol::agent::{Agent as Client, Answer, Outcome, Question, Report};

use crate::follow::until;
use crate::repair::{inside, object, pod_netns, ruleset};

struct Agent {
    child: Child,
    dir: tempfile::TempDir,
    monitoring: u16,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    fn start(server: &ApiServer, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["etc/cni/net.d", "opt/cni/bin", "netns"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("plugin"), "#!/bin/sh\n").unwrap();
        let monitoring = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(env!("CARGO_BIN_EXE_weir-agent"))
            .env_clear()
            .env("KUBECONFIG", server.kubeconfig(root).unwrap())
            .env("NODE_NAME", "n1")
            .args([
                "run".to_owned(),
                format!("--host-root={}", root.display()),
                format!("--plugin-source={}", root.join("plugin").display()),
                format!("--cni-agent-run-dir={}", root.join("run").display()),
                "--host-proc-dir=/proc".to_owned(),
                "--netns-dirs=/netns".to_owned(),
                format!("--monitoring-port={monitoring}"),
                "--health-port=0".to_owned(),
            ])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(root.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, dir, monitoring }
    }

    fn client(&self) -> Client {
        Client { socket: self.dir.path().join("run/agent.sock"), timeout: Duration::from_secs(20) }
    }

    fn ask(&self, uid: &str, name: &str) -> Result<Answer, weir_cni::agent::AskError> {
        let (uid, namespace, name) = (uid.to_owned(), "shop".to_owned(), name.to_owned());
        ask(&self.client(), &Question { v: 1, uid, namespace, name })
    }

    fn get(&self, path: &str) -> Option<String> {
        let to = (Ipv4Addr::LOCALHOST, self.monitoring).into();
        http::get(to, path).ok().filter(|answer| answer.status == 200).map(|answer| answer.body)
    }

    fn listing(&self) -> Value {
        self.get("/pods").and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(PathBuf::from(self.dir.path()).join("log")).unwrap()
    }
}

#[tokio::test]
async fn serves_a_node_from_its_pods_to_its_metrics() {
    if !privilege::available_or_skip() {
        return;
    }
    let server = ApiServer::start().unwrap();
    server.put("nodes", json!({"metadata": {"name": "n1"}, "spec": {}}));
    let agent = Agent::start(&server, &[]);
    until("the first list", || agent.listing()["synced"] == true).await;

    // A pod of another injector: the answer comes from its specification.
    let mut object = object("web", "10.0.0.7");
    object["metadata"]["annotations"] = json!({"sidecar.istio.io/status": "{}"});
    object["spec"]["containers"][1]["securityContext"] = json!({"runAsUser": 1400});
    let uid = server.put("pods", object)["metadata"]["uid"].as_str().unwrap().to_owned();
    let answer = agent.ask(&uid, "web").unwrap();
    assert_eq!(answer, Answer::Capture { capture: r#"{"v":1,"proxyUids":[1400]}"#.to_owned() });
    // One that the watch of this node does not bring, asked for at the API server.
    server.put(
        "pods",
        json!({"metadata": {"namespace": "shop", "name": "moved", "uid": "m"}, "spec": {"nodeName": "n2"}}),
    );
    assert!(matches!(agent.ask("m", "moved").unwrap(), Answer::Skip { .. }));
    assert!(matches!(agent.ask("none", "none").unwrap(), Answer::Unknown { .. }));

    // The plugin says where the pod is; whoever flushes its rules finds them back.
    let pod = pod_netns("10.0.0.7");
    let netns = pod.path().display().to_string();
    let report = Report {
        v: 1,
        verb: "ADD".to_owned(),
        outcome: Outcome::Installed,
        uid: uid.clone(),
        netns,
        ..Report::default()
    };
    weir_cni::agent::send(&report, &agent.client());
    // What is unreachable is looked at again when something is new.
    server.put("pods", {
        let mut pod = server.get("pods", "shop", "web").unwrap();
        pod["status"]["phase"] = "Running".into();
        pod
    });
    until("its rules are there", || agent.listing()["pods"][0]["state"] == "ok").await;
    assert!(ruleset(&pod).contains("1400"), "{}", agent.log());
    let listing = agent.listing();
    assert_eq!((&listing["node"], &listing["repairs"]), (&json!("n1"), &json!(true)));
    let expected =
        json!({"namespace": "shop", "name": "web", "uid": uid, "state": "ok", "foundBy": "plugin", "repairs": 1});
    assert_eq!(listing["pods"], json!([expected]));

    until("an event", || server.list("events").iter().any(|event| event["reason"] == "CaptureRulesRepaired")).await;
    let metrics = agent.get("/metrics").unwrap();
    for line in [
        r#"weir_cni_requests_total{verb="ADD",outcome="installed",code="0"} 1"#,
        r#"weir_agent_questions_total{outcome="capture"} 1"#,
        r#"istio_cni_repair_pods_repaired_total{type="repair",result="success"} 1"#,
        "\nweir_agent_pod_cache_age_seconds ",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn sees_a_flush_at_the_next_interval() {
    if !privilege::available_or_skip() {
        return;
    }
    let server = ApiServer::start().unwrap();
    let agent = Agent::start(&server, &["--repair-interval=100ms"]);
    let pod = pod_netns("10.0.0.7");
    std::os::unix::fs::symlink(pod.path(), agent.dir.path().join("netns/cni-1")).unwrap();
    server.put("pods", object("web", "10.0.0.7"));
    for repairs in 1..4 {
        until("a repair", || agent.listing()["pods"][0]["repairs"] == repairs).await;
        assert!(ruleset(&pod).contains("1400"));
        inside(&pod, "nft", &["flush", "ruleset"]);
    }
}
