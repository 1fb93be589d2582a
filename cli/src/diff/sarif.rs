//! Prints comparisons in the Static Analysis Results Interchange Format 2.1.0 (OASIS), which code hosts show at the lines of a change.

use serde_json::{Value, json};

use super::comparison::{ChangeKind, Comparison, TrafficChange, Verdict, WorkloadComparison};
use super::text;

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";
const UNDECIDED: &str = "traffic-undecided";

/// Rules: id, default level, short description.
const RULES: [(&str, &str, &str); 4] = [
    ("traffic-bypass", "error", "Traffic that was captured no longer is"),
    ("traffic-captured", "note", "Traffic is newly captured"),
    ("traffic-other", "warning", "Captured or dropped traffic is treated differently"),
    (UNDECIDED, "error", "A rule is not understood, so that a change of traffic cannot be excluded"),
];

pub(super) fn print(comparison: &Comparison) -> String {
    let rules = RULES.map(|(id, level, text)| {
        json!({"id": id, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}})
    });
    let driver = json!({"name": "weir diff", "version": env!("CARGO_PKG_VERSION"), "rules": rules});
    let results: Vec<Value> = comparison.workloads.iter().flat_map(results).collect();
    let run = json!({"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results});
    format!("{:#}\n", json!({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}))
}

fn results(compared: &WorkloadComparison) -> Vec<Value> {
    let (changes, unknown) = match &compared.verdict {
        Verdict::Different(found) => (&found.changes[..], &found.unknown[..]),
        Verdict::Unknown(places) => (&[][..], &places[..]),
        _ => return Vec::new(),
    };
    let changes = changes.iter().map(|change| {
        let id = match change.kind {
            ChangeKind::Bypass => RULES[0].0,
            ChangeKind::Captured => RULES[1].0,
            ChangeKind::Other => RULES[2].0,
        };
        result(compared, id, &message(compared, change))
    });
    let unknown =
        unknown.iter().map(|place| result(compared, UNDECIDED, &format!("{}: not understood: {place}", compared.name)));
    changes.chain(unknown).collect()
}

fn message(compared: &WorkloadComparison, change: &TrafficChange) -> String {
    let mut lines =
        vec![format!("{}: {} ({} -> {})", compared.name, change.kind.description(), change.before, change.after)];
    lines.extend(change.classes.iter().map(|explained| {
        let because = text::because(explained).map(|because| format!(" ({because})")).unwrap_or_default();
        format!("- {}{because}", explained.class)
    }));
    lines.extend(change.is_truncated.then(|| "- and more".to_owned()));
    lines.join("\n")
}

fn result(compared: &WorkloadComparison, id: &str, message: &str) -> Value {
    let rule = RULES.iter().enumerate().find(|(_, (known, ..))| *known == id);
    let (index, level) = rule.map_or((0, "error"), |(index, (_, level, _))| (index, *level));
    let locations: Vec<Value> = compared
        .place
        .iter()
        .map(|(file, line)| {
            json!({"physicalLocation": {"artifactLocation": {"uri": file}, "region": {"startLine": line}},
                "logicalLocations": [{"name": compared.name, "kind": "resource"}]})
        })
        .collect();
    json!({
        "ruleId": id,
        "ruleIndex": index,
        "level": level,
        "message": {"text": message},
        "locations": locations,
        "partialFingerprints": {"weirDiff/v1": format!("{id}:{}", compared.name)},
    })
}
