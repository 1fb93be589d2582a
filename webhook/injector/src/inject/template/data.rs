//! What a template is given, spelled as Istio's injector spells it: Go names of fields, zero values where nothing is set.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value as Data;
use serde_json::{Map, Value};

use super::names::{go_name, upper_first};
use crate::inject::context::Context;
use crate::settings::Mesh;

/// Fields of the context.
pub(super) const ROOT: [&str; 15] = [
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
];

/// Key by which a typed object is told from a map: no template ranges over an object, and none can write the key. Its value
/// lists the fields that were not set, or is [`PROTO`].
pub(super) const MARK: &str = "\0";
/// Value of [`MARK`] in messages of Istio's API, whose names differ from those in JSON by the first letter only.
pub(super) const PROTO: Data = Data::Bool(true);

/// What a field of a Kubernetes type holds, and so what it is where it is not set.
#[derive(Clone, Copy)]
enum Shape {
    /// `string`.
    Text,
    /// `bool`.
    Flag,
    /// `int32`.
    Number,
    /// A slice.
    List(&'static Shape),
    /// A map whose keys are the user's.
    Map,
    /// A struct.
    Fields(&'static [(&'static str, Shape)]),
    /// A pointer, or a type that is not written out here: nil where it is not set.
    Other,
}

use Shape::{Fields, Flag, List as Items, Map as Keyed, Number, Other, Text};

static META: [(&str, Shape); 14] = [
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
    ("ownerReferences", Items(&Other)),
    ("finalizers", Items(&Other)),
];
static PORT: [(&str, Shape); 5] =
    [("name", Text), ("hostPort", Number), ("containerPort", Number), ("protocol", Text), ("hostIP", Text)];
static VARIABLE: [(&str, Shape); 3] = [("name", Text), ("value", Text), ("valueFrom", Other)];
static MOUNT: [(&str, Shape); 5] =
    [("name", Text), ("readOnly", Flag), ("mountPath", Text), ("subPath", Text), ("subPathExpr", Text)];
