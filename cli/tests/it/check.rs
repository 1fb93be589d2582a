//! `weir check` against a fake cluster: output formats and exit codes.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weir_apiserver::fake_webhook::{FakeReply, FakeWebhook};
use weir_apiserver::tls::Authority;
use weir_apiserver::{ApiServer, FaultTarget, ServerFault};

use crate::fixture::{Fixture, plain_pod};
use crate::run::{Run, serve_pods, weir};

/// A cluster behind an API server, with a webhook that injects. It stops when it is dropped.
struct Cluster {
    server: ApiServer,
    kubeconfig: PathBuf,
    _hook: FakeWebhook,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts the healthy cluster with a change.
    fn with(change: impl FnOnce(&mut Fixture)) -> Self {
        let mut fixture = Fixture::healthy();
        let authority = Authority::new("webhook").unwrap();
        let ca = STANDARD.encode(authority.cert());
        fixture.get("secrets", "weir-system", "weir-webhook-ca")["data"]["current.crt"] = ca.clone().into();
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = ca.clone().into();
        }
        change(&mut fixture);
        let pair = authority.issue("webhook", &["weir-webhook.weir-system.svc"]).unwrap();
        let injector = Fixture::healthy();
        let reply = move |review: &Value| {
            let pod = &review["request"]["object"];
            FakeReply::patch(&serde_json::to_value(json_patch::diff(pod, &injector.injected(pod))).unwrap())
        };
        let hook = FakeWebhook::start(Ipv4Addr::LOCALHOST.into(), &pair, reply).unwrap();
        let server = ApiServer::start().unwrap();
        for (resource, object) in &fixture.objects {
            server.put(resource, object.clone());
        }
        server.set_endpoints("weir-system", "weir-webhook", 443, &[hook.addr()]);
        let addr = serve_reports(fixture.reports.clone());
        for target in fixture.reports.keys() {
            let (namespace, rest) = target.split_once('/').unwrap();
            let (pod, rest) = rest.split_once(':').unwrap();
            let (port, _) = rest.split_once('/').unwrap();
            server.set_pod_address(namespace, pod, port.parse().unwrap(), addr);
        }
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = server.kubeconfig(dir.path()).unwrap();
        Self { server, kubeconfig, _hook: hook, _dir: dir }
    }

    fn check(&self, args: &[&str]) -> Run {
        let kubeconfig = self.kubeconfig.to_str().unwrap();
        weir(&[&["check", "--kubeconfig", kubeconfig], args].concat(), "")
    }
}

/// Serves the reports of all pods on one address. The header `Host` names the pod.
fn serve_reports(reports: BTreeMap<String, (u16, String)>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let path = head.next().and_then(|line| line.split(' ').nth(1).map(str::to_owned)).unwrap_or_default();
            let host = head.find_map(|line| line.to_lowercase().strip_prefix("host: ").map(str::to_owned));
            let host = host.unwrap_or_default();
            let path = path.split('?').next().unwrap_or_default();
            let is_target = |target: &str| target.contains(&format!("/{host}:")) && target.ends_with(path);
            let found = reports.iter().find(|(target, _)| is_target(target)).map(|(_, report)| report.clone());
            let (code, body) = found.unwrap_or((404, String::new()));
            let head = format!("HTTP/1.1 {code} Status\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    addr
}

#[test]
fn a_healthy_cluster_has_no_findings_in_any_format() {
    let cluster = Cluster::with(|_| {});
    let run = cluster.check(&[]);
    let areas = [
        "cluster and permissions",
        "path from the API server to the webhook",
        "certificates",
        "webhook configurations and namespaces",
        "replicas of the webhook",
        "nodes and agents",
        "settings",
        "workloads",
    ];
    let passed = areas.map(|area| format!("✓ {area}\n")).concat();
    let wanted = format!("context test, {}/\n{passed}\nno problems found\n", cluster.server.url());
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (0, wanted.as_str(), ""));
    assert_eq!(cluster.check(&["-o", "json"]).stdout, "{\n  \"complete\": true,\n  \"findings\": []\n}\n");
    let junit = cluster.check(&["-o", "junit"]).stdout;
    assert!(junit.contains("failures=\"0\"") && !junit.contains("<failure"), "{junit}");
    let html = cluster.check(&["-o", "html"]).stdout;
    assert!(html.contains("certificates</td><td class=\"good\" data-label=\"state\">in order"), "{html}");
    for args in [&["--pre"][..], &["precheck"], &["-n", "shop"], &["--no-probe"], &["--probe-namespace", "shop"]] {
        let args = if args == ["precheck"] {
            let kubeconfig = cluster.kubeconfig.to_str().unwrap();
            weir(&["check", "precheck", "--kubeconfig", kubeconfig], "")
        } else {
            cluster.check(args)
        };
        assert!(args.code == 0 && args.stdout.ends_with("\nno problems found\n"), "{}{}", args.stdout, args.stderr);
    }
    assert!(cluster.server.list("pods").iter().all(|pod| pod["metadata"]["generateName"] != "weir-check-"));
}

