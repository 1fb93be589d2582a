//! JSON objects as values of the template engine, spelled as Go's reflection spells them: fields have Go's names, and fields
//! that are not set have the zero value of their type.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value as Data;
use serde_json::{Map, Value};

use super::go_names::{go_name, upper_first};
use crate::proxy_config::ProxyConfig;

/// Fields of the data that a template is rendered with, Istio's `SidecarTemplateData`.
pub(super) const ROOT_FIELDS: [&str; 16] = [
    "TypeMeta",
    "DeploymentMeta",
    "ObjectMeta",
    "Spec",
    "ProxyConfig",
    "MeshConfig",
    "Values",
    "Revision",
    "NativeSidecars",
    "ProxyImage",
    "ProxyInitImage",
    "ProxyUID",
    "ProxyGID",
    "InboundTrafficPolicyMode",
    "CompliancePolicy",
    "EstimatedConcurrency",
];

/// Key that marks a map as a typed object. No template can write it, and none ranges over an object. The value lists the
/// fields that are set in the order of the Go type, or is [`PROTO_OBJECT`].
pub(super) const TYPED_OBJECT_KEY: &str = "\0";
/// Value of [`TYPED_OBJECT_KEY`] in messages of Istio's API, whose Go names differ from the JSON names by the first letter only.
pub(super) const PROTO_OBJECT: Data = Data::Bool(true);

/// Go type of a field of a Kubernetes object; it determines the zero value.
#[derive(Clone, Copy)]
enum GoType {
    Text,
    Flag,
    /// `int32`.
    Number,
    Slice(&'static GoType),
    /// A map with keys of the user.
    Keyed,
    Struct(&'static [(&'static str, GoType)]),
    /// A pointer, or a type that is not in the tables below; the zero value is nil.
    Other,
}

use GoType::{Flag, Keyed, Number, Other, Slice, Struct, Text};

static META: [(&str, GoType); 14] = [
    ("name", Text),
    ("generateName", Text),
    ("namespace", Text),
    ("selfLink", Text),
    ("uid", Text),
    ("resourceVersion", Text),
    ("generation", Number),
    ("creationTimestamp", Other),
    ("deletionTimestamp", Other),
    ("deletionGracePeriodSeconds", Other),
    ("labels", Keyed),
    ("annotations", Keyed),
    ("ownerReferences", Slice(&Other)),
    ("finalizers", Slice(&Other)),
];
static PORT: [(&str, GoType); 5] =
    [("name", Text), ("hostPort", Number), ("containerPort", Number), ("protocol", Text), ("hostIP", Text)];
static VARIABLE: [(&str, GoType); 3] = [("name", Text), ("value", Text), ("valueFrom", Other)];
static MOUNT: [(&str, GoType); 5] =
    [("name", Text), ("readOnly", Flag), ("mountPath", Text), ("subPath", Text), ("subPathExpr", Text)];
