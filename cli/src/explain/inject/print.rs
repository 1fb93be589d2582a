//! Explanations for people, and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use weir_injector::inject::decision::{Decision, Step};
use weir_injector::inject::selection::Admission;

use super::{Explanation, Gets};

/// What marks the rule that decided.
const DECIDES: &str = "  <- decides";

/// One paragraph for each pod.
pub(super) fn text(explained: &[Explanation]) -> String {
    let mut text = String::new();
    for (number, explanation) in explained.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        // Writing to a text cannot fail.
        let _ = paragraph(&mut text, explanation);
    }
    text
}

fn paragraph(out: &mut String, explanation: &Explanation) -> std::fmt::Result {
    writeln!(out, "{}", explanation.name)?;
    let namespace = &explanation.namespace;
    match &explanation.namespace_labels {
        None => writeln!(
            out,
            "  namespace {namespace:?}: its labels are not known, and taken for none (--namespace-labels)"
        )?,
        Some(labels) if labels.is_empty() => writeln!(out, "  namespace {namespace:?}: no labels")?,
        Some(labels) => {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
            writeln!(out, "  namespace {namespace:?}: {}", labels.join(", "))?;
        }
    }
    writeln!(out)?;
    let answer = if explanation.admission == Admission::Sent { "yes" } else { "no" };
    writeln!(out, "  is it sent to the webhook? {answer}")?;
    for (entry, selects) in &explanation.entries {
        let (word, mark) = if *selects { ("selects it", DECIDES) } else { ("does not", "") };
        writeln!(out, "    {entry:<44} {word}{mark}")?;
    }
    if let Admission::NotSent { why, remedy } = &explanation.admission {
        writeln!(out, "    because: {why}")?;
        writeln!(out, "    change:  {remedy}")?;
    }
    writeln!(out)?;
    let unsent = if explanation.admission == Admission::Sent { "" } else { ", if it were sent" };
    let answer = if explanation.decided.decision == Decision::Inject { "yes" } else { "no" };
    writeln!(out, "  is it injected{unsent}? {answer}")?;
    let deciding = explanation.decided.steps.iter().rposition(|step| step.verdict.is_some());
    for (number, step) in explanation.decided.steps.iter().enumerate() {
        let mark = if Some(number) == deciding { DECIDES } else { "" };
        writeln!(out, "    {:<64}{}{mark}", step.rule.question(), verdict(*step))?;
    }
    if let Decision::Skip(reason) = explanation.decided.decision {
        writeln!(out, "    because: {}", reason.explain())?;
        writeln!(out, "    change:  {}", reason.remedy())?;
    }
    let mut warnings: &[String] = &explanation.decided.warnings;
    match &explanation.result {
        None => {}
        Some(Err(denials)) => {
            writeln!(out, "\n  it is refused:")?;
            denials.iter().try_for_each(|denial| writeln!(out, "    {denial}"))?;
        }
        Some(Ok(gets)) => {
            writeln!(out, "\n  what it gets:")?;
            for (what, names) in [
                ("templates", &gets.templates),
                ("init containers", &gets.init_containers),
                ("containers", &gets.containers),
                ("volumes", &gets.volumes),
            ] {
                if !names.is_empty() {
                    writeln!(out, "    {what}: {}", names.join(", "))?;
                }
            }
            writeln!(out, "    proxy: {}", gets.proxy)?;
            writeln!(out, "    capture: {}", gets.capture)?;
            // They hold those of the decision.
            warnings = &gets.warnings;
        }
    }
    warnings.iter().try_for_each(|warning| writeln!(out, "  warning: {warning}"))
}

fn verdict(step: Step) -> &'static str {
    match step.verdict {
        None => "no",
        Some(Decision::Inject) => "yes: inject",
        Some(Decision::Skip(_)) => "yes: leave alone",
    }
}

/// One document.
pub(super) fn json(explained: &[Explanation]) -> String {
    let pods: Vec<Value> = explained.iter().map(of_pod).collect();
    format!("{:#}\n", json!({"version": 1, "pods": pods}))
}

fn of_pod(explanation: &Explanation) -> Value {
    let entries = explanation.entries.iter().map(|(name, selects)| json!({"name": name, "selects": selects}));
    let mut selection =
        json!({"sent": explanation.admission == Admission::Sent, "entries": entries.collect::<Vec<_>>()});
    if let Admission::NotSent { why, remedy } = &explanation.admission {
        selection["reason"] = why.as_str().into();
        selection["remedy"] = remedy.as_str().into();
    }
    let decided = &explanation.decided;
    let rules = decided.steps.iter().map(|step| {
        let outcome = match step.verdict {
            None => "passes",
            Some(Decision::Inject) => "inject",
            Some(Decision::Skip(_)) => "skip",
        };
        json!({"rule": step.rule.name(), "outcome": outcome})
    });
    let mut decision = json!({"inject": decided.decision == Decision::Inject, "rules": rules.collect::<Vec<_>>()});
    if let Some(step) = decided.steps.iter().rfind(|step| step.verdict.is_some()) {
        decision["decidedBy"] = step.rule.name().into();
    }
    if let Decision::Skip(reason) = decided.decision {
        decision["reason"] = reason.name().into();
        decision["explanation"] = reason.explain().into();
        decision["remedy"] = reason.remedy().into();
    }
    let (result, warnings) = match &explanation.result {
        None => (Value::Null, &decided.warnings),
        Some(Err(denials)) => (json!({"refused": denials}), &decided.warnings),
        Some(Ok(gets)) => (of_result(gets), &gets.warnings),
    };
    json!({
        "name": explanation.name,
        "namespace": explanation.namespace,
        "namespaceLabels": explanation.namespace_labels,
        "selection": selection,
        "decision": decision,
        "result": result,
        "warnings": warnings,
    })
}

fn of_result(gets: &Gets) -> Value {
    json!({
        "templates": gets.templates,
        "initContainers": gets.init_containers,
        "containers": gets.containers,
        "volumes": gets.volumes,
        "proxy": gets.proxy,
        "capture": gets.capture,
    })
}
