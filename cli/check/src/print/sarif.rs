//! Findings in the Static Analysis Results Interchange Format 2.1.0 (OASIS).

use serde_json::{Value, json};

use crate::area::is_complete;
use crate::fault::{self, Severity};
use crate::finding::Finding;

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// Returns a SARIF log with a rule for each fault. An object of a cluster is in no file, so that it is a logical location.
pub fn sarif(findings: &[Finding]) -> String {
    let rules: Vec<Value> = fault::ALL
        .iter()
        .map(|fault| {
            json!({
                "id": fault.code,
                "name": fault.name,
                "shortDescription": {"text": fault.meaning},
                "help": {"text": fault.action},
                "defaultConfiguration": {"level": level(fault.severity)},
            })
        })
        .collect();
    let run = json!({
        "tool": {"driver": {"name": "weir check", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": is_complete(findings)}],
        "results": findings.iter().map(result).collect::<Vec<_>>(),
    });
    format!("{:#}\n", json!({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}))
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    }
}

fn result(finding: &Finding) -> Value {
    let Finding { fault, object, text, fix, similar } = finding;
    let similar = if *similar > 0 { format!(" (and {similar} similar)") } else { String::new() };
    json!({
        "ruleId": fault.code,
        "ruleIndex": fault::ALL.iter().position(|known| known.code == fault.code),
        "level": level(fault.severity),
        "message": {"text": format!("{object}{similar}: {text}\nfix: {fix}")},
        "locations": [{"logicalLocations": [{"fullyQualifiedName": object.to_string(), "kind": "resource"}]}],
        "partialFingerprints": {"weirCheck/v1": format!("{}:{object}", fault.code)},
    })
}
