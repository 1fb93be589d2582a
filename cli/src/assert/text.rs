//! Prints reports as text.

use std::fmt::Write as _;

use super::input::{Evidence, Workload};
use super::report::{CheckedWorkload, Report, RuleOutcome, Verdict};
use crate::diff::text;
use crate::html::Tone;

pub(super) fn print(report: &Report<'_>) -> String {
    let mut out = String::new();
    for checked in &report.workloads {
        workload(&mut out, checked);
    }
    let counts = counts(report);
    let counts = counts.iter().filter(|(count, ..)| *count > 0).map(|(count, what, _)| format!("{count} {what}"));
    let counts = counts.collect::<Vec<_>>().join(", ");
    let counts = if counts.is_empty() { "no workloads".to_owned() } else { counts };
    // Writing to a string does not fail, here and below.
    let _ = writeln!(out, "=> {counts}");
    out
}

/// Counts the workloads by their verdicts.
pub(super) fn counts(report: &Report<'_>) -> [(usize, &'static str, Tone); 4] {
    [
        (report.count(Verdict::Violated), "in violation", Tone::Bad),
        (report.count(Verdict::Undecided), "undecided", Tone::Warning),
        (report.count(Verdict::Holds), "proved", Tone::Good),
        (report.unselected, "not selected", Tone::Neutral),
    ]
}

/// Returns the verdict in words.
pub(super) const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Holds => "proved for every packet",
        Verdict::Undecided => "cannot be decided",
        Verdict::Violated => "violated",
    }
}

/// Describes the report of the node's agent; `None` if none was asked for.
pub(super) fn evidence(evidence: &Evidence) -> Option<String> {
    match evidence {
        Evidence::None => None,
        Evidence::InPlace { node } => Some(format!("in place in the kernel, says the agent of node {node}")),
        Evidence::NotInPlace(state) => Some(format!("these rules are not in place: {state}")),
        Evidence::Missing => Some("no agent has found the rules yet".to_owned()),
    }
}

/// Returns what the verdict assumes.
pub(super) fn assumption(workload: &Workload) -> Option<&'static str> {
    const TEXT: &str =
        "the pods get addresses of one family; IPv6 of a dual-stack pod is not captured without ISTIO_DUAL_STACK";
    workload.assumes_one_family.then_some(TEXT)
}

fn workload(out: &mut String, checked: &CheckedWorkload<'_>) {
    let workload = checked.workload;
    let _ = writeln!(out, "{}: {}", workload.name, verdict(checked.verdict()));
    if checked.verdict() != Verdict::Holds {
        let _ = writeln!(out, "  {}", workload.origin);
    }
    if let Some(evidence) = evidence(&workload.evidence) {
        let _ = writeln!(out, "  {evidence}");
    }
    if let Some(assumption) = assumption(workload) {
        let _ = writeln!(out, "  assumed: {assumption}");
    }
    for result in &checked.results {
        let unknown = match &result.outcome {
            RuleOutcome::Holds => continue,
            RuleOutcome::Undecided(reasons) => {
                let _ = writeln!(out, "  {}: cannot be decided", result.name());
                for reason in reasons {
                    let _ = writeln!(out, "    {reason}");
                }
                continue;
            }
            RuleOutcome::Violated { traffic, unknown } => {
                for wrong in traffic {
                    let _ = writeln!(out, "  {}: {}:", result.name(), wrong.fate);
                    text::classes(out, &wrong.classes, wrong.is_truncated);
                }
                unknown
            }
        };
        for place in unknown {
            let _ = writeln!(out, "    not understood: {place}");
        }
    }
    out.push('\n');
}
