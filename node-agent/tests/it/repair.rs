//! Repair of capture rules in real network namespaces, and the fallback for pods that cannot be repaired.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use iptables_rules::backend::Backend;
use serde_json::{Value, json};
use weir_agent::events::{self, EventRecorder};
use weir_agent::metrics::MetricsRegistry;
use weir_agent::pods::{PodCache, PodFacts};
use weir_agent::repair::{
    Fallback, FallbackRunner, Monitors, NetnsPaths, PodStates, RepairLimits, RepairMetrics, RepairOptions, Repairer,
    RuleState, VerifiedRules, Visits,
};
use weir_agent::socket::Attachments;
use weir_apiserver::ApiServer;
use weir_lab::{Netns, privilege};
use weir_protocol::agent::CallReport;
use weir_runtime::CancellationToken;

use crate::follow::{connect, follow, until};

/// Creates the network namespace of a pod with this address.
pub(crate) fn pod_netns(ip: &str) -> Netns {
    let netns = Netns::new("pod").unwrap();
    inside(&netns, "ip", &["addr", "add", &format!("{ip}/32"), "dev", "lo"]);
    netns
}

pub(crate) fn inside(netns: &Netns, program: &str, args: &[&str]) -> String {
    let output = netns.run(|| Command::new(program).args(args).output()).unwrap().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ruleset(netns: &Netns) -> String {
    inside(netns, "nft", &["list", "ruleset"])
}

/// A meshed pod as the API server has it.
pub(crate) fn object(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1",
            "annotations": {"sidecar.istio.io/status": r#"{"containers":["istio-proxy"]}"#, "weir.dev/capture": r#"{"v":1,"proxyUids":[1400]}"#},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs-1", "controller": true}],
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "app"}, {"name": "istio-proxy"}]},
        "status": {"phase": "Pending", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

pub(crate) fn facts(object: Value) -> PodFacts {
    PodFacts::from_pod(serde_json::from_value(object).unwrap(), &[])
}

pub(crate) fn netns_paths(root: &Path) -> NetnsPaths {
    NetnsPaths {
        host_proc: "/proc".into(),
        host_root: root.to_owned(),
        netns_dirs: vec!["/netns".into()],
        runtime_dirs: vec!["/state".into()],
    }
}

pub(crate) struct Bench {
    pub(crate) repairer: Repairer,
    pub(crate) metrics: MetricsRegistry,
    dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new(in_place: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = MetricsRegistry::default();
        let options = RepairOptions {
            in_place,
            interval: Duration::from_hours(1),
            backend: Backend::Auto,
            netns_paths: netns_paths(dir.path()),
        };
        let (events, _publisher) = events::channel(&metrics);
        let repairer = Repairer {
            pods: PodCache::default(),
            attachments: Attachments::default(),
            options,
            states: PodStates::default(),
            metrics: RepairMetrics::register(&metrics),
            events,
            visits: Visits::default(),
            monitors: Monitors::default(),
            verified: VerifiedRules::default(),
        };
        Self { repairer, metrics, dir }
    }

    /// Adds a pod whose network namespace the plugin has reported.
    pub(crate) fn reported(&self, name: &str, ip: &str, netns: &Path) {
        self.repairer.pods.put(facts(object(name, ip)));
        self.repairer.attachments.apply(&CallReport {
            v: 1,
            verb: "ADD".to_owned(),
            uid: format!("uid-{name}"),
            netns: netns.display().to_string(),
            ..CallReport::default()
        });
    }

    pub(crate) fn state(&self, name: &str) -> (RuleState, u32) {
        let state = self.repairer.states.get(&format!("uid-{name}")).unwrap();
        (state.state, state.repairs)
    }
}

#[test]
fn missing_flushed_and_changed_rules_are_restored() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(true);
    let pod = pod_netns("10.0.0.7");
    bench.reported("web", "10.0.0.7", &pod.path());
    assert!(bench.repairer.inspect_pods(true).is_empty());
    let complete = ruleset(&pod);
    assert!(complete.contains("1400"), "{complete}");
    assert_eq!(bench.state("web"), (RuleState::Ok, 1));
    bench.repairer.inspect_pods(true);
    assert_eq!(bench.state("web"), (RuleState::Ok, 1), "what is in place is left alone");

    let damages: [&[&str]; 5] = [
        &["flush", "table", "inet", "weir"],
        &["flush", "chain", "inet", "weir", "ISTIO_OUTPUT"],
        &["delete", "table", "inet", "weir"],
        &["flush", "ruleset"],
        &["insert", "rule", "inet", "weir", "ISTIO_OUTPUT", "accept"],
    ];
    for (repairs, damage) in (2..).zip(damages) {
        inside(&pod, "nft", damage);
        assert_ne!(ruleset(&pod), complete);
        assert!(bench.repairer.inspect_pods(true).is_empty());
        assert_eq!(ruleset(&pod), complete, "after {damage:?}");
        assert_eq!(bench.state("web"), (RuleState::Ok, repairs));
    }
    // Routes and addresses that the rules need.
    inside(&pod, "ip", &["addr", "del", "::6/128", "dev", "lo"]);
    bench.repairer.inspect_pods(true);
    assert!(inside(&pod, "ip", &["-6", "addr", "show", "dev", "lo"]).contains("::6/128"));
    let text = bench.metrics.render();
    assert!(text.contains(r#"istio_cni_repair_pods_repaired_total{type="repair",result="success"} 7"#), "{text}");
    assert!(text.contains(r#"weir_agent_meshed_pods{state="ok"} 1"#), "{text}");
}

#[test]
fn other_network_namespaces_are_not_changed() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(true);
    let stranger = pod_netns("10.0.0.8");
    bench.reported("moved", "10.0.0.7", &stranger.path());
    // An address of this process: only the check for its own namespace protects it.
    bench.reported("host", "127.0.0.1", Path::new("/proc/self/ns/net"));
    let file = tempfile::NamedTempFile::new().unwrap();
    bench.reported("file", "10.0.0.9", file.path());
    bench.reported("gone", "10.0.0.10", Path::new("/run/netns/weir-no-such"));
    let before =
        weir_lab::process::run(Command::new("nft").args(["list", "ruleset"]), b"", Duration::from_secs(20)).unwrap();
    assert!(bench.repairer.inspect_pods(true).is_empty());
    for name in ["moved", "host", "file", "gone"] {
        assert_eq!(bench.state(name).0, RuleState::Unreachable, "{name}");
    }
    assert_eq!(ruleset(&stranger), "");
    let after =
        weir_lab::process::run(Command::new("nft").args(["list", "ruleset"]), b"", Duration::from_secs(20)).unwrap();
    assert_eq!(after.stdout, before.stdout);
}

#[test]
fn network_namespaces_are_found_without_a_report() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(true);
    let root = bench.dir.path();
    std::fs::create_dir_all(root.join("netns")).unwrap();
    std::fs::create_dir_all(root.join("state/abc")).unwrap();

    let (named, recorded) = (pod_netns("10.0.0.7"), pod_netns("10.0.0.8"));
    symlink(named.path(), root.join("netns/cni-1")).unwrap();
    let record = json!({
        "annotations": {"io.kubernetes.cri.sandbox-uid": "uid-recorded"},
        "linux": {"namespaces": [{"type": "network", "path": recorded.path()}]},
    });
    std::fs::write(root.join("state/abc/config.json"), record.to_string()).unwrap();
    bench.repairer.pods.put(facts(object("named", "10.0.0.7")));
    bench.repairer.pods.put(facts(object("recorded", "10.0.0.8")));
    bench.repairer.inspect_pods(true);
    for (name, netns, found_by) in [("named", &named, "netns folder"), ("recorded", &recorded, "runtime")] {
        let state = bench.repairer.states.get(&format!("uid-{name}")).unwrap();
        assert_eq!((state.state, state.found_by), (RuleState::Ok, Some(found_by)));
        assert!(ruleset(netns).contains("1400"));
    }
}

#[test]
fn rules_of_another_installer_are_not_changed() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(true);
    let istio = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT -j RETURN\nCOMMIT\n";
    let legacy = format!("printf '{istio}' | iptables-legacy-restore");
    let ways: [(&str, &[&str]); 2] = [
        ("nft", &["add table ip nat; add chain ip nat ISTIO_OUTPUT; add rule ip nat ISTIO_OUTPUT return"]),
        ("sh", &["-c", &legacy]),
    ];
    for (program, arguments) in ways {
        let pod = pod_netns("10.0.0.7");
        inside(&pod, program, arguments);
        let before = ruleset(&pod);
        bench.reported("web", "10.0.0.7", &pod.path());
        assert!(bench.repairer.inspect_pods(true).is_empty());
        assert_eq!(bench.state("web").0, RuleState::Foreign, "{program}");
        assert_eq!(ruleset(&pod), before);
    }
}

#[test]
fn without_in_place_nothing_is_repaired() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(false);
    let pod = pod_netns("10.0.0.7");
    bench.reported("web", "10.0.0.7", &pod.path());
    assert_eq!(bench.repairer.inspect_pods(true).len(), 1);
    assert_eq!((bench.state("web").0, ruleset(&pod).as_str()), (RuleState::Missing, ""));
    // A pod that is terminating, has no address yet, or has invalid settings is not broken.
    for (change, state) in [
        (json!({"status": {"podIP": null, "podIPs": null}}), Some(RuleState::Pending)),
        (json!({"metadata": {"annotations": {"weir.dev/capture": "{"}}}), Some(RuleState::Refused)),
        (json!({"status": {"phase": "Succeeded"}}), None),
    ] {
        // As the agent sees it for the first time.
        let bench = Bench::new(false);
        bench.reported("web", "10.0.0.7", &pod.path());
        let mut object = object("web", "10.0.0.7");
        json_patch::merge(&mut object, &change);
        bench.repairer.pods.put(facts(object));
        assert!(bench.repairer.inspect_pods(true).is_empty());
        assert_eq!(bench.repairer.states.get("uid-web").map(|state| state.state), state);
    }
}

