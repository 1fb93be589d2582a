//! The alerts and dashboards of the manifests against the metrics of the processes, as a real Prometheus scrapes them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_lab::http;
use weir_lab::process::ChildGuard;
use weir_tests::wait_until;

use crate::reference::{self, Metric};

/// Metrics of other exporters that alerts use: kube-state-metrics.
const FOREIGN: [&str; 2] = ["kube_daemonset_status_desired_number_scheduled", "kube_daemonset_status_number_ready"];
/// How the names of our metrics begin, and those of Istio and of Prometheus' client libraries.
const PREFIXES: [&str; 7] =
    ["weir_webhook_", "weir_agent_", "weir_cni_", "sidecar_injection_", "istio_cni_", "process_", "kube_"];

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn start(dir: &Path, program: &Path, kubeconfig: &Path, args: &[String]) -> ChildGuard {
    let log = fs::File::create(dir.join(program.file_name().unwrap()).with_extension("log")).unwrap();
    let mut command = Command::new(program);
    command.args(args).env("KUBECONFIG", kubeconfig).env("NODE_NAME", "n1").stdout(Stdio::null()).stderr(log);
    ChildGuard(command.spawn().unwrap())
}

/// Returns Debian's Prometheus; without it the test is skipped.
fn prometheus_or_skip() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/prometheus/usr/bin/prometheus");
    if !unpacked.is_file() {
        weir_lab::skip_or_fail("no Prometheus in target/tools; `make test-tools` fetches one");
        return None;
    }
    Some(unpacked)
}

/// Returns the names of metrics in all alerts and panels.
fn used_metrics() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/chart/observability");
    let mut names = BTreeSet::new();
    for file in ["prometheus-rule.yaml", "weir-nodes.json", "weir-webhook.json"] {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.extend(words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned));
    }
    names
}

/// Returns the names of all series that a metric may have, from its metadata.
fn series(metric: &str, kind: &str) -> Vec<String> {
    let with = |suffixes: &[&str]| suffixes.iter().map(|suffix| format!("{metric}{suffix}")).collect();
    match kind {
        // The names of the metadata are those of OpenMetrics.
        "counter" => with(&["_total"]),
        "info" => with(&["_info"]),
        "histogram" => with(&["_bucket", "_sum", "_count"]),
        _ => with(&[""]),
    }
}

#[test]
fn every_metric_of_alerts_and_dashboards_is_scraped() {
    let Some(prometheus) = prometheus_or_skip() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let server = ApiServer::start().unwrap();
    server.put("nodes", json!({"metadata": {"name": "n1"}, "spec": {}}));
    let kubeconfig = server.kubeconfig(root).unwrap();
    let [webhook, agent, nri_agent, port] = [free_port(), free_port(), free_port(), free_port()];
    let assertion = json!({"apiVersion": "weir.dev/v1alpha1", "kind": "CaptureAssertion", "metadata": {"name": "all"},
        "spec": {"rules": [{"direction": "outbound", "must": "captured"}]}});
    fs::write(root.join("assertions"), assertion.to_string()).unwrap();
    let _webhook = start(
        root,
        &weir_tests::bin("weir-webhook"),
        &kubeconfig,
        &[
            "--https-addr=127.0.0.1:0".to_owned(),
            format!("--http-addr=127.0.0.1:{webhook}"),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--namespace=weir-system".to_owned(),
            "--ca-secret=weir-webhook-ca".to_owned(),
            format!("--assertions={}", root.join("assertions").display()),
        ],
    );
    let start_agent = |mode: &str, port: u16| {
        let node = root.join(mode);
        for folder in ["etc/cni/net.d", "opt/cni/bin", "netns"] {
            fs::create_dir_all(node.join(folder)).unwrap();
        }
        fs::write(node.join("plugin"), "#!/bin/sh\n").unwrap();
        let flags = [
            "run".to_owned(),
            format!("--mode={mode}"),
            format!("--nri-socket={}", node.join("nri.sock").display()),
            format!("--host-root={}", node.display()),
            format!("--plugin-source={}", node.join("plugin").display()),
            format!("--cni-agent-run-dir={}", node.join("run").display()),
            "--host-proc-dir=/proc".to_owned(),
            "--netns-dirs=/netns".to_owned(),
            format!("--monitoring-port={port}"),
            "--health-port=0".to_owned(),
        ];
        start(&node, &weir_tests::bin("weir-agent"), &kubeconfig, &flags)
    };
    let _agents = [start_agent("cni", agent), start_agent("nri", nri_agent)];
    let targets = [webhook, agent, nri_agent].map(|port| format!("127.0.0.1:{port}"));
    let config = json!({
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "weir", "static_configs": [
            {"targets": targets},
        ]}],
    });
    fs::write(root.join("prometheus.yml"), config.to_string()).unwrap();
    let _prometheus = start(
        root,
        &prometheus,
        &kubeconfig,
        &[
            format!("--config.file={}", root.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", root.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ],
    );

    let query = |path: &str| -> Result<Value, String> {
        let answer = http::get((Ipv4Addr::LOCALHOST, port).into(), path).map_err(|error| error.to_string())?;
        serde_json::from_str(&answer.body).map_err(|error| format!("{error}: {}", answer.body))
    };
    wait_until("all targets are scraped", || {
        let targets = query("/api/v1/targets")?;
        let active = targets["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
        let up = active.iter().filter(|target| target["health"] == "up").count();
        if up == 3 { Ok(()) } else { Err(format!("{active:?}")) }
    });
    let metadata = query("/api/v1/targets/metadata").unwrap();
    let scraped: BTreeSet<String> = metadata["data"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|entry| series(entry["metric"].as_str().unwrap(), entry["type"].as_str().unwrap()))
        .collect();
    let metrics = |ports: &[u16]| -> BTreeSet<Metric> {
        let instances: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let entries = metadata["data"].as_array().unwrap().iter();
        let entries =
            entries.filter(|entry| instances.iter().any(|instance| entry["target"]["instance"] == **instance));
        entries
            .map(|entry| {
                let [name, kind, help] = ["metric", "type", "help"].map(|key| entry[key].as_str().unwrap().to_owned());
                Metric { name, kind, help }
            })
            .collect()
    };
    reference::assert_metrics_page(&[
        ("weir-webhook", metrics(&[webhook])),
        ("weir-agent", metrics(&[agent, nri_agent])),
    ]);
    let used = used_metrics();
    assert!(used.len() > 40, "{used:?}");
    let missing: Vec<&String> =
        used.iter().filter(|name| !scraped.contains(*name) && !FOREIGN.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "alerts or panels use metrics that nothing serves: {missing:?}; scraped: {scraped:?}");
}
