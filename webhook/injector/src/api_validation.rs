//! Finds what the API server would reject in an injected pod, and says how to fix it.
//!
//! Only rules of every supported version of Kubernetes, and only where injection is involved: the API server itself reports
//! what is wrong with the user's own containers.

use std::collections::{HashMap, HashSet};
use std::ops::Add as _;

use serde_json::Value;

use crate::annotations::StringMap;
use crate::containers::ContainerList;
use crate::name_rules::{is_dns_label, is_env_var_name, is_label_value, is_qualified_name};
use crate::quantity::Quantity;

/// Maximum size of all annotations of an object in bytes, keys included (`k8s.io/apimachinery`, `TotalAnnotationSizeLimitB`).
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Returns every rule that `injected` breaks. `original` is the pod before, `outline` names what the templates added. `kind` is
/// the workload's: the volumes of a StatefulSet's pods are not all in its manifest.
pub(crate) fn findings(injected: &Value, original: &Value, outline: &Value, kind: &str) -> Vec<String> {
    let mut findings = Vec::new();
    container_names(injected, &mut findings);
    let volumes = Some(volumes(injected, outline, &mut findings)).filter(|_| kind != "StatefulSet");
    let added = |list: &str| -> HashSet<&str> { named(&outline["spec"][list]).map(|(name, _)| name).collect() };
    for list in ContainerList::BOTH {
        let added = added(list.field());
        for (name, container) in named(&injected["spec"][list.field()]).filter(|(name, _)| added.contains(name)) {
            self::container(name, container, volumes.as_ref(), &mut findings);
        }
    }
    metadata(injected, original, &mut findings);
    pod_resources(injected, outline, &mut findings);
    findings
}

/// Iterates over the items of a list that have a name.
fn named(list: &Value) -> impl Iterator<Item = (&str, &Value)> {
    list.as_array().into_iter().flatten().filter_map(|item| Some((item["name"].as_str()?, item)))
}

/// Checks that container names are unique: both lists share one name space.
fn container_names(pod: &Value, findings: &mut Vec<String>) {
    let mut seen = HashMap::new();
    for list in ContainerList::BOTH {
        for (name, _) in named(&pod["spec"][list.field()]) {
            if let Some(first) = seen.insert(name, list) {
                let places = if first == list {
                    format!("twice in spec.{}", list.field())
                } else {
                    format!("in spec.{} and in spec.{}", first.field(), list.field())
                };
                findings.push(format!("two containers are named '{name}' ({places}); rename one of them"));
            }
        }
    }
}

/// Checks the names and sources of the volumes, and returns the names.
fn volumes<'a>(pod: &'a Value, outline: &Value, findings: &mut Vec<String>) -> HashSet<&'a str> {
    let added: HashSet<&str> = named(&outline["spec"]["volumes"]).map(|(name, _)| name).collect();
    let mut names = HashSet::new();
    for (name, volume) in named(&pod["spec"]["volumes"]) {
        if !names.insert(name) {
            findings.push(format!("two volumes are named '{name}'; rename one of them"));
        }
        if !added.contains(name) {
            continue;
        }
        if !is_dns_label(name) {
            findings.push(format!(
                "'{name}' is not a valid volume name: at most 63 lower-case letters, digits and '-', with a letter or digit at both ends"
            ));
        }
        let sources = volume.as_object().into_iter().flatten().filter(|(_, source)| source.is_object());
        let sources: Vec<&str> = sources.map(|(source, _)| source.as_str()).collect();
        if sources.len() > 1 {
            findings.push(format!(
                "volume '{name}' of the sidecar would have several sources ({}); rename the pod's own volume '{name}'",
                sources.join(", ")
            ));
        }
    }
    names
}

/// Checks a container of the templates, with the overrides of the user. `volumes` are the pod's, if all of them are known.
fn container(name: &str, container: &Value, volumes: Option<&HashSet<&str>>, findings: &mut Vec<String>) {
    let of = |list: &str| container[list].as_array().into_iter().flatten();
    for variable in of("env").filter_map(|variable| variable["name"].as_str()).filter(|name| !is_env_var_name(name)) {
        findings.push(format!(
            "container '{name}': {variable:?} is not a valid environment variable name: printable ASCII without '=', not empty"
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
            findings.push(format!("container '{name}' has two ports named '{port}'"));
        }
    }
    resources(name, &container["resources"], findings);
}

/// Checks that quantities are valid, and that no request exceeds its limit.
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
    let limits: HashMap<String, Quantity> = limits.into_iter().collect();
    for (resource, request) in &requests {
        if limits.get(resource).is_some_and(|limit| request > limit) {
            findings.push(format!(
                "container '{name}' requests more {resource} ({}) than its limit ({}); set both, with annotations \
                 sidecar.istio.io/proxyCPU, proxyCPULimit, proxyMemory, proxyMemoryLimit or in the values",
                display(&resources["requests"][resource]),
                display(&resources["limits"][resource])
            ));
        }
    }
}

