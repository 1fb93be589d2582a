//! Documents in the Static Analysis Results Interchange Format 2.1.0 (OASIS), which code hosts show at the lines of a change.

use serde_json::{Value, json};

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// A rule that results refer to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SarifRule {
    pub(crate) id: &'static str,
    /// `error`, `warning` or `note`.
    pub(crate) level: &'static str,
    pub(crate) description: &'static str,
}

/// A result about one workload.
#[derive(Debug)]
pub(crate) struct SarifResult<'a> {
    pub(crate) rule: usize,
    pub(crate) workload: &'a str,
    /// File and line.
    pub(crate) place: Option<&'a (String, usize)>,
    pub(crate) message: String,
    /// Key and value by which code hosts recognize the result in another run.
    pub(crate) fingerprint: (&'static str, String),
}

/// Prints a document; the results refer to the rules by their positions.
pub(crate) fn print(tool: &str, rules: &[SarifRule], results: impl Iterator<Item = Value>) -> String {
    let rules: Vec<Value> = rules
        .iter()
        .map(|rule| {
            json!({"id": rule.id, "shortDescription": {"text": rule.description}, "defaultConfiguration": {"level": rule.level}})
        })
        .collect();
    let driver = json!({"name": tool, "version": env!("CARGO_PKG_VERSION"), "rules": rules});
    let results: Vec<Value> = results.collect();
    let run = json!({"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results});
    format!("{:#}\n", json!({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}))
}

impl SarifResult<'_> {
    /// Returns the result as an object.
    pub(crate) fn object(&self, rules: &[SarifRule]) -> Value {
        let (id, level) = rules.get(self.rule).map_or(("", "error"), |rule| (rule.id, rule.level));
        let location = |(file, line): &(String, usize)| {
            json!({"physicalLocation": {"artifactLocation": {"uri": file}, "region": {"startLine": line}},
                "logicalLocations": [{"name": self.workload, "kind": "resource"}]})
        };
        json!({
            "ruleId": id,
            "ruleIndex": self.rule,
            "level": level,
            "message": {"text": self.message},
            "locations": self.place.iter().map(|place| location(place)).collect::<Vec<_>>(),
            "partialFingerprints": {self.fingerprint.0: self.fingerprint.1},
        })
    }
}