static RESOURCES: [(&str, GoType); 3] = [("limits", Keyed), ("requests", Keyed), ("claims", Slice(&Other))];
static CONTAINER: [(&str, GoType); 24] = [
    ("name", Text),
    ("image", Text),
    ("command", Slice(&Other)),
    ("args", Slice(&Other)),
    ("workingDir", Text),
    ("ports", Slice(&Struct(&PORT))),
    ("envFrom", Slice(&Other)),
    ("env", Slice(&Struct(&VARIABLE))),
    ("resources", Struct(&RESOURCES)),
    ("resizePolicy", Slice(&Other)),
    ("restartPolicy", Other),
    ("volumeMounts", Slice(&Struct(&MOUNT))),
    ("volumeDevices", Slice(&Other)),
    ("livenessProbe", Other),
    ("readinessProbe", Other),
    ("startupProbe", Other),
    ("lifecycle", Other),
    ("terminationMessagePath", Text),
    ("terminationMessagePolicy", Text),
    ("imagePullPolicy", Text),
    ("securityContext", Other),
    ("stdin", Flag),
    ("stdinOnce", Flag),
    ("tty", Flag),
];
static VOLUME: [(&str, GoType); 1] = [("name", Text)];
static SECRET: [(&str, GoType); 1] = [("name", Text)];
static SPEC: [(&str, GoType); 42] = [
    ("volumes", Slice(&Struct(&VOLUME))),
    ("initContainers", Slice(&Struct(&CONTAINER))),
    ("containers", Slice(&Struct(&CONTAINER))),
    ("ephemeralContainers", Slice(&Other)),
    ("restartPolicy", Text),
    ("terminationGracePeriodSeconds", Other),
    ("activeDeadlineSeconds", Other),
    ("dnsPolicy", Text),
    ("nodeSelector", Keyed),
    ("serviceAccountName", Text),
    ("deprecatedServiceAccount", Text),
    ("automountServiceAccountToken", Other),
    ("nodeName", Text),
    ("hostNetwork", Flag),
    ("hostPID", Flag),
    ("hostIPC", Flag),
    ("shareProcessNamespace", Other),
    ("securityContext", Other),
    ("imagePullSecrets", Slice(&Struct(&SECRET))),
    ("hostname", Text),
    ("subdomain", Text),
    ("affinity", Other),
    ("schedulerName", Text),
    ("tolerations", Slice(&Other)),
    ("hostAliases", Slice(&Other)),
    ("priorityClassName", Text),
    ("priority", Other),
    ("dnsConfig", Other),
    ("readinessGates", Slice(&Other)),
    ("runtimeClassName", Other),
    ("enableServiceLinks", Other),
    ("preemptionPolicy", Other),
    ("overhead", Keyed),
    ("topologySpreadConstraints", Slice(&Other)),
    ("setHostnameAsFQDN", Other),
    ("os", Other),
    ("hostUsers", Other),
    ("schedulingGates", Slice(&Other)),
    ("resourceClaims", Slice(&Other)),
    ("resources", Other),
    ("hostnameOverride", Other),
    ("workloadRef", Other),
];
/// Fields of types without a table that are maps with keys of the user.
const KEYED_FIELDS: [&str; 9] = [
    "matchLabels",
    "labels",
    "annotations",
    "limits",
    "requests",
    "nodeSelector",
    "options",
    "volumeAttributes",
    "overhead",
];

/// Whether the value at a path of [`ROOT_FIELDS`] has a field; `None` if the fields of its type are not known.
pub(super) fn has_field(path: &str, field: &str) -> Option<bool> {
    let typed = |fields: &[(&str, GoType)]| Some(fields.iter().any(|(json, _)| go_name(json) == field));
    match path {
        "" => Some(ROOT_FIELDS.contains(&field)),
        ".ObjectMeta" => typed(&META),
        ".Spec" => typed(&SPEC),
        ".TypeMeta" => Some(["APIVersion", "Kind"].contains(&field)),
        ".DeploymentMeta" => Some(["Name", "Namespace"].contains(&field)),
        _ => None,
    }
}

/// Template data that is the same for every pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SharedTemplateData {
    pub(crate) values: Data,
    pub(crate) mesh: Data,
}

impl SharedTemplateData {
    /// Takes the document `values`, the fields of the mesh configuration, and its `defaultConfig`.
    pub(crate) fn new(values: &Value, mesh_fields: &Map<String, Value>, default_config: &ProxyConfig) -> Self {
        let mut mesh: BTreeMap<Arc<str>, Data> = message_fields(mesh_fields).collect();
        mesh.insert("DefaultConfig".into(), proxy_config(default_config));
        Self { values: untyped(values), mesh: Data::Map(Arc::new(mesh)) }
    }
}

/// Returns `metadata` of a pod.
pub(crate) fn object_meta(metadata: Option<&Value>) -> Data {
    typed(metadata, Struct(&META))
}

/// Returns `spec` of a pod.
pub(crate) fn pod_spec(spec: Option<&Value>) -> Data {
    typed(spec, Struct(&SPEC))
}

/// Returns a complete proxy configuration.
pub(crate) fn proxy_config(config: &ProxyConfig) -> Data {
    let user_keyed = ["proxyMetadata", "runtimeValues"];
    let field = |(name, value): (&String, &Value)| {
        let value = if user_keyed.contains(&name.as_str()) { with_integers(value) } else { message(value) };
        (Arc::from(upper_first(name)), value)
    };
    let marker = std::iter::once((Arc::from(TYPED_OBJECT_KEY), PROTO_OBJECT));
    Data::Map(Arc::new(config.all_fields().iter().map(field).chain(marker).collect()))
}

