//! Limits what the records of an injection may change.
//!
//! Whoever writes a pod writes its records too: `sidecar.istio.io/status`, `proxy.istio.io/overrides` and `weir.dev/original` prove
//! nothing. So the restored pod is compared with the pod as it stands, and a difference stays only if
//!
//! * it concerns what every injection writes: containers, volumes, labels and annotations of the mesh, handlers that were redirected to
//!   the agent, variables of gRPC; or
//! * the current templates add exactly this again, so that nothing is lost; or add a container of this name.
//!
//! Every other difference is refused: the value of the pod stays, and the path is reported. What a user declared about the mesh's
//! containers counts only as far as the pod shows it, because another webhook may have changed it since.
//!
//! A key (an HMAC over the records) would have to reach every replica, revision and CLI, would have to be rotated, and a signed record of
//! one pod could be copied to another. This comparison needs none of it, and holds for the pods of Istio's injector as well.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::delta::names;
use super::reconstruct::{GRPC_VARIABLES, MESH_CONTAINERS};
use crate::annotation_values::{append_multus_network, append_port};
use crate::annotations as name;
use crate::containers::{self, ContainerList, PROXY_CONTAINER};
use crate::finish::probes::is_redirected;
use crate::finish::prometheus::is_metrics_annotation;
use crate::merge::keys::MapKind;

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

/// Additions of the current configuration, besides those of every injection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CurrentInjection<'a> {
    /// Additions of the templates, merged; `None` if unknown.
    pub(crate) overlay: Option<&'a Value>,
    /// Annotations that the settings write.
    pub(crate) annotations: Option<&'a BTreeMap<String, String>>,
    /// Variables that the webhook's URL and the settings write.
    pub(crate) variables: Option<&'a BTreeMap<String, String>>,
    /// Whether the platform assigns users to containers.
    pub(crate) assigns_users: bool,
}

/// The restored pod without the differences that were refused, and their paths.
pub(crate) struct Limited {
    pub(crate) pod: Value,
    pub(crate) refused: Vec<String>,
}

/// Keeps the differences between the pod as it stands and the restored pod that an injection can have made.
pub(crate) fn limit(standing: &Value, restored: Value, current: CurrentInjection<'_>) -> Limited {
    let mut limiter = Limiter { standing, current, path: String::new(), refused: Vec::new() };
    let added = current.overlay;
    let pod = limiter.fields(Some(standing), Some(restored), added, &mut |limiter, key, change| match key {
        "metadata" => limiter.nested(change, &mut Limiter::metadata),
        "spec" => limiter.nested(change, &mut Limiter::spec),
        _ => limiter.plain(change),
    });
    Limited { pod: pod.unwrap_or_default(), refused: limiter.refused }
}

/// Keeps of a declaration of a container of the mesh what the pod shows; `None` if the container is not the mesh's.
///
/// A pod without the container shows nothing, but there is nothing that anybody could have changed in it either.
pub(crate) fn limit_declaration(
    standing: &Value,
    declared: Value,
    current: CurrentInjection<'_>,
    refused: &mut Vec<String>,
) -> Option<Value> {
    let name = declared["name"].as_str().unwrap_or_default().to_owned();
    if !MESH_CONTAINERS.contains(&name.as_str()) {
        refused.push(format!("container '{name}'"));
        return None;
    }
    if containers::find(standing, &name).is_none() {
        return Some(declared);
    }
    let mut limiter = Limiter { standing, current, path: format!("spec.containers[{name}]"), refused: Vec::new() };
    let kept = limiter.container(&name, Change { was: None, now: Some(declared), added: None });
    refused.append(&mut limiter.refused);
    kept
}

/// A field or an item of the pod as it stands, of the restored pod, and of the templates.
struct Change<'a> {
    was: Option<&'a Value>,
    now: Option<Value>,
    added: Option<&'a Value>,
}

impl Change<'_> {
    fn is_none(&self) -> bool {
        let absent = is_empty(self.was) && is_empty(self.now.as_ref());
        absent || self.was == self.now.as_ref()
    }
}

/// Decides about a field: returns its value in the result.
type Decide<'d, 'a> = &'d mut dyn FnMut(&mut Limiter<'a>, &str, Change<'a>) -> Option<Value>;

