//! What is written: for people, for programs, for CI; and the documentation of every fault.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::fixture::{Fixture, plain_pod};
use super::found;
use crate::check::fault::{self, Severity};
use crate::check::finding::{Finding, Findings, Object};
use crate::check::print;

/// A cluster with something of each severity, several of a kind among them.
fn troubled() -> Vec<Finding> {
    let mut fixture = Fixture::healthy();
    for entry in fixture.entries() {
        entry["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    fixture.call_fails("tls: failed to verify certificate: x509: certificate signed by unknown authority");
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
    found(&fixture)
}

#[test]
fn people_read_what_is_wrong_and_what_to_do() {
    insta::assert_snapshot!(print::text(&troubled(), false));
    assert_eq!(print::text(&[], false), "nothing found\n");
    let coloured = print::text(&troubled(), true);
    assert!(coloured.starts_with("\x1b[1;31merror\x1b[0m WEIR301 ca-bundle-empty\n"), "{coloured}");
}

#[test]
fn programs_read_every_finding() {
    let document: Value = serde_json::from_str(&print::json(&troubled())).unwrap();
    let findings = document["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1 + 7 + 1 + 1);
    assert_eq!(findings[0]["code"], "WEIR301");
    assert_eq!(findings[0]["severity"], "error");
    let object = json!({"kind": "MutatingWebhookConfiguration", "namespace": "", "name": "weir-sidecar-injector"});
    assert_eq!(findings[0]["object"], object);
    let old: Vec<&Value> = findings.iter().filter(|finding| finding["name"] == "pod-without-sidecar").collect();
    assert_eq!(old.iter().map(|finding| finding["alike"].as_u64().unwrap()).sum::<u64>(), 21);
    assert_eq!(serde_json::from_str::<Value>(&print::json(&[])).unwrap(), json!({"findings": []}));
}

#[test]
fn what_a_cluster_says_cannot_steer_a_terminal() {
    let mut findings = Findings::default();
    findings.add(&fault::PODS_REFUSED, Object::new("Pod", "a", "b\u{1b}[2J"), "one\ntwo\r\u{1b}]0;three\u{7}");
    let text = print::text(&findings.into_sorted(&[]), false);
    assert!(text.contains("\n  Pod a/b [2J: one two  ]0;three \n"), "{text:?}");
}

/// An element of a document in XML, as far as JUnit's files need it: a strict reader of what is written here.
fn element(text: &str) -> (String, Vec<(String, String)>, &str) {
    let (tag, rest) = text.strip_prefix('<').expect("a tag").split_once('>').expect("its end");
    let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
    let mut found = Vec::new();
    while let Some((key, value)) = attributes.split_once("=\"") {
        let (value, next) = value.split_once('"').expect("the end of an attribute");
        assert!(!value.contains('<'), "{value}");
        found.push((key.trim().to_owned(), value.to_owned()));
        attributes = next;
    }
    (name.trim_end_matches('/').to_owned(), found, rest)
}

#[test]
fn ci_reads_junit() {
    let mut findings = Findings::default();
    findings.add(&fault::SINGLE_REPLICA, Object::new("Deployment", "a", "b"), "one < two & \"three\"\u{1}");
    findings.add(&fault::NOT_READ, Object::global("nodes", ""), "not read: 403");
    let xml = print::junit(&findings.into_sorted(&[]));
    let mut lines = xml.lines();
    assert_eq!(lines.next(), Some("<?xml version=\"1.0\" encoding=\"UTF-8\"?>"));
    let total = fault::ALL.len().to_string();
    for name in ["testsuites", "testsuite"] {
        let (found, attributes, _) = element(lines.next().unwrap().trim());
        assert_eq!(found, name);
        for wanted in [("tests", total.as_str()), ("failures", "1"), ("errors", "0")] {
            assert!(attributes.iter().any(|(key, value)| (key.as_str(), value.as_str()) == wanted), "{attributes:?}");
        }
    }
    let cases = xml.matches("<testcase ").count();
    assert_eq!(cases, fault::ALL.len());
    assert_eq!(xml.matches("</testcase>").count() + xml.matches("\"/>").count(), cases);
    assert!(xml.contains("Deployment a/b: one &lt; two &amp; &quot;three&quot; \nfix: "), "{xml}");
    assert!(xml.contains("<failure type=\"warning\" message=\"1 found: "), "{xml}");
    assert!(xml.contains("<system-out>nodes: not read: 403"), "{xml}");
    assert!(xml.ends_with("  </testsuite>\n</testsuites>\n"));
}

#[test]
fn the_worst_comes_first_and_suppressed_findings_are_left_out() {
    let all = troubled();
    let severities: Vec<Severity> = all.iter().map(|finding| finding.fault.severity).collect();
    assert!(severities.is_sorted_by(|a, b| a >= b), "{severities:?}");
    let mut findings = Findings::default();
    for finding in &all {
        findings.add(finding.fault, finding.object.clone(), "");
    }
    let rules = ["WEIR801=Pod shop/old*", "ca-bundle-empty"].map(|rule| rule.parse().unwrap());
    let left: Vec<&str> = findings.into_sorted(&rules).iter().map(|finding| finding.fault.name).collect();
    assert_eq!(left, ["runtime-without-annotations", "pod-left-alone"]);
}

#[test]
fn every_fault_is_documented_as_it_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/check.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = |fault: &&fault::Fault| {
        format!(
            "| `{}` | `{}` | {} | {} | {} |",
            fault.code,
            fault.name,
            fault.severity.name(),
            fault.means,
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