/// Converts a value of a known type.
fn typed(value: Option<&Value>, go_type: GoType) -> Data {
    let value = value.filter(|value| !value.is_null());
    match (go_type, value) {
        (Text, None) => text(""),
        (Flag, None) => Data::Bool(false),
        (Number, None) => Data::Int(0),
        (Slice(_), None) => Data::List([].into()),
        (Keyed, None) => Data::Map(Arc::default()),
        (Other, None) => Data::Nil,
        (Slice(item), Some(Value::Array(items))) => list(items.iter().map(|value| typed(Some(value), *item))),
        (Keyed, Some(Value::Object(entries))) => Data::Map(Arc::new(
            entries.iter().map(|(key, value)| (key.as_str().into(), with_integers(value))).collect(),
        )),
        (Struct(fields), value) => object(value.and_then(Value::as_object), fields),
        (_, Some(value)) => match value {
            Value::Object(entries) => object(Some(entries), &[]),
            Value::Array(items) => list(items.iter().map(|item| typed(Some(item), Other))),
            scalar => with_integers(scalar),
        },
    }
}

/// Converts a struct: the fields of the table, and any further ones.
fn object(entries: Option<&Map<String, Value>>, fields: &[(&str, GoType)]) -> Data {
    let mut out: BTreeMap<Arc<str>, Data> = BTreeMap::new();
    let mut set = Vec::new();
    for (json, go_type) in fields {
        let value = entries.and_then(|entries| entries.get(*json));
        let go = go_name(json);
        if value.is_some_and(|value| !value.is_null()) {
            set.push(text(&go));
        }
        out.insert(go.into(), typed(value, *go_type));
    }
    let unlisted = entries.into_iter().flatten().filter(|(json, _)| !fields.iter().any(|(known, _)| known == json));
    let mut unlisted: Vec<_> = unlisted.collect();
    unlisted.sort_by_key(|(json, _)| *json);
    for (json, value) in unlisted {
        let go_type = if KEYED_FIELDS.contains(&json.as_str()) { Keyed } else { Other };
        let go = go_name(json);
        set.push(text(&go));
        out.insert(go.into(), typed(Some(value), go_type));
    }
    out.insert(TYPED_OBJECT_KEY.into(), list(set));
    Data::Map(Arc::new(out))
}

/// Converts a message of Istio's API.
fn message(value: &Value) -> Data {
    match value {
        Value::Object(fields) => Data::Map(Arc::new(message_fields(fields).collect())),
        Value::Array(items) => list(items.iter().map(message)),
        scalar => with_integers(scalar),
    }
}

fn message_fields(fields: &Map<String, Value>) -> impl Iterator<Item = (Arc<str>, Data)> {
    let fields = fields.iter().map(|(name, value)| (Arc::from(upper_first(name)), message(value)));
    fields.chain([(Arc::from(TYPED_OBJECT_KEY), PROTO_OBJECT)])
}

/// Converts an untyped document; all numbers are floating point, as Go decodes them from JSON.
pub(super) fn untyped(value: &Value) -> Data {
    plain(value, &|number| number.as_f64().map_or(Data::Nil, Data::Float))
}

/// Converts a value and keeps integers.
fn with_integers(value: &Value) -> Data {
    plain(value, &|number| number.as_i64().map_or_else(|| number.as_f64().map_or(Data::Nil, Data::Float), Data::Int))
}

fn plain(value: &Value, number: &dyn Fn(&serde_json::Number) -> Data) -> Data {
    match value {
        Value::Null => Data::Nil,
        Value::Bool(flag) => Data::Bool(*flag),
        Value::Number(n) => number(n),
        Value::String(string) => text(string),
        Value::Array(items) => list(items.iter().map(|item| plain(item, number))),
        Value::Object(entries) => Data::Map(Arc::new(
            entries.iter().map(|(key, value)| (key.as_str().into(), plain(value, number))).collect(),
        )),
    }
}

pub(crate) fn text(text: &str) -> Data {
    Data::String(text.into())
}

fn list(items: impl IntoIterator<Item = Data>) -> Data {
    Data::List(items.into_iter().collect())
}
