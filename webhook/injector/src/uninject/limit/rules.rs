//! The differences that an injection makes: in metadata, in the spec, and in containers of the application.

use serde_json::{Map, Value, json};

use super::CurrentInjection;
use super::comparison::{Change, Comparison, Decide, ListRules};
use crate::annotation_values::{append_multus_network, append_port};
use crate::annotations as name;
use crate::containers;
use crate::finish::probes::is_redirected;
use crate::finish::prometheus::is_metrics_annotation;
use crate::merge::keys::MapKind;
use crate::uninject::reconstruct::{GRPC_VARIABLES, MESH_CONTAINERS};

/// Volumes of the built-in templates.
const MESH_VOLUMES: [&str; 15] = [
    "workload-socket",
    "credential-socket",
    "workload-certs",
    "gke-workload-certificate",
    "custom-bootstrap-volume",
    "istio-envoy",
    "istio-xds",
    "istio-data",
    "istio-podinfo",
    "istio-token",
    "istiod-ca-cert",
    "istio-ca-crl",
    "istio-certs",
    "lightstep-certs",
    "grpc-io-proxyless-bootstrap",
];

/// Labels that an injection adds where the pod has none.
const MESH_LABELS: [&str; 4] = [
    "security.istio.io/tlsMode",
    "networking.istio.io/tunnel",
    "service.istio.io/canonical-name",
    "service.istio.io/canonical-revision",
];

/// Annotations that an injection writes whatever the pod has.
const OWN_ANNOTATIONS: [&str; 7] = [
    name::STATUS,
    name::OVERRIDES,
    name::ORIGINAL,
    name::CAPTURE,
    name::REVISION,
    name::DEFAULT_CONTAINER,
    name::DEFAULT_LOGS_CONTAINER,
];

/// Annotations that an injection adds where the pod has none.
const DEFAULTED_ANNOTATIONS: [&str; 8] = [
    name::INTERCEPTION_MODE,
    name::INCLUDE_OUTBOUND_RANGES,
    name::EXCLUDE_OUTBOUND_RANGES,
    name::INCLUDE_INBOUND_PORTS,
    name::EXCLUDE_INBOUND_PORTS,
    name::INCLUDE_OUTBOUND_PORTS,
    name::EXCLUDE_OUTBOUND_PORTS,
    name::REWRITE_PROBES,
];

/// The rules for a pod as it stands.
#[derive(Clone, Copy)]
pub(super) struct MeshRules<'a> {
    pub(super) standing: &'a Value,
    pub(super) current: CurrentInjection<'a>,
}

impl<'a> MeshRules<'a> {
    pub(super) fn metadata(self, at: &mut Comparison, key: &str, change: Change<'a>) -> Option<Value> {
        match key {
            "labels" => at.fields(change, &mut |at, key, change| label(at, key, change)),
            "annotations" => at.fields(change, &mut |at, key, change| self.annotation(at, key, change)),
            _ => at.plain(change),
        }
    }

    fn annotation(self, at: &mut Comparison, key: &str, change: Change<'a>) -> Option<Value> {
        let was = change.was.and_then(Value::as_str);
        let now = change.now.as_ref().and_then(Value::as_str);
        let allowed = OWN_ANNOTATIONS.contains(&key)
            || is_metrics_annotation(key)
            || (now.is_none() && DEFAULTED_ANNOTATIONS.contains(&key))
            || match (key, was) {
                (name::EXCLUDE_INBOUND_PORTS, Some(was)) => {
                    let port = was.rsplit(',').next().unwrap_or_default();
                    now.is_some_and(|now| append_port(now, port) == was)
                }
                (name::MULTUS_NETWORKS, Some(was)) => {
                    append_multus_network(now.unwrap_or_default(), "default", "istio-cni") == was
                }
                (_, Some(was)) => {
                    self.current.annotations.and_then(|written| written.get(key)).is_some_and(|written| written == was)
                }
                (_, None) => false,
            };
        if allowed { change.now } else { at.strict(change) }
    }

