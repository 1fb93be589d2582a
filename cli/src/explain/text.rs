//! Prints explanations as text.

use std::fmt::Write as _;

use iptables_rules::names::annotation;
use iptables_rules::trace::{Disposition, Effect, RuleResult, RuleVisit, TableVisit, Trace};

use super::explanation::Explanation;
use super::packet::PacketQuery;
use super::sentences;
use super::summary::{Summary, SummaryItem};

/// From this number of rules, a run without matches and with the same reason is printed as one.
pub(super) const MIN_RUN: usize = 4;

pub(crate) fn print(explanations: &[Explanation]) -> String {
    explanations.iter().map(explanation).collect::<Vec<_>>().join("\n")
}

fn explanation(explained: &Explanation) -> String {
    // Writing to a string does not fail, here and below.
    let mut out = format!("{}: {}\n", explained.name, explained.origin);
    if let Some(report) = &explained.netns_report {
        for sentence in &report.sentences {
            let _ = writeln!(out, "  {sentence}");
        }
        if let Some(differences) = report.differences.as_ref().filter(|lines| !lines.is_empty()) {
            out.push_str("\ndifferences:\n");
            for line in differences {
                let _ = writeln!(out, "  {line}");
            }
        }
    }
    match (&explained.packet_trace, &explained.summary) {
        (Some((query, trace)), _) => packet_trace(&mut out, query, trace),
        (None, Some(summary)) => {
            self::summary(&mut out, summary);
        }
        (None, None) => {}
    }
    // Reasons of rules name the current annotation; the pod may have the deprecated one.
    out.replace(annotation::REROUTE_VIRTUAL_INTERFACES, explained.reroute_annotation)
}

fn summary(out: &mut String, summary: &Summary) {
    for (title, items) in [("captured", &summary.captured), ("not captured", &summary.excluded)] {
        let _ = writeln!(out, "\n{title}:");
        if items.is_empty() {
            out.push_str("  nothing\n");
        }
        for item in items {
            let _ = writeln!(out, "  {}", item.what);
            if let Some(note) = setting_note(item) {
                let _ = writeln!(out, "      {note}");
            }
        }
    }
}

/// Describes the setting behind an item.
pub(super) fn setting_note(item: &SummaryItem) -> Option<String> {
    Some(match (item.setting, item.default) {
        // By rules of the kernel, whatever is behind them.
        (None, false) => return None,
        (None, true) => "always".to_owned(),
        (Some(setting), true) => format!("default; override with {setting}"),
        (Some(setting), false) => format!("set by {setting}"),
    })
}

fn packet_trace(out: &mut String, query: &PacketQuery, trace: &Trace) {
    let _ = writeln!(out, "\n{}", sentences::describe_packet(query));
    for assumption in &query.assumptions {
        let _ = writeln!(out, "  assumed: {assumption}");
    }
    for (number, at) in trace.tables.iter().enumerate() {
        let decisive = trace.decided_by.filter(|(stage, _)| *stage == number).map(|(_, step)| step);
        stage(out, at, decisive);
    }
    let _ = writeln!(out, "\n=> {}", sentences::describe_fate(query, trace));
    for doubt in &trace.uncertain_rules {
        let _ = writeln!(out, "   not fully traced: {doubt}");
    }
}

fn stage(out: &mut String, stage: &TableVisit, decisive: Option<usize>) {
    let _ = writeln!(out, "\n{} {}", stage.table, stage.hook.name());
    if let Some(why) = stage.skip_reason {
        let _ = writeln!(out, "    skipped: {why}");
        return;
    }
    let mut rest = stage.rules.as_slice();
    let mut at = 0;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|step| is_same_run(first, step)).count().max(1);
        let printed = if run >= MIN_RUN { run } else { 1 };
        let (these, next) = rest.split_at(printed);
        if let [first, .., last] = these {
            run_of_rules(out, first, last, these.len());
        } else {
            single(out, first, decisive == Some(at));
        }
        at += printed;
        rest = next;
    }
    if stage.rules.is_empty() {
        out.push_str("    no rules\n");
    }
}

/// Returns whether two rules of a chain belong to one run: neither matches, and both have the same reason.
pub(super) fn is_same_run(a: &RuleVisit, b: &RuleVisit) -> bool {
    let misses = |step: &RuleVisit| matches!(step.result, RuleResult::NoMatch(_));
    misses(a) && misses(b) && (&a.chain, a.depth, a.reason) == (&b.chain, b.depth, b.reason)
}

fn run_of_rules(out: &mut String, first: &RuleVisit, last: &RuleVisit, count: usize) {
    let indent = "  ".repeat(first.depth + 1);
    let _ = writeln!(out, "  {indent}{} {}-{}  {count} rules, none matches", first.chain, first.number, last.number);
    reason(out, &indent, first);
}

fn single(out: &mut String, step: &RuleVisit, decisive: bool) {
    let indent = "  ".repeat(step.depth + 1);
    let marker = match (&step.result, decisive) {
        (RuleResult::Match(_), true) => "*",
        (RuleResult::Match(_), false) => "+",
        (RuleResult::Unknown(_), _) => "?",
        (RuleResult::NoMatch(_), _) => " ",
    };
    let _ = writeln!(out, "{marker} {indent}{} {}  {}", step.chain, step.number, step.rule);
    let _ = writeln!(out, "  {indent}    {}", describe_result(&step.result));
    if matches!(step.result, RuleResult::Match(_)) {
        reason(out, &indent, step);
    }
}

fn reason(out: &mut String, indent: &str, step: &RuleVisit) {
    let Some(reason) = step.reason else { return };
    let setting = reason.setting().map(|setting| format!(" ({setting})")).unwrap_or_default();
    let _ = writeln!(out, "  {indent}    because: {}{setting}", reason.description());
}

/// Describes the result of a rule.
pub(super) fn describe_result(result: &RuleResult) -> String {
    match result {
        RuleResult::NoMatch(why) => format!("no match: {why}"),
        RuleResult::Unknown(why) => format!("unknown: {why}"),
        RuleResult::Match(effects) => {
            let effects: Vec<String> = effects.iter().map(Effect::to_string).collect();
            format!("matches: {}", effects.join(", then "))
        }
    }
}

/// Returns the stable name of a disposition.
pub(super) const fn disposition_name(disposition: &Disposition) -> &'static str {
    match disposition {
        Disposition::Redirected { .. } => "redirected",
        Disposition::Tproxied { .. } => "tproxied",
        Disposition::Dropped => "dropped",
        Disposition::Passes { .. } => "passes",
    }
}