/// Rules for a keyed list.
struct ListRules<'r, 'a> {
    /// Whether the item may go.
    may_go: &'r dyn Fn(&Value, Option<&Value>) -> bool,
    /// Decides about items that are in the restored pod.
    decide: Decide<'r, 'a>,
    /// Whether the order has a meaning, as that of init containers and variables has.
    ordered: bool,
}

struct Limiter<'a> {
    standing: &'a Value,
    current: CurrentInjection<'a>,
    path: String,
    refused: Vec<String>,
}

impl<'a> Limiter<'a> {
    fn refuse(&mut self) {
        self.refused.push(self.path.clone());
    }

    fn at<T>(&mut self, separator: &str, key: &str, step: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 || separator == "[" {
            self.path.push_str(separator);
        }
        self.path.push_str(key);
        if separator == "[" {
            self.path.push(']');
        }
        let result = step(self);
        self.path.truncate(length);
        result
    }

    fn nested(&mut self, change: Change<'a>, decide: Decide<'_, 'a>) -> Option<Value> {
        self.fields(change.was, change.now, change.added, decide)
    }

    /// Decides about each field of an object.
    fn fields(
        &mut self,
        was: Option<&'a Value>,
        now: Option<Value>,
        added: Option<&'a Value>,
        decide: Decide<'_, 'a>,
    ) -> Option<Value> {
        let change = Change { was, now, added };
        let is_map = |value: Option<&Value>| value.is_none_or(|value| value.is_object() || value.is_null());
        if change.is_none() {
            return change.now;
        }
        if !is_map(was) || !is_map(change.now.as_ref()) {
            return self.strict(change);
        }
        // What is left of a refused object is nothing, unless the pod has it.
        let existed = change.now.is_some() && (was.is_some() || is_empty(change.now.as_ref()));
        let is_null = change.now.as_ref().is_some_and(Value::is_null);
        let now = match change.now {
            Some(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let was = was.and_then(Value::as_object);
        let mut missing: Vec<(&'a String, &'a Value)> = Vec::new();
        for (key, value) in was.into_iter().flatten() {
            if !now.contains_key(key) {
                missing.push((key, value));
            }
        }
        let added = |key: &str| added.and_then(|added| added.get(key));
        let mut result = Map::new();
        for (key, value) in now {
            let change = Change { was: was.and_then(|was| was.get(&key)), now: Some(value), added: added(&key) };
            let value =
                if change.is_none() { change.now } else { self.at(".", &key, |limiter| decide(limiter, &key, change)) };
            if let Some(value) = value {
                result.insert(key, value);
            }
        }
        for (key, value) in missing {
            let change = Change { was: Some(value), now: None, added: added(key) };
            if !change.is_none()
                && let Some(value) = self.at(".", key, |limiter| decide(limiter, key, change))
            {
                result.insert(key.clone(), value);
            }
        }
        if is_null && result.is_empty() {
            return Some(Value::Null);
        }
        (existed || !result.is_empty()).then_some(Value::Object(result))
    }

    /// Decides about each item of a list with a merge key; `field` is the list's in `kind`.
    fn items(
        &mut self,
        change: Change<'a>,
        kind: MapKind,
        field: &str,
        rules: &mut ListRules<'_, 'a>,
    ) -> Option<Value> {
        let list = |value: Option<&'a Value>| value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (was, added) = (list(change.was), list(change.added));
        let field = kind.field(field);
        let is_list = |value: Option<&Value>| value.is_none_or(|value| value.is_array() || value.is_null());
        if !is_list(change.was) || !is_list(change.now.as_ref()) {
            return self.strict(change);
        }
        let now_items = change.now.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (Some(was_names), Some(now_names)) = (names(was, field), names(now_items, field)) else {
            return self.strict(change);
        };
        let now_names: Vec<String> = now_names.into_iter().map(Cow::into_owned).collect();
        let added: HashMap<Cow<'_, str>, &'a Value> =
            names(added, field).unwrap_or_default().into_iter().zip(added).collect();
        let existed = change.now.is_some() && (change.was.is_some() || is_empty(change.now.as_ref()));
        let is_null = change.now.as_ref().is_some_and(Value::is_null);
        let now = match change.now {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        let by_name: HashMap<&str, &'a Value> = was_names.iter().map(|name| &**name).zip(was).collect();
        let mut result: Vec<(String, Value)> = Vec::with_capacity(now.len());
        let in_now: HashSet<&str> = now_names.iter().map(String::as_str).collect();
        let mut forced = false;
        let mut kept: HashMap<&str, Value> = HashMap::new();
        for (name, item) in was_names.iter().zip(was).filter(|(name, _)| !in_now.contains(&***name)) {
            if !(rules.may_go)(item, added.get(name).copied()) {
                self.at("[", name, Self::refuse);
                kept.insert(name, item.clone());
                forced = true;
            }
        }
        for (name, item) in now_names.iter().zip(now) {
            let change = Change {
                was: by_name.get(name.as_str()).copied(),
                now: Some(item),
                added: added.get(name.as_str()).copied(),
            };
            let item = if change.is_none() {
                change.now
            } else {
                self.at("[", name, |limiter| (rules.decide)(limiter, name, change))
            };
            result.extend(item.map(|item| (name.clone(), item)));
        }
        if rules.ordered && !forced {
            let common =
                |name: &&str, item: &Value| by_name.contains_key(*name) && in_now.contains(*name) && !is_of_mesh(item);
            let before = was_names.iter().map(|name| &**name).zip(was).filter(|(name, item)| common(name, item));
            let after =
                result.iter().map(|(name, item)| (name.as_str(), item)).filter(|(name, item)| common(name, item));
            if !before.map(|(name, _)| name).eq(after.map(|(name, _)| name)) {
                self.refuse();
                forced = true;
            }
        }
        if forced {
            let mut rest: HashMap<String, Value> = HashMap::new();
            let mut order = Vec::new();
            for (name, item) in result {
                order.push(name.clone());
                rest.insert(name, item);
            }
            let mut ordered = Vec::new();
            for name in &was_names {
                ordered.extend(rest.remove(&**name).or_else(|| kept.remove(&**name)));
            }
            ordered.extend(order.iter().filter_map(|name| rest.remove(name)));
            return Some(Value::Array(ordered));
        }
        let items: Vec<Value> = result.into_iter().map(|(_, item)| item).collect();
        if is_null && items.is_empty() {
            return Some(Value::Null);
        }
        (existed || !items.is_empty()).then_some(Value::Array(items))
    }

    /// Allows only what the templates make again.
    fn strict(&mut self, change: Change<'a>) -> Option<Value> {
        if change.is_none() || (change.was.is_some() && change.added == change.was) {
            return change.now;
        }
        self.refuse();
        change.was.cloned()
    }

    /// Allows only what the templates make again, field by field.
    fn plain(&mut self, change: Change<'a>) -> Option<Value> {
        let is_map = |value: Option<&Value>| value.is_none_or(Value::is_object);
        if is_map(change.was) && is_map(change.now.as_ref()) && (change.was.is_some() || change.now.is_some()) {
            return self.nested(change, &mut |limiter, _, change| limiter.plain(change));
        }
        self.strict(change)
    }

    fn metadata(&mut self, key: &str, change: Change<'a>) -> Option<Value> {
        match key {
            "labels" => self.nested(change, &mut Self::label),
            "annotations" => self.nested(change, &mut Self::annotation),
            _ => self.plain(change),
        }
    }

    fn label(&mut self, key: &str, change: Change<'a>) -> Option<Value> {
        if key == name::NETWORK || (change.now.is_none() && MESH_LABELS.contains(&key)) {
            return change.now;
        }
        self.strict(change)
    }

    fn annotation(&mut self, key: &str, change: Change<'a>) -> Option<Value> {
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
        if allowed { change.now } else { self.strict(change) }
    }

    fn spec(&mut self, key: &str, change: Change<'a>) -> Option<Value> {
        match key {
            "containers" | "initContainers" => {
                let may_go = |item: &Value, added: Option<&Value>| {
                    is_of_mesh(item) || added.is_some_and(|added| added["image"].is_string())
                };
                let mut rules = ListRules { may_go: &may_go, decide: &mut Self::container, ordered: true };
                self.items(change, MapKind::PodSpec, key, &mut rules)
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
                let mut rules = ListRules { may_go: &may_go, decide: &mut Self::volume, ordered: false };
                self.items(change, MapKind::PodSpec, key, &mut rules)
            }
            "imagePullSecrets" => {
                let may_go = |_: &Value, added: Option<&Value>| added.is_some();
                let decide: Decide<'_, 'a> = &mut |limiter, _, change| limiter.existing(change);
                let mut rules = ListRules { may_go: &may_go, decide, ordered: false };
                self.items(change, MapKind::PodSpec, key, &mut rules)
            }
            "securityContext" => self.nested(change, &mut |limiter, key, change| {
                let low_ports = |value: &Value| {
                    *value == serde_json::json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}])
                };
                let gone = key == "sysctls" && change.now.is_none() && change.was.is_some_and(low_ports);
                if gone { None } else { limiter.plain(change) }
            }),
            _ => self.plain(change),
        }
    }

