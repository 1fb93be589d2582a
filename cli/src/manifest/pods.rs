//! Finds the pods in an object: the object itself, its pod template, or the items of a list.

use std::fmt;

use serde_json::{Map, Value};
use weir_injector::{InjectRequest, Workload};

use super::stream::Document;

const TEMPLATE: &[&str] = &["spec", "template"];
/// A CronJob wraps a Job; the pod gets the metadata of the innermost template.
const CRON_JOB_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template"];

/// Place of the pods in an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Pod,
    /// In a pod template at this path.
    Template(&'static [&'static str]),
    /// In the items.
    List,
}

/// Decides by group and kind, whatever the version; a third party's `Job` has no pod.
fn shape(api_version: &str, kind: &str) -> Option<Shape> {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    Some(match (group, kind) {
        ("", "Pod") => Shape::Pod,
        ("", "List") => Shape::List,
        // `v1` is what OpenShift's oldest clients wrote.
        ("", "ReplicationController" | "DeploymentConfig")
        | ("apps.openshift.io", "DeploymentConfig")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        // Their group before `apps`, in old manifests.
        | ("extensions", "Deployment" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => Shape::Template(TEMPLATE),
        ("batch", "CronJob") => Shape::Template(CRON_JOB_TEMPLATE),
        _ => return None,
    })
}

/// A field of an object that is missing or invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ShapeError {
    #[error("{0} is missing")]
    Missing(String),
    #[error("{path} must be {want}, found {found}")]
    Type { path: String, want: &'static str, found: String },
}

impl ShapeError {
    fn of_type(path: impl Into<String>, want: &'static str, value: &Value) -> Self {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) | Value::Number(_) => format!("{value} (quote it)"),
            Value::String(_) => "a string".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
        };
        Self::Type { path: path.into(), want, found }
    }
}

/// Name of an object in messages: `Deployment "shop/cart"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectName {
    pub(crate) kind: String,
    /// Empty if the manifest names none.
    pub(crate) namespace: String,
    /// The name, or `generateName` with a star; may be empty.
    pub(crate) name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        // Escaped: a name must not break out of the comment or line that it is printed in.
        write!(f, "{} {:?}", self.kind, format!("{}{slash}{}", self.namespace, self.name))
    }
}

/// A pod, or an object with a pod template, somewhere in a document.
#[derive(Debug)]
pub(crate) struct PodHolder<'a> {
    /// Positions in the enclosing lists, from 1; empty outside of lists.
    pub(crate) items: Vec<usize>,
    pub(crate) name: ObjectName,
    shape: Shape,
    object: &'a mut Value,
}

/// Finds the objects of a document that hold a pod, also as items of lists.
///
/// # Errors
/// The field `items` of a List is not a list.
pub(crate) fn find(document: &mut Value) -> Result<Vec<PodHolder<'_>>, Vec<ShapeError>> {
    let mut found = Vec::new();
    let mut errors = Vec::new();
    collect(document, Vec::new(), &mut found, &mut errors);
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

fn collect<'a>(object: &'a mut Value, items: Vec<usize>, found: &mut Vec<PodHolder<'a>>, errors: &mut Vec<ShapeError>) {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    match shape(text("apiVersion"), text("kind")) {
        None => {}
        Some(Shape::List) => match object.get_mut("items") {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => {
                for (index, item) in list.iter_mut().enumerate() {
                    let mut items = items.clone();
                    items.push(index + 1);
                    collect(item, items, found, errors);
                }
            }
            Some(other) => errors.push(ShapeError::of_type("items", "a list", other)),
        },
        Some(shape) => found.push(PodHolder { items, name: object_name(object), shape, object }),
    }
}

fn object_name(object: &Value) -> ObjectName {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = match (text("/metadata/name"), text("/metadata/generateName")) {
        ("", "") => String::new(),
        ("", prefix) => format!("{prefix}*"),
        (name, _) => name.to_owned(),
    };
    ObjectName { kind: text("/kind").to_owned(), namespace: text("/metadata/namespace").to_owned(), name }
}

