//! Prints findings as one HTML page.

use weir_check::{Area, AreaState, Finding, Severity};

use crate::html::{Cell, Fold, Page, Tone};

/// Faults that are shown unfolded.
const MAX_OPEN: usize = 10;

/// Prints sorted findings; `target` names the cluster.
pub(super) fn print(findings: &[Finding], areas: &[Area], target: &str) -> String {
    let mut page = Page::new("Check of the cluster");
    page.note(target.trim());
    let severities = [Severity::Error, Severity::Warning, Severity::Info];
    let counts = severities.map(|severity| {
        let count = findings.iter().filter(|finding| finding.fault.severity == severity).count();
        (count, severity.name(), tone(severity))
    });
    page.counts(&counts);
    page.table(
        ["area", "state"],
        areas.iter().map(|area| {
            let (state, tone) = match area.state {
                AreaState::Passed => ("in order", Tone::Good),
                AreaState::Warned => ("warnings", Tone::Warning),
                AreaState::Failed => ("errors", Tone::Bad),
                AreaState::Incomplete => ("incomplete: not everything could be read", Tone::Warning),
            };
            [area.name.into(), Cell { text: state.to_owned(), tone }]
        }),
    );
    for (number, group) in findings.chunk_by(|a, b| a.fault == b.fault).enumerate() {
        let fault = group[0].fault;
        let title = format!("{} {}", fault.code, fault.name);
        let badge = fault.severity.name();
        let header = Fold { title: &title, badge, tone: tone(fault.severity), is_open: number < MAX_OPEN };
        page.fold(&header, |page| {
            page.paragraph(fault.meaning);
            page.table(["object", "finding", "fix"], group.iter().map(row));
        });
    }
    page.finish("weir check")
}

fn row(finding: &Finding) -> [Cell; 3] {
    let similar = if finding.similar > 0 { format!(" (and {} similar)", finding.similar) } else { String::new() };
    [format!("{}{similar}", finding.object).into(), (&finding.text).into(), (&finding.fix).into()]
}

const fn tone(severity: Severity) -> Tone {
    match severity {
        Severity::Error => Tone::Bad,
        Severity::Warning => Tone::Warning,
        Severity::Info => Tone::Neutral,
    }
}
