//! The agent's process against an API server and a real network namespace: socket, `/pods`, events, metrics.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use weir_apiserver::{ApiServer, ForwardProxy};
use weir_cni::agent::query_agent;
use weir_lab::{http, privilege};
use weir_protocol::agent::{AgentEndpoint, CallOutcome, CallReport, PodAnswer, PodQuery};

use crate::follow::until;
use crate::install::free_port;
use crate::repair::{inside, object, pod_netns, ruleset};

pub(crate) struct Agent {
    pub(crate) child: Child,
    dir: tempfile::TempDir,
    pub(crate) monitoring: u16,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    pub(crate) fn start(server: &ApiServer, flags: &[&str]) -> Self {
        Self::start_with(|dir| server.kubeconfig(dir).unwrap(), &[], flags)
    }

    fn start_with(kubeconfig: impl Fn(&Path) -> PathBuf, environment: &[(&str, &str)], flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["etc/cni/net.d", "opt/cni/bin", "netns"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("plugin"), "#!/bin/sh\n").unwrap();
        let monitoring = free_port();
        let child = Command::new(env!("CARGO_BIN_EXE_weir-agent"))
            .env_clear()
            .env("KUBECONFIG", kubeconfig(root))
            .envs(environment.iter().copied())
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

    fn client(&self) -> AgentEndpoint {
        AgentEndpoint { socket: self.dir.path().join("run/agent.sock"), timeout: Duration::from_secs(20) }
    }

    fn ask(&self, uid: &str, name: &str) -> Result<PodAnswer, weir_cni::agent::AgentError> {
        let (uid, namespace, name) = (uid.to_owned(), "shop".to_owned(), name.to_owned());
        query_agent(&self.client(), &PodQuery { v: 1, uid, namespace, name })
    }

    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let to = (Ipv4Addr::LOCALHOST, self.monitoring).into();
        http::get(to, path).ok().filter(|answer| answer.status == 200).map(|answer| answer.body)
    }

    pub(crate) fn pod_list(&self) -> Value {
        self.get("/pods").and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(PathBuf::from(self.dir.path()).join("log")).unwrap()
    }
}

#[tokio::test]
async fn pods_are_watched_through_the_proxy_of_the_environment() {
    let server = ApiServer::cluster().unwrap();
    let proxy = ForwardProxy::start(server.addr()).unwrap();
    server.put("nodes", json!({"metadata": {"name": "n1"}, "spec": {}}));
    let kubeconfig = |dir: &Path| server.kubeconfig_through(dir, "https://kubernetes.default.svc", None).unwrap();
    let agent = Agent::start_with(kubeconfig, &[("HTTPS_PROXY", &proxy.http_url())], &[]);
    until("the first list", || agent.pod_list()["synced"] == true).await;
    assert_eq!(proxy.targets().first().map(String::as_str), Some("kubernetes.default.svc:443"));
}

#[tokio::test]
async fn pods_are_answered_repaired_and_counted() {
    if !privilege::available_or_skip() {
        return;
    }
    let server = ApiServer::start().unwrap();
    server.put("nodes", json!({"metadata": {"name": "n1"}, "spec": {}}));
    let agent = Agent::start(&server, &[]);
    until("the first list", || agent.pod_list()["synced"] == true).await;

    // A pod of Istio's injector: the answer comes from its spec.
    let mut object = object("web", "10.0.0.7");
    object["metadata"]["annotations"] = json!({"sidecar.istio.io/status": "{}"});
    object["spec"]["containers"][1]["securityContext"] = json!({"runAsUser": 1400});
    let uid = server.put("pods", object)["metadata"]["uid"].as_str().unwrap().to_owned();
    let answer = agent.ask(&uid, "web").unwrap();
    assert_eq!(answer, PodAnswer::Capture { capture: r#"{"v":1,"?ipv6Auto":true,"proxyUids":[1400]}"#.to_owned() });
    // A pod of another node: the agent gets it from the API server.
    server.put(
        "pods",
        json!({"metadata": {"namespace": "shop", "name": "moved", "uid": "m"}, "spec": {"nodeName": "n2"}}),
    );
    assert!(matches!(agent.ask("m", "moved").unwrap(), PodAnswer::Skip { .. }));
    assert!(matches!(agent.ask("none", "none").unwrap(), PodAnswer::Unknown { .. }));

    // With the network namespace from the plugin's report the rules are restored.
    let pod = pod_netns("10.0.0.7");
    let netns = pod.path().display().to_string();
    let report = CallReport {
        v: 1,
        verb: "ADD".to_owned(),
        outcome: CallOutcome::Installed,
        uid: uid.clone(),
        netns,
        ..CallReport::default()
    };
    weir_cni::agent::send(&report, &agent.client());
    // A change of the pod triggers the next inspection.
    server.put("pods", {
        let mut pod = server.get("pods", "shop", "web").unwrap();
        pod["status"]["phase"] = "Running".into();
        pod
    });
    until("its rules are there", || agent.pod_list()["pods"][0]["state"] == "ok").await;
    assert!(ruleset(&pod).contains("1400"), "{}", agent.log());
    let list = agent.pod_list();
    assert_eq!((&list["node"], &list["repairs"]), (&json!("n1"), &json!(true)));
    let expected =
        json!({"namespace": "shop", "name": "web", "uid": uid, "state": "ok", "foundBy": "plugin", "repairs": 1});
    assert_eq!(list["pods"], json!([expected]));

    until("an event", || server.list("events").iter().any(|event| event["reason"] == "CaptureRulesRepaired")).await;
    let metrics = agent.get("/metrics").unwrap();
    for line in [
        r#"weir_cni_requests_total{verb="ADD",outcome="installed",code="0"} 1"#,
        r#"weir_agent_pod_queries_total{outcome="capture"} 1"#,
        r#"istio_cni_repair_pods_repaired_total{type="repair",result="success"} 1"#,
        "\nweir_agent_pod_cache_age_seconds ",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn flushed_rules_are_restored_at_the_interval() {
    if !privilege::available_or_skip() {
        return;
    }
    let server = ApiServer::start().unwrap();
    let agent = Agent::start(&server, &["--repair-interval=100ms"]);
    let pod = pod_netns("10.0.0.7");
    std::os::unix::fs::symlink(pod.path(), agent.dir.path().join("netns/cni-1")).unwrap();
    server.put("pods", object("web", "10.0.0.7"));
    for repairs in 1..4 {
        until("a repair", || agent.pod_list()["pods"][0]["repairs"] == repairs).await;
        assert!(ruleset(&pod).contains("1400"));
        inside(&pod, "nft", &["flush", "ruleset"]);
    }
}