/// Runs reflector and repairer as the agent does.
pub(crate) fn run(
    server: &ApiServer,
    options: RepairOptions,
    runner: Option<FallbackRunner>,
    events: EventRecorder,
) -> (PodCache, PodStates, Attachments, Vec<CancellationToken>) {
    let (pods, following) = follow(connect(server, || None));
    let shutdown = CancellationToken::new();
    let (states, attachments) = (PodStates::default(), Attachments::default());
    let repairer = Repairer {
        pods: pods.clone(),
        attachments: attachments.clone(),
        options,
        states: states.clone(),
        metrics: RepairMetrics::default(),
        events,
        visits: Visits::default(),
        monitors: Monitors::default(),
        verified: VerifiedRules::default(),
    };
    tokio::spawn(repairer.run(runner, shutdown.clone()));
    (pods, states, attachments, vec![following, shutdown])
}

#[tokio::test]
async fn a_new_pod_is_repaired_at_once() {
    if !privilege::available_or_skip() {
        return;
    }
    let server = ApiServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("netns")).unwrap();
    // The interval is never reached.
    let options = RepairOptions {
        in_place: true,
        interval: Duration::from_hours(1),
        backend: Backend::Auto,
        netns_paths: netns_paths(dir.path()),
    };
    let (events, _publisher) = events::channel(&MetricsRegistry::default());
    let (pods, states, _attachments, _shutdown) = run(&server, options, None, events);
    until("the first list", || pods.is_synced()).await;

    let pod = pod_netns("10.0.0.7");
    symlink(pod.path(), dir.path().join("netns/cni-1")).unwrap();
    let mut young = object("web", "10.0.0.7");
    young["status"] = json!({"phase": "Pending"});
    let stored = server.put("pods", young);
    let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
    until("the pod is seen", || states.get(&uid).is_some_and(|state| state.state == RuleState::Pending)).await;
    assert_eq!(ruleset(&pod), "");
    server.put("pods", object("web", "10.0.0.7"));
    until("its rules are there", || {
        states.get(&uid).is_some_and(|state| (state.state, state.repairs) == (RuleState::Ok, 1))
    })
    .await;
    assert!(ruleset(&pod).contains("1400"));
}

