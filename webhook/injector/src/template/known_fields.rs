//! Removes fields that Kubernetes does not know from a partial pod, as the typed decoder of Istio's injector does.
//!
//! The fields of each struct are those that the types of `k8s-openapi` ask a deserializer for, collected once. So there is no list to keep,
//! and removing costs one lookup per field.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

/// Fields of releases of Kubernetes after that of `k8s-openapi`, by struct. What is in them is not checked.
const NEWER_FIELDS: &[(&str, &[&str])] = &[
    ("Container", &["restartPolicyRules"]),
    ("EnvVarSource", &["fileKeyRef"]),
    ("PodSpec", &["hostnameOverride", "schedulingGroup", "workloadRef"]),
    ("VolumeProjection", &["podCertificate"]),
];

/// Text that every field with text can be parsed from, times included.
const ANY_TEXT: &str = "2000-01-01T00:00:00Z";

/// Knowledge about the type of a value.
#[derive(Debug, Default)]
enum Shape {
    /// Not checked.
    #[default]
    Any,
    Struct(BTreeMap<&'static str, Shape>),
    List(Box<Shape>),
    /// A map with keys of the user.
    Map(Box<Shape>),
}

static METADATA: LazyLock<Shape> = LazyLock::new(shape_of::<ObjectMeta>);
static SPEC: LazyLock<Shape> = LazyLock::new(shape_of::<PodSpec>);

/// Removes unknown fields, except directives of the merge (`$patch`), and returns their paths.
pub(super) fn remove_unknown_fields(partial_pod: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    for (name, shape) in [("metadata", &METADATA), ("spec", &SPEC)] {
        if let Some(value) = partial_pod.get_mut(name) {
            remove(value, shape, &Path::Field(None, name), &mut removed);
        }
    }
    removed
}

/// Path of a value; written only if a field is removed.
enum Path<'a> {
    Field(Option<&'a Path<'a>>, &'a str),
    Item(&'a Path<'a>, &'a str, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(None, name) => f.write_str(name),
            Self::Field(Some(parent), name) => write!(f, "{parent}.{name}"),
            Self::Item(list, "", index) => write!(f, "{list}[{index}]"),
            Self::Item(list, name, _) => write!(f, "{list}[{name}]"),
        }
    }
}

fn remove(value: &mut Value, shape: &Shape, path: &Path<'_>, removed: &mut Vec<String>) {
    match (shape, value) {
        (Shape::Struct(fields), Value::Object(object)) => {
            object.retain(|name, value| {
                let field = Path::Field(Some(path), name);
                if let Some(shape) = fields.get(name.as_str()) {
                    remove(value, shape, &field, removed);
                    return true;
                }
                let is_directive = name.starts_with('$');
                if !is_directive {
                    removed.push(field.to_string());
                }
                is_directive
            });
        }
        (Shape::List(item), Value::Array(items)) if !matches!(**item, Shape::Any) => {
            for (index, value) in items.iter_mut().enumerate() {
                let name = value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                remove(value, item, &Path::Item(path, &name, index), removed);
            }
        }
        (Shape::Map(item), Value::Object(entries)) if !matches!(**item, Shape::Any) => {
            for (name, value) in entries.iter_mut() {
                remove(value, item, &Path::Field(Some(path), name), removed);
            }
        }
        _ => {}
    }
}

/// Collects the fields of a type and of the types in it.
fn shape_of<T: for<'de> Deserialize<'de>>() -> Shape {
    let mut shape = Shape::Any;
    // A type that accepts none of the values below stays unchecked.
    let _ = T::deserialize(FieldCollector(&mut shape));
    shape
}

/// Answers every request for a value with one that has all fields, and one item of each list and map.
struct FieldCollector<'a>(&'a mut Shape);

impl<'de> Deserializer<'de> for FieldCollector<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(ANY_TEXT)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i32(0)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut item = Shape::Any;
        let list = visitor.visit_seq(OneItem(Some(&mut item)))?;
        *self.0 = Shape::List(Box::new(item));
        Ok(list)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut fields = BTreeMap::new();
        let map = visitor.visit_map(EachField { names: &[ANY_TEXT], fields: &mut fields })?;
        *self.0 = Shape::Map(Box::new(fields.remove(ANY_TEXT).unwrap_or_default()));
        Ok(map)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut fields = BTreeMap::new();
        let value = visitor.visit_map(EachField { names, fields: &mut fields })?;
        let newer = NEWER_FIELDS.iter().filter(|(newer, _)| *newer == name).flat_map(|(_, fields)| *fields);
        for field in newer {
            fields.entry(field).or_insert(Shape::Any);
        }
        *self.0 = Shape::Struct(fields);
        Ok(value)
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
        ignored_any
    }
}