static RESOURCES: [(&str, Shape); 3] = [("limits", Keyed), ("requests", Keyed), ("claims", Items(&Other))];
static CONTAINER: [(&str, Shape); 24] = [
    ("name", Text),
    ("image", Text),
    ("command", Items(&Other)),
    ("args", Items(&Other)),
    ("workingDir", Text),
    ("ports", Items(&Fields(&PORT))),
    ("envFrom", Items(&Other)),
    ("env", Items(&Fields(&VARIABLE))),
    ("resources", Fields(&RESOURCES)),
    ("resizePolicy", Items(&Other)),
    ("restartPolicy", Other),
    ("volumeMounts", Items(&Fields(&MOUNT))),
    ("volumeDevices", Items(&Other)),
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
static VOLUME: [(&str, Shape); 1] = [("name", Text)];
static SECRET: [(&str, Shape); 1] = [("name", Text)];
static SPEC: [(&str, Shape); 42] = [
    ("volumes", Items(&Fields(&VOLUME))),
    ("initContainers", Items(&Fields(&CONTAINER))),
    ("containers", Items(&Fields(&CONTAINER))),
    ("ephemeralContainers", Items(&Other)),
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
    ("imagePullSecrets", Items(&Fields(&SECRET))),
    ("hostname", Text),
    ("subdomain", Text),
    ("affinity", Other),
    ("schedulerName", Text),
    ("tolerations", Items(&Other)),
    ("hostAliases", Items(&Other)),
    ("priorityClassName", Text),
    ("priority", Other),
    ("dnsConfig", Other),
    ("readinessGates", Items(&Other)),
    ("runtimeClassName", Other),
    ("enableServiceLinks", Other),
    ("preemptionPolicy", Other),
    ("overhead", Keyed),
    ("topologySpreadConstraints", Items(&Other)),
    ("setHostnameAsFQDN", Other),
    ("os", Other),
    ("hostUsers", Other),
    ("schedulingGates", Items(&Other)),
    ("resourceClaims", Items(&Other)),
    ("resources", Other),
    ("hostnameOverride", Other),
    ("workloadRef", Other),
];
/// Fields of types that are not written out above and hold maps with keys of the user.
const KEYED: [&str; 9] = [
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

/// Whether a path from the context has a field; `None` where the names below it are not known.
pub(super) fn has_field(path: &str, field: &str) -> Option<bool> {
    let typed = |fields: &[(&str, Shape)]| Some(fields.iter().any(|(json, _)| go_name(json) == field));
    match path {
        "" => Some(ROOT.contains(&field)),
        ".ObjectMeta" => typed(&META),
        ".Spec" => typed(&SPEC),
        ".TypeMeta" => Some(["APIVersion", "Kind"].contains(&field)),
        ".DeploymentMeta" => Some(["Name", "Namespace"].contains(&field)),
        _ => None,
    }
}

/// The parts that are the same for every pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Installation {
    values: Data,
    mesh: Data,
}

impl Installation {
    /// From the documents as they were given, with what the injector takes where the mesh document is silent.
    pub(crate) fn new(values: &Value, mesh_document: Option<&Value>, mesh: &Mesh) -> Self {
        let mut fields = mesh_document.and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, value) in [
            ("proxyListenPort", Value::from(mesh.proxy_port)),
            ("proxyInboundListenPort", mesh.inbound_port.into()),
            ("trustDomain", mesh.trust_domain.as_str().into()),
            ("enablePrometheusMerge", mesh.prometheus_merge.into()),
        ] {
            fields.insert(name.to_owned(), value);
        }
        fields.remove("defaultConfig");
        let Data::Map(go) = message(&Value::Object(fields)) else {
            return Self { values: untyped(values), mesh: Data::Nil };
        };
        let mut go = Arc::unwrap_or_clone(go);
        go.insert("DefaultConfig".into(), config(&mesh.default_config.every_field()));
        Self { values: untyped(values), mesh: Data::Map(Arc::new(go)) }
    }
}

/// What templates are given for a pod: the pod as it is without injection, and the configuration.
pub(crate) fn of_pod(context: &Context<'_>, pod: &Value, installation: &Installation) -> Data {
    let settings = context.settings;
    let workload = &context.workload;
    let localhost = settings.mesh.inbound_localhost;
    map([
        ("TypeMeta", map([("APIVersion", text(&workload.api_version)), ("Kind", text(&workload.kind))])),
        ("DeploymentMeta", map([("Name", text(&workload.name)), ("Namespace", text(&workload.namespace))])),
        ("ObjectMeta", typed(pod.get("metadata"), Fields(&META))),
        ("Spec", typed(pod.get("spec"), Fields(&SPEC))),
        ("ProxyConfig", config(&context.proxy_config.every_field())),
        ("MeshConfig", installation.mesh.clone()),
        ("Values", installation.values.clone()),
        ("Revision", text(&settings.revision)),
        ("NativeSidecars", Data::Bool(context.native)),
        ("ProxyImage", text(&context.proxy_image())),
        ("ProxyInitImage", text(&context.init_image())),
        ("ProxyUID", Data::Int(context.uid.into())),
        ("ProxyGID", Data::Int(context.gid.into())),
        ("InboundTrafficPolicyMode", text(if localhost { "localhost" } else { "passthrough" })),
        ("CompliancePolicy", text(&settings.compliance_policy)),
    ])
}

