//! What of an injected pod the API server would refuse, said with the way out before the API server says it with less.
//!
//! Only rules that every supported version of Kubernetes has, and only where injection has a part in it: what is wrong with
//! the user's own containers is between him and the API server.

use std::collections::{HashMap, HashSet};
use std::ops::Add as _;

use serde_json::{Map, Value};

use super::annotations::Texts;
use super::containers::List;
use super::names::{is_dns_label, is_key, is_label_value, is_variable};
use super::quantity::Quantity;

/// Most bytes of all annotations of an object, keys included (`k8s.io/apimachinery`, `TotalAnnotationSizeLimitB`).
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Every rule that `injected` breaks; `original` is the pod before, `outline` names what the templates added. `kind` is that of
/// the workload: the volumes of a StatefulSet's pods are not all in its manifest.
pub(super) fn findings(injected: &Value, original: &Value, outline: &Value, kind: &str) -> Vec<String> {
    let mut findings = Vec::new();
    names(injected, &mut findings);
    let volumes = Some(volumes(injected, outline, &mut findings)).filter(|_| kind != "StatefulSet");
    let added = |list: &str| -> HashSet<&str> { named(&outline["spec"][list]).map(|(name, _)| name).collect() };
    for list in List::BOTH {
        let added = added(list.field());
        for (name, container) in named(&injected["spec"][list.field()]).filter(|(name, _)| added.contains(name)) {
            self::container(name, container, volumes.as_ref(), &mut findings);
        }
    }
    metadata(injected, original, &mut findings);
    budget(injected, outline, &mut findings);
    findings
}

/// The items of a list with their names.
fn named(list: &Value) -> impl Iterator<Item = (&str, &Value)> {
    list.as_array().into_iter().flatten().filter_map(|item| Some((item["name"].as_str()?, item)))
}

/// Containers of both lists share one space of names.
fn names(pod: &Value, findings: &mut Vec<String>) {
    let mut seen = HashMap::new();
    for list in List::BOTH {
        for (name, _) in named(&pod["spec"][list.field()]) {
            if let Some(first) = seen.insert(name, list) {
                let places = if first == list {
                    format!("twice in spec.{}", list.field())
                } else {
                    format!("in spec.{} and in spec.{}", first.field(), list.field())
                };
                findings.push(format!("two containers are called '{name}' ({places}); give one of them another name"));
            }
        }
    }
}

/// Names and sources of volumes; gives back the names.
fn volumes<'a>(pod: &'a Value, outline: &Value, findings: &mut Vec<String>) -> HashSet<&'a str> {
    let added: HashSet<&str> = named(&outline["spec"]["volumes"]).map(|(name, _)| name).collect();
    let mut names = HashSet::new();
    for (name, volume) in named(&pod["spec"]["volumes"]) {
        if !names.insert(name) {
            findings.push(format!("two volumes are called '{name}'; give one of them another name"));
        }
        if !added.contains(name) {
            continue;
        }
        if !is_dns_label(name) {
            findings.push(format!("'{name}' is no name for a volume: lower-case letters, digits and '-', at most 63"));
        }
        let sources = volume.as_object().into_iter().flatten().filter(|(_, source)| source.is_object());
        let sources: Vec<&str> = sources.map(|(source, _)| source.as_str()).collect();
        if sources.len() > 1 {
            findings.push(format!(
                "volume '{name}' of the sidecar would have several sources ({}); rename the pod's own volume of that name",
                sources.join(", ")
            ));
        }
    }
    names
}

/// What a template and the user made of one container together. `volumes` are those of the pod, where all of them are known.
fn container(name: &str, container: &Value, volumes: Option<&HashSet<&str>>, findings: &mut Vec<String>) {
    let of = |list: &str| container[list].as_array().into_iter().flatten();
    for variable in of("env").filter_map(|variable| variable["name"].as_str()).filter(|name| !is_variable(name)) {
        findings.push(format!(
            "container '{name}': {variable:?} is no name for a variable: printable ASCII without '=', not empty"
        ));
    }
    let mut paths = HashSet::new();
    for mount in of("volumeMounts") {
        let (volume, path) =
            (mount["name"].as_str().unwrap_or_default(), mount["mountPath"].as_str().unwrap_or_default());
        if volumes.is_some_and(|volumes| !volumes.contains(volume)) {
            findings.push(format!(
                "container '{name}' mounts volume '{volume}' at '{path}', but the pod has no such volume"
            ));
        }
        if !paths.insert(path) {
            findings.push(format!("container '{name}' has two mounts at '{path}'"));
        }
    }
    let mut ports = HashSet::new();
    for port in of("ports").filter_map(|port| port["name"].as_str()).filter(|port| !port.is_empty()) {
        if !ports.insert(port) {
            findings.push(format!("container '{name}' has two ports called '{port}'"));
        }
    }
    resources(name, &container["resources"], findings);
}

