//! Rules of pods in real namespaces: missing, flushed, changed, somebody else's; and pods that cannot be mended.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weir_agent::events::{self, Events};
use weir_agent::metrics::Metrics;
use weir_agent::pods::{PodFacts, Pods};
use weir_agent::repair::{Actor, Counts, Fallback, Limits, Places, Repairer, Settings, State, States};
use weir_agent::socket::Attachments;
use weir_agent::stop;
use weir_apiserver::ApiServer;
use weir_kernel::namespace::Backend;
use weir_lab::{Netns, privilege};
use weir_protocol::agent::Report;

use crate::follow::{connect, follow, until};

/// A pod's namespace, with its address.
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

/// A pod of the mesh as the API server has it.
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

fn facts(object: Value) -> PodFacts {
    PodFacts::of(serde_json::from_value(object).unwrap(), &[])
}

fn places(root: &Path) -> Places {
    Places {
        host_proc: "/proc".into(),
        host_root: root.to_owned(),
        netns_dirs: vec!["/netns".into()],
        runtime_dirs: vec!["/state".into()],
    }
}

struct Bench {
    repairer: Repairer,
    metrics: Metrics,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(in_place: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let settings = Settings {
            in_place,
            interval: Duration::from_hours(1),
            backend: Backend::Auto,
            places: places(dir.path()),
        };
        let (events, _teller) = events::channel(&metrics);
        let repairer = Repairer {
            pods: Pods::default(),
            attachments: Attachments::default(),
            settings,
            states: States::default(),
            counts: Counts::register(&metrics),
            events,
        };
        Self { repairer, metrics, dir }
    }

    /// A pod whose namespace the plugin has reported.
    fn reported(&self, name: &str, ip: &str, netns: &Path) {
        self.repairer.pods.put(facts(object(name, ip)));
        self.repairer.attachments.learn(&Report {
            v: 1,
            verb: "ADD".to_owned(),
            uid: format!("uid-{name}"),
            netns: netns.display().to_string(),
            ..Report::default()
        });
    }

    fn state(&self, name: &str) -> (State, u32) {
        let state = self.repairer.states.of(&format!("uid-{name}")).unwrap();
        (state.state, state.repairs)
    }
}

