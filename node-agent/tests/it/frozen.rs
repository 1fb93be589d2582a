//! A pod keeps the rules that it was started with, whatever becomes of its annotations; and one pod does not keep the agent from others.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use iptables_rules::backend::Backend;
use serde_json::{Value, json};
use weir_agent::events;
use weir_agent::metrics::MetricsRegistry;
use weir_agent::repair::{RepairOptions, RuleState};
use weir_apiserver::ApiServer;
use weir_lab::{Netns, privilege};
use weir_protocol::agent::CallReport;
use weir_runtime::CancellationToken;

use crate::follow::{connect, until};
use crate::repair::{Bench, facts, inside, netns_paths, object, pod_netns, ruleset, run};

/// Changes of a running pod that would capture less, or nothing.
fn edits() -> Vec<Value> {
    vec![
        json!({"annotations": {"weir.dev/capture": r#"{"v":1,"proxyUids":[1500]}"#}}),
        json!({"annotations": {"weir.dev/capture": r#"{"v":1,"mode":"NONE"}"#}}),
        json!({"annotations": {"weir.dev/capture": "{"}}),
        json!({"annotations": {"sidecar.istio.io/status": null}}),
        json!({"annotations": {"sidecar.istio.io/status": null, "weir.dev/capture": null}}),
        json!({"annotations": {"weir.dev/capture": null, "sidecar.istio.io/inject": "false"}}),
        json!({"annotations": {"weir.dev/capture": null}, "labels": {"sidecar.istio.io/inject": "false"}}),
        json!({"annotations": {"weir.dev/capture": null, "inject.istio.io/templates": "gateway"}}),
        json!({"annotations": {"weir.dev/capture": null, "sidecar.istio.io/interceptionMode": "NONE"}}),
    ]
}

fn edited(edit: &Value, version: u32) -> Value {
    let mut pod = object("web", "10.0.0.7");
    pod["spec"]["containers"][1]["args"] = json!(["proxy", "sidecar"]);
    json_patch::merge(&mut pod["metadata"], edit);
    pod["metadata"]["resourceVersion"] = version.to_string().into();
    pod
}

fn is_changed(bench: &Bench) -> bool {
    bench.repairer.states.get("uid-web").is_some_and(|state| state.annotations_changed)
}

/// Returns a bench with a pod whose rules the plugin has installed and reported.
fn started(pod: &Netns) -> Bench {
    let bench = Bench::new(true);
    bench.reported("web", "10.0.0.7", &pod.path());
    bench.repairer.inspect_pods(true);
    assert!(ruleset(pod).contains("1400"));
    bench.repairer.attachments.apply(&CallReport {
        v: 1,
        verb: "ADD".to_owned(),
        uid: "uid-web".to_owned(),
        netns: pod.path().display().to_string(),
        capture: Some(r#"{"v":1,"proxyUids":[1400]}"#.to_owned()),
        ..CallReport::default()
    });
    bench
}

#[test]
fn later_annotations_change_nothing_in_a_running_pod() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = pod_netns("10.0.0.7");
    let bench = started(&pod);
    let complete = ruleset(&pod);
    for (version, edit) in (2..).zip(edits()) {
        bench.repairer.pods.put(facts(edited(&edit, version)));
        assert!(bench.repairer.inspect_pods(false).is_empty());
        assert_eq!(ruleset(&pod), complete, "{edit}");
        assert_eq!((bench.state("web").0, is_changed(&bench)), (RuleState::Ok, true), "{edit}");
        // Rules that are damaged are restored as they were.
        inside(&pod, "nft", &["flush", "ruleset"]);
        assert!(bench.repairer.inspect_pods(true).is_empty());
        assert_eq!(ruleset(&pod), complete, "{edit}");
    }
    assert!(bench.metrics.render().contains("\nweir_agent_capture_annotations_changed 1\n"));
    bench.repairer.pods.put(facts(edited(&json!({}), 100)));
    bench.repairer.inspect_pods(false);
    assert!(!is_changed(&bench), "taken back");
}

#[test]
fn intact_rules_count_more_than_annotations_after_a_restart() {
    if !privilege::available_or_skip() {
        return;
    }
    for edit in edits() {
        let pod = pod_netns("10.0.0.7");
        drop(started(&pod));
        let complete = ruleset(&pod);
        let restarted = Bench::new(true);
        restarted.reported("web", "10.0.0.7", &pod.path());
        restarted.repairer.pods.put(facts(edited(&edit, 2)));
        assert!(restarted.repairer.inspect_pods(true).is_empty());
        assert_eq!(ruleset(&pod), complete, "{edit}");
        assert_eq!((restarted.state("web").0, is_changed(&restarted)), (RuleState::Ok, true), "{edit}");
    }
    // Rules that are gone, and nobody knows what they were: what the annotations said at first sight.
    let pod = pod_netns("10.0.0.7");
    let bench = Bench::new(true);
    bench.reported("web", "10.0.0.7", &pod.path());
    bench.repairer.inspect_pods(true);
    assert!(ruleset(&pod).contains("1400"));
    // A pod that was never captured gets no rules.
    let other = pod_netns("10.0.0.7");
    let bench = Bench::new(true);
    bench.reported("web", "10.0.0.7", &other.path());
    bench.repairer.pods.put(facts(edited(&edits()[5], 2)));
    assert!(bench.repairer.inspect_pods(true).is_empty());
    assert_eq!((ruleset(&other).as_str(), bench.repairer.states.get("uid-web")), ("", None));
}

#[test]
fn pods_of_istios_injector_keep_their_rules() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = pod_netns("10.0.0.7");
    let bench = Bench::new(true);
    let istio = json!({"annotations": {"weir.dev/capture": null}});
    bench.reported("web", "10.0.0.7", &pod.path());
    bench.repairer.pods.put(facts(edited(&istio, 1)));
    bench.repairer.inspect_pods(true);
    let complete = ruleset(&pod);
    assert!(complete.contains("1337") && !is_changed(&bench));
    let less =
        json!({"annotations": {"weir.dev/capture": null, "traffic.sidecar.istio.io/includeOutboundIPRanges": ""}});
    bench.repairer.pods.put(facts(edited(&less, 2)));
    bench.repairer.inspect_pods(false);
    assert_eq!((ruleset(&pod), is_changed(&bench)), (complete, true));
}

#[tokio::test]
async fn a_change_of_annotations_is_an_event() {
    if !privilege::available_or_skip() {
        return;
    }
    let server = ApiServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("netns")).unwrap();
    let pod = pod_netns("10.0.0.7");
    symlink(pod.path(), dir.path().join("netns/cni-1")).unwrap();
    let options = RepairOptions {
        in_place: true,
        interval: Duration::from_hours(1),
        backend: Backend::Auto,
        netns_paths: netns_paths(dir.path()),
    };
    let (events, publisher) = events::channel(&MetricsRegistry::default());
    let shutdown = CancellationToken::new();
    tokio::spawn(publisher.run(connect(&server, || None), events::reporter("n1"), shutdown.clone()));
    let (pods, states, _attachments, _shutdown) = run(&server, options, None, events);
    until("the first list", || pods.is_synced()).await;
    let uid = server.put("pods", object("web", "10.0.0.7"))["metadata"]["uid"].as_str().unwrap().to_owned();
    until("its rules are there", || states.get(&uid).is_some_and(|state| state.state == RuleState::Ok)).await;
    server.put("pods", edited(&edits()[0], 2));
    let is_told = |event: &Value| event["reason"] == "CaptureAnnotationsChanged";
    until("an event", || server.list("events").iter().any(is_told)).await;
    assert!(ruleset(&pod).contains("1400"));
    shutdown.cancel();
}

/// Adds rules to a table of ours, as a pod with `NET_ADMIN` can.
fn add_rules(pod: &Netns, count: usize) {
    use std::fmt::Write as _;
    let mut script = "add table inet weir\nadd chain inet weir hostile\n".to_owned();
    for number in 0..count {
        let _ = writeln!(script, "add rule inet weir hostile tcp dport {} accept", number % 65_000 + 1);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    inside(pod, "nft", &["-f", file.path().to_str().unwrap()]);
}

#[test]
fn one_pod_does_not_stall_the_others() {
    if !privilege::available_or_skip() {
        return;
    }
    let bench = Bench::new(true);
    let hostile = pod_netns("10.0.0.66");
    add_rules(&hostile, 100_000);
    bench.reported("hostile", "10.0.0.66", &hostile.path());
    // A path under the control of a pod that nobody ever writes to.
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    bench.reported("fifo", "10.0.0.67", Path::new(&fifo));
    let honest: Vec<Netns> = (0..8).map(|number| pod_netns(&format!("10.0.0.{number}"))).collect();
    for (number, pod) in honest.iter().enumerate() {
        bench.reported(&format!("web-{number}"), &format!("10.0.0.{number}"), &pod.path());
    }
    let begun = Instant::now();
    bench.repairer.inspect_pods(true);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    for number in 0..honest.len() {
        assert_eq!(bench.state(&format!("web-{number}")), (RuleState::Ok, 1));
    }
    assert_eq!(bench.state("fifo").0, RuleState::Unreachable);
    let hostile = bench.repairer.states.get("uid-hostile").unwrap();
    assert_eq!(hostile.state, RuleState::Refused, "{:?}", hostile.detail);
}
