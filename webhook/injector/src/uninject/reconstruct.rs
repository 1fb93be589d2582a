//! Reconstructs the original of an injected pod from the pod alone.
//!
//! For pods of Istio's own injector there is nothing else. For Weir's it is the base of the annotation `weir.dev/original`, which
//! holds what cannot be reconstructed. **A record is valid only for the reconstruction that it was made for**: a change here
//! requires a new version of the record, and this reconstruction must be kept for existing records.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::InjectionRecord;
use crate::annotations::{self as name, StringMap};
use crate::compact;
use crate::containers::{ContainerList, PROXY_CONTAINER};
use crate::finish::probes::restore_probes;
use crate::finish::prometheus::restore_metrics;
use crate::finish::{proxy, variable};
use crate::overlay::label_value;
use crate::overrides::StoredOverrides;

/// Containers that an injection adds; the user's declarations of them are in `proxy.istio.io/overrides`.
pub(super) const MESH_CONTAINERS: [&str; 5] =
    [PROXY_CONTAINER, "istio-init", "istio-validation", "enable-core-dump", "grpc-bootstrap-init"];

/// Variables that the gRPC templates add to every container.
pub(super) const GRPC_VARIABLES: [&str; 4] = [
    "GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT",
    "GRPC_XDS_BOOTSTRAP",
    "GRPC_GO_LOG_VERBOSITY_LEVEL",
    "GRPC_GO_LOG_SEVERITY_LEVEL",
];

/// Multus network of Istio's plugin.
const MULTUS_NETWORK: &str = "default/istio-cni";

/// Returns whether a container of a template is not one of the application: one of the mesh, or one that a custom template adds.
pub(super) fn is_injected(container: &str, stored: &StoredOverrides) -> bool {
    MESH_CONTAINERS.contains(&container) || stored.find(container).is_none()
}

/// Returns the reconstructed pod, and what cannot be reconstructed.
pub(super) fn reconstruct(injected: &Value, injection: &InjectionRecord) -> (Value, Vec<String>) {
    let mut pod = without_additions(injected, injection);
    let mut unrecoverable = Vec::new();
    let proxy = proxy(injected);
    if let Some(proxy) = proxy {
        restore_probes(&mut pod, proxy);
    }
    unrecoverable.append(&mut restore_metrics(&mut pod, proxy));
    for list in ContainerList::BOTH {
        restore_containers(&mut pod, list, injection, &mut unrecoverable);
    }
    if injection.status.image_pull_secrets.is_some() {
        unrecoverable.push("which imagePullSecrets the pod had (those of the injector removed)".to_owned());
    }
    restore_annotations(&mut pod, injection, &mut unrecoverable);
    restore_labels(&mut pod, proxy.and_then(|proxy| variable(proxy, "ISTIO_META_NETWORK")), &mut unrecoverable);
    restore_security(&mut pod);
    drop_empty(&mut pod);
    (pod, unrecoverable)
}

/// Copies the pod without the items that were added as a whole, which are most of a typical pod.
fn without_additions(injected: &Value, injection: &InjectionRecord) -> Value {
    let with_spec = |(name, value): (&String, &Value)| match value {
        Value::Object(spec) if name == "spec" => {
            let fields = spec.iter().map(|(name, value)| (name.clone(), own_items(name, value, injection)));
            (name.clone(), Value::Object(fields.collect()))
        }
        other => (name.clone(), compact::copy(other)),
    };
    match injected {
        Value::Object(fields) => Value::Object(fields.iter().map(with_spec).collect()),
        other => compact::copy(other),
    }
}

/// Copies a field of the spec without the items that the injection added.
fn own_items(field: &str, value: &Value, InjectionRecord { status, stored }: &InjectionRecord) -> Value {
    let names = match field {
        "containers" => &status.containers,
        "initContainers" => &status.init_containers,
        "volumes" => &status.volumes,
        "imagePullSecrets" => &status.image_pull_secrets,
        _ => return compact::copy(value),
    };
    let (Some(items), Some(names)) = (value.as_array(), names) else { return compact::copy(value) };
    let containers = matches!(field, "containers" | "initContainers");
    let mut listed: HashSet<&str> = names.iter().map(String::as_str).collect();
    let is_own = |item: &&Value| {
        let name = item["name"].as_str();
        if containers {
            // A template is merged into the first container of a name.
            let name = name.unwrap_or_default();
            !listed.remove(name) || stored.find(name).is_some()
        } else {
            name.is_none_or(|name| !listed.contains(name))
        }
    };
    items.iter().filter(is_own).map(compact::copy).collect()
}

/// Returns the names of the containers that the templates added to a list, or changed there.
pub(super) fn listed_names(injection: &InjectionRecord, list: ContainerList) -> impl Iterator<Item = &str> {
    let listed = match list {
        ContainerList::Containers => &injection.status.containers,
        ContainerList::InitContainers => &injection.status.init_containers,
    };
    listed.iter().flatten().map(String::as_str)
}

