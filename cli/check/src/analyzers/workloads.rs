//! Users' workloads and pods: misplaced labels, missing, double and outdated sidecars.

use weir_injector::SkipReason;
use weir_injector::decision::{Decision, INJECT_LABEL, InjectionPolicy, decide};
use weir_injector::selection::{INJECTION_LABEL, Labels, REVISION_LABEL};

use super::outdated;
use super::view::{ClusterView, InjectorWebhook, InstalledRevision};
use crate::fault;
use crate::finding::Findings;
use crate::snapshot::object::text;
use crate::snapshot::pods::MeshPod;
use crate::snapshot::workloads::Workload;

/// Sidecars of other meshes.
const FOREIGN_PROXIES: [&str; 4] = ["linkerd-proxy", "kuma-sidecar", "consul-dataplane", "osm-envoy"];
const PROXY: &str = "istio-proxy";

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    for workload in view.snapshot.workloads.iter().flatten() {
        if let Some(text) = misplaced_labels(view, workload) {
            findings.add(&fault::LABEL_IN_WRONG_PLACE, workload.object.clone(), text);
        }
    }
    let own = &view.snapshot.install_namespaces;
    for pod in view.snapshot.pods.iter().flatten() {
        if ![&own.webhook, &own.agent].contains(&&pod.namespace) {
            check_pod(view, pod, findings);
        }
    }
}

/// Returns which injection label or annotation of a workload has no effect where it is.
fn misplaced_labels(view: &ClusterView<'_>, workload: &Workload) -> Option<String> {
    let Workload { object, own, template, .. } = workload;
    let on_template = template.labels.contains_key(INJECT_LABEL) || template.inject_annotation().is_some();
    let own_key = text(&own.labels, INJECT_LABEL).map(|value| ("label", value));
    let own_key = own_key.or(own.inject_annotation().map(|value| ("annotation", value)));
    if let (Some((what, value)), false) = (own_key, on_template) {
        return Some(format!("{what} {INJECT_LABEL}={value} is on the {} and not on its pod template", object.kind));
    }
    if let Some(value) = text(&template.labels, INJECTION_LABEL) {
        return Some(format!("label {INJECTION_LABEL}={value} is on the pod template, but is for namespaces"));
    }
    let labels = view.labels(&object.namespace);
    let is_selected = !view.injectors_for(Labels { namespace: &labels, pod: &template.labels }).is_empty();
    let is_annotated = template.inject_annotation() == Some("true") && !template.labels.contains_key(INJECT_LABEL);
    (is_annotated && !is_selected).then(|| {
        format!("{INJECT_LABEL}=true is an annotation of the pod template; it requests a sidecar only as a label")
    })
}

fn check_pod(view: &ClusterView<'_>, pod: &MeshPod, findings: &mut Findings) {
    if let Some(text) = double_injection(pod) {
        findings.add_group(&fault::DOUBLE_SIDECAR, pod.object(), text, restart_command(pod), pod.similar);
        return;
    }
    if let Some(text) = &pod.pull_failure {
        let fix = fault::SIDECAR_IMAGE_NOT_PULLED.action.to_owned();
        findings.add_group(&fault::SIDECAR_IMAGE_NOT_PULLED, pod.object(), text.clone(), fix, pod.similar);
    }
    if let (Some(status), Some(full)) = (&pod.status, &pod.full) {
        let installed = view.revision(&status.revision).filter(|installed| is_fully_read(view, installed));
        let settings = installed.and_then(|installed| installed.settings.as_ref());
        let differences = settings.and_then(|settings| outdated::differences(view, &pod.namespace, full, settings));
        if let Some(text) = differences {
            findings.add_group(&fault::SIDECAR_OUTDATED, pod.object(), text, restart_command(pod), pod.similar);
        }
        return;
    }
    if pod.containers.iter().any(|name| name == PROXY) {
        return;
    }
    let labels = view.labels(&pod.namespace);
    let injectors = view.injectors_for(Labels { namespace: &labels, pod: &pod.labels });
    let Some(injector) = injectors.iter().find(|injector| injector.revision().is_some()) else { return };
    let installed = injector.revision().and_then(|revision| view.revision(revision));
    let settings = installed.and_then(|installed| installed.settings.as_ref());
    let decision =
        settings.map(|settings| decide(&pod.reduced, Some(&pod.namespace), InjectionPolicy::of(settings)).decision);
    match decision {
        // The pod opted out.
        Some(Decision::Skip(SkipReason::OptedOut)) => {}
        Some(Decision::Skip(reason)) => {
            findings.add_group(&fault::POD_LEFT_ALONE, pod.object(), reason.message(), reason.remedy(), pod.similar);
        }
        // Without settings it is not known whether they skip the pod, except for the host network.
        None if pod.host_network => {}
        Some(Decision::Inject) | None => {
            let reason = missing_sidecar_reason(view, pod, injector);
            let text = format!("has no sidecar, although {} selects it: {reason}", injector.name());
            findings.add_group(&fault::POD_WITHOUT_SIDECAR, pod.object(), text, restart_command(pod), pod.similar);
        }
    }
}

