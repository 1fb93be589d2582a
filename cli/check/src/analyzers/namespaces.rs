//! Injection labels of namespaces.

use serde_json::Map;
use weir_injector::decision::INJECT_LABEL;
use weir_injector::selection::{INJECTION_LABEL, Labels, REVISION_LABEL};

use super::view::ClusterView;
use crate::fault;
use crate::finding::{FindingObject, Findings};
use crate::snapshot::object::text;

/// Namespaces that never get sidecars, besides Weir's own.
const SYSTEM: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    let own = &view.snapshot.install_namespaces;
    for (name, labels) in &view.namespaces {
        let object = FindingObject::cluster_scoped("Namespace", name);
        let (injection, revision) = (text(labels, INJECTION_LABEL), text(labels, REVISION_LABEL));
        if let Some(value) = text(labels, INJECT_LABEL) {
            let text = format!("label {INJECT_LABEL}={value} is for pods and has no effect on a namespace");
            let fix = format!("kubectl label namespace {name} {INJECT_LABEL}- {INJECTION_LABEL}=enabled");
            findings.add_with_fix(&fault::LABEL_IN_WRONG_PLACE, object.clone(), text, fix);
        }
        let requests_default = injection == Some("enabled");
        let requests_revision = injection.is_none() && revision.is_some();
        if SYSTEM.contains(name) || *name == own.webhook || *name == own.agent {
            if requests_default || requests_revision {
                let label = if requests_default { INJECTION_LABEL } else { REVISION_LABEL };
                let fix = format!("kubectl label namespace {name} {label}-");
                findings.add_with_fix(&fault::SYSTEM_NAMESPACE_LABELLED, object, format!("has the label {label}"), fix);
            }
            continue;
        }
        match (injection, revision) {
            (Some(value), _) if value != "enabled" && value != "disabled" => {
                let text = format!("label {INJECTION_LABEL}={value:?} means disabled");
                let fix = format!("kubectl label namespace {name} {INJECTION_LABEL}=enabled --overwrite");
                findings.add_with_fix(&fault::NAMESPACE_LABEL_UNCLEAR, object, text, fix);
            }
            (Some(value), Some(revision)) => {
                let text =
                    format!("has {INJECTION_LABEL}={value} and {REVISION_LABEL}={revision}; the second has no effect");
                let fix = format!("kubectl label namespace {name} {INJECTION_LABEL}-");
                findings.add_with_fix(&fault::NAMESPACE_LABELS_CONFLICT, object, text, fix);
            }
            _ => {}
        }
        // In ambient mode the label names the revision of waypoints and ztunnel.
        let is_ambient = labels.contains_key("istio.io/dataplane-mode") || labels.contains_key("istio.io/use-waypoint");
        if requests_default || (requests_revision && !is_ambient) {
            check_served(view, name, revision.filter(|_| injection.is_none()), findings);
        }
    }
}

/// Adds a finding if no injector serves a namespace that requests one: the default one, or that of a revision.
fn check_served(view: &ClusterView<'_>, name: &str, revision: Option<&str>, findings: &mut Findings) {
    let labels = view.labels(name);
    let is_served = !view.injectors_for(Labels { namespace: &labels, pod: &Map::new() }).is_empty();
    let requested = revision.unwrap_or("default");
    // A problem of an existing revision, or of the whole installation, has a finding of its own.
    let is_explained =
        view.revision(requested).is_some() || (requested == "default" && findings.has(&fault::NOT_INSTALLED));
    let is_planned = view.snapshot.pre_install_revision.as_deref() == Some(requested);
    if is_served || is_explained || is_planned || view.snapshot.configurations.is_none() {
        return;
    }
    let (text, fix) = match revision {
        Some(revision) => (
            format!("requests revision or tag '{revision}', which no injector serves: its pods start outside the mesh"),
            format!(
                "kubectl label namespace {name} {REVISION_LABEL}=REVISION --overwrite, or weir tag set {revision} --revision REVISION"
            ),
        ),
        None => (
            "requests the default injector, but there is none: its pods start outside the mesh".to_owned(),
            "weir tag set default --revision REVISION".to_owned(),
        ),
    };
    findings.add_with_fix(&fault::REVISION_UNKNOWN, FindingObject::cluster_scoped("Namespace", name), text, fix);
}
