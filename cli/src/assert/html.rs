//! Prints reports as one HTML page.

use std::collections::BTreeMap;

use std::cmp::Reverse;

use super::report::{CheckedWorkload, Report, RuleOutcome, Verdict, WrongTraffic};
use super::text;
use crate::diff::text::{because, packet};
use crate::groups::{self, Group};
use crate::html::{Fold, Page, Tone};

/// Groups that are shown unfolded.
const MAX_OPEN: usize = 3;

pub(super) fn print(report: &Report<'_>) -> String {
    let mut page = Page::new("Capture assertions");
    page.counts(&text::counts(report));
    let groups = groups::of(&report.workloads, key);
    let mut by_verdict: BTreeMap<Reverse<Verdict>, Vec<&Group<'_, CheckedWorkload<'_>>>> = BTreeMap::new();
    for group in &groups {
        by_verdict.entry(Reverse(group.first.verdict())).or_default().push(group);
    }
    for (number, group) in by_verdict.into_values().flatten().enumerate() {
        let verdict = group.first.verdict();
        let tone = match verdict {
            Verdict::Holds => Tone::Good,
            Verdict::Undecided => Tone::Warning,
            Verdict::Violated => Tone::Bad,
        };
        let title = group.title(&group.first.workload.name);
        let is_open = number < MAX_OPEN && verdict != Verdict::Holds;
        page.fold(&Fold { title: &title, badge: text::verdict(verdict), tone, is_open }, |page| workloads(page, group));
    }
    page.finish("weir assert")
}

/// Returns a text that is the same for workloads of which the same is to be said.
fn key(checked: &CheckedWorkload<'_>) -> String {
    let assumption = text::assumption(checked.workload);
    format!("{}{assumption:?}{:?}{:?}", checked.workload.origin, checked.workload.evidence, checked.results)
}

fn workloads(page: &mut Page, group: &Group<'_, CheckedWorkload<'_>>) {
    let checked = group.first;
    if let Some(names) = group.names(|checked| &checked.workload.name) {
        page.note(&names);
    }
    page.note(&checked.workload.origin);
    if let Some(evidence) = text::evidence(&checked.workload.evidence) {
        page.note(&evidence);
    }
    if let Some(assumption) = text::assumption(checked.workload) {
        page.note(&format!("assumed: {assumption}"));
    }
    for result in &checked.results {
        page.subheading(&format!("{}: {}", result.name(), text::verdict(result.outcome.verdict())));
        match &result.outcome {
            RuleOutcome::Holds => {}
            RuleOutcome::Undecided(reasons) => page.list(reasons),
            RuleOutcome::Violated { traffic, unknown } => {
                for wrong in traffic {
                    wrong_traffic(page, wrong);
                }
                page.list(unknown.iter().map(|place| format!("not understood: {place}")));
            }
        }
    }
}

fn wrong_traffic(page: &mut Page, wrong: &WrongTraffic) {
    page.paragraph(&wrong.fate.to_string());
    page.table(
        ["packets", "such as", "rule"],
        wrong.classes.iter().map(|explained| {
            let because = because(explained).unwrap_or_default();
            [explained.class.to_string().into(), packet(&explained.class.witness).into(), because.into()]
        }),
    );
    if wrong.is_truncated {
        page.note("and more");
    }
}