#[test]
fn conditions_of_an_agent_that_is_not_ready_are_reported() {
    let cluster = Cluster::with(|fixture| {
        let conditions = json!([{
            "name": "install", "status": "failed", "impact": "blocking", "reason": "InstallFailed", "message": "no space left",
        }]);
        fixture.set_readiness("weir-node", "weir-agent-2", &conditions);
        fixture.get("pods", "weir-node", "weir-agent-2")["status"]["conditions"] =
            json!([{"type": "Ready", "status": "False"}]);
    });
    let run = cluster.check(&[]);
    let finding = "Node node-2: agent weir-agent-2 is not ready: install: no space left";
    assert!(run.code == 1 && run.stdout.contains(finding) && !run.stdout.contains("not-read\n"), "{}", run.stdout);
}

#[test]
fn failure_threshold_decides_the_exit_status() {
    let cluster = Cluster::with(|fixture| {
        fixture.add(plain_pod("shop", "old-1", "old-1-a"));
        fixture.remove("poddisruptionbudgets", "weir-system", "weir-webhook");
    });
    let run = cluster.check(&[]);
    assert_eq!(run.code, 0, "warnings alone: {}", run.stderr);
    assert!(run.stdout.ends_with("\n2 warnings\n"), "{}", run.stdout);
    assert!(run.stdout.contains("warning WEIR801 pod-without-sidecar\n  Pod shop/old-1-a: "), "{}", run.stdout);
    assert_eq!(cluster.check(&["--failure-threshold", "warning"]).code, 1);
    let rules = ["-S", "WEIR801=Pod shop/*", "-S", "disruption-budget-missing"];
    let run = cluster.check(&[&["--failure-threshold", "Info"][..], &rules].concat());
    assert!(run.code == 0 && run.stdout.ends_with("\nno problems found\n"), "{}", run.stdout);
    assert_eq!(cluster.check(&["-n", "plain", "-S", "WEIR5*", "--failure-threshold", "info"]).code, 0);
}

#[test]
fn call_errors_quote_the_api_server() {
    let cluster = Cluster::with(|_| {});
    cluster.server.set_endpoints("weir-system", "weir-webhook", 443, &["127.0.0.1:9".parse().unwrap()]);
    let run = cluster.check(&[]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stdout.contains("✗ path from the API server to the webhook\n")
            && run.stdout.contains("\n\nerror WEIR208 connection-refused\n  Service weir-system/weir-webhook: "),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("127.0.0.1:9: connect: connection refused"), "{}", run.stdout);
    assert!(run.stdout.ends_with("\n1 error\n"), "{}", run.stdout);
}

#[test]
fn an_unreachable_cluster_exits_with_2() {
    let cluster = Cluster::with(|_| {});
    cluster.server.require_token(Some("another"));
    let run = cluster.check(&[]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{}", run.stderr);
    assert!(run.stderr.contains("unauthorized (401"), "{}", run.stderr);
    cluster.server.require_token(None);
    cluster.server.inject_fault(FaultTarget::Always, ServerFault::Hang, usize::MAX);
    let run = cluster.check(&["--timeout", "1s"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("within 1 s"), "{}", run.stderr);
    cluster.server.stop_listening();
    let run = cluster.check(&[]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("cannot reach the cluster"), "{}", run.stderr);
    for wrong in [&["--timeout", "0"][..], &["-S", "nosuch"], &["-o", "yaml"], &["--failure-threshold", "bad"]] {
        assert_eq!(cluster.check(wrong).code, 2, "{wrong:?}");
    }
}

#[test]
fn unreadable_objects_are_reported_and_the_rest_is_checked() {
    let cluster = Cluster::with(|fixture| fixture.remove("poddisruptionbudgets", "weir-system", "weir-webhook"));
    cluster.server.authorize(|access| access.resource != "nodes");
    let run = cluster.check(&[]);
    assert!(run.stdout.contains("info WEIR101 not-read\n  nodes: not read: 403: "), "{}", run.stdout);
    assert!(run.stdout.contains("warning WEIR502 disruption-budget-missing"), "{}", run.stdout);
    assert!(run.stdout.contains("? nodes and agents (incomplete"), "{}", run.stdout);
    assert!(run.code == 1 && run.stderr.contains("--allow-incomplete accepts that"), "{}", run.stderr);
    assert_eq!(cluster.check(&["--allow-incomplete"]).code, 0);
    // Without any right, nothing is in order.
    cluster.server.authorize(|_| false);
    let run = cluster.check(&["--no-probe"]);
    assert!(run.code == 1 && !run.stdout.contains('✓'), "{}", run.stdout);
}

#[test]
fn wait_ends_when_the_condition_holds() {
    let cluster = Cluster::with(|fixture| {
        fixture.get("deployments", "istio-system", "istiod")["status"]["readyReplicas"] = 0.into();
    });
    let start = Instant::now();
    let failed = cluster.check(&["--wait", "--failure-threshold", "warning", "--timeout", "3s"]);
    assert_eq!(failed.code, 1, "{}", failed.stdout);
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    let finding: Value = serde_json::from_str(&cluster.check(&["-o", "json"]).stdout).unwrap();
    let code = finding["findings"][0]["code"].as_str().unwrap().to_owned();
    let healed = Fixture::healthy().get("deployments", "istio-system", "istiod").clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            cluster.server.put("deployments", healed);
        });
        let waited = cluster.check(&[&format!("--wait={code}"), "--timeout", "1m"]);
        assert_eq!(waited.code, 0, "{}{}", waited.stdout, waited.stderr);
        assert!(waited.stderr.starts_with("waiting: ") && !waited.stderr.contains('\u{1b}'), "{:?}", waited.stderr);
    });
    assert_eq!(cluster.check(&["--wait", "--failure-threshold", "warning", "--timeout", "1m"]).code, 0);
    let unknown = cluster.check(&["--wait=WEIR999"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("WEIR999"), "{}", unknown.stderr);
    let nowhere = weir(&["check", "--wait", "--kubeconfig", "/nonexistent"], "");
    assert!(nowhere.code == 2 && nowhere.stderr.contains("/nonexistent"), "{}", nowhere.stderr);
}

