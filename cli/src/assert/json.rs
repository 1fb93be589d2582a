//! Prints reports as JSON. The format is stable: names stay, and fields are only added.

use serde_json::{Value, json};

use super::report::{CheckedWorkload, Report, RuleOutcome, RuleResult, WrongTraffic};
use super::text;
use crate::diff::json::{class, fate};

pub(super) fn print(report: &Report<'_>) -> String {
    let workloads: Vec<Value> = report.workloads.iter().map(workload).collect();
    let document = json!({
        "version": 1,
        "workloads": workloads,
        "unselectedWorkloads": report.unselected,
        "unusedAssertions": report.unused,
    });
    format!("{document:#}\n")
}

fn workload(checked: &CheckedWorkload<'_>) -> Value {
    json!({
        "name": checked.workload.name,
        "namespace": checked.workload.namespace,
        "verdict": checked.verdict().name(),
        "origin": checked.workload.origin,
        "assumed": text::assumption(checked.workload),
        "evidence": text::evidence(&checked.workload.evidence),
        "results": checked.results.iter().map(result).collect::<Vec<_>>(),
    })
}

fn result(result: &RuleResult<'_>) -> Value {
    let (violations, unknown, reasons) = match &result.outcome {
        RuleOutcome::Holds => (&[][..], &[][..], &[][..]),
        RuleOutcome::Violated { traffic, unknown } => (&traffic[..], &unknown[..], &[][..]),
        RuleOutcome::Undecided(reasons) => (&[][..], &[][..], &reasons[..]),
    };
    json!({
        "assertion": result.assertion,
        "rule": result.rule,
        "verdict": result.outcome.verdict().name(),
        "violations": violations.iter().map(violation).collect::<Vec<_>>(),
        "notUnderstood": unknown,
        "undecided": reasons,
    })
}

fn violation(wrong: &WrongTraffic) -> Value {
    json!({
        "fate": fate(&wrong.fate),
        "classes": wrong.classes.iter().map(class).collect::<Vec<_>>(),
        "truncated": wrong.is_truncated,
    })
}