#[test]
fn puts_back_what_is_missing_flushed_or_changed() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(true);
    let pod = pod_netns("10.0.0.7");
    bench.reported("web", "10.0.0.7", &pod.path());
    assert!(bench.repairer.pass(true).is_empty());
    let complete = ruleset(&pod);
    assert!(complete.contains("1400"), "{complete}");
    assert_eq!(bench.state("web"), (State::Ok, 1));
    bench.repairer.pass(true);
    assert_eq!(bench.state("web"), (State::Ok, 1), "what is in place is left alone");

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
        assert!(bench.repairer.pass(true).is_empty());
        assert_eq!(ruleset(&pod), complete, "after {damage:?}");
        assert_eq!(bench.state("web"), (State::Ok, repairs));
    }
    // What rules rely on besides themselves.
    inside(&pod, "ip", &["addr", "del", "::6/128", "dev", "lo"]);
    bench.repairer.pass(true);
    assert!(inside(&pod, "ip", &["-6", "addr", "show", "dev", "lo"]).contains("::6/128"));
    let text = bench.metrics.render();
    assert!(text.contains(r#"istio_cni_repair_pods_repaired_total{type="repair",result="success"} 7"#), "{text}");
    assert!(text.contains(r#"weir_agent_meshed_pods{state="ok"} 1"#), "{text}");
}

#[test]
fn touches_no_namespace_that_is_not_the_pods() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(true);
    let stranger = pod_netns("10.0.0.8");
    bench.reported("moved", "10.0.0.7", &stranger.path());
    // An address that this process has: only that it is its own namespace keeps it out.
    bench.reported("host", "127.0.0.1", Path::new("/proc/self/ns/net"));
    let file = tempfile::NamedTempFile::new().unwrap();
    bench.reported("file", "10.0.0.9", file.path());
    bench.reported("gone", "10.0.0.10", Path::new("/run/netns/weir-no-such"));
    let before =
        weir_lab::process::run(Command::new("nft").args(["list", "ruleset"]), b"", Duration::from_secs(20)).unwrap();
    assert!(bench.repairer.pass(true).is_empty());
    for name in ["moved", "host", "file", "gone"] {
        assert_eq!(bench.state(name).0, State::Unreachable, "{name}");
    }
    assert_eq!(ruleset(&stranger), "");
    let after =
        weir_lab::process::run(Command::new("nft").args(["list", "ruleset"]), b"", Duration::from_secs(20)).unwrap();
    assert_eq!(after.stdout, before.stdout);
}

#[test]
fn finds_namespaces_without_a_report() {
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
    bench.repairer.pass(true);
    for (name, netns, found_by) in [("named", &named, "netns folder"), ("recorded", &recorded, "runtime")] {
        let state = bench.repairer.states.of(&format!("uid-{name}")).unwrap();
        assert_eq!((state.state, state.found_by), (State::Ok, Some(found_by)));
        assert!(ruleset(netns).contains("1400"));
    }
}

#[test]
fn leaves_rules_of_another_installer_alone() {
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
        assert!(bench.repairer.pass(true).is_empty());
        assert_eq!(bench.state("web").0, State::Foreign, "{program}");
        assert_eq!(ruleset(&pod), before);
    }
}

#[test]
fn only_looks_where_that_is_all_it_may_do() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(false);
    let pod = pod_netns("10.0.0.7");
    bench.reported("web", "10.0.0.7", &pod.path());
    assert_eq!(bench.repairer.pass(true).len(), 1);
    assert_eq!((bench.state("web").0, ruleset(&pod).as_str()), (State::Missing, ""));
    // A pod that is ending, has no address yet, or cannot be taken, is not broken.
    for (change, state) in [
        (json!({"status": {"podIP": null, "podIPs": null}}), Some(State::Pending)),
        (json!({"metadata": {"annotations": {"weir.dev/capture": "{"}}}), Some(State::Refused)),
        (json!({"status": {"phase": "Succeeded"}}), None),
    ] {
        let mut object = object("web", "10.0.0.7");
        json_patch::merge(&mut object, &change);
        bench.repairer.pods.put(facts(object));
        assert!(bench.repairer.pass(true).is_empty());
        assert_eq!(bench.repairer.states.of("uid-web").map(|state| state.state), state);
    }
}

/// Everything from the API server to the kernel, as the agent runs it.
fn run(
    server: &ApiServer,
    settings: Settings,
    actor: Option<Actor>,
    events: Events,
) -> (Pods, States, Attachments, Vec<stop::Stopper>) {
    let (pods, following) = follow(connect(server, || None));
    let (stopper, stop) = stop::pair();
    let (states, attachments) = (States::default(), Attachments::default());
    let repairer = Repairer {
        pods: pods.clone(),
        attachments: attachments.clone(),
        settings,
        states: states.clone(),
        counts: Counts::default(),
        events,
    };
    tokio::spawn(repairer.run(actor, stop));
    (pods, states, attachments, vec![following, stopper])
}

#[tokio::test]
async fn mends_a_pod_as_soon_as_it_appears() {
    if !privilege::available_or_skip() {
        return;
    }
    let server = ApiServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("netns")).unwrap();
    // Not the interval brings it about.
    let settings = Settings {
        in_place: true,
        interval: Duration::from_hours(1),
        backend: Backend::Auto,
        places: places(dir.path()),
    };
    let (events, _teller) = events::channel(&Metrics::default());
    let (pods, states, _attachments, _stoppers) = run(&server, settings, None, events);
    until("the first list", || pods.is_synced()).await;

    let pod = pod_netns("10.0.0.7");
    symlink(pod.path(), dir.path().join("netns/cni-1")).unwrap();
    let mut young = object("web", "10.0.0.7");
    young["status"] = json!({"phase": "Pending"});
    let stored = server.put("pods", young);
    let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
    until("the pod is seen", || states.of(&uid).is_some_and(|state| state.state == State::Pending)).await;
    assert_eq!(ruleset(&pod), "");
    server.put("pods", object("web", "10.0.0.7"));
    until("its rules are there", || {
        states.of(&uid).is_some_and(|state| (state.state, state.repairs) == (State::Ok, 1))
    })
    .await;
    assert!(ruleset(&pod).contains("1400"));
}

