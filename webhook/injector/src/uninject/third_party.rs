//! Changes that third parties made to injected containers after the injection.
//!
//! A second injection builds the injected containers anew, so that nothing of an earlier configuration remains. But other webhooks
//! and the API server also change them: they add the mount of the service account's token, or variables of a tracer. What neither
//! the first injection nor the user wrote is carried over.
//!
//! If the templates are the same as before, which a fingerprint in the record tells, every difference is a third party's (an image
//! pinned to a digest, a tightened security context), and the containers stay as they are, but for variables about the application and
//! for handlers that the agent serves. A forged fingerprint gains nothing: it keeps a container that the author could have
//! declared.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use serde::Serialize;
use serde_json::{Map, Value};

use super::InjectionRecord;
use crate::annotations::{ORIGINAL, StringMap};
use crate::containers::ContainerList;
use crate::finish::probes::take_over_redirects;

/// Key of the record: variables of injected containers whose names do not show that an injection wrote them.
pub(super) const VARIABLES: &str = "env";

/// Key of the record: fingerprint of the templates' containers.
pub(super) const FINGERPRINT: &str = "hash";

/// Variables of the proxy that depend on the containers and annotations of the application.
const APPLICATION_VARIABLES: [&str; 5] = [
    "ISTIO_META_POD_PORTS",
    "ISTIO_META_APP_CONTAINERS",
    "ISTIO_KUBE_APP_PROBERS",
    "ISTIO_PROMETHEUS_ANNOTATIONS",
    "OTEL_RESOURCE_ATTRIBUTES",
];

/// Returns the fingerprint of the containers that the templates add, and of the variables that override theirs.
pub(crate) fn fingerprint(rendered: &[Value], variables: &BTreeMap<String, String>) -> String {
    // A template that is applied twice adds nothing more.
    let mut containers = BTreeSet::new();
    for (list, overlay) in rendered.iter().flat_map(|overlay| ContainerList::BOTH.map(|list| (list, overlay))) {
        for container in list.of(overlay).iter().filter(|container| container["image"].is_string()) {
            let mut hash = Fnv::new();
            hash.value(list.field());
            for (field, value) in container.as_object().into_iter().flatten() {
                hash.value(field);
                match value.as_array().filter(|_| field == "env") {
                    Some(env) => {
                        env.iter().filter(|variable| !is_of_application(variable)).for_each(|item| hash.value(item));
                    }
                    None => hash.value(value),
                }
            }
            containers.insert(hash.0);
        }
    }
    let mut hash = Fnv::new();
    for container in &containers {
        hash.value(container);
    }
    for text in variables.iter().flat_map(|(name, value)| [name, value]) {
        hash.value(text);
    }
    format!("{:016x}", hash.0)
}

fn is_of_application(variable: &Value) -> bool {
    variable["name"].as_str().is_some_and(|name| APPLICATION_VARIABLES.contains(&name))
}

/// The hash FNV-1a with 64 bits: it is the same in every release, and need not resist an attacker.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) {
        // Writing to the hash does not fail.
        drop(serde_json::to_writer(self, value));
    }
}

impl io::Write for Fnv {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

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
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let declared = Declarations::of(original);
    for (container, name) in injection.containers_of(injected) {
        let known = KnownVariables::of(container, name, &declared);
        for variable in names(container, "env", "name").filter(|variable| !known.contains(variable)) {
            if seen.insert(variable) {
                found.push(variable.to_owned());
            }
        }
    }
    found
}

