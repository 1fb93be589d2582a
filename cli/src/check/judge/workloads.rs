//! Pods of the mesh, and the workloads that make them.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value};
use weir_injector::inject::SkipReason;
use weir_injector::inject::decision::{Decision, DecisionSettings, INJECT, decide};
use weir_injector::inject::finish::status::InjectionStatus;
use weir_injector::inject::selection::{INJECTION, Labels, REVISION};

use super::outdated;
use super::view::{Injector, Installed, View, containers};
use crate::check::fault;
use crate::check::finding::{Findings, Object};
use crate::check::snapshot::Pod;

/// The sidecars of other meshes.
const FOREIGN: [&str; 4] = ["linkerd-proxy", "kuma-sidecar", "consul-dataplane", "osm-envoy"];
const PROXY: &str = "istio-proxy";

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    for workload in view.snapshot.workloads.iter().flatten() {
        misplaced(view, workload, findings);
    }
    for pod in view.snapshot.pods.iter().flatten() {
        pod_of_the_mesh(view, pod, findings);
    }
}

/// Labels and annotations where nobody reads them.
fn misplaced(view: &View<'_>, workload: &Value, findings: &mut Findings) {
    let object = Object::of(workload["kind"].as_str().unwrap_or_default(), workload);
    let (own, template) = (&workload["metadata"], &workload["template"]);
    let own_word = own["labels"][INJECT].as_str().map(|value| ("label", value));
    let own_word = own_word.or(own["annotations"][INJECT].as_str().map(|value| ("annotation", value)));
    let in_template = template["labels"].get(INJECT).is_some() || template["annotations"][INJECT].is_string();
    let say = |text: String, findings: &mut Findings| {
        findings.add(&fault::LABEL_IN_WRONG_PLACE, object.clone(), text);
    };
    if let (Some((what, value)), false) = (own_word, in_template) {
        say(format!("the {what} {INJECT}={value} is on the {} and not on its pod template", object.kind), findings);
        return;
    }
    if let Some(value) = template["labels"][INJECTION].as_str() {
        say(format!("label {INJECTION}={value} of the pod template is one for namespaces"), findings);
        return;
    }
    let labels = view.labels(&object.namespace);
    let none = Map::new();
    let pod = template["labels"].as_object().unwrap_or(&none);
    let selected = !view.sent_to(Labels { namespace: &labels, pod }).is_empty();
    if template["annotations"][INJECT] == "true" && template["labels"].get(INJECT).is_none() && !selected {
        say(
            format!("{INJECT}=true is an annotation of the pod template; only as a label it asks for a sidecar"),
            findings,
        );
    }
}

fn pod_of_the_mesh(view: &View<'_>, pod: &Pod, findings: &mut Findings) {
    let slim = &pod.slim;
    let namespace = slim["metadata"]["namespace"].as_str().unwrap_or_default();
    if [&view.snapshot.places.weir, &view.snapshot.places.node].contains(&&namespace.to_owned()) {
        return;
    }
    let object = Object::of("Pod", slim);
    if let Some(why) = twice(slim) {
        findings.group(&fault::DOUBLE_SIDECAR, object, why, restart(slim), pod.alike);
        return;
    }
    let status = InjectionStatus::of_pod(slim);
    let injected = status.is_some() || containers(slim).any(|container| container["name"] == PROXY);
    if let (Some(status), Some(whole)) = (&status, &pod.whole) {
        let installed = view.installation(&status.revision);
        let settings = installed.filter(|installed| knows_all(view, installed)).and_then(|it| it.settings.as_ref());
        if let Some(why) = settings.and_then(|settings| outdated::differences(view, namespace, whole, settings)) {
            findings.group(&fault::SIDECAR_OUTDATED, object, why, restart(slim), pod.alike);
        }
        return;
    }
    if injected {
        return;
    }
    let labels = view.labels(namespace);
    let none = Map::new();
    let own = slim["metadata"]["labels"].as_object().unwrap_or(&none);
    let takers = view.sent_to(Labels { namespace: &labels, pod: own });
    let Some(taker) = takers.iter().find(|taker| taker.revision.is_some()) else { return };
    let installed = taker.revision.and_then(|revision| view.installation(revision));
    let settings = installed.and_then(|installed| installed.settings.as_ref());
    let decided = settings.map(|settings| decide(slim, Some(namespace), DecisionSettings::of(settings)).decision);
    match decided {
        // It says so itself.
        Some(Decision::Skip(SkipReason::ExplicitlyOff)) => {}
        Some(Decision::Skip(reason)) => {
            findings.group(&fault::POD_LEFT_ALONE, object, reason.explain(), reason.remedy(), pod.alike);
        }
        // Where the settings are not known it may be left alone for what they say; what it is itself is known.
        None if slim["spec"]["hostNetwork"] == true => {}
        Some(Decision::Inject) | None => {
            let why = format!(
                "it has no sidecar, though {} selects it: {}",
                taker.name(),
                why_without(view, slim, taker, namespace)
            );
            findings.group(&fault::POD_WITHOUT_SIDECAR, object, why, restart(slim), pod.alike);
        }
    }
}

