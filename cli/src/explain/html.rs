//! Prints explanations as one HTML page.

use super::explanation::Explanation;
use super::summary::SummaryItem;
use super::{sentences, svg, text};
use crate::groups::{self, Group};
use crate::html::{Fold, Page, Tone};
use iptables_rules::trace::Disposition;

/// Groups that are shown unfolded, and those that have a picture; a page with more would be too large for a phone.
const MAX_OPEN: usize = 3;
const MAX_PICTURES: usize = 100;

pub(crate) fn print(explanations: &[Explanation]) -> String {
    let mut page = Page::new("Captured traffic");
    let groups = groups::of(explanations, Explanation::key);
    page.counts(&[
        (explanations.len(), "workloads", Tone::Neutral),
        (groups.len(), "different rule sets", Tone::Neutral),
    ]);
    for (number, group) in groups.iter().enumerate() {
        let (badge, tone) = verdict(group.first);
        let title = group.title(&group.first.name);
        let header = Fold { title: &title, badge, tone, is_open: number < MAX_OPEN };
        page.fold(&header, |page| explain(page, group, number < MAX_PICTURES));
    }
    page.finish("weir explain")
}

fn verdict(explained: &Explanation) -> (&'static str, Tone) {
    match &explained.packet_trace {
        Some((_, trace)) => match trace.disposition {
            Disposition::Redirected { .. } | Disposition::Tproxied { .. } => ("captured", Tone::Good),
            Disposition::Passes { .. } => ("not captured", Tone::Warning),
            Disposition::Dropped => ("dropped", Tone::Bad),
        },
        None => match &explained.summary {
            None => ("not injected", Tone::Warning),
            Some(summary) if summary.captured.is_empty() => ("captures nothing", Tone::Warning),
            Some(_) => ("captures", Tone::Good),
        },
    }
}

fn explain(page: &mut Page, group: &Group<'_, Explanation>, has_picture: bool) {
    let explained = group.first;
    if let Some(names) = group.names(|explanation| &explanation.name) {
        page.note(&names);
    }
    page.note(&explained.origin);
    page.list(explained.netns_report.iter().flat_map(|report| &report.sentences));
    match (&explained.packet_trace, &explained.summary) {
        (Some((query, trace)), _) => {
            page.paragraph(&sentences::describe_packet(query));
            page.paragraph(&sentences::describe_fate(query, trace));
        }
        (None, Some(summary)) => {
            for (title, items) in [("Captured", &summary.captured), ("Not captured", &summary.excluded)] {
                page.subheading(title);
                page.table(
                    ["traffic", "setting"],
                    items.iter().map(|item| [(&item.what).into(), setting(item).into()]),
                );
            }
        }
        (None, None) => {}
    }
    if has_picture && !explained.chains.bases.is_empty() {
        let title = if explained.packet_trace.is_some() { "Way of the packet" } else { "Rules" };
        page.fold(&Fold { title, ..Fold::default() }, |page| page.picture("", &svg::element(explained), svg::STYLE));
    }
}

fn setting(item: &SummaryItem) -> String {
    text::setting_note(item).unwrap_or_else(|| "rules in the kernel".to_owned())
}