/// Quantities that are none, and requests beyond their limits.
fn resources(name: &str, resources: &Value, findings: &mut Vec<String>) {
    let mut read = |block: &str| -> Vec<(String, Quantity)> {
        let mut amounts = Vec::new();
        for (resource, value) in resources[block].as_object().into_iter().flatten() {
            match Quantity::of(value) {
                Some(amount) if !amount.is_negative() => amounts.push((resource.clone(), amount)),
                _ => findings.push(format!(
                    "container '{name}': resources.{block}.{resource} is {value}, not a quantity such as 100m or 128Mi"
                )),
            }
        }
        amounts
    };
    let (requests, limits) = (read("requests"), read("limits"));
    for (resource, request) in &requests {
        if limits.iter().any(|(limited, limit)| limited == resource && request > limit) {
            findings.push(format!(
                "container '{name}' requests more {resource} ({}) than its limit ({}); set both, with annotations \
                 sidecar.istio.io/proxyCPU, proxyCPULimit, proxyMemory, proxyMemoryLimit or in the values",
                shown(&resources["requests"][resource]),
                shown(&resources["limits"][resource])
            ));
        }
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Labels and annotations that injection set, and the size of all annotations together.
fn metadata(pod: &Value, original: &Value, findings: &mut Vec<String>) {
    let changed = |field: &'static str| {
        let before = Texts::of(original, field);
        Texts::of(pod, field).iter().filter(move |(key, value)| before.get(key) != Some(*value))
    };
    for (key, value) in changed("labels") {
        if !is_key(key) {
            findings.push(format!("'{key}' is no key of a label"));
        }
        if !is_label_value(value) {
            findings.push(format!(
                "'{value}' cannot be the value of label '{key}': at most 63 letters, digits, '-', '_' and '.', \
                 with a letter or digit at both ends"
            ));
        }
    }
    for (key, _) in changed("annotations").filter(|(key, _)| !is_key(key)) {
        findings.push(format!("'{key}' is no key of an annotation"));
    }
    findings.extend(annotations_too_large(pod));
}

/// What is wrong with the size of all annotations of a pod together.
pub(super) fn annotations_too_large(pod: &Value) -> Option<String> {
    let sizes = || Texts::of(pod, "annotations").iter().map(|(key, value)| (key.len() + value.len(), key));
    let total: usize = sizes().map(|(size, _)| size).sum();
    if total <= ANNOTATIONS_MAX_BYTES {
        return None;
    }
    let (size, largest) = sizes().max().unwrap_or_default();
    let largest: String = largest.chars().take(100).collect();
    Some(format!(
        "the pod's annotations have {total} bytes with those of the sidecar, at most {ANNOTATIONS_MAX_BYTES} are allowed; \
         the largest is '{largest}' with {size}"
    ))
}

/// The pod's own budget (`spec.resources`): the containers' requests must fit into it all together, their limits one by one.
fn budget(pod: &Value, outline: &Value, findings: &mut Vec<String>) {
    let Some(budget) = pod["spec"]["resources"].as_object() else { return };
    let block = |budget: &Map<String, Value>, name: &str| -> Vec<(String, Quantity)> {
        let amounts = budget.get(name).and_then(Value::as_object).into_iter().flatten();
        amounts.filter_map(|(resource, value)| Some((resource.clone(), Quantity::of(value)?))).collect()
    };
    // Containers that run for as long as the pod does.
    let running = || {
        let natives = named(&pod["spec"]["initContainers"]).filter(|(_, init)| init["restartPolicy"] == "Always");
        named(&pod["spec"]["containers"]).chain(natives)
    };
    let added: HashSet<&str> =
        List::BOTH.iter().flat_map(|list| named(&outline["spec"][list.field()])).map(|(name, _)| name).collect();
    let amount =
        |container: &Value, block: &str, resource: &str| Quantity::of(&container["resources"][block][resource]);
    for (resource, most) in block(budget, "requests") {
        let sum = |filter: &dyn Fn(&str) -> bool| {
            let requests = running().filter(|(name, _)| filter(name));
            requests
                .filter_map(|(_, container)| amount(container, "requests", &resource))
                .fold(Quantity::default(), Quantity::add)
        };
        if sum(&|name| added.contains(name)) > Quantity::default() && sum(&|_| true) > most {
            findings.push(format!(
                "the containers request more {resource} with the sidecar than the pod's spec.resources.requests ({}); \
                 raise that, or let the sidecar request less",
                shown(&budget["requests"][&resource])
            ));
        }
    }
    for (resource, most) in block(budget, "limits") {
        for (name, container) in running().filter(|(name, _)| added.contains(name)) {
            if amount(container, "limits", &resource).is_some_and(|limit| limit > most) {
                findings.push(format!(
                    "container '{name}' has a higher limit of {resource} ({}) than the pod's spec.resources.limits ({})",
                    shown(&container["resources"]["limits"][&resource]),
                    shown(&budget["limits"][&resource])
                ));
            }
        }
    }
}
