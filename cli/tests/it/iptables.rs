//! `weir iptables` as init containers and scripts run it; the traffic tests cover its effect on a network namespace.

use serde_json::Value;
use weir_injector::yaml;
use weir_tests::conformance::{Suite, documents};

use crate::run::weir;

/// Collects the arguments of every container that runs istio-iptables.
fn arguments(value: &Value, found: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) => {
            let args: Vec<String> = map
                .get("args")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|arg| arg.as_str().map(str::to_owned))
                .collect();
            if args.first().is_some_and(|first| first == "istio-iptables") {
                found.push(args);
            }
            map.values().for_each(|value| arguments(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| arguments(value, found)),
        _ => {}
    }
}

#[test]
fn arguments_of_injected_pods_are_accepted() {
    let Some(suite) = Suite::load() else { return };
    let mut found = Vec::new();
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none()) {
        for document in documents(&suite.text("want", case.name())) {
            arguments(&yaml::from_str(document.as_ref()).unwrap_or_default(), &mut found);
        }
    }
    assert!(found.len() > 60, "only {} containers", found.len());
    found.sort();
    found.dedup();
    for args in found {
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.push("--dry-run");
        let run = weir(&args, "");
        assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
        assert!(run.stdout.starts_with("# begin iptables-restore --noflush\n* "), "{args:?}: {}", run.stdout);
        assert!(!run.stderr.contains("warn"), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn all_invalid_options_are_reported() {
    let run = weir(&["iptables", "-b", "80-90", "-c", "--x", "-i", "10.0.0.0/40", "--dry-run"], "");
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    for name in ["--istio-inbound-ports", "--istio-exclude-interfaces", "--istio-service-cidr"] {
        assert!(run.stderr.contains(name), "{}", run.stderr);
    }
}

#[test]
fn log_format_and_level_follow_the_options() {
    let run = weir(&["iptables", "--dry-run", "--log_as_json", "--restore-format=false"], "");
    let lines: Vec<Value> = run.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let levels: Vec<&str> = lines.iter().filter_map(|line| line["level"].as_str()).collect();
    assert_eq!(levels, ["warn", "info"], "{}", run.stderr);
    let quiet = weir(&["iptables", "--dry-run", "--log_output_level=default:warn"], "");
    assert_eq!(quiet.stderr, "");
}

#[test]
fn dry_run_also_writes_to_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rules");
    let output = assert_cmd::cargo::cargo_bin_cmd!("weir")
        .args(["iptables", "-b", "*"])
        .env("DRY_RUN", "true")
        .env("DRY_RUN_FILE_PATH", &path)
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(std::fs::read(path).unwrap(), output.stdout);
}