/// Carries over to the pod that is injected again what third parties changed in the injected containers of `before`. `original`
/// is the pod without an injection, `record` is that of the new injection, and `fingerprint` that of its templates.
pub(crate) fn carry_over_changes(
    before: &Value,
    original: &Value,
    injected: &mut Value,
    record: &InjectionRecord,
    fingerprint: &str,
) {
    let Ok(Some(record_before)) = InjectionRecord::of(before) else { return };
    let original_record =
        StringMap::of(before, "annotations").get(ORIGINAL).and_then(|text| super::parse_original_record(text).ok());
    let is_same_template =
        original_record.as_ref().and_then(|record| record.get(FINGERPRINT)?.as_str()) == Some(fingerprint);
    let listed = original_record.as_ref().and_then(|record| record.get(VARIABLES)?.as_array()).into_iter().flatten();
    let listed: HashSet<&str> = listed.filter_map(Value::as_str).collect();
    let volumes: HashSet<&str> = record_before.status.volumes.iter().flatten().map(String::as_str).collect();
    let injected_again: HashSet<String> = record.containers_of(injected).map(|(_, name)| name.to_owned()).collect();
    let declared = Declarations::of(original);
    let positions = ContainerList::BOTH.map(|list| {
        let positions = list.positions(injected).into_iter();
        positions.map(|(name, position)| (name.to_owned(), position)).collect::<HashMap<String, usize>>()
    });
    // A container that is not injected any more is restored as the user declared it.
    for (was, name) in record_before.containers_of(before).filter(|(_, name)| injected_again.contains(*name)) {
        let mut places = ContainerList::BOTH.into_iter().zip(&positions);
        let Some((list, position)) = places.find_map(|(list, positions)| Some((list, *positions.get(name)?))) else {
            continue;
        };
        let Some(Value::Object(now)) = list.of_mut(injected).and_then(|containers| containers.get_mut(position)) else {
            continue;
        };
        if is_same_template {
            keep(was, now);
            continue;
        }
        let known = KnownFields::of(was, name, &declared);
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

/// Keeps a container as it was, but for the variables about the application and for handlers that the agent serves.
fn keep(was: &Value, now: &mut Map<String, Value>) {
    let Value::Object(mut kept) = was.clone() else { return };
    take_over_redirects(&mut kept, now);
    let fresh = now.get("env").and_then(Value::as_array).into_iter().flatten();
    let fresh = fresh.filter(|variable| is_of_application(variable)).cloned();
    let mut fresh: Vec<(String, Value)> =
        fresh.map(|variable| (variable["name"].as_str().unwrap_or_default().to_owned(), variable)).collect();
    if let Some(Value::Array(env)) = kept.get_mut("env") {
        let had: HashSet<String> =
            env.iter().filter_map(|variable| variable["name"].as_str()).map(str::to_owned).collect();
        for variable in std::mem::take(env) {
            if !is_of_application(&variable) {
                env.push(variable);
                continue;
            }
            let Some(position) = fresh.iter().position(|(name, _)| variable["name"] == name.as_str()) else { continue };
            // New variables keep their place before the next one.
            let (new, rest): (Vec<_>, Vec<_>) = fresh.drain(..position).partition(|(name, _)| !had.contains(name));
            env.extend(new.into_iter().map(|(_, variable)| variable));
            env.push(fresh.remove(0).1);
            fresh.splice(0..0, rest);
        }
        env.extend(fresh.into_iter().map(|(_, variable)| variable));
    } else if !fresh.is_empty() {
        kept.insert("env".to_owned(), fresh.into_iter().map(|(_, variable)| variable).collect());
    }
    *now = kept;
}

impl InjectionRecord {
    /// Returns the injected containers of the pod, also those that the user declares, with their names.
    fn containers_of<'a>(&'a self, pod: &'a Value) -> impl Iterator<Item = (&'a Value, &'a str)> {
        let lists = [
            (ContainerList::Containers, &self.status.containers),
            (ContainerList::InitContainers, &self.status.init_containers),
        ];
        lists.into_iter().flat_map(move |(list, names)| {
            let (containers, positions) = (list.of(pod), list.positions(pod));
            let mut seen = HashSet::new();
            let names = names
                .iter()
                .flatten()
                .filter(move |name| seen.insert(name.as_str()) && super::reconstruct::is_injected(name, &self.stored));
            names.filter_map(move |name| Some((containers.get(*positions.get(name.as_str())?)?, name.as_str())))
        })
    }
}

/// The user's declarations of containers by name.
struct Declarations<'a>(HashMap<&'a str, Vec<&'a Value>>);

impl<'a> Declarations<'a> {
    fn of(original: &'a Value) -> Self {
        let mut by_name: HashMap<&str, Vec<&Value>> = HashMap::new();
        for container in ContainerList::BOTH.into_iter().flat_map(|list| list.of(original)) {
            if let Some(name) = container["name"].as_str() {
                by_name.entry(name).or_default().push(container);
            }
        }
        Self(by_name)
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &'a Value> {
        self.0.get(name).into_iter().flatten().copied()
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

impl<'a> KnownFields<'a> {
    fn of(container: &Value, name: &str, declared: &Declarations<'a>) -> Self {
        let own = || declared.named(name);
        let security = |own: &'a Value| own["securityContext"].as_object().into_iter().flatten();
        Self {
            fields: own().filter_map(Value::as_object).flatten().map(|(field, _)| field.as_str()).collect(),
            security: own().flat_map(security).map(|(field, _)| field.as_str()).collect(),
            variables: KnownVariables::of(container, name, declared),
            mounts: own().flat_map(|own| names(own, "volumeMounts", "mountPath")).collect(),
        }
    }
}

impl<'a> KnownVariables<'a> {
    fn of(container: &Value, name: &str, declared: &Declarations<'a>) -> Self {
        let own = declared.named(name).flat_map(|own| names(own, "env", "name")).collect();
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
