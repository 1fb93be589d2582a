//! Explanations for people.

use std::fmt::Write as _;

use iptables_rules::trace::{Effect, Fate, Stage, Step, Trace, Verdict};

use super::Explanation;
use super::packet::Question;
use super::summary::{Entry, Summary};
use super::words;

/// From how many rules on a row that does not match, for one and the same reason of being there, is told as one.
const ROW: usize = 4;

/// All explanations, one after the other.
pub(crate) fn print(explained: &[Explanation]) -> String {
    explained.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn one(explained: &Explanation) -> String {
    // Writing to a String cannot fail, here and below.
    let mut out = format!("{}: {}\n", explained.name, explained.origin);
    if let Some(found) = &explained.found {
        for verdict in &found.verdicts {
            let _ = writeln!(out, "  {verdict}");
        }
        if let Some(differences) = found.differences.as_ref().filter(|lines| !lines.is_empty()) {
            out.push_str("\ndifferences:\n");
            for line in differences {
                let _ = writeln!(out, "  {line}");
            }
        }
    }
    match (&explained.journey, &explained.summary) {
        (Some((question, trace)), _) => journey(&mut out, question, trace),
        (None, Some(summary)) => {
            let wish = explained.found.as_ref().is_some_and(|found| found.compared && !found.fine);
            self::summary(&mut out, summary, wish);
        }
        (None, None) => {}
    }
    out
}

fn summary(out: &mut String, summary: &Summary, wish: bool) {
    let [captured, excluded] =
        if wish { ["should be captured", "should not be captured"] } else { ["captured", "not captured"] };
    for (title, entries) in [(captured, &summary.captured), (excluded, &summary.excluded)] {
        let _ = writeln!(out, "\n{title}:");
        if entries.is_empty() {
            out.push_str("  nothing\n");
        }
        for entry in entries {
            let _ = writeln!(out, "  {}\n      {}", entry.what, said_by(entry));
        }
    }
}

/// Which setting is behind an entry.
pub(crate) fn said_by(entry: &Entry) -> String {
    match (entry.setting, entry.default) {
        (None, _) => "always".to_owned(),
        (Some(setting), true) => format!("by default; {setting} says otherwise"),
        (Some(setting), false) => format!("said by {setting}"),
    }
}

fn journey(out: &mut String, question: &Question, trace: &Trace) {
    let _ = writeln!(out, "\n{}", words::packet(question));
    for assumed in &question.assumed {
        let _ = writeln!(out, "  taken for granted: {assumed}");
    }
    for (number, at) in trace.stages.iter().enumerate() {
        let decisive = trace.decided_by.filter(|(stage, _)| *stage == number).map(|(_, step)| step);
        stage(out, at, decisive);
    }
    let _ = writeln!(out, "\n=> {}", words::outcome(question, trace));
    for doubt in &trace.doubts {
        let _ = writeln!(out, "   but this is not understood: {doubt}");
    }
}

fn stage(out: &mut String, stage: &Stage, decisive: Option<usize>) {
    let _ = writeln!(out, "\n{} {}", stage.table, stage.hook.name());
    if let Some(why) = stage.skipped {
        let _ = writeln!(out, "    not looked at: {why}");
        return;
    }
    let mut rest = stage.steps.as_slice();
    let mut at = 0;
    while let Some(first) = rest.first() {
        let row = rest.iter().take_while(|step| is_like(first, step)).count().max(1);
        let told = if row >= ROW { row } else { 1 };
        let (these, next) = rest.split_at(told);
        if let [first, .., last] = these {
            row_of(out, first, last, these.len());
        } else {
            single(out, first, decisive == Some(at));
        }
        at += told;
        rest = next;
    }
    if stage.steps.is_empty() {
        out.push_str("    no rules\n");
    }
}

/// Whether two rules of a chain are told in one breath: neither matches, and both are there for the same reason.
pub(crate) fn is_like(a: &Step, b: &Step) -> bool {
    let misses = |step: &Step| matches!(step.verdict, Verdict::NoMatch(_));
    misses(a) && misses(b) && (&a.chain, a.depth, a.reason) == (&b.chain, b.depth, b.reason)
}

fn row_of(out: &mut String, first: &Step, last: &Step, count: usize) {
    let indent = "  ".repeat(first.depth + 1);
    let _ = writeln!(out, "  {indent}{} {}-{}  {count} rules, none matches", first.chain, first.number, last.number);
    reason(out, &indent, first);
}

fn single(out: &mut String, step: &Step, decisive: bool) {
    let indent = "  ".repeat(step.depth + 1);
    let marker = match (&step.verdict, decisive) {
        (Verdict::Match(_), true) => "*",
        (Verdict::Match(_), false) => "+",
        (Verdict::Unknown(_), _) => "?",
        (Verdict::NoMatch(_), _) => " ",
    };
    let _ = writeln!(out, "{marker} {indent}{} {}  {}", step.chain, step.number, step.rule);
    let _ = writeln!(out, "  {indent}    {}", verdict(&step.verdict));
    if matches!(step.verdict, Verdict::Match(_)) {
        reason(out, &indent, step);
    }
}

fn reason(out: &mut String, indent: &str, step: &Step) {
    let Some(reason) = step.reason else { return };
    let setting = reason.setting().map(|setting| format!(" ({setting})")).unwrap_or_default();
    let _ = writeln!(out, "  {indent}    because: {}{setting}", reason.explain());
}

/// What a rule did, in words.
pub(crate) fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::NoMatch(why) => format!("no match: {why}"),
        Verdict::Unknown(why) => format!("nobody can tell: {why}"),
        Verdict::Match(effects) => {
            let effects: Vec<String> = effects.iter().map(Effect::to_string).collect();
            format!("matches: {}", effects.join(", then "))
        }
    }
}

/// Stable name of a fate for machines.
pub(crate) const fn fate_name(fate: &Fate) -> &'static str {
    match fate {
        Fate::Redirected { .. } => "redirected",
        Fate::Tproxied { .. } => "tproxied",
        Fate::Dropped => "dropped",
        Fate::Passes { .. } => "passes",
    }
}
