//! Replicas of the webhook: number, placement, health, versions.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod_health::{PodHealth, add_crash};
use super::view::{ClusterView, InstalledRevision};
use crate::fault;
use crate::finding::{FindingObject, Findings};
use crate::snapshot::own::{Controller, DisruptionBudget, OwnPod};
use crate::snapshot::reports::PodReport;

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    for installed in &view.revisions {
        let Some(deployment) = installed.deployment else { continue };
        let object = installed.deployment_object(&view.snapshot.install_namespaces.webhook);
        let pods = view.webhook_pods(deployment);
        if deployment.replicas() == 1 {
            let fix = format!("kubectl -n {} scale deployment/{} --replicas=2", object.namespace, object.name);
            findings.add_with_fix(&fault::SINGLE_REPLICA, object.clone(), "has one replica", fix);
        }
        if deployment.replicas() > 1 {
            check_budget(view, deployment, &object, findings);
            check_placement(view, &pods, &object, findings);
        }
        for pod in &pods {
            check_pod(view, pod, &object, findings);
        }
        check_versions(view, installed, deployment, &pods, findings);
    }
}

fn check_budget(view: &ClusterView<'_>, deployment: &Controller, object: &FindingObject, findings: &mut Findings) {
    let Some(budgets) = &view.snapshot.webhook.budgets else { return };
    let labels = &deployment.spec.template.metadata.labels;
    let Some(budget) = budgets.iter().find(|budget| budget.spec.selector.matches(labels)) else {
        findings.add(&fault::DISRUPTION_BUDGET_MISSING, object.clone(), "no PodDisruptionBudget selects its pods");
        return;
    };
    let replicas = deployment.replicas();
    if !allows_eviction(budget, replicas) {
        let text = format!("allows none of the {replicas} replicas to be evicted");
        findings.add(&fault::DISRUPTION_BUDGET_BLOCKS, budget.metadata.object("PodDisruptionBudget"), text);
    }
}

/// Returns whether a budget lets a replica go: by the number that its controller computed, else by its own.
fn allows_eviction(budget: &DisruptionBudget, replicas: u64) -> bool {
    let is_zero = match &budget.spec.max_unavailable {
        Some(IntOrString::Int(number)) => *number == 0,
        Some(IntOrString::String(percentage)) => percentage == "0%",
        None => false,
    };
    let minimum = match budget.spec.min_available {
        Some(IntOrString::Int(number)) => u64::try_from(number).ok(),
        _ => None,
    };
    let desired = budget.status.desired_healthy.or(minimum);
    !is_zero && desired.is_none_or(|desired| desired < replicas)
}

fn check_placement(view: &ClusterView<'_>, pods: &[&OwnPod], object: &FindingObject, findings: &mut Findings) {
    let nodes: BTreeSet<&str> = pods.iter().filter_map(|pod| pod.node()).collect();
    let schedulable = view.snapshot.nodes.iter().flatten().filter(|node| !node.spec.unschedulable).count();
    if let (Some(node), 1) = (nodes.first(), nodes.len())
        && pods.len() > 1
        && schedulable > 1
    {
        let text = format!("all {} replicas are on node {node}", pods.len());
        let fix = format!("kubectl -n {} rollout restart deployment/{}", object.namespace, object.name);
        findings.add_with_fix(&fault::REPLICAS_ON_ONE_NODE, object.clone(), text, fix);
    }
}

fn check_pod(view: &ClusterView<'_>, pod: &OwnPod, deployment: &FindingObject, findings: &mut Findings) {
    let report = view.snapshot.reports.get(&pod.metadata.name);
    match PodHealth::new(pod, report, view.snapshot.now) {
        PodHealth::Healthy => {}
        PodHealth::Crashing(text) => add_crash(pod, text, findings),
        PodHealth::NotReady(text) => {
            let object = pod.metadata.object("Pod");
            let fix = format!("kubectl -n {} describe pod {}", object.namespace, object.name);
            findings.add_with_fix(&fault::REPLICA_NOT_READY, object, text, fix);
        }
    }
    let Some(readiness) = report.and_then(|report| report.readiness.as_ref()) else { return };
    let advisories = readiness.advisories();
    if !advisories.is_empty() {
        let text = format!("a replica reports: {}", advisories.join("; "));
        findings.add(&fault::REPLICA_FINDING, deployment.clone(), text);
    }
    // A problem with the documents themselves has a finding already.
    let rejected = readiness.rejected_changes();
    if !rejected.is_empty() && !findings.has(&fault::SETTINGS_REFUSED) {
        let text = format!("a replica reports: {}", rejected.join("; "));
        findings.add(&fault::SETTINGS_CHANGE_REFUSED, deployment.clone(), text);
    }
}

fn check_versions(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    deployment: &Controller,
    pods: &[&OwnPod],
    findings: &mut Findings,
) {
    if deployment.is_rolling_out() {
        return;
    }
    let version = |pod: &OwnPod| -> Option<&str> {
        let PodReport { metrics, .. } = view.snapshot.reports.get(&pod.metadata.name)?;
        metrics.as_ref()?.version.as_deref()
    };
    let webhook: BTreeSet<&str> = pods.iter().filter_map(|pod| version(pod)).collect();
    let agents: BTreeSet<&str> = view.snapshot.agent.pods.iter().flatten().filter_map(version).collect();
    let own = env!("CARGO_PKG_VERSION");
    if webhook.iter().chain(&agents).any(|version| *version != own) {
        let list = |versions: BTreeSet<&str>| match versions.len() {
            0 => "unknown".to_owned(),
            _ => versions.into_iter().collect::<Vec<_>>().join(" and "),
        };
        let text = format!("webhook {}, agents {}, this program {own}", list(webhook), list(agents));
        let object = installed.deployment_object(&view.snapshot.install_namespaces.webhook);
        findings.add(&fault::VERSIONS_DIFFER, object, text);
    }
}