    /// As [`Self::plain`], for an item of a list: the restored pod has none that the pod does not have.
    fn existing(&mut self, change: Change<'a>) -> Option<Value> {
        if change.was.is_none() {
            self.refuse();
            return None;
        }
        self.plain(change)
    }

    fn volume(&mut self, _: &str, change: Change<'a>) -> Option<Value> {
        let is_mesh = change.now.as_ref().and_then(|now| now["name"].as_str()).is_some_and(is_mesh_volume);
        if !is_mesh || change.was.is_none() {
            return self.existing(change);
        }
        self.nested(change, &mut |limiter, key, change| {
            // The templates replace an `emptyDir` by their own source.
            if change.now.is_none() || key == "emptyDir" { change.now } else { limiter.plain(change) }
        })
    }

    fn container(&mut self, _: &str, mut change: Change<'a>) -> Option<Value> {
        let Some(name) = change.now.as_ref().and_then(|now| now["name"].as_str()).map(str::to_owned) else {
            return self.existing(change);
        };
        if !MESH_CONTAINERS.contains(&name.as_str()) {
            if change.was.is_none() {
                return self.existing(change);
            }
            return self.nested(change, &mut |limiter, key, change| limiter.application_field(&name, key, change));
        }
        // The proxy may have been in the other list.
        change.was = change.was.or_else(|| containers::find(self.standing, &name));
        if change.was.is_none() {
            return self.existing(change);
        }
        let user = change.now.as_ref().map(|now| now["securityContext"]["runAsUser"].as_i64().unwrap_or(0));
        self.nested(change, &mut |limiter, key, change| limiter.declared_field(&name, user, key, change))
    }

