//! JSON objects as values of the template engine, spelled as Go's reflection spells them: fields have Go's names, and fields
//! that are not set have the zero value of their type.

use std::sync::{Arc, LazyLock};

use gotmpl::Value as Data;
use serde_json::{Map, Value};

use super::go_types::GoType::{self, Keyed, Other, Struct, Structs};
use super::go_types::{GoStruct, MESH, META, SPEC};
use super::value::{COMPLETE_KEY, PROTO_OBJECT, TYPED_OBJECT_KEY, list, text};
use crate::go_names::{go_name, upper_first};
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

/// Returns whether the value at a path of [`ROOT_FIELDS`] has a field; `None` if the fields of its type are not known.
pub(super) fn has_field(path: &str, field: &str) -> Option<bool> {
    match path {
        "" => Some(ROOT_FIELDS.contains(&field)),
        ".ObjectMeta" => Some(META.has_field(field)),
        ".Spec" => Some(SPEC.has_field(field)),
        ".TypeMeta" => Some(["APIVersion", "Kind"].contains(&field)),
        ".DeploymentMeta" => Some(["Name", "Namespace"].contains(&field)),
        ".MeshConfig" => Some(MESH.contains_key(field)),
        _ => {
            let config =
                [".MeshConfig.DefaultConfig", ".ProxyConfig"].iter().find_map(|root| path.strip_prefix(root))?;
            ProxyConfig::has_go_field(config.split('.').filter(|segment| !segment.is_empty()), field)
        }
    }
}

/// Template data that is the same for every pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SharedTemplateData {
    pub(crate) values: Data,
    pub(crate) mesh: Data,
    /// `defaultConfig` of the mesh.
    pub(crate) default_config: Data,
}

impl SharedTemplateData {
    /// Takes the document `values`, the fields of the mesh configuration, and its `defaultConfig`.
    pub(crate) fn new(values: &Value, mesh_fields: &Map<String, Value>, default_config: &ProxyConfig) -> Self {
        let mut mesh = MESH.clone();
        mesh.extend(message_fields(mesh_fields));
        let default_config = proxy_config(default_config);
        mesh.insert("DefaultConfig".into(), default_config.clone());
        Self { values: untyped(values), mesh: Data::Map(Arc::new(mesh)), default_config }
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
    let markers = [(Arc::from(TYPED_OBJECT_KEY), PROTO_OBJECT), (Arc::from(COMPLETE_KEY), PROTO_OBJECT)];
    Data::Map(Arc::new(config.all_fields().iter().map(field).chain(markers).collect()))
}

/// Converts a value of a known type.
pub(super) fn typed(value: Option<&Value>, go_type: GoType) -> Data {
    let Some(value) = value.filter(|value| !value.is_null()) else { return go_type.zero() };
    match (go_type, value) {
        (Structs(item), Value::Array(items)) => list(items.iter().map(|value| object(value.as_object(), item))),
        (Keyed, Value::Object(entries)) => Data::Map(Arc::new(
            entries.iter().map(|(key, value)| (key.as_str().into(), with_integers(value))).collect(),
        )),
        (Struct(go_struct), value) => object(value.as_object(), go_struct),
        (_, Value::Object(entries)) => object(Some(entries), &UNKNOWN),
        (_, Value::Array(items)) => list(items.iter().map(|item| typed(Some(item), Other))),
        (_, scalar) => with_integers(scalar),
    }
}

/// Converts a struct: the fields of its type, and any further ones.
fn object(entries: Option<&Map<String, Value>>, go_struct: &GoStruct) -> Data {
    let mut out = go_struct.zero.clone();
    let mut set = Vec::new();
    let mut unlisted = Vec::new();
    for (json, value) in entries.into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        match go_struct.fields.iter().position(|(known, ..)| known == json) {
            Some(position) => {
                let (_, go, go_type) = &go_struct.fields[position];
                set.push(position);
                out.insert(Arc::clone(go), typed(Some(value), *go_type));
            }
            None => unlisted.push((json, value)),
        }
    }
    set.sort_unstable();
    unlisted.sort_by_key(|(json, _)| *json);
    let mut set: Vec<Arc<str>> = set.into_iter().map(|position| Arc::clone(&go_struct.fields[position].1)).collect();
    for (json, value) in unlisted {
        let go_type = if KEYED_FIELDS.contains(&json.as_str()) { Keyed } else { Other };
        let go: Arc<str> = go_name(json).into();
        set.push(Arc::clone(&go));
        out.insert(go, typed(Some(value), go_type));
    }
    out.insert(TYPED_OBJECT_KEY.into(), list(set.into_iter().map(Data::String)));
    Data::Map(Arc::new(out))
}

/// A struct without known fields.
static UNKNOWN: LazyLock<GoStruct> = LazyLock::new(|| GoStruct::open([]));

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