fn display(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Checks the labels and annotations that injection has set, and the size of all annotations.
fn metadata(pod: &Value, original: &Value, findings: &mut Vec<String>) {
    let changed = |field: &'static str| {
        let before = StringMap::of(original, field);
        StringMap::of(pod, field).iter().filter(move |(key, value)| before.get(key) != Some(*value))
    };
    for (key, value) in changed("labels") {
        if !is_qualified_name(key) {
            findings.push(format!("'{key}' is not a valid label key"));
        }
        if !is_label_value(value) {
            findings.push(format!(
                "'{value}' is not a valid value of label '{key}': at most 63 letters, digits, '-', '_' and '.', \
                 with a letter or digit at both ends"
            ));
        }
    }
    for (key, _) in changed("annotations").filter(|(key, _)| !is_qualified_name(key)) {
        findings.push(format!("'{key}' is not a valid annotation key"));
    }
    findings.extend(annotations_too_large(pod));
}

/// Returns a finding if the annotations of a pod are too large together.
pub(crate) fn annotations_too_large(pod: &Value) -> Option<String> {
    let sizes = || StringMap::of(pod, "annotations").iter().map(|(key, value)| (key.len() + value.len(), key));
    let total: usize = sizes().map(|(size, _)| size).sum();
    if total <= ANNOTATIONS_MAX_BYTES {
        return None;
    }
    let (size, largest) = sizes().max().unwrap_or_default();
    let largest: String = largest.chars().take(100).collect();
    Some(format!(
        "the pod's annotations have {total} bytes with those of the sidecar; the limit is {ANNOTATIONS_MAX_BYTES}; \
         the largest is '{largest}' with {size}"
    ))
}

/// Checks the containers against `spec.resources` of the pod: the sum of their requests, and each of their limits.
fn pod_resources(pod: &Value, outline: &Value, findings: &mut Vec<String>) {
    let Some(of_pod) = pod["spec"]["resources"].as_object() else { return };
    let amounts_of_pod = |block: &str| -> Vec<(String, Quantity)> {
        let amounts = of_pod.get(block).and_then(Value::as_object).into_iter().flatten();
        amounts.filter_map(|(resource, value)| Some((resource.clone(), Quantity::of(value)?))).collect()
    };
    // Containers that run for as long as the pod does.
    let running = || {
        let natives = named(&pod["spec"]["initContainers"]).filter(|(_, init)| init["restartPolicy"] == "Always");
        named(&pod["spec"]["containers"]).chain(natives)
    };
    let added: HashSet<&str> = ContainerList::BOTH
        .iter()
        .flat_map(|list| named(&outline["spec"][list.field()]))
        .map(|(name, _)| name)
        .collect();
    // Sums by resource, of all containers and of those that the templates add.
    let (mut all, mut of_added) = (HashMap::<&str, Quantity>::new(), HashMap::<&str, Quantity>::new());
    for (name, container) in running() {
        for (resource, value) in container["resources"]["requests"].as_object().into_iter().flatten() {
            let Some(amount) = Quantity::of(value) else { continue };
            let sums = [Some(&mut all), added.contains(name).then_some(&mut of_added)];
            for sum in sums.into_iter().flatten().map(|sums| sums.entry(resource).or_default()) {
                *sum = sum.add(amount);
            }
        }
    }
    for (resource, requested) in amounts_of_pod("requests") {
        let sum = |sums: &HashMap<&str, Quantity>| sums.get(resource.as_str()).copied().unwrap_or_default();
        if sum(&of_added) > Quantity::default() && sum(&all) > requested {
            findings.push(format!(
                "with the sidecar, the containers request more {resource} than the pod's spec.resources.requests ({}); \
                 raise the pod's, or lower the sidecar's",
                display(&of_pod["requests"][&resource])
            ));
        }
    }
    let amount =
        |container: &Value, block: &str, resource: &str| Quantity::of(&container["resources"][block][resource]);
    for (resource, maximum) in amounts_of_pod("limits") {
        for (name, container) in running().filter(|(name, _)| added.contains(name)) {
            if amount(container, "limits", &resource).is_some_and(|limit| limit > maximum) {
                findings.push(format!(
                    "container '{name}' has a higher {resource} limit ({}) than the pod's spec.resources.limits ({})",
                    display(&container["resources"]["limits"][&resource]),
                    display(&of_pod["limits"][&resource])
                ));
            }
        }
    }
}