fn restore_containers(
    pod: &mut Value,
    list: ContainerList,
    injection: &InjectionRecord,
    unrecoverable: &mut Vec<String>,
) {
    let mut listed: HashSet<&str> = listed_names(injection, list).collect();
    let mut moved = Vec::new();
    let Some(containers) = list.of_mut(pod) else { return };
    containers.retain_mut(|container| {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        let Some(stored) = injection.stored.find(&name).filter(|_| listed.remove(name.as_str())) else { return true };
        if !MESH_CONTAINERS.contains(&name.as_str()) {
            remove_grpc_additions(container, stored, injection);
            unrecoverable.push(format!(
                "what a template changed in container '{name}' besides variables and mounts of gRPC (kept)"
            ));
            return true;
        }
        *container = user_version(&name, stored, unrecoverable);
        // The user declares a native proxy as a container, unless the declaration has a `restartPolicy`.
        let stays =
            list == ContainerList::Containers || name != PROXY_CONTAINER || container.get("restartPolicy").is_some();
        if !stays {
            moved.push(container.take());
        }
        stays
    });
    for container in moved {
        unrecoverable.push(format!("in which list container '{PROXY_CONTAINER}' was (moved to containers)"));
        ContainerList::Containers.push(pod, container);
    }
}

/// Returns an injected container as the user declared it.
fn user_version(name: &str, stored: &Value, unrecoverable: &mut Vec<String>) -> Value {
    let mut own = stored.clone();
    if let Some(fields) = own.as_object_mut() {
        // Istio stores the field even if it is empty.
        if fields.get("resources").is_some_and(|resources| *resources == json!({})) {
            fields.shift_remove("resources");
        }
        if !fields.contains_key("image") {
            fields.insert("image".to_owned(), "auto".into());
            unrecoverable.push(format!("whether container '{name}' had no image or 'auto' (set to 'auto')"));
        }
    }
    own
}

/// Removes what the gRPC templates add to a container of the application.
fn remove_grpc_additions(container: &mut Value, stored: &Value, injection: &InjectionRecord) {
    let volumes: HashSet<&str> = injection.status.volumes.iter().flatten().map(String::as_str).collect();
    let is_named = |item: &Value, is_added: &dyn Fn(&str) -> bool| item["name"].as_str().is_some_and(is_added);
    let Some(fields) = container.as_object_mut() else { return };
    let mut remove_from = |list: &str, key: &str, is_added: &dyn Fn(&str) -> bool| {
        let Some(items) = fields.get_mut(list).and_then(Value::as_array_mut) else { return };
        let own: HashSet<&str> =
            stored[list].as_array().into_iter().flatten().filter_map(|own| own[key].as_str()).collect();
        items.retain(|item| !is_named(item, is_added) || item[key].as_str().is_some_and(|key| own.contains(key)));
        if items.is_empty() {
            fields.shift_remove(list);
        }
    };
    remove_from("env", "name", &|variable| GRPC_VARIABLES.contains(&variable));
    remove_from("volumeMounts", "mountPath", &|volume| volumes.contains(volume));
}

fn restore_annotations(pod: &mut Value, injection: &InjectionRecord, unrecoverable: &mut Vec<String>) {
    let first = ContainerList::Containers.of(pod).iter().find(|container| container["name"] != PROXY_CONTAINER);
    let first = first.and_then(|container| container["name"].as_str()).map(str::to_owned);
    let Some(annotations) =
        pod.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations")?.as_object_mut())
    else {
        return;
    };
    for ours in [name::STATUS, name::OVERRIDES, name::CAPTURE, name::ORIGINAL, name::REVISION] {
        annotations.shift_remove(ours);
    }
    let mut removed = Vec::new();
    let mut kept = Vec::new();
    for key in [name::DEFAULT_LOGS_CONTAINER, name::DEFAULT_CONTAINER] {
        remove_if(annotations, key, first.as_deref(), &mut removed);
    }
    let templates = annotations.get(name::TEMPLATES).and_then(Value::as_str).unwrap_or_default();
    if templates.split(',').any(|template| template.trim().starts_with("grpc-")) {
        remove_if(annotations, name::REWRITE_PROBES, Some("false"), &mut removed);
    }
    let inits = injection.status.init_containers.as_deref().unwrap_or_default();
    // In CNI mode an injection always writes both.
    let captured = [name::INCLUDE_INBOUND_PORTS, name::EXCLUDE_INBOUND_PORTS];
    if captured.iter().all(|key| annotations.contains_key(*key)) && !inits.iter().any(|init| init == "istio-init") {
        restore_exclusions(annotations);
        for (key, default) in [
            (name::INTERCEPTION_MODE, Some("REDIRECT")),
            (name::INCLUDE_OUTBOUND_RANGES, Some("*")),
            (name::INCLUDE_INBOUND_PORTS, Some("*")),
            (name::EXCLUDE_INBOUND_PORTS, Some("")),
            (name::EXCLUDE_OUTBOUND_RANGES, None),
            (name::INCLUDE_OUTBOUND_PORTS, None),
            (name::EXCLUDE_OUTBOUND_PORTS, None),
        ] {
            if !remove_if(annotations, key, default, &mut removed) && annotations.contains_key(key) {
                kept.push(key);
            }
        }
        restore_networks(annotations);
    }
    if !removed.is_empty() {
        unrecoverable.push(format!("whether the pod had annotations {} (removed)", removed.join(", ")));
    }
    if !kept.is_empty() {
        let kept = kept.join(", ");
        unrecoverable
            .push(format!("whether annotations {kept} are from the pod or from the injector's settings (kept)"));
    }
}

