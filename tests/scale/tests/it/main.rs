//! A small cluster of fake nodes and pods on a real API server, with unoptimized binaries. `make scale` runs a large one.

use std::process::Command;

use serde_json::Value;

/// Findings that apply to every such cluster: there is no istiod, and the API server has no client certificate for webhooks.
const EXPECTED_FINDINGS: [&str; 2] = ["control-plane-missing", "clients-not-verified"];

#[test]
#[allow(clippy::float_cmp, reason = "the numbers are exact")]
fn a_small_cluster_is_injected_watched_and_checked() {
    if !weir_tests::privileged() {
        return;
    }
    let Some(assets) = weir_apiserver::assets_or_skip() else { return };
    let weir = weir_tests::bin("weir");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_weir-scale"))
        .arg("--assets")
        .arg(assets)
        .arg("--bin-dir")
        .arg(weir.parent().unwrap())
        .arg("--json")
        .arg(&file)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let number =
        |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {report}"));
    let list = |path: &str| {
        report.pointer(path).and_then(Value::as_array).unwrap_or_else(|| panic!("{path}: {report}")).clone()
    };

    // 8 of 10 namespaces are opted in. Each pod of two of 50 nodes was replaced by one of the same kind.
    assert_eq!(list("/census/wrong"), Vec::<Value>::new());
    assert_eq!((number("/census/injected"), number("/census/unchanged")), (800.0, 200.0));
    assert_eq!(list("/creation/failures"), Vec::<Value>::new());
    assert_eq!(number("/webhook/rejected"), 0.0, "no call failed or was denied");
    // Twice each: the API server mounts the account's token into the sidecar, and has the changed pod reviewed again.
    assert_eq!(number("/webhook/reviews"), 1600.0);

    assert_eq!(list("/agent_pods_wrong"), Vec::<Value>::new());
    // Each pod of the 48 nodes: bound, running.
    assert!(number("/watches/events") >= 960.0 * 2.0);
    assert_eq!((number("/watches/foreign"), number("/watches/failures")), (0.0, 0.0));
    // In ten seconds, two agents get their node at most once each; a watch lasts four minutes and may end in between.
    let requests: f64 = report["idle"]["requests"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
    assert!(requests <= 4.0, "{}", report["idle"]);
    assert!(number("/idle/bytes_per_hour") < 10e6, "{}", report["idle"]);

    let findings = list("/check/findings");
    let expected = |finding: &&Value| !EXPECTED_FINDINGS.iter().any(|name| finding.as_str().unwrap().starts_with(name));
    assert_eq!(findings.iter().filter(expected).collect::<Vec<_>>(), Vec::<&Value>::new());
}