struct OneItem<'a>(Option<&'a mut Shape>);

impl<'de> SeqAccess<'de> for OneItem<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|shape| seed.deserialize(FieldCollector(shape))).transpose()
    }
}

struct EachField<'a> {
    /// The fields that follow; the last one that was taken is the current one.
    names: &'static [&'static str],
    fields: &'a mut BTreeMap<&'static str, Shape>,
}

impl<'de> MapAccess<'de> for EachField<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.names.first() else { return Ok(None) };
        let key: StrDeserializer<'_, Error> = name.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, rest) = self.names.split_first().ok_or_else(|| de::Error::custom("no field is left"))?;
        self.names = rest;
        seed.deserialize(FieldCollector(self.fields.entry(name).or_default()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns the number of structs, and of values that are not checked.
    fn count(shape: &Shape) -> (usize, usize) {
        match shape {
            Shape::Any => (0, 1),
            Shape::Struct(fields) => {
                let sums = fields.values().map(count);
                sums.fold((1, 0), |(structs, others), (more, any)| (structs + more, others + any))
            }
            Shape::List(item) | Shape::Map(item) => count(item),
        }
    }

    #[test]
    fn fields_of_all_structs_are_collected() {
        let (structs, _) = count(&SPEC);
        assert!(structs > 100, "only {structs} structs");
        assert!(matches!(&*METADATA, Shape::Struct(fields) if fields.contains_key("labels")));
    }

    #[test]
    fn unknown_fields_are_removed_at_every_level() {
        let known = json!({
            "metadata": {"labels": {"any": "x"}, "annotations": {"a/b": "c"}},
            "spec": {
                "containers": [{
                    "name": "istio-proxy", "$patch": "merge", "restartPolicyRules": [{"any": 1}],
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}, "fileKeyRef": {"any": 1}}}],
                    "resources": {"limits": {"cpu": "1", "nvidia.com/gpu": 1}},
                    "readinessProbe": {"httpGet": {"path": "/", "port": 15021, "httpHeaders": [{"name": "a", "value": "b"}]}},
                    "securityContext": {"capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}},
                }],
                "volumes": [
                    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 1}}]}},
                    {"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
                ],
                "overhead": {"cpu": "1"}, "nodeSelector": {"any": "x"}, "hostnameOverride": "x",
            },
        });
        let mut unchanged = known.clone();
        assert_eq!(remove_unknown_fields(&mut unchanged), Vec::<String>::new());
        assert_eq!(unchanged, known);

        let mut pod = known.clone();
        pod["metadata"]["lables"] = json!({});
        let container = &mut pod["spec"]["containers"][0];
        container["env"][0]["valueFrom"]["fieldref"] = json!({});
        container["readinessProbe"]["httpGet"]["httpHeaders"][0]["vale"] = "x".into();
        container["securityContext"]["capabilities"]["remove"] = json!([]);
        pod["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["audiance"] = "x".into();
        pod["spec"]["volumes"][1]["emptydir"] = json!({});
        assert_eq!(
            remove_unknown_fields(&mut pod),
            [
                "metadata.lables",
                "spec.containers[istio-proxy].env[A].valueFrom.fieldref",
                "spec.containers[istio-proxy].readinessProbe.httpGet.httpHeaders[a].vale",
                "spec.containers[istio-proxy].securityContext.capabilities.remove",
                "spec.volumes[token].projected.sources[0].serviceAccountToken.audiance",
                "spec.volumes[data].emptydir",
            ]
        );
        assert_eq!(pod, known);
    }

    #[test]
    fn values_of_another_type_are_left_to_the_api_server() {
        let mut pod =
            json!({"metadata": null, "spec": {"containers": {"a": 1}, "volumes": [1, null], "hostAliases": "x"}});
        let before = pod.clone();
        assert_eq!(remove_unknown_fields(&mut pod), Vec::<String>::new());
        assert_eq!(pod, before);
    }
}