    fn application_field(&mut self, container: &str, key: &str, change: Change<'a>) -> Option<Value> {
        match key {
            "env" => {
                let may_go = |item: &Value, added: Option<&Value>| {
                    added == Some(item) || item["name"].as_str().is_some_and(|name| GRPC_VARIABLES.contains(&name))
                };
                let decide: Decide<'_, 'a> = &mut |limiter, _, change| limiter.existing(change);
                self.items(change, MapKind::Container, key, &mut ListRules { may_go: &may_go, decide, ordered: true })
            }
            "volumeMounts" => {
                let may_go = |item: &Value, added: Option<&Value>| {
                    added == Some(item) || item["name"].as_str().is_some_and(is_mesh_volume)
                };
                let decide: Decide<'_, 'a> = &mut |limiter, _, change| limiter.existing(change);
                self.items(change, MapKind::Container, key, &mut ListRules { may_go: &may_go, decide, ordered: true })
            }
            "lifecycle" => self.nested(change, &mut |limiter, key, change| {
                if is_redirected(container, key, change.was, change.now.as_ref()) {
                    return change.now;
                }
                limiter.plain(change)
            }),
            _ if is_redirected(container, key, change.was, change.now.as_ref()) => change.now,
            _ => self.plain(change),
        }
    }

    /// Decides about what the user declared for a container of the mesh: it counts as far as the pod shows it.
    fn declared_field(&mut self, container: &str, user: Option<i64>, key: &str, change: Change<'a>) -> Option<Value> {
        match key {
            "name" | "restartPolicy" => change.now,
            "image" if change.now.as_ref().is_some_and(|image| image == "auto") => change.now,
            "securityContext" => self.nested(change, &mut |limiter, key, change| {
                if limiter.is_written_user(container, user, key, change.was) {
                    change.now
                } else {
                    limiter.shown(change)
                }
            }),
            "env" => {
                let variables = change.was.and_then(Value::as_array).into_iter().flatten();
                let present: HashSet<&str> = variables.filter_map(|item| item["name"].as_str()).collect();
                let decide: Decide<'_, 'a> = &mut |limiter, _, change| {
                    let name = change.now.as_ref().and_then(|item| item["name"].as_str()).unwrap_or_default();
                    let overridden = name.starts_with("ISTIO_")
                        || limiter.current.variables.is_some_and(|written| written.contains_key(name));
                    if overridden || (change.was.is_none() && present.contains(name)) {
                        return change.now;
                    }
                    limiter.shown(change)
                };
                self.items(
                    change,
                    MapKind::Container,
                    key,
                    &mut ListRules { may_go: &|_, _| true, decide, ordered: false },
                )
            }
            "volumeMounts" | "volumeDevices" | "ports" => {
                let decide: Decide<'_, 'a> = &mut |limiter, _, change| limiter.shown(change);
                self.items(
                    change,
                    MapKind::Container,
                    key,
                    &mut ListRules { may_go: &|_, _| true, decide, ordered: false },
                )
            }
            "args" if is_same_but_user(change.was, change.now.as_ref()) => change.now,
            "lifecycle" => self.nested(change, &mut |limiter, key, change| {
                if is_redirected(container, key, change.was, change.now.as_ref()) {
                    return change.now;
                }
                limiter.shown(change)
            }),
            _ if is_redirected(container, key, change.was, change.now.as_ref()) => change.now,
            _ => self.shown(change),
        }
    }

