//! Prints comparisons as one HTML page, with the way of an example packet before and after each change.

use std::collections::BTreeMap;

use iptables_rules::trace::Chains;

use super::comparison::{ChangeKind, Comparison, TrafficChange, Verdict, WorkloadComparison};
use super::text;
use crate::explain::packet::PacketQuery;
use crate::explain::{explanation::Explanation, svg};
use crate::groups::{self, Group};
use crate::html::{Fold, Page, Tone};

/// Groups that are shown unfolded, and those that have pictures; a page with more would be too large for a phone.
const MAX_OPEN: usize = 3;
const MAX_PICTURES: usize = 50;

pub(super) fn print(comparison: &Comparison) -> String {
    let mut page = Page::new(&format!("Traffic: {} → {}", comparison.old, comparison.new));
    page.counts(&text::counts(comparison));
    let groups = groups::of(&comparison.workloads, key);
    let mut by_weight: BTreeMap<usize, Vec<&Group<'_, WorkloadComparison>>> = BTreeMap::new();
    for group in &groups {
        by_weight.entry(weight(&group.first.verdict)).or_default().push(group);
    }
    for (number, group) in by_weight.into_values().flatten().enumerate() {
        let (badge, tone) = verdict(&group.first.verdict);
        let title = group.title(&group.first.name);
        let is_open = number < MAX_OPEN && !matches!(group.first.verdict, Verdict::Equal);
        page.fold(&Fold { title: &title, badge, tone, is_open }, |page| {
            workloads(page, group, number < MAX_PICTURES);
        });
    }
    page.finish("weir diff")
}

/// Returns a text that is the same for workloads that differ by name and place only.
fn key(compared: &WorkloadComparison) -> String {
    let WorkloadComparison { name: _, origins, verdict, pod_changes, notes, place: _ } = compared;
    format!("{origins:?}{verdict:?}{pod_changes:?}{notes:?}")
}

/// Orders verdicts, the gravest first.
fn weight(verdict: &Verdict) -> usize {
    match verdict {
        _ if text::has_bypass(verdict) => 0,
        Verdict::Unknown(_) => 1,
        Verdict::Different(_) => 2,
        Verdict::Removed => 3,
        Verdict::Added => 4,
        Verdict::Equal => 5,
    }
}

fn verdict(verdict: &Verdict) -> (&'static str, Tone) {
    match verdict {
        _ if text::has_bypass(verdict) => ("traffic is no longer captured", Tone::Warning),
        Verdict::Unknown(_) => ("cannot be decided", Tone::Warning),
        Verdict::Different(_) => ("traffic changes", Tone::Neutral),
        Verdict::Removed => ("removed", Tone::Neutral),
        Verdict::Added => ("added", Tone::Neutral),
        Verdict::Equal => ("no change", Tone::Good),
    }
}

fn workloads(page: &mut Page, group: &Group<'_, WorkloadComparison>, has_pictures: bool) {
    let compared = group.first;
    if let Some(names) = group.names(|compared| &compared.name) {
        page.note(&names);
    }
    match &compared.origins {
        [Some(before), Some(after)] if before == after => page.note(before),
        origins => {
            for (side, origin) in ["before", "after"].iter().zip(origins) {
                if let Some(origin) = origin {
                    page.note(&format!("{side}: {origin}"));
                }
            }
        }
    }
    let unknown = match &compared.verdict {
        Verdict::Different(found) => {
            for changed in &found.changes {
                change(page, changed, has_pictures);
            }
            &found.unknown[..]
        }
        Verdict::Unknown(places) => places,
        _ => &[],
    };
    page.list(unknown.iter().map(|place| format!("not understood: {place}")));
    if !compared.pod_changes.is_empty() {
        page.subheading("The injected pod");
        page.list(compared.pod_changes.iter().cloned());
    }
    for note in &compared.notes {
        page.note(note);
    }
}

fn change(page: &mut Page, change: &TrafficChange, has_pictures: bool) {
    page.subheading(&format!("{}: {} → {}", change.kind.description(), change.before, change.after));
    let rows = change.classes.iter().map(|explained| {
        let because = text::because(explained).unwrap_or_default();
        [explained.class.to_string().into(), text::packet(&explained.class.witness).into(), because.into()]
    });
    page.table(["packets", "such as", "rule"], rows);
    if change.is_truncated {
        page.note("and more");
    }
    let Some(first) = change.classes.first().filter(|_| has_pictures) else { return };
    let header = Fold {
        title: "Way of the first example, before and after",
        is_open: false,
        tone: if change.kind == ChangeKind::Bypass { Tone::Warning } else { Tone::Neutral },
        badge: "",
    };
    page.fold(&header, |page| {
        for (caption, trace) in ["before", "after"].iter().zip(&change.traces) {
            let query = PacketQuery::of(first.class.witness.clone());
            let explanation = Explanation {
                name: (*caption).to_owned(),
                origin: String::new(),
                netns_report: None,
                summary: None,
                reroute_annotation: "",
                chains: Chains::default(),
                packet_trace: Some((query, trace.clone())),
            };
            page.picture("", &svg::element(&explanation), svg::STYLE);
        }
    });
}