#[tokio::test]
async fn the_budget_limits_deletions_per_owner() {
    let server = ApiServer::start().unwrap();
    for number in 0..200 {
        let mut pod = object(&format!("web-{number:03}"), "10.0.0.7");
        pod["status"]["initContainerStatuses"] = json!([{"name": "istio-validation",
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 126}}}]);
        server.put("pods", pod);
    }
    let dir = tempfile::tempdir().unwrap();
    let options = RepairOptions {
        in_place: true,
        interval: Duration::from_millis(50),
        backend: Backend::Auto,
        netns_paths: netns_paths(dir.path()),
    };
    let metrics = MetricsRegistry::default();
    let (events, publisher) = events::channel(&metrics);
    let shutdown = CancellationToken::new();
    tokio::spawn(publisher.run(connect(&server, || None), events::reporter("n1"), shutdown.clone()));
    let limits = RepairLimits { per_owner: 3, per_node: 10, window: Duration::from_hours(1) };
    let runner = FallbackRunner::new(connect(&server, || None), Fallback::Delete, limits);
    let (_pods, _states, _attachments, _shutdown) = run(&server, options, Some(runner), events);

    let notes = || -> Vec<String> {
        server
            .list("events")
            .iter()
            .map(|event| format!("{} {}", event["reason"].as_str().unwrap(), event["note"].as_str().unwrap()))
            .collect()
    };
    until("an event says so", || notes().iter().any(|note| note.contains("RepairBudgetExhausted"))).await;
    until("three are gone", || server.list("pods").len() == 197).await;
    // Further inspections change nothing.
    let asked = server.requests().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.list("pods").len(), 197);
    assert_eq!(server.requests()[asked..].iter().filter(|asked| asked.starts_with("DELETE")).count(), 0);
    let notes = notes();
    let exhausted: Vec<&String> = notes.iter().filter(|note| note.starts_with("RepairBudgetExhausted")).collect();
    assert_eq!(exhausted.len(), 1, "{notes:?}");
    assert!(exhausted[0].contains("3 pods of ReplicaSet web"), "{exhausted:?}");
    shutdown.cancel();
}

