//! `ProxyConfig` resources (`networking.istio.io`), which configure the proxies of a mesh, a namespace or some workloads.
//!
//! A configuration further right overrides those to its left:
//!
//! ```text
//! defaults < mesh defaultConfig < root namespace < pod's namespace < pod's annotation < resource that selects the pod
//! ```
//!
//! If several resources apply at one level, the oldest is used, so that adding one does not change running workloads.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::mesh::Mesh;
use crate::fields::{FieldError, FieldErrors, FieldReader};
use crate::proxy_config::schema::{Field, FieldType, canonical, field};
use crate::proxy_config::{IMAGE, ProxyConfig};

/// API group; all its versions have the same fields.
const GROUP: &str = "networking.istio.io";
const KIND: &str = "ProxyConfig";
/// Name of the message's field `proxyMetadata` in the resource.
const ENVIRONMENT: &str = "environmentVariables";

/// The fields of `spec` that a resource may set.
static SPEC: [Field; 3] = [
    field("concurrency", FieldType::IntValue),
    field(ENVIRONMENT, FieldType::StringMap),
    field("image", FieldType::Message(&IMAGE)),
];

/// Valid resources, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxyConfigResources(Vec<Resource>);

#[derive(Debug, Clone, PartialEq)]
struct Resource {
    /// RFC 3339 in UTC, which sorts as text; empty, as in a file, sorts as the oldest.
    created: String,
    name: String,
    namespace: String,
    /// Labels that select pods; empty selects every pod of the namespace.
    selector: BTreeMap<String, String>,
    /// Canonical form, with the field names of the message `ProxyConfig`.
    fields: Map<String, Value>,
}

impl ProxyConfigResources {
    /// Reads objects. Resources with a `targetRef`, which configure waypoints, are left out. An object without a namespace is
    /// in `default`.
    ///
    /// # Errors
    /// Every invalid field, and every object that is not a `ProxyConfig`; the path starts with the object's name.
    pub fn from_objects<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Result<Self, Vec<FieldError>> {
        let mut resources = Vec::new();
        let mut errors = Vec::new();
        for object in objects {
            let object_errors = FieldErrors::new(KIND);
            let resource = Resource::read(object, &object_errors);
            let object_errors = object_errors.into_errors();
            if object_errors.is_empty() {
                resources.extend(resource);
            }
            let name = display_name(object);
            let with_name = |error: FieldError| FieldError { path: format!("{name}: {}", error.path), ..error };
            errors.extend(object_errors.into_iter().map(with_name));
        }
        if errors.is_empty() { Ok(Self::sorted(resources)) } else { Err(errors) }
    }

    /// Merges several sets.
    pub fn merge<'a>(sets: impl IntoIterator<Item = &'a Self>) -> Self {
        Self::sorted(sets.into_iter().flat_map(|set| set.0.iter().cloned()).collect())
    }

    fn sorted(mut resources: Vec<Resource>) -> Self {
        resources.sort_by(|a, b| (&a.created, &a.name, &a.namespace).cmp(&(&b.created, &b.name, &b.namespace)));
        Self(resources)
    }

    /// Returns whether an object is a `ProxyConfig` resource.
    pub fn is_proxy_config(object: &Value) -> bool {
        let group = object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map(|(group, _)| group);
        group == Some(GROUP) && object["kind"] == KIND
    }

    /// Returns the proxy's configuration for a pod in `namespace` with the labels that `label` looks up and the text of the
    /// annotation `proxy.istio.io/config`.
    ///
    /// # Errors
    /// Every invalid field of the annotation.
    pub fn resolve<'a>(
        &self,
        mesh: &Mesh,
        namespace: &str,
        label: impl Fn(&str) -> Option<&'a str>,
        annotation: Option<&str>,
    ) -> Result<ProxyConfig, Vec<String>> {
        let mut config = mesh.default_config.clone();
        let root = mesh.root_namespace.as_str();
        let own = (namespace != root).then_some(namespace);
        for namespace in [Some(root), own].into_iter().flatten() {
            if let Some(resource) = self.in_namespace(namespace).find(|resource| resource.selector.is_empty()) {
                config.overlay(resource.fields.clone());
            }
        }
        if let Some(text) = annotation {
            config = config.with_annotation(text)?;
        }
        let selects = |resource: &&Resource| {
            !resource.selector.is_empty() && resource.selector.iter().all(|(key, value)| label(key) == Some(value))
        };
        if let Some(resource) = self.in_namespace(namespace).find(selects) {
            config.overlay(resource.fields.clone());
        }
        Ok(config)
    }

    fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Resource> {
        self.0.iter().filter(move |resource| resource.namespace == namespace)
    }
}

impl Resource {
    /// Returns `None` for objects of another kind, and for resources that configure waypoints.
    fn read(object: &Value, errors: &FieldErrors) -> Option<Self> {
        let root = FieldReader::root(Some(object), errors);
        if !ProxyConfigResources::is_proxy_config(object) {
            root.add_error(format!("is not a {KIND} of {GROUP}"));
            return None;
        }
        let metadata = root.field("metadata");
        let spec = root.field("spec");
        let namespace = metadata.field("namespace").string().filter(|namespace| !namespace.is_empty());
        let (mut fields, mut selector) = (Map::new(), BTreeMap::new());
        if let Some(object) = spec.object() {
            fields = canonical(object, &SPEC, "spec", errors);
            selector = spec.field("selector").field("matchLabels").string_map();
        }
        if let Some(threads) = fields.get("concurrency").and_then(Value::as_i64).filter(|threads| *threads < 0) {
            errors.add("spec.concurrency", format!("must not be negative, found {threads}"));
        }
        if let Some(environment) = fields.shift_remove(ENVIRONMENT) {
            fields.insert("proxyMetadata".to_owned(), environment);
        }
        let has = |name: &str| spec.raw().is_some_and(|spec| spec.get(name).is_some_and(is_set));
        if has("targetRef") || has("targetRefs") {
            return None;
        }
        Some(Self {
            created: metadata.field("creationTimestamp").string().unwrap_or_default(),
            name: metadata.field("name").string().unwrap_or_default(),
            namespace: namespace.unwrap_or_else(|| "default".to_owned()),
            selector,
            fields,
        })
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Array(items) => !items.is_empty(),
        other => !other.is_null(),
    }
}

/// Returns `namespace/name` for messages.
fn display_name(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().filter(|text| !text.is_empty());
    match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.to_owned(),
        _ => "object without a name".to_owned(),
    }
}

#[cfg(test)]
mod tests;