impl PodHolder<'_> {
    /// Returns the location for messages: `document 2 (line 14), item 1: Deployment "shop/cart"`.
    pub(crate) fn location(&self, document: &Document<'_>) -> String {
        let items = self.items.iter().fold(String::new(), |text, item| text + ", item " + &item.to_string());
        format!("{document}{items}: {}", self.name)
    }

    /// Returns the pod as its controller would create it, for the injector.
    ///
    /// # Errors
    /// Every missing or invalid field.
    pub(crate) fn request(&self) -> Result<InjectRequest, Vec<ShapeError>> {
        let mut errors = Vec::new();
        check_metadata(self.object, "metadata", &mut errors);
        let (pod, workload) = match self.shape {
            Shape::Template(path) => (self.template(path, &mut errors), Some(self.workload())),
            Shape::Pod | Shape::List => {
                check_spec(self.object, "spec", &mut errors);
                (self.object.clone(), None)
            }
        };
        if !errors.is_empty() {
            return Err(errors);
        }
        let namespace = Some(self.name.namespace.clone()).filter(|namespace| !namespace.is_empty());
        Ok(InjectRequest { pod, namespace, workload, ..InjectRequest::default() })
    }

    /// Replaces the pod in the object.
    pub(crate) fn replace(&mut self, mut pod: Value) {
        let Shape::Template(path) = self.shape else {
            *self.object = pod;
            return;
        };
        let template = path.iter().try_fold(&mut *self.object, |at, key| at.get_mut(*key));
        let (Some(Value::Object(template)), Value::Object(pod)) = (template, &mut pod) else { return };
        if let Some(spec) = pod.shift_remove("spec") {
            template.insert("spec".to_owned(), spec);
        }
        if let Some(metadata) = pod.shift_remove("metadata") {
            match template.get_mut("metadata") {
                Some(place) => *place = metadata,
                // Metadata is expected in front of the spec.
                None => _ = template.shift_insert(0, "metadata".to_owned(), metadata),
            }
        } else {
            template.shift_remove("metadata");
        }
    }

    fn template(&self, path: &[&str], errors: &mut Vec<ShapeError>) -> Value {
        let mut template = &*self.object;
        for (depth, key) in path.iter().enumerate() {
            let name = path[..=depth].join(".");
            match template.get(*key) {
                Some(inner @ Value::Object(_)) => template = inner,
                None | Some(Value::Null) => {
                    errors.push(ShapeError::Missing(name));
                    return Value::Null;
                }
                Some(other) => {
                    errors.push(ShapeError::of_type(name, "an object", other));
                    return Value::Null;
                }
            }
        }
        let name = path.join(".");
        check_metadata(template, &format!("{name}.metadata"), errors);
        check_spec(template, &format!("{name}.spec"), errors);
        let mut pod = Map::new();
        pod.insert("apiVersion".to_owned(), "v1".into());
        pod.insert("kind".to_owned(), "Pod".into());
        for key in ["metadata", "spec"] {
            if let Some(value) = template.get(key) {
                pod.insert(key.to_owned(), value.clone());
            }
        }
        Value::Object(pod)
    }

    fn workload(&self) -> Workload {
        let text = |key: &str| self.object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = self.object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        Workload { api_version: text("apiVersion"), kind: text("kind"), name, namespace: self.name.namespace.clone() }
    }
}

/// Checks what the API server would reject; manifests reach the injector first.
fn check_metadata(holder: &Value, path: &str, errors: &mut Vec<ShapeError>) {
    let metadata = match holder.get("metadata") {
        None | Some(Value::Null) => return,
        Some(Value::Object(metadata)) => metadata,
        Some(other) => return errors.push(ShapeError::of_type(path, "an object", other)),
    };
    for key in ["name", "generateName", "namespace"] {
        match metadata.get(key) {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(other) => errors.push(ShapeError::of_type(format!("{path}.{key}"), "a string", other)),
        }
    }
    for key in ["labels", "annotations"] {
        match metadata.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => {
                for (name, value) in map.iter().filter(|(_, value)| !value.is_string()) {
                    errors.push(ShapeError::of_type(format!("{path}.{key}[{name}]"), "a string", value));
                }
            }
            Some(other) => errors.push(ShapeError::of_type(format!("{path}.{key}"), "an object", other)),
        }
    }
}

