//! Changes that third parties made to injected containers after the injection.
//!
//! A second injection builds the injected containers anew, so that nothing of an earlier configuration remains. But other webhooks
//! and the API server also change them: they add the mount of the service account's token, or variables of a tracer. What neither
//! the first injection nor the user wrote is carried over.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::InjectionRecord;
use crate::annotations::{ORIGINAL, StringMap};
use crate::containers::{self, ContainerList};

/// Key of the record: variables of injected containers whose names do not show that an injection wrote them.
pub(super) const VARIABLES: &str = "env";

/// Fields of a container that injections write.
const INJECTED_FIELDS: [&str; 14] = [
    "name",
    "image",
    "imagePullPolicy",
    "args",
    "command",
    "env",
    "volumeMounts",
    "ports",
    "resources",
    "lifecycle",
    "readinessProbe",
    "startupProbe",
    "restartPolicy",
    "securityContext",
];

/// Fields of a container's security context that injections write.
const INJECTED_SECURITY_FIELDS: [&str; 8] = [
    "allowPrivilegeEscalation",
    "capabilities",
    "privileged",
    "readOnlyRootFilesystem",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seccompProfile",
];

/// KnownVariables that injections write, besides those that start with `ISTIO_` and the ones listed in `PROXY_CONFIG`.
const INJECTED_VARIABLES: [&str; 21] = [
    "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION",
    "PILOT_CERT_PROVIDER",
    "CA_ADDR",
    "POD_NAME",
    "POD_NAMESPACE",
    "INSTANCE_IP",
    "SERVICE_ACCOUNT",
    "HOST_IP",
    "PROXY_CONFIG",
    "GOMEMLIMIT",
    "GOMAXPROCS",
    "COMPLIANCE_POLICY",
    "GODEBUG",
    "TRUST_DOMAIN",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OUTPUT_CERTS",
    "DISABLE_ENVOY",
    "JWT_POLICY",
    "CANONICAL_SERVICE",
    "CANONICAL_REVISION",
    "PILOT_SKIP_VALIDATE_TRUST_DOMAIN",
];

/// Returns the names of variables of injected containers that the record has to list.
pub(crate) fn unlisted_variables(injected: &Value, injection: &InjectionRecord, original: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (container, name) in injection.containers_of(injected) {
        let known = KnownVariables::of(container, name, original);
        for variable in names(container, "env", "name").filter(|variable| !known.contains(variable)) {
            if !found.iter().any(|known| known == variable) {
                found.push(variable.to_owned());
            }
        }
    }
    found
}

/// Carries over to the pod that is injected again what third parties changed in the injected containers of `before`. `original`
/// is the pod without an injection, and `record` is that of the new injection.
pub(crate) fn carry_over_changes(before: &Value, original: &Value, injected: &mut Value, record: &InjectionRecord) {
    let Ok(Some(record_before)) = InjectionRecord::of(before) else { return };
    let original_record =
        StringMap::of(before, "annotations").get(ORIGINAL).and_then(|text| super::parse_original_record(text).ok());
    let listed = original_record.as_ref().and_then(|record| record.get(VARIABLES)?.as_array()).into_iter().flatten();
    let listed: HashSet<&str> = listed.filter_map(Value::as_str).collect();
    let volumes: HashSet<&str> = record_before.status.volumes.iter().flatten().map(String::as_str).collect();
    let injected_again: HashSet<String> = record.containers_of(injected).map(|(_, name)| name.to_owned()).collect();
    // A container that is not injected any more is restored as the user declared it.
    for (was, name) in record_before.containers_of(before).filter(|(_, name)| injected_again.contains(*name)) {
        let known = KnownFields::of(was, name, original);
        let Some(Value::Object(now)) = containers::find_mut(injected, name) else { continue };
        carry_fields(was, now, |field| INJECTED_FIELDS.contains(&field) || known.fields.contains(field));
        if let Some(Value::Object(security)) = now.get_mut("securityContext") {
            carry_fields(&was["securityContext"], security, |field| {
                INJECTED_SECURITY_FIELDS.contains(&field) || known.security.contains(field)
            });
        }
        carry_items(was, now, "env", "name", |item| {
            item["name"].as_str().is_some_and(|name| !known.variables.contains(name) && !listed.contains(name))
        });
        carry_items(was, now, "volumeMounts", "mountPath", |item| {
            let path = item["mountPath"].as_str().unwrap_or_default();
            item["name"].as_str().is_some_and(|volume| !volumes.contains(volume) && !known.mounts.contains(path))
        });
    }
}

