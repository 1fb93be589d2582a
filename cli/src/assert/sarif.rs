//! Prints reports as SARIF.

use serde_json::Value;

use super::input::Evidence;
use super::report::{CheckedWorkload, Report, RuleOutcome, RuleResult};
use crate::diff::text;
use crate::sarif::{self, SarifResult, SarifRule};

const RULES: [SarifRule; 2] = [
    SarifRule {
        id: "assertion-violated",
        level: "error",
        description: "Traffic has another fate than a CaptureAssertion demands",
    },
    SarifRule { id: "assertion-undecided", level: "error", description: "A CaptureAssertion cannot be decided" },
];

pub(super) fn print(report: &Report<'_>) -> String {
    sarif::print("weir assert", &RULES, report.workloads.iter().flat_map(results))
}

fn results(checked: &CheckedWorkload<'_>) -> Vec<Value> {
    let mut results: Vec<Value> = checked.results.iter().filter_map(|result| of_rule(checked, result)).collect();
    if let Evidence::NotInPlace(state) = &checked.workload.evidence {
        let message = format!("{}: its rules are not in place: {state}", checked.workload.name);
        results.push(result(checked, 1, message, "evidence"));
    }
    results
}

fn of_rule(checked: &CheckedWorkload<'_>, rule: &RuleResult<'_>) -> Option<Value> {
    let name = rule.name();
    let (id, lines) = match &rule.outcome {
        RuleOutcome::Holds => return None,
        RuleOutcome::Undecided(reasons) => (1, reasons.iter().map(|reason| format!("- {reason}")).collect::<Vec<_>>()),
        RuleOutcome::Violated { traffic, unknown } => {
            let lines = traffic.iter().flat_map(|wrong| {
                let head = std::iter::once(format!("{}:", wrong.fate));
                head.chain(text::class_lines(&wrong.classes, wrong.is_truncated))
            });
            (0, lines.chain(unknown.iter().map(|place| format!("- not understood: {place}"))).collect())
        }
    };
    let message = format!("{}: {name}\n{}", checked.workload.name, lines.join("\n"));
    Some(result(checked, id, message, &name))
}

fn result(checked: &CheckedWorkload<'_>, rule: usize, message: String, name: &str) -> Value {
    let workload = checked.workload;
    let fingerprint = ("weirAssert/v1", format!("{}:{name}:{}", RULES[rule].id, workload.name));
    let place = workload.place.as_ref();
    SarifResult { rule, workload: &workload.name, place, message, fingerprint }.object(&RULES)
}