fn check_spec(holder: &Value, path: &str, errors: &mut Vec<ShapeError>) {
    match holder.get("spec") {
        Some(Value::Object(_)) => {}
        None | Some(Value::Null) => errors.push(ShapeError::Missing(path.to_owned())),
        Some(other) => errors.push(ShapeError::of_type(path, "an object", other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn group_and_kind_decide() {
        for (api_version, kind, want) in [
            ("v1", "Pod", Some(Shape::Pod)),
            ("v1", "List", Some(Shape::List)),
            ("v1", "DeploymentConfig", Some(Shape::Template(TEMPLATE))),
            ("apps.openshift.io/v1", "DeploymentConfig", Some(Shape::Template(TEMPLATE))),
            ("apps/v1", "Deployment", Some(Shape::Template(TEMPLATE))),
            ("apps/v1beta2", "StatefulSet", Some(Shape::Template(TEMPLATE))),
            ("batch/v1", "Job", Some(Shape::Template(TEMPLATE))),
            ("batch/v1beta1", "CronJob", Some(Shape::Template(CRON_JOB_TEMPLATE))),
            ("batch.volcano.sh/v1alpha1", "Job", None),
            ("serving.example.com/v1", "Deployment", None),
            ("apps/v1", "Pod", None),
            ("v1", "Service", None),
            ("", "", None),
        ] {
            assert_eq!(shape(api_version, kind), want, "{api_version} {kind}");
        }
    }

    fn cron_job() -> Value {
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly", "namespace": "shop"},
            "spec": {"schedule": "@daily", "jobTemplate": {"metadata": {"labels": {"at": "job"}},
                "spec": {"template": {"spec": {"containers": []}, "keep": 1}}}},
        })
    }

    #[test]
    fn cron_job_has_its_pod_in_the_innermost_template() {
        let mut object = cron_job();
        let mut found = find(&mut object).unwrap();
        let request = found[0].request().unwrap();
        assert_eq!(request.pod, json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []}}));
        assert_eq!(request.namespace.as_deref(), Some("shop"));
        let workload = request.workload.unwrap();
        assert_eq!((workload.kind.as_str(), workload.name.as_str()), ("CronJob", "nightly"));

        found[0].replace(json!({"metadata": {"labels": {"in": "pod"}}, "spec": {"containers": [1]}}));
        let template = object.pointer("/spec/jobTemplate/spec/template").unwrap();
        assert_eq!(
            template.to_string(),
            r#"{"metadata":{"labels":{"in":"pod"}},"spec":{"containers":[1]},"keep":1}"#,
            "metadata in front, other fields kept"
        );
        assert_eq!(object.pointer("/spec/jobTemplate/metadata"), Some(&json!({"labels": {"at": "job"}})));
    }

    #[test]
    fn items_of_nested_lists_have_their_positions() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"}, "spec": {}});
        let inner = json!({"apiVersion": "v1", "kind": "List", "items": [pod]});
        let mut outer = json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Service"}, inner]});
        let found = find(&mut outer).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].items, [2, 1]);
        assert_eq!(found[0].name.to_string(), "Pod \"web-*\"");
    }

    #[test]
    fn names_are_escaped() {
        let name = ObjectName { kind: "Pod".to_owned(), namespace: String::new(), name: "x\n-A OUTPUT".to_owned() };
        assert_eq!(name.to_string(), r#"Pod "x\n-A OUTPUT""#);
    }

    #[test]
    fn all_errors_of_an_object_are_reported() {
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": 7, "labels": []},
            "spec": {"template": {"metadata": {"annotations": {"sidecar.istio.io/inject": false}}, "spec": [1]}},
        });
        let errors = find(&mut object).unwrap()[0].request().unwrap_err();
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.name must be a string, found 7 (quote it)",
                "metadata.labels must be an object, found a list",
                "spec.template.metadata.annotations[sidecar.istio.io/inject] must be a string, found false (quote it)",
                "spec.template.spec must be an object, found a list",
            ]
        );
    }

    #[test]
    fn workload_without_template_is_an_error() {
        let mut object = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {}, "spec": {}});
        let errors = find(&mut object).unwrap()[0].request().unwrap_err();
        assert_eq!(errors, [ShapeError::Missing("spec.template".to_owned())]);
    }

    #[test]
    fn list_without_items_is_empty_and_other_types_are_errors() {
        assert!(find(&mut json!({"apiVersion": "v1", "kind": "List", "items": null})).unwrap().is_empty());
        let errors = find(&mut json!({"apiVersion": "v1", "kind": "List", "items": "x"})).unwrap_err();
        assert_eq!(errors[0].to_string(), "items must be a list, found a string");
    }
}
