//! `ProxyConfig` resources (`networking.istio.io`): what the proxies of a mesh, of a namespace or of some workloads are
//! configured with, as objects that are given as plain values.
//!
//! ```text
//! defaults < mesh defaultConfig < root namespace < pod's namespace < annotation of the pod < resource that selects the pod
//! ```
//!
//! At each place the oldest resource counts, so that a second one that somebody adds changes no running workload.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::SettingsError;
use super::mesh::Mesh;
use super::proxy_config::{IMAGE, ProxyConfig};
use super::reader::{Findings, Node};
use super::schema::{Field, Kind, canonical, field};

/// Group of the resource; every version of it has had the same fields.
const GROUP: &str = "networking.istio.io";
const KIND: &str = "ProxyConfig";
/// What `proxyMetadata` is called in a resource.
const ENVIRONMENT: &str = "environmentVariables";

/// The fields that a resource contributes, by the names that they have there.
static SPEC: [Field; 3] =
    [field("concurrency", Kind::IntValue), field(ENVIRONMENT, Kind::TextMap), field("image", Kind::Message(&IMAGE))];

/// Resources that were understood, the oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxyConfigResources(Vec<Resource>);

#[derive(Debug, Clone, PartialEq)]
struct Resource {
    /// RFC 3339 in UTC, which sorts as text; empty (a file) is older than all.
    created: String,
    name: String,
    namespace: String,
    /// Labels that a pod must have; empty selects every pod of the namespace.
    selector: BTreeMap<String, String>,
    /// Canonical form, by the names of the message that it is laid over.
    fields: Map<String, Value>,
}

impl ProxyConfigResources {
    /// Reads objects as the API server or a manifest has them.
    ///
    /// Resources with a `targetRef` are about waypoints and left out. An object without a namespace is in `default`.
    ///
    /// # Errors
    /// Everything in them that cannot be taken, and objects that are none; each with the object it is in.
    pub fn from_objects<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Result<Self, Vec<SettingsError>> {
        let mut resources = Vec::new();
        let mut errors = Vec::new();
        for object in objects {
            let findings = Findings::new(KIND);
            let resource = Resource::read(object, &findings);
            let found = findings.into_errors();
            if found.is_empty() {
                resources.extend(resource);
            }
            let label = label_of(object);
            errors.extend(
                found.into_iter().map(|error| SettingsError { path: format!("{label}: {}", error.path), ..error }),
            );
        }
        if errors.is_empty() { Ok(Self::sorted(resources)) } else { Err(errors) }
    }

    /// All of several sets together.
    pub fn join<'a>(sets: impl IntoIterator<Item = &'a Self>) -> Self {
        Self::sorted(sets.into_iter().flat_map(|set| set.0.iter().cloned()).collect())
    }

    fn sorted(mut resources: Vec<Resource>) -> Self {
        resources.sort_by(|a, b| (&a.created, &a.name, &a.namespace).cmp(&(&b.created, &b.name, &b.namespace)));
        Self(resources)
    }

    /// Whether an object is one of these.
    pub fn is_one(object: &Value) -> bool {
        let group = object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map(|(group, _)| group);
        group == Some(GROUP) && object["kind"] == KIND
    }

    /// The configuration of the proxy of a pod in `namespace` with these labels and this annotation `proxy.istio.io/config`.
    ///
    /// # Errors
    /// Everything in the annotation that cannot be taken.
    pub fn effective<'a>(
        &self,
        mesh: &Mesh,
        namespace: &str,
        label: impl Fn(&str) -> Option<&'a str>,
        annotation: Option<&str>,
    ) -> Result<ProxyConfig, Vec<String>> {
        let mut config = mesh.default_config.clone();
        let root = mesh.root_namespace.as_str();
        let own = (namespace != root).then_some(namespace);
        for place in [Some(root), own].into_iter().flatten() {
            if let Some(resource) = self.of(place).find(|resource| resource.selector.is_empty()) {
                config.overlay(resource.fields.clone());
            }
        }
        if let Some(text) = annotation {
            config = config.with_annotation(text)?;
        }
        let selects = |resource: &&Resource| {
            !resource.selector.is_empty() && resource.selector.iter().all(|(key, value)| label(key) == Some(value))
        };
        if let Some(resource) = self.of(namespace).find(selects) {
            config.overlay(resource.fields.clone());
        }
        Ok(config)
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = &Resource> {
        self.0.iter().filter(move |resource| resource.namespace == namespace)
    }
}

