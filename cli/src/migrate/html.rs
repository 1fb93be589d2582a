//! Prints plans as one self-contained HTML page: what needs a person first, equal workloads folded.

use super::assess::Verdict;
use super::injector::Vendor;
use super::plan::{NamespacePlan, Plan, WorkloadPlan};
use super::text::{counts, pod_changes};
use crate::html::{Cell, Fold, Page, Tone};

/// Prints a plan.
pub(super) fn print(plan: &Plan) -> String {
    let mut page = Page::new("Migration to Weir");
    let state = if plan.is_installed { "installed" } else { "not installed yet" };
    page.paragraph(&format!("From Istio's injector to revision {} of Weir ({state}).", plan.revision));
    let counts = counts(plan).map(|(count, what)| (count, what, tone_of(what)));
    page.counts(&counts);
    page.note("The rules that every pod has now were compared with those that it would get, over all packets: equal is a proof, not a sample.");
    page.subheading("Namespaces");
    for namespace in &plan.namespaces {
        print_namespace(&mut page, namespace);
    }
    let changes = pod_changes(plan);
    if !changes.is_empty() {
        page.subheading("Differences of the new pods");
        for (change, workloads) in changes {
            let badge = format!("{} workloads", workloads.len());
            page.fold(&Fold { title: change, badge: &badge, ..Fold::default() }, |page| page.list(&workloads));
        }
    }
    print_inventory(&mut page, plan);
    page.finish("weir migrate plan")
}

fn tone_of(what: &str) -> Tone {
    match what {
        "equal" | "equal but for port 15020" | "moved already" => Tone::Good,
        "captured less" => Tone::Bad,
        _ => Tone::Warning,
    }
}

fn tone(verdict: &Verdict) -> Tone {
    match verdict {
        Verdict::Equal | Verdict::AgentPort(_) | Verdict::Done => Tone::Good,
        Verdict::CapturedLess(_) => Tone::Bad,
        Verdict::CapturedMore(_) | Verdict::Different(_) | Verdict::Unknown(_) => Tone::Warning,
    }
}

fn print_namespace(page: &mut Page, namespace: &NamespacePlan) {
    let (ready, open): (Vec<_>, Vec<_>) = namespace.workloads.iter().partition(|workload| workload.is_ready());
    let needs_person = open.len() + namespace.reasons.len();
    let badge = if needs_person == 0 {
        format!("{} workloads, none needs a person", ready.len())
    } else {
        format!("{} workloads, {} to look at", namespace.workloads.len(), open.len())
    };
    let worst = open.iter().map(|workload| tone(&workload.assessment.verdict)).find(|tone| *tone == Tone::Bad);
    let fallback = if needs_person == 0 { Tone::Good } else { Tone::Warning };
    let header =
        Fold { title: &namespace.name, badge: &badge, tone: worst.unwrap_or(fallback), is_open: needs_person > 0 };
    page.fold(&header, |page| {
        page.note(&namespace.opt_in.description());
        if let Some(record) = &namespace.record {
            page.paragraph(&format!("Migration: {}; labels before: {}", record.phase.name(), record.former.describe()));
        }
        page.list(&namespace.reasons);
        for workload in open {
            print_workload(page, workload);
        }
        if !ready.is_empty() {
            let title = format!("{} workloads that move by themselves", ready.len());
            page.fold(&Fold { title: &title, badge: "equal", tone: Tone::Good, is_open: false }, |page| {
                table(page, &ready);
            });
        }
        if namespace.outside > 0 {
            page.note(&format!("{} workloads have no sidecar and are not concerned.", namespace.outside));
        }
    });
}

fn print_workload(page: &mut Page, workload: &WorkloadPlan) {
    let assessment = &workload.assessment;
    let title = format!("{}/{}", workload.kind, workload.name);
    let header =
        Fold { title: &title, badge: assessment.verdict.name(), tone: tone(&assessment.verdict), is_open: false };
    page.fold(&header, |page| {
        page.note(&format!("{} pods; rules of {}", workload.pods, workload.origin.name()));
        page.list(assessment.verdict.sentences());
        let reasons = assessment.reasons.iter().filter(|reason| !assessment.verdict.sentences().contains(reason));
        let reasons: Vec<&String> = reasons.collect();
        if !reasons.is_empty() {
            page.subheading("For a person");
            page.list(reasons);
        }
    });
}

fn table(page: &mut Page, workloads: &[&WorkloadPlan]) {
    let rows = workloads.iter().map(|workload| {
        let agents: Vec<String> = workload.live.iter().map(|(state, count)| format!("{count} {state}")).collect();
        [
            Cell::from(format!("{}/{}", workload.kind, workload.name)),
            Cell::from(workload.pods),
            Cell::from(workload.origin.name()),
            Cell { text: workload.assessment.verdict.name().to_owned(), tone: Tone::Good },
            Cell::from(agents.join(", ")),
        ]
    });
    page.table(["Workload", "Pods", "Rules of", "Traffic", "Agents report"], rows);
}

fn print_inventory(page: &mut Page, plan: &Plan) {
    page.subheading("Installed");
    let rows = |cells: [String; 4]| cells.map(Cell::from);
    let mut all = Vec::new();
    for found in &plan.control_planes {
        let name = format!("{}/{}", found.namespace, found.name);
        all.push(rows(["control plane".to_owned(), name, found.revision.clone(), found.version.clone()]));
    }
    for found in &plan.injectors {
        let vendor = if found.vendor == Vendor::Istio { "Istio" } else { "Weir" };
        let kind = format!("injector of {vendor}");
        let note = if found.is_deactivated() { "deactivated".to_owned() } else { format!("to {}", found.target) };
        all.push(rows([kind, found.configuration.clone(), found.selecting_revision().to_owned(), note]));
    }
    for found in &plan.configs {
        let note = if found.errors.is_empty() {
            found.version.clone()
        } else {
            format!("rejected: {}", found.errors.join("; "))
        };
        all.push(rows(["configuration".to_owned(), found.name.clone(), found.revision.clone(), note]));
    }
    for found in &plan.cni_plugins {
        let note = if found.is_ambient { "serves ambient mode: stays" } else { "" };
        let name = format!("{}/{}", found.namespace, found.name);
        all.push(rows(["CNI plugin".to_owned(), name, String::new(), note.to_owned()]));
    }
    page.table(["Kind", "Name", "Revision", "Version or note"], all);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;
    use crate::migrate::tests::{deployment, objects, pod};

    #[test]
    fn page_of_300_workloads_is_folded_and_has_no_script() {
        let mut objects = objects();
        for number in 0..300 {
            let deployment = deployment("shop", &format!("w{number}"), &json!({}));
            objects.pods.push(pod(&deployment, number % 2 == 0));
            objects.controllers.push(deployment);
        }
        objects.controllers[0]["spec"]["paused"] = true.into();
        let plan = Plan::of(&objects, "weir", &[], &HashMap::new());
        let page = print(&plan);
        let start: String = page.split("<main>").nth(1).unwrap_or_default().chars().take(2500).collect();
        assert!(page.contains("<b>152</b>equal"), "{start}");
        assert!(page.contains("<b>150</b>equal but for port 15020"), "{start}");
        assert!(page.contains("301 workloads that move by themselves"), "{start}");
        assert!(page.contains("kubectl rollout resume") && !page.contains("<script"), "{start}");
        if let Some(path) = std::env::var_os("WEIR_MIGRATE_PAGE") {
            std::fs::write(path, page).unwrap();
        }
    }
}
