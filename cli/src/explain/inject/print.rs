//! Prints explanations as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use weir_injector::decision::{Decision, RuleEvaluation};
use weir_injector::selection::Selection;

use super::explanation::{InjectExplanation, InjectionPreview};

/// Mark of the deciding rule.
const DECIDES: &str = "  <- decides";

/// Prints one paragraph for each pod.
pub(super) fn text(explanations: &[InjectExplanation]) -> String {
    let mut text = String::new();
    for (number, explanation) in explanations.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        // Writing to a string does not fail.
        let _ = paragraph(&mut text, explanation);
    }
    text
}

fn paragraph(out: &mut String, explanation: &InjectExplanation) -> std::fmt::Result {
    writeln!(out, "{}", explanation.name)?;
    let namespace = &explanation.namespace;
    match &explanation.namespace_labels {
        None => writeln!(out, "  namespace {namespace:?}: labels unknown, assumed to be none (--namespace-labels)")?,
        Some(labels) if labels.is_empty() => writeln!(out, "  namespace {namespace:?}: no labels")?,
        Some(labels) => {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
            writeln!(out, "  namespace {namespace:?}: {}", labels.join(", "))?;
        }
    }
    writeln!(out)?;
    let answer = if explanation.selection == Selection::Selected { "yes" } else { "no" };
    writeln!(out, "  is it sent to the webhook? {answer}")?;
    for (entry, selects) in &explanation.entries {
        let (word, mark) = if *selects { ("selects it", DECIDES) } else { ("does not", "") };
        writeln!(out, "    {entry:<44} {word}{mark}")?;
    }
    if let Selection::NotSelected { reason, remedy } = &explanation.selection {
        writeln!(out, "    because: {reason}")?;
        writeln!(out, "    change:  {remedy}")?;
    }
    writeln!(out)?;
    let unsent = if explanation.selection == Selection::Selected { "" } else { ", if it were sent" };
    let answer = if explanation.decision_trace.decision == Decision::Inject { "yes" } else { "no" };
    writeln!(out, "  is it injected{unsent}? {answer}")?;
    let deciding = explanation.decision_trace.evaluations.iter().rposition(|step| step.decision.is_some());
    for (number, step) in explanation.decision_trace.evaluations.iter().enumerate() {
        let mark = if Some(number) == deciding { DECIDES } else { "" };
        writeln!(out, "    {:<64}{}{mark}", step.rule.description(), outcome(*step))?;
    }
    if let Decision::Skip(reason) = explanation.decision_trace.decision {
        writeln!(out, "    because: {}", reason.message())?;
        writeln!(out, "    change:  {}", reason.remedy())?;
    }
    let mut warnings: &[String] = &explanation.decision_trace.warnings;
    match &explanation.result {
        None => {}
        Some(Err(denials)) => {
            writeln!(out, "\n  it is denied:")?;
            denials.iter().try_for_each(|denial| writeln!(out, "    {denial}"))?;
        }
        Some(Ok(preview)) => {
            writeln!(out, "\n  what it gets:")?;
            for name in &preview.templates {
                let is_rendered = preview.rendered_templates.contains(name);
                let origin = if is_rendered {
                    "rendered from the configuration"
                } else {
                    "built-in, as the configuration has no text for it"
                };
                writeln!(out, "    template {name}: {origin}")?;
            }
            for (what, names) in [
                ("init containers", &preview.init_containers),
                ("containers", &preview.containers),
                ("volumes", &preview.volumes),
            ] {
                if !names.is_empty() {
                    writeln!(out, "    {what}: {}", names.join(", "))?;
                }
            }
            writeln!(out, "    proxy: {}", preview.proxy)?;
            writeln!(out, "    capture: {}", preview.capture)?;
            // They include those of the decision.
            warnings = &preview.warnings;
        }
    }
    warnings.iter().try_for_each(|warning| writeln!(out, "  warning: {warning}"))
}

fn outcome(step: RuleEvaluation) -> &'static str {
    match step.decision {
        None => "no",
        Some(Decision::Inject) => "yes: inject",
        Some(Decision::Skip(_)) => "yes: skip",
    }
}

pub(super) fn json(explanations: &[InjectExplanation]) -> String {
    let pods: Vec<Value> = explanations.iter().map(of_pod).collect();
    format!("{:#}\n", json!({"version": 1, "pods": pods}))
}

fn of_pod(explanation: &InjectExplanation) -> Value {
    let entries = explanation.entries.iter().map(|(name, selects)| json!({"name": name, "selects": selects}));
    let mut selection =
        json!({"sent": explanation.selection == Selection::Selected, "entries": entries.collect::<Vec<_>>()});
    if let Selection::NotSelected { reason, remedy } = &explanation.selection {
        selection["reason"] = reason.as_str().into();
        selection["remedy"] = remedy.as_str().into();
    }
    let trace = &explanation.decision_trace;
    let rules = trace.evaluations.iter().map(|step| {
        let outcome = match step.decision {
            None => "passes",
            Some(Decision::Inject) => "inject",
            Some(Decision::Skip(_)) => "skip",
        };
        json!({"rule": step.rule.name(), "outcome": outcome})
    });
    let mut decision = json!({"inject": trace.decision == Decision::Inject, "rules": rules.collect::<Vec<_>>()});
    if let Some(step) = trace.evaluations.iter().rfind(|step| step.decision.is_some()) {
        decision["decidedBy"] = step.rule.name().into();
    }
    if let Decision::Skip(reason) = trace.decision {
        decision["reason"] = reason.name().into();
        decision["explanation"] = reason.message().into();
        decision["remedy"] = reason.remedy().into();
    }
    let (result, warnings) = match &explanation.result {
        None => (Value::Null, &trace.warnings),
        Some(Err(denials)) => (json!({"refused": denials}), &trace.warnings),
        Some(Ok(preview)) => (of_preview(preview), &preview.warnings),
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

fn of_preview(preview: &InjectionPreview) -> Value {
    json!({
        "templates": preview.templates,
        "renderedTemplates": preview.rendered_templates,
        "initContainers": preview.init_containers,
        "containers": preview.containers,
        "volumes": preview.volumes,
        "proxy": preview.proxy,
        "capture": preview.capture,
    })
}