impl InjectionRecord {
    /// Returns the injected containers of the pod, also those that the user declares, with their names.
    fn containers_of<'a>(&'a self, pod: &'a Value) -> impl Iterator<Item = (&'a Value, &'a str)> {
        let lists = [
            (ContainerList::Containers, &self.status.containers),
            (ContainerList::InitContainers, &self.status.init_containers),
        ];
        lists.into_iter().flat_map(move |(list, names)| {
            let names = names.iter().flatten().filter(|name| super::reconstruct::is_injected(name, &self.stored));
            names.filter_map(move |name| Some((list.find(pod, name)?, name.as_str())))
        })
    }
}

/// The fields of an injected container that the user or the injection wrote.
struct KnownFields<'a> {
    fields: HashSet<&'a str>,
    security: HashSet<&'a str>,
    variables: KnownVariables<'a>,
    mounts: HashSet<&'a str>,
}

/// The variables of an injected container that the user or the injection wrote.
struct KnownVariables<'a> {
    own: HashSet<&'a str>,
    metadata: Map<String, Value>,
}

/// Returns the user's declarations of a container.
fn own<'a>(name: &str, original: &'a Value) -> impl Iterator<Item = &'a Value> {
    ContainerList::BOTH.into_iter().flat_map(|list| list.of(original)).filter(move |own| own["name"] == name)
}

impl<'a> KnownFields<'a> {
    fn of(container: &Value, name: &str, original: &'a Value) -> Self {
        let own = || own(name, original);
        let security = |own: &'a Value| own["securityContext"].as_object().into_iter().flatten();
        Self {
            fields: own().filter_map(Value::as_object).flatten().map(|(field, _)| field.as_str()).collect(),
            security: own().flat_map(security).map(|(field, _)| field.as_str()).collect(),
            variables: KnownVariables::of(container, name, original),
            mounts: own().flat_map(|own| names(own, "volumeMounts", "mountPath")).collect(),
        }
    }
}

impl<'a> KnownVariables<'a> {
    fn of(container: &Value, name: &str, original: &'a Value) -> Self {
        let own = own(name, original).flat_map(|own| names(own, "env", "name")).collect();
        Self { own, metadata: metadata_of(container) }
    }

    fn contains(&self, name: &str) -> bool {
        name.starts_with("ISTIO_")
            || INJECTED_VARIABLES.contains(&name)
            || self.own.contains(name)
            || self.metadata.contains_key(name)
    }
}

fn names<'a>(container: &'a Value, list: &str, key: &'static str) -> impl Iterator<Item = &'a str> {
    container[list].as_array().into_iter().flatten().filter_map(move |item| item[key].as_str())
}

/// Returns `proxyMetadata` of the proxy's configuration; its entries become variables.
fn metadata_of(container: &Value) -> Map<String, Value> {
    let env = container["env"].as_array();
    let config = env.and_then(|env| env.iter().find(|item| item["name"] == "PROXY_CONFIG")?["value"].as_str());
    // Most have none and need not be parsed.
    let config = config.filter(|text| text.contains("proxyMetadata"));
    let config: Option<Value> = config.and_then(|text| serde_json::from_str(text).ok());
    match config.map(|mut config| config["proxyMetadata"].take()) {
        Some(Value::Object(metadata)) => metadata,
        _ => Map::new(),
    }
}

fn carry_fields(was: &Value, now: &mut Map<String, Value>, is_known: impl Fn(&str) -> bool) {
    for (field, value) in was.as_object().into_iter().flatten() {
        if !is_known(field) && !now.contains_key(field) {
            now.insert(field.clone(), value.clone());
        }
    }
}

fn carry_items(
    was: &Value,
    now: &mut Map<String, Value>,
    list: &str,
    key: &'static str,
    is_third_party: impl Fn(&Value) -> bool,
) {
    let present = now.get(list).and_then(Value::as_array);
    let present: HashSet<&str> = present.into_iter().flatten().filter_map(|item| item[key].as_str()).collect();
    let is_new = |item: &&Value| is_third_party(item) && !item[key].as_str().is_some_and(|name| present.contains(name));
    let missing: Vec<Value> = was[list].as_array().into_iter().flatten().filter(is_new).cloned().collect();
    if !missing.is_empty()
        && let Value::Array(items) = now.entry(list).or_insert_with(|| Value::Array(Vec::new()))
    {
        items.extend(missing);
    }
}
