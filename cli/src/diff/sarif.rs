//! Prints comparisons as SARIF.

use serde_json::Value;

use super::comparison::{ChangeKind, Comparison, TrafficChange, Verdict, WorkloadComparison};
use super::text;
use crate::sarif::{self, SarifResult, SarifRule};

const RULES: [SarifRule; 4] = [
    SarifRule { id: "traffic-bypass", level: "error", description: "Traffic that was captured no longer is" },
    SarifRule { id: "traffic-captured", level: "note", description: "Traffic is newly captured" },
    SarifRule {
        id: "traffic-other",
        level: "warning",
        description: "Captured or dropped traffic is treated differently",
    },
    SarifRule {
        id: "traffic-undecided",
        level: "error",
        description: "A rule is not understood, so that a change of traffic cannot be excluded",
    },
];
const UNDECIDED: usize = 3;

pub(super) fn print(comparison: &Comparison) -> String {
    sarif::print("weir diff", &RULES, comparison.workloads.iter().flat_map(results))
}

fn results(compared: &WorkloadComparison) -> Vec<Value> {
    let (changes, unknown) = match &compared.verdict {
        Verdict::Different(found) => (&found.changes[..], &found.unknown[..]),
        Verdict::Unknown(places) => (&[][..], &places[..]),
        _ => return Vec::new(),
    };
    let changes = changes.iter().map(|change| {
        let rule = match change.kind {
            ChangeKind::Bypass => 0,
            ChangeKind::Captured => 1,
            ChangeKind::Other => 2,
        };
        result(compared, rule, message(compared, change))
    });
    let unknown =
        unknown.iter().map(|place| result(compared, UNDECIDED, format!("{}: not understood: {place}", compared.name)));
    changes.chain(unknown).collect()
}

fn message(compared: &WorkloadComparison, change: &TrafficChange) -> String {
    let mut lines =
        vec![format!("{}: {} ({} -> {})", compared.name, change.kind.description(), change.before, change.after)];
    lines.extend(text::class_lines(&change.classes, change.is_truncated));
    lines.join("\n")
}

fn result(compared: &WorkloadComparison, rule: usize, message: String) -> Value {
    let fingerprint = ("weirDiff/v1", format!("{}:{}", RULES[rule].id, compared.name));
    let result = SarifResult { rule, workload: &compared.name, place: compared.place.as_ref(), message, fingerprint };
    result.object(&RULES)
}
