//! Prints plans as one JSON document.

use serde_json::{Value, json};

use super::injector::Vendor;
use super::plan::{NamespacePlan, Plan, WorkloadPlan};

/// Prints a plan.
pub(super) fn print(plan: &Plan) -> String {
    let control_planes = plan.control_planes.iter().map(|found| {
        json!({"namespace": found.namespace, "name": found.name, "revision": found.revision, "version": found.version})
    });
    let injectors = plan.injectors.iter().map(|found| {
        json!({
            "configuration": found.configuration,
            "injector": if found.vendor == Vendor::Istio { "istio" } else { "weir" },
            "revision": found.revision,
            "tag": found.tag,
            "target": found.target,
            "deactivated": found.is_deactivated(),
        })
    });
    let configs = plan.configs.iter().map(|found| {
        json!({
            "configMap": found.name,
            "revision": found.revision,
            "version": found.version,
            "templates": found.templates,
            "errors": found.errors,
        })
    });
    let plugins = plan.cni_plugins.iter();
    let plugins =
        plugins.map(|found| json!({"namespace": found.namespace, "name": found.name, "ambient": found.is_ambient}));
    let document = json!({
        "revision": {"name": plan.revision, "installed": plan.is_installed},
        "controlPlanes": control_planes.collect::<Value>(),
        "injectors": injectors.collect::<Value>(),
        "configurations": configs.collect::<Value>(),
        "cniPlugins": plugins.collect::<Value>(),
        "namespaces": plan.namespaces.iter().map(namespace).collect::<Value>(),
    });
    format!("{document:#}\n")
}

fn namespace(namespace: &NamespacePlan) -> Value {
    json!({
        "name": namespace.name,
        "optIn": {"by": namespace.opt_in.name(), "description": namespace.opt_in.description()},
        "migration": namespace.record.as_ref().map(|record| record.phase.name()),
        "reasons": namespace.reasons,
        "workloadsOutside": namespace.outside,
        "workloads": namespace.workloads.iter().map(workload).collect::<Value>(),
    })
}

fn workload(workload: &WorkloadPlan) -> Value {
    let assessment = &workload.assessment;
    json!({
        "kind": workload.kind,
        "name": workload.name,
        "pods": workload.pods,
        "rulesFrom": workload.origin.name(),
        "verdict": assessment.verdict.name(),
        "traffic": assessment.verdict.sentences(),
        "podChanges": assessment.changes,
        "reasons": assessment.reasons,
        "warnings": assessment.warnings,
        "agents": workload.live,
    })
}