/// Whether all was read that a sidecar of an installation depends on.
fn knows_all(view: &View<'_>, installed: &Installed<'_>) -> bool {
    let snapshot = view.snapshot;
    let watches = |word: &str| installed.flags.lists("watch", word);
    (snapshot.nodes.is_some() || !watches("nodes"))
        && (snapshot.proxy_configs.is_some() || !watches("proxyconfigs"))
        && snapshot.namespaces.is_some()
}

/// Why a pod that would be injected today was not, as far as times tell.
fn why_without(view: &View<'_>, pod: &Value, taker: &Injector<'_>, namespace: &str) -> String {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let Some(created) = time(&pod["metadata"]["creationTimestamp"]) else { return "why is not known".to_owned() };
    if time(&taker.object["metadata"]["creationTimestamp"]).is_some_and(|made| created < made) {
        return "it is older than the webhook configuration".to_owned();
    }
    let found = view.snapshot.namespaces.iter().flatten().find(|object| object["metadata"]["name"] == namespace);
    let managers = found.and_then(|object| object["metadata"]["managedFields"].as_array()).into_iter().flatten();
    let labelled = managers.filter_map(|manager| {
        let labels = &manager["fieldsV1"]["f:metadata"]["f:labels"];
        let sets = [INJECTION, REVISION].iter().any(|label| labels.get(format!("f:{label}")).is_some());
        time(&manager["time"]).filter(|_| sets)
    });
    match labelled.max() {
        Some(at) if created < at => format!("it is older than the label of its namespace ({at})"),
        _ => "it was made while the webhook was away or off, or had other labels".to_owned(),
    }
}

/// Two sidecars, or two captures.
fn twice(pod: &Value) -> Option<String> {
    let names: Vec<&str> = containers(pod).filter_map(|container| container["name"].as_str()).collect();
    let proxies = names.iter().filter(|name| **name == PROXY).count();
    if proxies > 1 {
        return Some("it has istio-proxy both as a container and as an init container".to_owned());
    }
    if let (1, Some(other)) = (proxies, names.iter().find(|name| FOREIGN.contains(name))) {
        return Some(format!("it has {PROXY} and {other}"));
    }
    let captured = pod["metadata"]["annotations"].get("weir.dev/capture").is_some();
    (captured && names.contains(&"istio-init")).then(|| {
        "the plugin captures its traffic (annotation weir.dev/capture), and istio-init does so again".to_owned()
    })
}

/// How a pod is made anew.
fn restart(pod: &Value) -> String {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let owner = &pod["metadata"]["ownerReferences"][0];
    let name = owner["name"].as_str().unwrap_or_default();
    match owner["kind"].as_str() {
        // The name of a ReplicaSet is that of its Deployment and a hash of the template.
        Some("ReplicaSet") => {
            let deployment = name.rsplit_once('-').map_or(name, |(deployment, _)| deployment);
            format!("kubectl -n {namespace} rollout restart deployment/{deployment}")
        }
        Some(kind @ ("StatefulSet" | "DaemonSet")) => {
            format!("kubectl -n {namespace} rollout restart {}/{name}", kind.to_lowercase())
        }
        _ => format!(
            "delete and create it again: kubectl -n {namespace} delete pod {}",
            pod["metadata"]["name"].as_str().unwrap_or_default()
        ),
    }
}

/// The first few of many.
pub(super) fn some(names: &[&str]) -> String {
    const TOLD: usize = 5;
    let told = names.iter().take(TOLD).copied().collect::<Vec<_>>().join(", ");
    if names.len() > TOLD { format!("{told} and {} more", names.len() - TOLD) } else { told }
}
