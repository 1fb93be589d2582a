//! What namespaces ask for.

use serde_json::Map;
use weir_injector::inject::decision::INJECT;
use weir_injector::inject::selection::{INJECTION, Labels, REVISION};

use super::view::View;
use crate::check::fault;
use crate::check::finding::{Findings, Object};

/// Namespaces that never get sidecars, beside our own.
const SYSTEM: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    let places = &view.snapshot.places;
    for (name, labels) in &view.namespaces {
        let object = Object::global("Namespace", name);
        let label = |key: &str| labels.get(key).and_then(serde_json::Value::as_str);
        let (injection, revision) = (label(INJECTION), label(REVISION));
        if let Some(value) = label(INJECT) {
            let text = format!("label {INJECT}={value} is one for pods; on a namespace nobody reads it");
            let fix = format!("kubectl label namespace {name} {INJECT}- {INJECTION}=enabled");
            findings.fixed(&fault::LABEL_IN_WRONG_PLACE, object.clone(), text, fix);
        }
        let ours = SYSTEM.contains(name) || *name == places.weir || *name == places.node;
        if ours {
            let asks = injection == Some("enabled") || (injection.is_none() && revision.is_some());
            if asks {
                let label = if injection.is_some() { INJECTION } else { REVISION };
                let fix = format!("kubectl label namespace {name} {label}-");
                findings.fixed(&fault::SYSTEM_NAMESPACE_LABELLED, object, format!("it has the label {label}"), fix);
            }
            continue;
        }
        match injection {
            Some(value) if value != "enabled" && value != "disabled" => {
                let text = format!("label {INJECTION}={value:?} means disabled");
                let fix = format!("kubectl label namespace {name} {INJECTION}=enabled --overwrite");
                findings.fixed(&fault::NAMESPACE_LABEL_UNCLEAR, object.clone(), text, fix);
            }
            Some(_) if revision.is_some() => {
                let text = format!(
                    "it has {INJECTION}={} and {REVISION}={}; the second one is not looked at",
                    injection.unwrap_or_default(),
                    revision.unwrap_or_default()
                );
                let fix = format!("kubectl label namespace {name} {INJECTION}-");
                findings.fixed(&fault::NAMESPACE_LABELS_CONFLICT, object.clone(), text, fix);
            }
            _ => {}
        }
        // Waypoints and ztunnels are of a revision, too.
        let ambient = labels.contains_key("istio.io/dataplane-mode") || labels.contains_key("istio.io/use-waypoint");
        if injection == Some("enabled") || (injection.is_none() && revision.is_some() && !ambient) {
            unserved(view, name, revision.filter(|_| injection.is_none()), findings);
        }
    }
}

/// A namespace that asks, and nobody answers.
fn unserved(view: &View<'_>, name: &str, revision: Option<&str>, findings: &mut Findings) {
    let labels = view.labels(name);
    let served = !view.sent_to(Labels { namespace: &labels, pod: &Map::new() }).is_empty();
    let asked = revision.unwrap_or("default");
    // What is wrong with an installation that is there, or with the whole of it, is said there.
    let explained = view.installation(asked).is_some() || (asked == "default" && findings.has(&fault::NOT_INSTALLED));
    let coming = view.snapshot.before.as_deref() == Some(asked);
    if served || explained || coming || view.snapshot.configurations.is_none() {
        return;
    }
    let (text, fix) = match revision {
        Some(revision) => (
            format!(
                "it asks for revision or tag '{revision}', which no injector serves: its pods start outside of the mesh"
            ),
            format!(
                "kubectl label namespace {name} {REVISION}=REVISION --overwrite, or weir tag set {revision} --revision REVISION"
            ),
        ),
        None => (
            "it asks for the default injector, and there is none: its pods start outside of the mesh".to_owned(),
            "weir tag set default --revision REVISION".to_owned(),
        ),
    };
    findings.fixed(&fault::REVISION_UNKNOWN, Object::global("Namespace", name), text, fix);
}