impl Resource {
    /// `None` for what is refused, and for resources that are not about pods of applications.
    fn read(object: &Value, findings: &Findings) -> Option<Self> {
        let root = Node::root(Some(object), findings);
        if !ProxyConfigResources::is_one(object) {
            root.refuse(format!("is no {KIND} of {GROUP}"));
            return None;
        }
        let metadata = root.at("metadata");
        let spec = root.at("spec");
        let namespace = metadata.at("namespace").text().filter(|namespace| !namespace.is_empty());
        let (mut fields, mut selector) = (Map::new(), BTreeMap::new());
        if let Some(object) = spec.object() {
            fields = canonical(object, &SPEC, "spec", findings);
            selector = spec.at("selector").at("matchLabels").text_map();
        }
        if let Some(threads) = fields.get("concurrency").and_then(Value::as_i64).filter(|threads| *threads < 0) {
            findings.add("spec.concurrency", format!("{threads} is less than 0"));
        }
        if let Some(environment) = fields.shift_remove(ENVIRONMENT) {
            fields.insert("proxyMetadata".to_owned(), environment);
        }
        let has = |name: &str| spec.raw().is_some_and(|spec| spec.get(name).is_some_and(is_set));
        if has("targetRef") || has("targetRefs") {
            return None;
        }
        Some(Self {
            created: metadata.at("creationTimestamp").text().unwrap_or_default(),
            name: metadata.at("name").text().unwrap_or_default(),
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

/// `namespace/name` for messages.
fn label_of(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().filter(|text| !text.is_empty());
    match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.to_owned(),
        _ => "an object without a name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings::Settings;

    fn resource(place: (&str, &str), created: &str, selector: &Value, spec: &Value) -> Value {
        let mut spec = spec.clone();
        if !selector.is_null() {
            spec["selector"] = json!({"matchLabels": selector});
        }
        json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "ProxyConfig", "spec": spec,
               "metadata": {"namespace": place.0, "name": place.1, "creationTimestamp": created}})
    }

    fn printed(resources: &[Value], namespace: &str, labels: &Value, annotation: Option<&str>) -> Value {
        let mesh =
            json!({"rootNamespace": "mesh-root", "defaultConfig": {"proxyMetadata": {"FROM": "mesh", "MESH": "1"}}});
        let mesh = Settings::from_documents(None, Some(&mesh)).unwrap().mesh;
        let resources = ProxyConfigResources::from_objects(resources).unwrap();
        let config = resources.effective(&mesh, namespace, |key| labels[key].as_str(), annotation).unwrap();
        serde_json::from_str(&config.to_env()).unwrap()
    }

    fn from(place: &str) -> Value {
        json!({"environmentVariables": {"FROM": place, place: "1"}})
    }

    #[test]
    fn each_place_lies_over_the_one_before() {
        let resources = [
            resource(("shop", "pods"), "", &json!({"app": "web"}), &from("SELECTED")),
            resource(("shop", "all"), "", &Value::Null, &from("NAMESPACE")),
            resource(("mesh-root", "all"), "", &Value::Null, &from("ROOT")),
            resource(("other", "all"), "", &Value::Null, &from("OTHER")),
        ];
        let annotation = Some("proxyMetadata: {FROM: annotation, NAMESPACE: '2', ANNOTATION: '1'}");
        let metadata = |namespace: &str, labels: Value, annotation: Option<&str>| {
            printed(&resources, namespace, &labels, annotation)["proxyMetadata"].clone()
        };
        assert_eq!(
            metadata("shop", json!({"app": "web", "more": "x"}), annotation),
            json!({"ANNOTATION": "1", "FROM": "SELECTED", "MESH": "1", "NAMESPACE": "2", "ROOT": "1", "SELECTED": "1"})
        );
        assert_eq!(
            metadata("shop", json!({"app": "db"}), annotation),
            json!({"ANNOTATION": "1", "FROM": "annotation", "MESH": "1", "NAMESPACE": "2", "ROOT": "1"})
        );
        assert_eq!(
            metadata("shop", json!({}), None),
            json!({"FROM": "NAMESPACE", "MESH": "1", "NAMESPACE": "1", "ROOT": "1"})
        );
        assert_eq!(metadata("alone", json!({}), None), json!({"FROM": "ROOT", "MESH": "1", "ROOT": "1"}));
        assert_eq!(metadata("mesh-root", json!({}), None), json!({"FROM": "ROOT", "MESH": "1", "ROOT": "1"}));
    }

    #[test]
    fn the_oldest_at_a_place_counts_and_the_name_decides_between_twins() {
        let at = |name: &str, created: &str, selector: &Value| {
            resource(("shop", name), created, selector, &json!({"environmentVariables": {"FROM": name}}))
        };
        let pods = json!({"app": "web"});
        let resources = [
            at("younger", "2026-02-01T00:00:00Z", &Value::Null),
            at("twin-b", "2025-01-01T00:00:00Z", &Value::Null),
            at("twin-a", "2025-01-01T00:00:00Z", &Value::Null),
            at("selects-younger", "2025-01-02T00:00:00Z", &pods),
            at("selects", "2025-01-01T23:59:59Z", &pods),
        ];
        assert_eq!(printed(&resources, "shop", &json!({}), None)["proxyMetadata"]["FROM"], "twin-a");
        assert_eq!(printed(&resources, "shop", &pods, None)["proxyMetadata"]["FROM"], "selects");
    }

    #[test]
    fn only_threads_variables_and_the_image_are_taken_and_zero_is_a_number_of_threads() {
        let spec = json!({"concurrency": 0, "image": {"imageType": "debug"}, "statusPort": 1, "drainDuration": "1s"});
        let resources = [resource(("shop", "a"), "", &Value::Null, &spec)];
        assert_eq!(
            printed(&resources, "shop", &json!({}), Some("concurrency: 4\nimage: {imageType: distroless}")),
            json!({"concurrency": 4, "proxyMetadata": {"FROM": "mesh", "MESH": "1"}, "image": {"imageType": "distroless"}})
        );
        assert_eq!(printed(&resources, "shop", &json!({}), None)["concurrency"], 0);
    }

    #[test]
    fn resources_about_waypoints_touch_no_pod() {
        let mut waypoint = resource(("shop", "w"), "", &Value::Null, &json!({"concurrency": 7}));
        waypoint["spec"]["targetRef"] = json!({"kind": "Gateway", "name": "w"});
        assert_eq!(printed(&[waypoint], "shop", &json!({}), None).get("concurrency"), None);
    }

    #[test]
    fn everything_that_cannot_be_taken_is_told_with_its_object() {
        let bad = [
            resource(
                ("shop", "a"),
                "",
                &json!({"app": 1}),
                &json!({"concurrency": -1, "environmentVariables": {"A": 2}}),
            ),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}),
            json!({"apiVersion": "networking.istio.io/v1", "kind": "ProxyConfig", "metadata": {"name": "c"}, "spec": []}),
            json!(7),
        ];
        let errors = ProxyConfigResources::from_objects(&bad).unwrap_err();
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for start in [
            "ProxyConfig: shop/a: spec.selector.matchLabels.app: must be a string",
            "ProxyConfig: shop/a: spec.concurrency: -1 is less than 0",
            "ProxyConfig: shop/a: spec.environmentVariables.A: must be a string",
            "ProxyConfig: b: .: is no ProxyConfig of networking.istio.io",
            "ProxyConfig: c: spec: must be an object",
        ] {
            assert!(texts.iter().any(|text| text.starts_with(start)), "{start}: {texts:#?}");
        }
        assert!(
            texts.contains(
                &"ProxyConfig: an object without a name: .: is no ProxyConfig of networking.istio.io".to_owned()
            ),
            "{texts:#?}"
        );
    }
}