    /// Returns whether an injection wrote this user or group over the declared one.
    fn is_written_user(&self, container: &str, user: Option<i64>, key: &str, was: Option<&Value>) -> bool {
        if !matches!(key, "runAsUser" | "runAsGroup") {
            return false;
        }
        if container != PROXY_CONTAINER {
            let proxy = containers::find(self.standing, PROXY_CONTAINER).map(|proxy| &proxy["securityContext"][key]);
            return was.is_some() && proxy == was;
        }
        // TPROXY needs root.
        if key == "runAsUser" && was.is_some_and(|was| *was == 0) {
            return true;
        }
        let mut applications =
            ContainerList::Containers.of(self.standing).iter().filter(|other| other["name"] != PROXY_CONTAINER);
        let assigned = applications.next_back().map(|last| last["securityContext"]["runAsUser"].as_i64().unwrap_or(0));
        self.current.assigns_users && assigned.is_some() && assigned == user
    }

    /// Allows what the pod shows as well, field by field; what only the pod has comes from the templates.
    fn shown(&mut self, change: Change<'a>) -> Option<Value> {
        if change.now.is_none() || change.is_none() {
            return change.now;
        }
        if change.was.is_some_and(Value::is_object) && change.now.as_ref().is_some_and(Value::is_object) {
            return self.nested(change, &mut |limiter, _, change| limiter.shown(change));
        }
        self.refuse();
        change.was.cloned()
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(_) => false,
    }
}

fn is_of_mesh(item: &Value) -> bool {
    item["name"].as_str().is_some_and(|name| MESH_CONTAINERS.contains(&name) || is_mesh_volume(name))
}

fn is_mesh_volume(name: &str) -> bool {
    MESH_VOLUMES.contains(&name)
}

/// Returns whether two lists of arguments are equal but for the user of the proxy (`-u`).
fn is_same_but_user(was: Option<&Value>, now: Option<&Value>) -> bool {
    let (Some(was), Some(now)) = (was.and_then(Value::as_array), now.and_then(Value::as_array)) else { return false };
    let user = was.iter().position(|arg| arg == "-u").map(|flag| flag + 1);
    was.len() == now.len()
        && was.iter().zip(now).enumerate().all(|(position, (was, now))| was == now || Some(position) == user)
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
