//! What a pod was before its injection, told from the pod alone.
//!
//! This is all there is for pods of Istio's own injector. For ours it is the base of the record: what this module finds out by
//! itself need not be written down. **A record means what it says only on top of the same guess**: whoever changes what is
//! guessed gives the record a new version, and keeps this one for the records that exist.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::Injection;
use crate::inject::annotations::{self as name, Texts};
use crate::inject::containers::List;
use crate::inject::context::PROXY;
use crate::inject::finish::probes::restore_probes;
use crate::inject::finish::prometheus::restore_metrics;
use crate::inject::finish::{proxy, variable};
use crate::inject::overlay::label_value;
use crate::inject::overrides::Stored;

/// Init containers that only an injection adds; of these and the proxy, the user's own version is what was stored.
const MESH_CONTAINERS: [&str; 5] = [PROXY, "istio-init", "istio-validation", "enable-core-dump", "grpc-bootstrap-init"];

/// Variables that the templates for gRPC give to every container.
const GRPC_VARIABLES: [&str; 4] = [
    "GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT",
    "GRPC_XDS_BOOTSTRAP",
    "GRPC_GO_LOG_VERBOSITY_LEVEL",
    "GRPC_GO_LOG_SEVERITY_LEVEL",
];

/// What Multus is told to attach for Istio's plugin.
const MULTUS_NETWORK: &str = "default/istio-cni";

/// A container of a template that the application knows nothing of: those of the mesh, and whatever a user's template adds.
pub(super) fn is_of_mesh(container: &str, stored: &Stored) -> bool {
    MESH_CONTAINERS.contains(&container) || stored.find(container).is_none()
}

/// Takes an injection back as far as the pod tells; gives back the pod, and what it does not tell.
pub(super) fn guess(injected: &Value, injection: &Injection) -> (Value, Vec<String>) {
    let mut pod = without_additions(injected, injection);
    let mut unknown = Vec::new();
    let proxy = proxy(injected);
    if let Some(proxy) = proxy {
        restore_probes(&mut pod, proxy);
    }
    unknown.append(&mut restore_metrics(&mut pod, proxy));
    for list in List::BOTH {
        restore_containers(&mut pod, list, injection, &mut unknown);
    }
    if injection.status.image_pull_secrets.is_some() {
        unknown.push("which of imagePullSecrets were there: those of the injector are taken away".to_owned());
    }
    restore_annotations(&mut pod, injection, &mut unknown);
    restore_labels(&mut pod, proxy.and_then(|proxy| variable(proxy, "ISTIO_META_NETWORK")), &mut unknown);
    restore_security(&mut pod);
    drop_empty(&mut pod);
    (pod, unknown)
}

/// A copy of the pod without what was added as a whole: the greater part of a typical one is not even copied.
fn without_additions(injected: &Value, injection: &Injection) -> Value {
    let with_spec = |(name, value): (&String, &Value)| match value {
        Value::Object(spec) if name == "spec" => {
            let fields = spec.iter().map(|(name, value)| (name.clone(), own_items(name, value, injection)));
            (name.clone(), Value::Object(fields.collect()))
        }
        other => (name.clone(), other.clone()),
    };
    match injected {
        Value::Object(fields) => Value::Object(fields.iter().map(with_spec).collect()),
        other => other.clone(),
    }
}

/// A field of the spec without the items that only the injection knows.
fn own_items(field: &str, value: &Value, Injection { status, stored }: &Injection) -> Value {
    let names = match field {
        "containers" => &status.containers,
        "initContainers" => &status.init_containers,
        "volumes" => &status.volumes,
        "imagePullSecrets" => &status.image_pull_secrets,
        _ => return value.clone(),
    };
    let (Some(items), Some(names)) = (value.as_array(), names) else { return value.clone() };
    let containers = matches!(field, "containers" | "initContainers");
    let mut listed: HashSet<&str> = names.iter().map(String::as_str).collect();
    let is_own = |item: &&Value| {
        let name = item["name"].as_str();
        if containers {
            // Of two of one name, the first is the one that a template has met.
            let name = name.unwrap_or_default();
            !listed.remove(name) || stored.find(name).is_some()
        } else {
            name.is_none_or(|name| !listed.contains(name))
        }
    };
    items.iter().filter(is_own).cloned().collect()
}

fn restore_containers(pod: &mut Value, list: List, injection: &Injection, unknown: &mut Vec<String>) {
    let listed = match list {
        List::Containers => &injection.status.containers,
        List::InitContainers => &injection.status.init_containers,
    };
    let mut listed: HashSet<&str> = listed.iter().flatten().map(String::as_str).collect();
    let mut movers = Vec::new();
    let Some(containers) = list.of_mut(pod) else { return };
    containers.retain_mut(|container| {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        let Some(stored) = injection.stored.find(&name).filter(|_| listed.remove(name.as_str())) else { return true };
        if !MESH_CONTAINERS.contains(&name.as_str()) {
            take_back_additions(container, stored, injection);
            unknown.push(format!(
                "what a template changed in container '{name}' beyond variables and mounts of gRPC: it stays"
            ));
            return true;
        }
        *container = own_version(&name, stored, unknown);
        // A native proxy is written among the containers, unless the user says that it keeps running.
        let stays = list == List::Containers || name != PROXY || container.get("restartPolicy").is_some();
        if !stays {
            movers.push(container.take());
        }
        stays
    });
    for container in movers {
        unknown.push(format!("in which list container '{PROXY}' stood: it goes to the containers"));
        List::Containers.push(pod, container);
    }
}