#[test]
fn agents_are_found_and_asked_through_a_port_forward() {
    let cluster = Cluster::with(|fixture| {
        let mut pod = plain_pod("shop", "web", "web");
        pod["spec"]["nodeName"] = "node-2".into();
        fixture.add(pod);
    });
    for number in 1..=3 {
        let pod = format!("weir-agent-{number}");
        cluster.server.set_pod_address(
            "weir-node",
            &pod,
            15034,
            serve_pods(&format!("node-{number}"), &[("shop", "web", "missing")]),
        );
    }
    let kubeconfig = cluster.kubeconfig.to_str().unwrap();
    let run = |args: &[&str]| weir(&[args, &["--kubeconfig", kubeconfig]].concat(), "");
    let node = run(&["check", "node", "node-2"]);
    assert_eq!(node.code, 1, "{}", node.stderr);
    assert!(node.stdout.ends_with("node node-2: 1 of 1 meshed pods lack capture rules\n"), "{}", node.stdout);
    assert_eq!(run(&["check", "node", "pod/web", "-n", "shop"]).stdout, node.stdout);
    let all: Value = serde_json::from_str(&run(&["check", "node", "-A", "-o", "json"]).stdout).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 3);
    for args in [&["explain", "--pod", "shop/web"][..], &["explain", "--pod", "pod/web", "-n", "shop"]] {
        let explained = run(args);
        assert_eq!(explained.code, 1, "{}", explained.stderr);
        assert!(explained.stdout.starts_with("pod shop/web on node node-2: missing\n"), "{}", explained.stdout);
    }
    let all = run(&["explain", "--pod", "-A"]);
    assert_eq!((all.code, all.stdout.matches("pod shop/web on node ").count()), (1, 3), "{}{}", all.stdout, all.stderr);
    assert_eq!(run(&["explain", "--pod", "-n", "shop"]).stdout, all.stdout);
    let empty = run(&["explain", "--pod"]);
    assert_eq!((empty.code, empty.stdout.as_str()), (0, "no meshed pods in namespace default\n"), "{}", empty.stderr);
    let unknown = run(&["check", "node", "node-9"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("no agent runs on node node-9"), "{}", unknown.stderr);
    cluster.server.authorize(|access| access.subresource != "portforward");
    let refused = run(&["check", "node", "node-2"]);
    assert!(refused.code == 2 && refused.stderr.contains("pods/portforward"), "{}", refused.stderr);
}

#[test]
fn docs_list_every_option() {
    let text = std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/check.md")).unwrap();
    let help = weir(&["check", "--help"], "").stdout;
    let options = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let words: Vec<&str> =
        options.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--"))).collect();
    assert!(words.len() > 12, "{words:?}");
    // Help prints the optional value of a switch, and the dots of one that repeats, behind its name.
    let names = words.iter().filter_map(|word| word.split(['[', '.']).next());
    for option in names.filter(|word| !["--help", "--version"].contains(word)) {
        assert!(text.contains(option), "{option} is not in docs/check.md");
    }
}
