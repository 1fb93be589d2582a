//! Prints plans as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::assess::Verdict;
use super::injector::Vendor;
use super::plan::{NamespacePlan, Plan, WorkloadPlan};

/// Limit of workloads that are named in one line.
const MAX_NAMES: usize = 6;

/// Prints a plan.
pub(super) fn print(plan: &Plan) -> String {
    let mut out = inventory(plan);
    for namespace in &plan.namespaces {
        out.push('\n');
        print_namespace(&mut out, namespace);
    }
    let changes = pod_changes(plan);
    if !changes.is_empty() {
        out.push_str("\nDifferences of the new pods:\n");
        for (change, workloads) in changes {
            // Writing to a string does not fail, here and below.
            let _ = writeln!(out, "  {:>4} {change}", workloads.len());
        }
    }
    let _ = writeln!(out, "\n{}", summary(plan));
    out
}

fn inventory(plan: &Plan) -> String {
    let mut out = String::new();
    for found in &plan.control_planes {
        let _ = writeln!(
            out,
            "control plane:  deployment {}/{}, revision {}, version {}",
            found.namespace, found.name, found.revision, found.version
        );
    }
    for found in &plan.injectors {
        let vendor = if found.vendor == Vendor::Istio { "Istio" } else { "Weir" };
        let tag = found.tag.as_ref().map(|tag| format!(", tag {tag}")).unwrap_or_default();
        let off = if found.is_deactivated() { ", deactivated" } else { "" };
        let _ = writeln!(
            out,
            "injector:       {} ({vendor}), revision {}{tag}{off}, to {}",
            found.configuration, found.revision, found.target
        );
    }
    for found in &plan.configs {
        let templates = if found.templates.is_empty() { "built in".to_owned() } else { found.templates.join(", ") };
        let _ = writeln!(
            out,
            "configuration:  configmap {}, revision {}, version {}, templates {templates}",
            found.name, found.revision, found.version
        );
        for error in &found.errors {
            let _ = writeln!(out, "  Weir rejects it: {error}");
        }
    }
    for found in &plan.cni_plugins {
        let mode = if found.is_ambient { ", serves ambient mode: stays" } else { "" };
        let _ = writeln!(out, "CNI plugin:     daemonset {}/{}{mode}", found.namespace, found.name);
    }
    let state = if plan.is_installed { "is installed" } else { "is not installed yet" };
    let _ = writeln!(out, "Weir:           revision {} {state}", plan.revision);
    out
}

fn print_namespace(out: &mut String, namespace: &NamespacePlan) {
    let pods: usize = namespace.workloads.iter().map(|workload| workload.pods).sum();
    let outside =
        if namespace.outside > 0 { format!(", {} without a sidecar", namespace.outside) } else { String::new() };
    let _ = writeln!(
        out,
        "namespace {}: {}; {} workloads with {pods} pods in the mesh{outside}",
        namespace.name,
        namespace.opt_in.description(),
        namespace.workloads.len()
    );
    if let Some(record) = &namespace.record {
        let _ = writeln!(out, "  migration: {}; labels before: {}", record.phase.name(), record.former.describe());
    }
    for reason in &namespace.reasons {
        let _ = writeln!(out, "  needs a person: {reason}");
    }
    let mut equal: BTreeMap<(&str, &str), Vec<&WorkloadPlan>> = BTreeMap::new();
    for workload in &namespace.workloads {
        if workload.is_ready() {
            equal.entry((workload.assessment.verdict.name(), workload.origin.name())).or_default().push(workload);
        } else {
            print_workload(out, workload);
        }
    }
    for ((verdict, origin), workloads) in equal {
        let names: Vec<String> =
            workloads.iter().take(MAX_NAMES).map(|workload| format!("{}/{}", workload.kind, workload.name)).collect();
        let more = workloads.len().saturating_sub(MAX_NAMES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ = writeln!(out, "  {verdict}: {} ({origin}): {}{more}", workloads.len(), names.join(", "));
        if let Some(line) = live(workloads.iter().copied()) {
            let _ = writeln!(out, "    agents report: {line}");
        }
    }
}

fn live<'a>(workloads: impl Iterator<Item = &'a WorkloadPlan>) -> Option<String> {
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for (state, count) in workloads.flat_map(|workload| &workload.live) {
        *states.entry(state).or_default() += count;
    }
    let texts: Vec<String> = states.iter().map(|(state, count)| format!("{count} pods {state}")).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn print_workload(out: &mut String, workload: &WorkloadPlan) {
    let assessment = &workload.assessment;
    let _ = writeln!(
        out,
        "  {}: {}/{} ({}, {} pods)",
        assessment.verdict.name(),
        workload.kind,
        workload.name,
        workload.origin.name(),
        workload.pods
    );
    for sentence in assessment.verdict.sentences() {
        let _ = writeln!(out, "    {sentence}");
    }
    for reason in assessment.reasons.iter().filter(|reason| !assessment.verdict.sentences().contains(reason)) {
        let _ = writeln!(out, "    needs a person: {reason}");
    }
    if let Some(line) = live(std::iter::once(workload)) {
        let _ = writeln!(out, "    agents report: {line}");
    }
}

/// Returns the differences of new pods, each with the workloads that have it; the most frequent first.
pub(super) fn pod_changes(plan: &Plan) -> Vec<(&str, Vec<String>)> {
    let mut changes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (namespace, workload) in plan.workloads() {
        for change in &workload.assessment.changes {
            let name = format!("{}/{} {}", namespace.name, workload.name, workload.kind);
            changes.entry(change).or_default().push(name);
        }
    }
    let mut sorted: Vec<_> = changes.into_iter().collect();
    sorted.sort_by_key(|(_, workloads)| std::cmp::Reverse(workloads.len()));
    sorted
}

/// Returns the numbers of workloads by verdict.
pub(super) fn counts(plan: &Plan) -> [(usize, &'static str); 8] {
    let verdict =
        |name: &str| plan.workloads().filter(|(_, workload)| workload.assessment.verdict.name() == name).count();
    let has_reasons = plan.workloads().filter(|(_, workload)| !workload.assessment.reasons.is_empty()).count();
    [
        (verdict("equal"), "equal"),
        (verdict("equal-but-15020"), "equal but for port 15020"),
        (verdict("captured-more"), "captured more"),
        (verdict("different"), "treated differently"),
        (verdict("captured-less"), "captured less"),
        (verdict("unknown"), "unknown"),
        (verdict("done"), "moved already"),
        (has_reasons, "with something for a person to do"),
    ]
}

fn summary(plan: &Plan) -> String {
    let words: Vec<String> =
        counts(plan).iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let words = if words.is_empty() { "no workload of Istio's injector".to_owned() } else { words.join(", ") };
    format!("=> {} namespaces: {words}", plan.namespaces.len())
}

/// Returns whether some workload would lose captured traffic, or may.
pub(super) fn is_unsafe(plan: &Plan) -> bool {
    plan.workloads()
        .any(|(_, workload)| matches!(workload.assessment.verdict, Verdict::CapturedLess(_) | Verdict::Unknown(_)))
}