/// A value of a known type.
fn typed(value: Option<&Value>, shape: Shape) -> Data {
    let value = value.filter(|value| !value.is_null());
    match (shape, value) {
        (Text, None) => text(""),
        (Flag, None) => Data::Bool(false),
        (Number, None) => Data::Int(0),
        (Items(_), None) => Data::List([].into()),
        (Keyed, None) => Data::Map(Arc::default()),
        (Other, None) => Data::Nil,
        (Items(item), Some(Value::Array(items))) => {
            items.iter().map(|value| typed(Some(value), *item)).collect::<Vec<_>>().into_data()
        }
        (Keyed, Some(Value::Object(entries))) => {
            Data::Map(Arc::new(entries.iter().map(|(key, value)| (key.as_str().into(), whole(value))).collect()))
        }
        (Fields(fields), value) => object(value.and_then(Value::as_object), fields),
        (_, Some(value)) => match value {
            Value::Object(entries) => object(Some(entries), &[]),
            Value::Array(items) => items.iter().map(|item| typed(Some(item), Other)).collect::<Vec<_>>().into_data(),
            scalar => whole(scalar),
        },
    }
}

/// A struct: fields of the table, and whatever else there is.
fn object(entries: Option<&Map<String, Value>>, fields: &[(&str, Shape)]) -> Data {
    let mut out: BTreeMap<Arc<str>, Data> = BTreeMap::new();
    let mut unset = Vec::new();
    for (json, shape) in fields {
        let value = entries.and_then(|entries| entries.get(*json));
        let go = go_name(json);
        if value.is_none_or(Value::is_null) {
            unset.push(text(&go));
        }
        out.insert(go.into(), typed(value, *shape));
    }
    for (json, value) in
        entries.into_iter().flatten().filter(|(json, _)| !fields.iter().any(|(known, _)| known == json))
    {
        let shape = if KEYED.contains(&json.as_str()) { Keyed } else { Other };
        out.insert(go_name(json).into(), typed(Some(value), shape));
    }
    out.insert(MARK.into(), unset.into_data());
    Data::Map(Arc::new(out))
}

/// A whole configuration of a proxy; the maps in it have keys of the user.
fn config(fields: &Map<String, Value>) -> Data {
    let keyed = ["proxyMetadata", "runtimeValues"];
    let field = |(name, value): (&String, &Value)| {
        let value = if keyed.contains(&name.as_str()) { whole(value) } else { message(value) };
        (Arc::from(upper_first(name)), value)
    };
    let mark = std::iter::once((Arc::from(MARK), PROTO));
    Data::Map(Arc::new(fields.iter().map(field).chain(mark).collect()))
}

/// A message of Istio's API.
fn message(value: &Value) -> Data {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (Arc::from(upper_first(name)), message(value)));
            Data::Map(Arc::new(fields.chain([(Arc::from(MARK), PROTO)]).collect()))
        }
        Value::Array(items) => items.iter().map(message).collect::<Vec<_>>().into_data(),
        scalar => whole(scalar),
    }
}

/// An untyped document: numbers are floating point, as Go reads them from JSON.
pub(super) fn untyped(value: &Value) -> Data {
    plain(value, &|number| number.as_f64().map_or(Data::Nil, Data::Float))
}

/// A value whose whole numbers stay such.
fn whole(value: &Value) -> Data {
    plain(value, &|number| number.as_i64().map_or_else(|| number.as_f64().map_or(Data::Nil, Data::Float), Data::Int))
}

fn plain(value: &Value, number: &dyn Fn(&serde_json::Number) -> Data) -> Data {
    match value {
        Value::Null => Data::Nil,
        Value::Bool(flag) => Data::Bool(*flag),
        Value::Number(n) => number(n),
        Value::String(string) => text(string),
        Value::Array(items) => items.iter().map(|item| plain(item, number)).collect::<Vec<_>>().into_data(),
        Value::Object(entries) => Data::Map(Arc::new(
            entries.iter().map(|(key, value)| (key.as_str().into(), plain(value, number))).collect(),
        )),
    }
}

fn map<const N: usize>(fields: [(&str, Data); N]) -> Data {
    Data::Map(Arc::new(fields.into_iter().map(|(name, value)| (name.into(), value)).collect()))
}

fn text(text: &str) -> Data {
    Data::String(text.into())
}

/// A list of values.
trait IntoData {
    fn into_data(self) -> Data;
}

impl IntoData for Vec<Data> {
    fn into_data(self) -> Data {
        Data::List(self.into())
    }
}