#[tokio::test]
async fn only_unchanged_pods_are_labeled_or_deleted() {
    let server = ApiServer::start().unwrap();
    let stored = server.put("pods", object("web", "10.0.0.7"));
    let seen = Arc::new(facts(stored));
    let limits = RepairLimits { per_owner: 10, per_node: 10, window: Duration::from_hours(1) };
    let (events, _publisher) = events::channel(&MetricsRegistry::default());
    let counts = RepairMetrics::default();
    let label = Fallback::Label { key: "cni.istio.io/uninitialized".to_owned(), value: "true".to_owned() };
    let mut labeling = FallbackRunner::new(connect(&server, || None), label, limits);
    let mut deleting = FallbackRunner::new(connect(&server, || None), Fallback::Delete, limits);

    // A pod that has changed is not touched.
    server.put("pods", object("web", "10.0.0.8"));
    for runner in [&mut labeling, &mut deleting] {
        runner.run(vec![Arc::clone(&seen)], &events, &counts).await;
        let now = server.get("pods", "shop", "web").unwrap();
        assert_eq!(now["metadata"]["labels"], Value::Null);
    }
    let label_of =
        || server.get("pods", "shop", "web").unwrap()["metadata"]["labels"]["cni.istio.io/uninitialized"].clone();
    let now = || Arc::new(facts(server.get("pods", "shop", "web").unwrap()));
    labeling.run(vec![now()], &events, &counts).await;
    assert_eq!(label_of(), "true");
    // A pod without an owner would not be created again.
    let mut orphan = object("orphan", "10.0.0.9");
    orphan["metadata"]["ownerReferences"] = json!([]);
    let orphan = Arc::new(facts(server.put("pods", orphan)));
    deleting.run(vec![orphan, now()], &events, &counts).await;
    assert!(server.get("pods", "shop", "web").is_none() && server.get("pods", "shop", "orphan").is_some());
}