/// Returns whether everything was read that a revision's sidecars depend on.
fn is_fully_read(view: &ClusterView<'_>, installed: &InstalledRevision<'_>) -> bool {
    let snapshot = view.snapshot;
    let watches = |item: &str| installed.flags.contains("watch", item);
    (snapshot.nodes.is_some() || !watches("nodes"))
        && (snapshot.proxy_configs.is_some() || !watches("proxyconfigs"))
        && snapshot.namespaces.is_some()
}

/// Returns why a pod that would be injected today was not, as far as timestamps show it.
fn missing_sidecar_reason(view: &ClusterView<'_>, pod: &MeshPod, injector: &InjectorWebhook<'_>) -> String {
    let Some(created) = pod.created else { return "unknown reason".to_owned() };
    if injector.configuration.metadata.creation_timestamp.is_some_and(|configured| created < configured) {
        return "it is older than the webhook configuration".to_owned();
    }
    let mut namespaces = view.snapshot.namespaces.iter().flatten();
    let namespace = namespaces.find(|namespace| namespace.metadata.name == pod.namespace);
    match namespace.and_then(|namespace| namespace.labelled_at(&[INJECTION_LABEL, REVISION_LABEL])) {
        Some(at) if created < at => format!("it is older than the label of its namespace ({at})"),
        _ => "it was created while the webhook was down or deactivated, or with other labels".to_owned(),
    }
}

/// Returns why a pod has two sidecars, or is captured twice.
fn double_injection(pod: &MeshPod) -> Option<String> {
    let names = &pod.containers;
    let proxies = names.iter().filter(|name| *name == PROXY).count();
    if proxies > 1 {
        return Some("has istio-proxy both as a container and as an init container".to_owned());
    }
    if let (1, Some(other)) = (proxies, names.iter().find(|name| FOREIGN_PROXIES.contains(&name.as_str()))) {
        return Some(format!("has {PROXY} and {other}"));
    }
    (pod.is_captured && names.iter().any(|name| name == "istio-init")).then(|| {
        "its traffic is captured by the plugin (annotation weir.dev/capture) and again by istio-init".to_owned()
    })
}

/// Returns how a pod is recreated.
fn restart_command(pod: &MeshPod) -> String {
    let MeshPod { namespace, name, .. } = pod;
    let owner = pod.owner.as_ref().map(|owner| (owner.kind.as_str(), owner.name.as_str()));
    match owner {
        // The name of a ReplicaSet is that of its Deployment with a hash of the template.
        Some(("ReplicaSet", name)) => {
            let deployment = name.rsplit_once('-').map_or(name, |(deployment, _)| deployment);
            format!("kubectl -n {namespace} rollout restart deployment/{deployment}")
        }
        Some((kind @ ("StatefulSet" | "DaemonSet"), name)) => {
            format!("kubectl -n {namespace} rollout restart {}/{name}", kind.to_lowercase())
        }
        _ => format!("delete and create it again: kubectl -n {namespace} delete pod {name}"),
    }
}