    pub(super) fn spec(self, at: &mut Comparison, key: &str, change: Change<'a>) -> Option<Value> {
        match key {
            "containers" | "initContainers" => {
                let may_go = |item: &Value, added: Option<&Value>| {
                    is_of_mesh(item) || added.is_some_and(|added| added["image"].is_string())
                };
                let decide: Decide<'_, 'a> = &mut |at, _, change| self.container(at, change);
                let is_ordered = |item: &Value| !is_of_mesh(item);
                let rules = &mut ListRules { may_go: &may_go, decide, is_ordered: Some(&is_ordered) };
                at.items(change, MapKind::PodSpec, key, rules)
            }
            "volumes" => {
                let annotation = self.standing["metadata"]["annotations"][name::USER_VOLUME].as_str();
                let by_user: Map<String, Value> =
                    annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
                let may_go = |item: &Value, added: Option<&Value>| {
                    let name = item["name"].as_str().unwrap_or_default();
                    is_mesh_volume(name)
                        || added.is_some_and(|added| is_same_but_defaults(added, item) || !by_user.contains_key(name))
                };
                let decide: Decide<'_, 'a> = &mut |at, _, change| volume(at, change);
                let rules = &mut ListRules { may_go: &may_go, decide, is_ordered: None };
                at.items(change, MapKind::PodSpec, key, rules)
            }
            "imagePullSecrets" => {
                let may_go = |_: &Value, added: Option<&Value>| added.is_some();
                let decide: Decide<'_, 'a> = &mut |at, _, change| at.existing(change);
                let rules = &mut ListRules { may_go: &may_go, decide, is_ordered: None };
                at.items(change, MapKind::PodSpec, key, rules)
            }
            "securityContext" => at.fields(change, &mut |at, key, change| {
                let low_ports =
                    |value: &Value| *value == json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
                let gone = key == "sysctls" && change.now.is_none() && change.was.is_some_and(low_ports);
                if gone { None } else { at.plain(change) }
            }),
            _ => at.plain(change),
        }
    }

    pub(super) fn container(self, at: &mut Comparison, mut change: Change<'a>) -> Option<Value> {
        let Some(name) = change.now.as_ref().and_then(|now| now["name"].as_str()).map(str::to_owned) else {
            return at.existing(change);
        };
        if !MESH_CONTAINERS.contains(&name.as_str()) {
            if change.was.is_none() {
                return at.existing(change);
            }
            return at.fields(change, &mut |at, key, change| application_field(at, &name, key, change));
        }
        // The proxy may have been in the other list.
        change.was = change.was.or_else(|| containers::find(self.standing, &name));
        if change.was.is_none() {
            return at.existing(change);
        }
        let user = change.now.as_ref().map(|now| now["securityContext"]["runAsUser"].as_i64().unwrap_or(0));
        at.fields(change, &mut |at, key, change| self.declared_field(at, &name, user, key, change))
    }
}

fn label(at: &mut Comparison, key: &str, change: Change<'_>) -> Option<Value> {
    if key == name::NETWORK || (change.now.is_none() && MESH_LABELS.contains(&key)) {
        return change.now;
    }
    at.strict(change)
}

fn volume(at: &mut Comparison, change: Change<'_>) -> Option<Value> {
    let is_mesh = change.now.as_ref().and_then(|now| now["name"].as_str()).is_some_and(is_mesh_volume);
    if !is_mesh || change.was.is_none() {
        return at.existing(change);
    }
    at.fields(change, &mut |at, key, change| {
        // The templates replace an `emptyDir` by their own source.
        if change.now.is_none() || key == "emptyDir" { change.now } else { at.plain(change) }
    })
}

fn application_field(at: &mut Comparison, container: &str, key: &str, change: Change<'_>) -> Option<Value> {
    let is_written: fn(&str) -> bool = match key {
        "env" => |name| GRPC_VARIABLES.contains(&name),
        "volumeMounts" => is_mesh_volume,
        "lifecycle" => {
            return at
                .fields(change, &mut |at, key, change| redirected_or(at, container, key, change, Comparison::plain));
        }
        _ => return redirected_or(at, container, key, change, Comparison::plain),
    };
    let may_go =
        |item: &Value, added: Option<&Value>| added == Some(item) || item["name"].as_str().is_some_and(is_written);
    let rules = &mut ListRules {
        may_go: &may_go,
        decide: &mut |at, _, change| at.existing(change),
        is_ordered: Some(&|item| !is_of_mesh(item)),
    };
    at.items(change, MapKind::Container, key, rules)
}

/// Allows a handler that was redirected to the agent; else decides by `otherwise`.
pub(super) fn redirected_or<'a>(
    at: &mut Comparison,
    container: &str,
    key: &str,
    change: Change<'a>,
    otherwise: fn(&mut Comparison, Change<'a>) -> Option<Value>,
) -> Option<Value> {
    if is_redirected(container, key, change.was, change.now.as_ref()) {
        return change.now;
    }
    otherwise(at, change)
}

fn is_of_mesh(item: &Value) -> bool {
    item["name"].as_str().is_some_and(|name| MESH_CONTAINERS.contains(&name) || is_mesh_volume(name))
}

fn is_mesh_volume(name: &str) -> bool {
    MESH_VOLUMES.contains(&name)
}

/// Returns whether `item` is `added`, but for defaults of volumes that the API server has set.
fn is_same_but_defaults(added: &Value, item: &Value) -> bool {
    let is_default = |field: &str, value: &Value| match field {
        "defaultMode" => *value == 420,
        "type" => *value == "",
        _ => false,
    };
    match (added, item) {
        (Value::Object(added), Value::Object(item)) => {
            added.keys().all(|field| item.contains_key(field))
                && item.iter().all(|(field, value)| match added.get(field) {
                    Some(added) => is_same_but_defaults(added, value),
                    None => is_default(field, value),
                })
        }
        _ => added == item,
    }
}
