//! Output as text, JSON and JUnit, and the documentation of every fault.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::findings;
use super::fixture::{Fixture, plain_pod};
use crate::finding::{Finding, FindingObject, Findings};
use crate::{Severity, fault, print, unsuppressed};

/// Returns findings of every severity, several of one fault among them.
fn many_findings() -> Vec<Finding> {
    let mut fixture = Fixture::healthy();
    for entry in fixture.entries() {
        entry["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    fixture.fail_webhook_call("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    for number in 1..=7 {
        let owner = format!("old{number}-5f6");
        for pod in 0..number {
            fixture.add(plain_pod("shop", &owner, &format!("{owner}-{pod}")));
        }
    }
    fixture.get("nodes", "", "node-1")["status"]["nodeInfo"]["containerRuntimeVersion"] = "docker://24.0.7".into();
    let mut pod = plain_pod("shop", "network", "network-1");
    pod["spec"]["hostNetwork"] = true.into();
    fixture.add(pod);
    findings(&fixture)
}

#[test]
fn text_shows_findings_and_fixes() {
    insta::assert_snapshot!(print::text(&many_findings(), false));
    assert_eq!(print::text(&[], false), "no problems found\n");
    let colored = print::text(&many_findings(), true);
    assert!(colored.starts_with("\x1b[1;31merror\x1b[0m WEIR301 ca-bundle-empty\n"), "{colored}");
}

#[test]
fn json_has_every_finding() {
    let document: Value = serde_json::from_str(&print::json(&many_findings())).unwrap();
    let findings = document["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1 + 7 + 1 + 1);
    assert_eq!(findings[0]["code"], "WEIR301");
    assert_eq!(findings[0]["severity"], "error");
    let object = json!({"kind": "MutatingWebhookConfiguration", "namespace": "", "name": "weir-sidecar-injector"});
    assert_eq!(findings[0]["object"], object);
    let old: Vec<&Value> = findings.iter().filter(|finding| finding["name"] == "pod-without-sidecar").collect();
    assert_eq!(old.iter().map(|finding| finding["alike"].as_u64().unwrap()).sum::<u64>(), 21);
    assert_eq!(serde_json::from_str::<Value>(&print::json(&[])).unwrap(), json!({"complete": true, "findings": []}));
}

#[test]
fn text_has_no_control_characters() {
    let mut findings = Findings::default();
    findings.add(&fault::PODS_REFUSED, FindingObject::new("Pod", "a", "b\u{1b}[2J"), "one\ntwo\r\u{1b}]0;three\u{7}");
    let text = print::text(&findings.into_sorted(), false);
    assert!(text.contains("\n  Pod a/b [2J: one two  ]0;three \n"), "{text:?}");
}

#[test]
fn junit_has_a_test_case_for_each_fault() {
    let mut findings = Findings::default();
    let object = FindingObject::new("Deployment", "a", "b");
    findings.add(&fault::SINGLE_REPLICA, object, "one < two & \"three\"\u{1}");
    findings.add(&fault::NOT_READ, FindingObject::cluster_scoped("nodes", ""), "not read: 403");
    let findings = findings.into_sorted();
    let xml = print::junit(&findings, Severity::Warning, true).unwrap();
    let report = quick_junit::Report::deserialize_from_str(&xml).unwrap();
    assert_eq!((report.tests, report.failures, report.errors), (fault::ALL.len(), 1, 0));
    let cases = &report.test_suites[0].test_cases;
    let case = |name: &str| cases.iter().find(|case| case.name.as_str() == name).unwrap();
    assert_eq!(
        case("WEIR101 not-read").system_out.as_ref().unwrap().as_str().lines().next(),
        Some("nodes: not read: 403")
    );
    let quick_junit::TestCaseStatus::NonSuccess { ty, message, description, .. } =
        &case("WEIR501 single-replica").status
    else {
        panic!("{xml}");
    };
    assert_eq!(ty.as_ref().unwrap().as_str(), "warning");
    assert!(message.as_ref().unwrap().as_str().starts_with("1 found: The webhook has one replica"), "{xml}");
    assert!(
        description.as_ref().unwrap().as_str().starts_with("Deployment a/b: one < two & \"three\"\nfix: "),
        "{xml}"
    );
}

#[test]
fn junit_fails_for_the_threshold_and_for_what_is_incomplete() {
    let mut findings = Findings::default();
    findings.add(&fault::SINGLE_REPLICA, FindingObject::new("Deployment", "a", "b"), "one");
    findings.add(&fault::NOT_READ, FindingObject::cluster_scoped("nodes", ""), "not read: 403");
    let findings = findings.into_sorted();
    let failures = |threshold, allow_incomplete| {
        let xml = print::junit(&findings, threshold, allow_incomplete).unwrap();
        quick_junit::Report::deserialize_from_str(&xml).unwrap().failures
    };
    assert_eq!(failures(Severity::Error, true), 0, "a warning is no failure");
    assert_eq!(failures(Severity::Error, false), 1, "the check is incomplete");
    assert_eq!(failures(Severity::Warning, false), 2);
}

#[test]
fn sarif_has_a_rule_for_each_fault_and_a_result_for_each_finding() {
    let mut findings = Findings::default();
    findings.add(&fault::SINGLE_REPLICA, FindingObject::new("Deployment", "a", "b"), "one");
    let log: serde_json::Value = serde_json::from_str(&print::sarif(&findings.into_sorted())).unwrap();
    let run = &log["runs"][0];
    assert_eq!(log["version"], "2.1.0");
    assert_eq!(run["invocations"][0]["executionSuccessful"], true);
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), fault::ALL.len());
    let result = &run["results"][0];
    assert_eq!((&result["ruleId"], &result["level"]), (&"WEIR501".into(), &"warning".into()));
    assert_eq!(rules[usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap()]["id"], "WEIR501");
    assert_eq!(result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"], "Deployment a/b");
    assert!(result["message"]["text"].as_str().unwrap().starts_with("Deployment a/b: one\nfix: "), "{result}");
}

#[test]
fn findings_are_sorted_and_suppressed() {
    let findings = many_findings();
    let severities: Vec<Severity> = findings.iter().map(|finding| finding.fault.severity).collect();
    assert!(severities.is_sorted_by(|a, b| a >= b), "{severities:?}");
    let rules = ["WEIR801=Pod shop/old*", "ca-bundle-empty"].map(|rule| rule.parse().unwrap());
    let left: Vec<&str> = unsuppressed(findings, &rules).iter().map(|finding| finding.fault.name).collect();
    assert_eq!(left, ["runtime-without-annotations", "pod-left-alone"]);
}

#[test]
fn docs_list_every_fault() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/check.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = |fault: &&fault::Fault| {
        format!(
            "| `{}` | `{}` | {} | {} | {} |",
            fault.code,
            fault.name,
            fault.severity.name(),
            fault.meaning,
            fault.action
        )
    };
    let wanted: Vec<String> = fault::ALL.iter().map(rows).collect();
    let found: Vec<&str> = text.lines().filter(|line| line.starts_with("| `WEIR")).collect();
    let missing: Vec<&String> = wanted.iter().filter(|row| !found.contains(&row.as_str())).collect();
    assert!(
        missing.is_empty() && found.len() == wanted.len(),
        "docs/check.md should have these rows:\n{}",
        wanted.join("\n")
    );
}