#[tokio::test]
async fn two_hundred_broken_pods_of_one_owner_are_not_all_deleted() {
    let server = ApiServer::start().unwrap();
    for number in 0..200 {
        let mut pod = object(&format!("web-{number:03}"), "10.0.0.7");
        pod["status"]["initContainerStatuses"] = json!([{"name": "istio-validation",
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 126}}}]);
        server.put("pods", pod);
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        in_place: true,
        interval: Duration::from_millis(50),
        backend: Backend::Auto,
        places: places(dir.path()),
    };
    let metrics = Metrics::default();
    let (events, teller) = events::channel(&metrics);
    let (stopper, stop) = stop::pair();
    tokio::spawn(teller.run(connect(&server, || None), events::reporter("n1"), stop));
    let limits = Limits { per_owner: 3, per_node: 10, window: Duration::from_hours(1) };
    let actor = Actor::new(connect(&server, || None), Fallback::Delete, limits);
    let (_pods, _states, _attachments, _stoppers) = run(&server, settings, Some(actor), events);

    let notes = || -> Vec<String> {
        server
            .list("events")
            .iter()
            .map(|event| format!("{} {}", event["reason"].as_str().unwrap(), event["note"].as_str().unwrap()))
            .collect()
    };
    until("an event says so", || notes().iter().any(|note| note.contains("RepairBudgetExhausted"))).await;
    until("three are gone", || server.list("pods").len() == 197).await;
    // Several more rounds change nothing.
    let asked = server.asked().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.list("pods").len(), 197);
    assert_eq!(server.asked()[asked..].iter().filter(|asked| asked.starts_with("DELETE")).count(), 0);
    let notes = notes();
    let exhausted: Vec<&String> = notes.iter().filter(|note| note.starts_with("RepairBudgetExhausted")).collect();
    assert_eq!(exhausted.len(), 1, "{notes:?}");
    assert!(exhausted[0].contains("3 pods of ReplicaSet web"), "{exhausted:?}");
    drop(stopper);
}

#[tokio::test]
async fn labels_or_deletes_only_the_pod_that_was_seen() {
    let server = ApiServer::start().unwrap();
    let stored = server.put("pods", object("web", "10.0.0.7"));
    let seen = Arc::new(facts(stored));
    let limits = Limits { per_owner: 10, per_node: 10, window: Duration::from_hours(1) };
    let (events, _teller) = events::channel(&Metrics::default());
    let counts = Counts::default();
    let label = Fallback::Label { key: "cni.istio.io/uninitialized".to_owned(), value: "true".to_owned() };
    let mut labelling = Actor::new(connect(&server, || None), label, limits);
    let mut deleting = Actor::new(connect(&server, || None), Fallback::Delete, limits);

    // It has changed since: nothing happens to it.
    server.put("pods", object("web", "10.0.0.8"));
    for actor in [&mut labelling, &mut deleting] {
        actor.act(vec![Arc::clone(&seen)], &events, &counts).await;
        let now = server.get("pods", "shop", "web").unwrap();
        assert_eq!(now["metadata"]["labels"], Value::Null);
    }
    let label_of =
        || server.get("pods", "shop", "web").unwrap()["metadata"]["labels"]["cni.istio.io/uninitialized"].clone();
    let now = || Arc::new(facts(server.get("pods", "shop", "web").unwrap()));
    labelling.act(vec![now()], &events, &counts).await;
    assert_eq!(label_of(), "true");
    // Nobody would make a pod without an owner again.
    let mut orphan = object("orphan", "10.0.0.9");
    orphan["metadata"]["ownerReferences"] = json!([]);
    let orphan = Arc::new(facts(server.put("pods", orphan)));
    deleting.act(vec![orphan, now()], &events, &counts).await;
    assert!(server.get("pods", "shop", "web").is_none() && server.get("pods", "shop", "orphan").is_some());
}