/// A container of the mesh as the user wrote it.
fn own_version(name: &str, stored: &Value, unknown: &mut Vec<String>) -> Value {
    let mut own = stored.clone();
    if let Some(fields) = own.as_object_mut() {
        // Istio writes it always.
        if fields.get("resources").is_some_and(|resources| *resources == json!({})) {
            fields.shift_remove("resources");
        }
        if !fields.contains_key("image") {
            fields.insert("image".to_owned(), "auto".into());
            unknown.push(format!("the image of container '{name}': it was not given, or 'auto'"));
        }
    }
    own
}

/// Takes away what the templates for gRPC add to a container of the application.
fn take_back_additions(container: &mut Value, stored: &Value, injection: &Injection) {
    let volumes: HashSet<&str> = injection.status.volumes.iter().flatten().map(String::as_str).collect();
    let is_named = |item: &Value, is_added: &dyn Fn(&str) -> bool| item["name"].as_str().is_some_and(is_added);
    let Some(fields) = container.as_object_mut() else { return };
    let mut take_back = |list: &str, key: &str, is_added: &dyn Fn(&str) -> bool| {
        let Some(items) = fields.get_mut(list).and_then(Value::as_array_mut) else { return };
        let own = stored[list].as_array().map_or(&[][..], Vec::as_slice);
        items.retain(|item| !is_named(item, is_added) || own.iter().any(|own| own[key] == item[key]));
        if items.is_empty() {
            fields.shift_remove(list);
        }
    };
    take_back("env", "name", &|variable| GRPC_VARIABLES.contains(&variable));
    take_back("volumeMounts", "mountPath", &|volume| volumes.contains(volume));
}

fn restore_annotations(pod: &mut Value, injection: &Injection, unknown: &mut Vec<String>) {
    let first = List::Containers.of(pod).iter().find(|container| container["name"] != PROXY);
    let first = first.and_then(|container| container["name"].as_str()).map(str::to_owned);
    let Some(annotations) =
        pod.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations")?.as_object_mut())
    else {
        return;
    };
    for ours in [name::STATUS, name::OVERRIDES, name::CAPTURE, name::ORIGINAL, name::REVISION] {
        annotations.shift_remove(ours);
    }
    let mut gone = Vec::new();
    let mut kept = Vec::new();
    for key in [name::DEFAULT_LOGS_CONTAINER, name::DEFAULT_CONTAINER] {
        remove_if(annotations, key, first.as_deref(), &mut gone);
    }
    let templates = annotations.get(name::TEMPLATES).and_then(Value::as_str).unwrap_or_default();
    if templates.split(',').any(|template| template.trim().starts_with("grpc-")) {
        remove_if(annotations, name::REWRITE_PROBES, Some("false"), &mut gone);
    }
    let inits = injection.status.init_containers.as_deref().unwrap_or_default();
    // In CNI mode both are always written.
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
            if !remove_if(annotations, key, default, &mut gone) && annotations.contains_key(key) {
                kept.push(key);
            }
        }
        restore_networks(annotations);
    }
    if !gone.is_empty() {
        unknown.push(format!(
            "whether these annotations were there with the same value: {}; they are taken away",
            gone.join(", ")
        ));
    }
    if !kept.is_empty() {
        unknown.push(format!(
            "whether these annotations come from the pod or from the injector's settings: {}; they stay",
            kept.join(", ")
        ));
    }
}

/// Takes the port of the agent out of the ports that are not captured.
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

/// Takes the plugin's network out of those that Multus attaches.
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

fn restore_labels(pod: &mut Value, network: Option<&str>, unknown: &mut Vec<String>) {
    let Some(labels) = pod.get_mut("metadata").and_then(|metadata| metadata.get_mut("labels")?.as_object_mut()) else {
        return;
    };
    let first = |keys: &[&str]| {
        let texts = keys.iter().filter_map(|key| labels.get(*key)?.as_str());
        texts.map(str::to_owned).find(|text| !text.is_empty())
    };
    let named = first(&["app.kubernetes.io/name", "app"]).map(|text| label_value(&text).to_owned());
    let revision = first(&["app.kubernetes.io/version", "version"]).unwrap_or_else(|| "latest".to_owned());
    // Without a name of the application it is that of the workload, which a pod does not tell.
    let named = named.or_else(|| first(&["service.istio.io/canonical-name"]));
    let mut gone = Vec::new();
    for (key, value) in [
        ("security.istio.io/tlsMode", Some("istio")),
        ("networking.istio.io/tunnel", Some("http")),
        ("service.istio.io/canonical-name", named.as_deref()),
        ("service.istio.io/canonical-revision", Some(revision.as_str())),
        (name::NETWORK, network),
    ] {
        remove_if(labels, key, value, &mut gone);
    }
    if !gone.is_empty() {
        unknown.push(format!(
            "whether these labels were there with the same value: {}; they are taken away",
            gone.join(", ")
        ));
    }
}

/// Removes a text that is what an injection writes.
fn remove_if(
    texts: &mut Map<String, Value>,
    key: &'static str,
    value: Option<&str>,
    gone: &mut Vec<&'static str>,
) -> bool {
    let same = value.is_some() && texts.get(key).and_then(Value::as_str) == value;
    if same {
        texts.shift_remove(key);
        gone.push(key);
    }
    same
}

/// What a gateway gets so that it may bind low ports.
fn restore_security(pod: &mut Value) {
    let gateway =
        Texts::of(pod, "annotations").get(name::TEMPLATES).is_some_and(|templates| templates.contains("gateway"));
    let security = json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]});
    if gateway
        && let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut)
        && spec.get("securityContext") == Some(&security)
    {
        spec.shift_remove("securityContext");
    }
}

/// Lists and maps that an injection fills where they are absent.
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