/// Removes the agent's status port from the excluded inbound ports.
fn restore_exclusions(annotations: &mut Map<String, Value>) {
    let port = annotations.get(name::STATUS_PORT).and_then(Value::as_str).unwrap_or("15020").trim().to_owned();
    let ports = annotations.get(name::EXCLUDE_INBOUND_PORTS).and_then(Value::as_str).unwrap_or_default();
    let rest = match ports.rsplit_once(',') {
        Some((rest, last)) if last == port => rest.to_owned(),
        None if ports == port => String::new(),
        _ => return,
    };
    annotations.insert(name::EXCLUDE_INBOUND_PORTS.to_owned(), rest.into());
}

/// Removes the plugin's network from the annotation of Multus.
fn restore_networks(annotations: &mut Map<String, Value>) {
    let Some(networks) = annotations.get(name::MULTUS_NETWORKS).and_then(Value::as_str) else { return };
    if networks == MULTUS_NETWORK {
        annotations.shift_remove(name::MULTUS_NETWORKS);
        return;
    }
    let as_object = format!(", {}", r#"{"name": "istio-cni", "namespace": "default"}"#);
    let as_text = format!(", {MULTUS_NETWORK}");
    let rest = networks.strip_suffix(&as_text).map(str::to_owned).or_else(|| {
        let (before, after) = networks.rsplit_once(&as_object)?;
        Some(format!("{before}{after}"))
    });
    if let Some(rest) = rest {
        annotations.insert(name::MULTUS_NETWORKS.to_owned(), rest.into());
    }
}

fn restore_labels(pod: &mut Value, network: Option<&str>, unrecoverable: &mut Vec<String>) {
    let Some(labels) = pod.get_mut("metadata").and_then(|metadata| metadata.get_mut("labels")?.as_object_mut()) else {
        return;
    };
    let first = |keys: &[&str]| {
        let texts = keys.iter().filter_map(|key| labels.get(*key)?.as_str());
        texts.map(str::to_owned).find(|text| !text.is_empty())
    };
    let named = first(&["app.kubernetes.io/name", "app"]).map(|text| label_value(&text).to_owned());
    let revision = first(&["app.kubernetes.io/version", "version"]).unwrap_or_else(|| "latest".to_owned());
    // Otherwise it is the name of the workload, which the pod does not have, so any value counts as injected.
    let named = named.or_else(|| first(&["service.istio.io/canonical-name"]));
    let mut removed = Vec::new();
    for (key, value) in [
        ("security.istio.io/tlsMode", Some("istio")),
        ("networking.istio.io/tunnel", Some("http")),
        ("service.istio.io/canonical-name", named.as_deref()),
        ("service.istio.io/canonical-revision", Some(revision.as_str())),
        (name::NETWORK, network),
    ] {
        remove_if(labels, key, value, &mut removed);
    }
    if !removed.is_empty() {
        unrecoverable.push(format!("whether the pod had labels {} (removed)", removed.join(", ")));
    }
}

/// Removes an entry if it has the value that an injection writes; returns whether it did.
fn remove_if(
    map: &mut Map<String, Value>,
    key: &'static str,
    value: Option<&str>,
    removed: &mut Vec<&'static str>,
) -> bool {
    let same = value.is_some() && map.get(key).and_then(Value::as_str) == value;
    if same {
        map.shift_remove(key);
        removed.push(key);
    }
    same
}

/// Removes the security context of the gateway template, which allows it to bind low ports.
fn restore_security(pod: &mut Value) {
    let gateway =
        StringMap::of(pod, "annotations").get(name::TEMPLATES).is_some_and(|templates| templates.contains("gateway"));
    let security = json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]});
    if gateway
        && let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut)
        && spec.get("securityContext") == Some(&security)
    {
        spec.shift_remove("securityContext");
    }
}

/// Removes empty lists and maps that an injection creates.
fn drop_empty(pod: &mut Value) {
    let drop_from = |map: Option<&mut Value>, fields: &[&str]| {
        if let Some(map) = map.and_then(Value::as_object_mut) {
            map.retain(|field, value| {
                let empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
                !(empty && fields.contains(&field.as_str()))
            });
        }
    };
    drop_from(pod.get_mut("spec"), &["initContainers", "volumes", "imagePullSecrets"]);
    drop_from(pod.get_mut("metadata"), &["labels", "annotations"]);
    drop_from(Some(pod), &["metadata"]);
}
