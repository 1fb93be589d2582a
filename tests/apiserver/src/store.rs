//! Objects with their versions and history.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::resources::qualified;

/// Changes that are kept for watches; older ones are discarded, as a compaction does.
const MAX_HISTORY: usize = 50_000;

/// An error response: HTTP status, machine-readable reason, message (`StatusError` of apimachinery).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StatusError {
    pub(super) code: u16,
    pub(super) reason: Cow<'static, str>,
    pub(super) message: String,
    pub(super) details: Option<Box<Value>>,
}

impl StatusError {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: None }
    }
}

/// One change of an object. `before` and `after` show whether a selector gains or loses it.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) resource: String,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// All objects, by resource, namespace and name.
#[derive(Debug, Default)]
pub(super) struct Store {
    objects: BTreeMap<[String; 3], Value>,
    history: Vec<Change>,
    version: u64,
    /// The version up to which the history is discarded.
    compacted: u64,
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&[resource, namespace, name].map(str::to_owned))
    }

    pub(super) fn list(&self, resource: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |([of, _, _], _)| of == resource).map(|(_, object)| object)
    }

    /// Creates or replaces an object; uid and creation time are those of the replaced one.
    pub(super) fn put(&mut self, resource: &str, mut object: Value) -> Value {
        self.version += 1;
        let version = self.version;
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let text = |object: &Value, key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        if text(&object, "name").is_empty() {
            object["metadata"]["name"] = format!("{}{version:05}", text(&object, "generateName")).into();
        }
        let key = [resource.to_owned(), text(&object, "namespace"), text(&object, "name")];
        let before = self.objects.get(&key).cloned();
        let old = |field: &str| before.as_ref().map(|before| before["metadata"][field].clone());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] =
                old("uid").unwrap_or_else(|| format!("00000000-0000-4000-8000-{version:012}").into());
        }
        if object["metadata"]["creationTimestamp"].is_null() {
            object["metadata"]["creationTimestamp"] =
                old("creationTimestamp").unwrap_or_else(|| "2026-01-01T00:00:00Z".into());
        }
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.objects.insert(key, object.clone());
        self.record(Change { version, resource: resource.to_owned(), before, after: Some(object.clone()) });
        object
    }

    pub(super) fn remove(&mut self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let before = self.objects.remove(&[resource, namespace, name].map(str::to_owned))?;
        self.version += 1;
        let mut last = before.clone();
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        let change = Change { version: self.version, resource: resource.to_owned(), before: Some(last), after: None };
        self.record(change);
        Some(before)
    }

    fn record(&mut self, change: Change) {
        if self.history.len() == MAX_HISTORY {
            let old: Vec<Change> = self.history.drain(..MAX_HISTORY / 2).collect();
            self.compacted = old.last().map_or(self.compacted, |last| last.version);
        }
        self.history.push(change);
    }

    /// Creates an object for a client; with `dry_run` nothing is stored.
    pub(super) fn create(
        &mut self,
        api_version: &str,
        resource: &str,
        namespace: &str,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Value, StatusError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if !name.is_empty() && self.get(resource, namespace, name).is_some() {
            let message = format!("{} \"{name}\" already exists", qualified(api_version, resource));
            return Err(StatusError::new(409, "AlreadyExists", message));
        }
        let kept = object["metadata"]["generateName"].is_string() || !name.is_empty();
        if !kept {
            let message =
                format!("{resource} is invalid: metadata.name: Required value: name or generateName is required");
            return Err(StatusError::new(422, "Invalid", message));
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("uid");
        }
        if dry_run {
            if object["metadata"]["name"].is_null() {
                let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default();
                object["metadata"]["name"] = format!("{prefix}{:05}", self.version).into();
            }
            return Ok(object);
        }
        Ok(self.put(resource, object))
    }

    /// Checks the preconditions of an update from `old` to `new` and undoes changes outside of the (sub)resource and of metadata that
    /// the server maintains.
    pub(super) fn restrict_to_subresource(
        resource: &str,
        old: &Value,
        mut new: Value,
        status: bool,
    ) -> Result<Value, StatusError> {
        let name = old["metadata"]["name"].as_str().unwrap_or_default();
        for (key, reason) in [
            (
                "resourceVersion",
                "the object has been modified; please apply your changes to the latest version and try again",
            ),
            ("uid", "another object has that name"),
        ] {
            let given = &new["metadata"][key];
            if !given.is_null() && *given != old["metadata"][key] {
                let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {reason}");
                return Err(StatusError::new(409, "Conflict", message));
            }
        }
        for key in ["resourceVersion", "uid", "creationTimestamp", "generation"] {
            match old["metadata"].get(key) {
                Some(value) => new["metadata"][key] = value.clone(),
                None => drop(new["metadata"].as_object_mut().and_then(|metadata| metadata.remove(key))),
            }
        }
        // The main resource does not change the status, and the status nothing but itself and metadata.
        let kept: &[&str] = if status { &["spec", "data"] } else { &["status"] };
        if let Some(new) = new.as_object_mut() {
            for key in kept {
                match old.get(*key) {
                    Some(value) => drop(new.insert((*key).to_owned(), value.clone())),
                    None => drop(new.remove(*key)),
                }
            }
        }
        Ok(new)
    }

    /// Deletes an object for a client, if its preconditions hold.
    pub(super) fn delete(&mut self, resource: &str, object: &Value, options: &Value) -> Result<Value, StatusError> {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        for key in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][key];
            if !wanted.is_null() && *wanted != object["metadata"][key] {
                let message = format!("{resource} \"{}\": precondition failed: {key}", text("name"));
                return Err(StatusError::new(409, "Conflict", message));
            }
        }
        if resource == "namespaces" {
            let inside = |[_, namespace, _]: &&[String; 3]| namespace == text("name");
            let keys: Vec<[String; 3]> = self.objects.keys().filter(inside).cloned().collect();
            for [resource, namespace, name] in keys {
                self.remove(&resource, &namespace, &name);
            }
        }
        Ok(self.remove(resource, text("namespace"), text("name")).unwrap_or_default())
    }

    /// Returns the changes after a version; `None` where they have been discarded.
    pub(super) fn since(&self, version: u64) -> Option<&[Change]> {
        if version < self.compacted {
            return None;
        }
        let start = self.history.partition_point(|change| change.version <= version);
        Some(&self.history[start..])
    }

    /// Discards the history, so that every version that a client may have seen is too old.
    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        self.history.clear();
    }
}

/// Applies a JSON merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Returns whether an object matches `fieldSelector` and `labelSelector` with the terms `key=value`, `key==value`, `key!=value`, `key`, `!key`.
pub(super) fn matches_selectors(object: &Value, namespace: &str, fields: &str, labels: &str) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let in_namespace = namespace.is_empty() || object["metadata"]["namespace"] == namespace;
    let field = |path: &str| text(path.split('.').fold(object, |value, key| &value[key]));
    let label = |key: &str| object["metadata"]["labels"].get(key).map(text);
    in_namespace
        && terms(fields).all(|term| match operator(term) {
            (path, Some((equal, value))) => (field(path) == value) == equal,
            (path, None) => !field(path).is_empty(),
        })
        && terms(labels).all(|term| match (operator(term), term.strip_prefix('!')) {
            ((key, Some((equal, value))), _) => (label(key).as_deref() == Some(value)) == equal,
            (_, Some(absent)) => label(absent).is_none(),
            ((key, None), None) => label(key).is_some(),
        })
}

fn terms(selector: &str) -> impl Iterator<Item = &str> {
    selector.split(',').map(str::trim).filter(|term| !term.is_empty())
}

fn operator(term: &str) -> (&str, Option<(bool, &str)>) {
    for (sign, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = term.split_once(sign) {
            return (key.trim(), Some((equal, value.trim())));
        }
    }
    (term, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str) -> Value {
        json!({"metadata": {"namespace": "shop", "name": "web", "labels": {"app": "web"}}, "spec": {"nodeName": node}})
    }

    #[test]
    fn selectors_match_fields_labels_and_namespace() {
        let pod = pod("n1");
        for (namespace, fields, labels, expected) in [
            ("", "", "", true),
            ("shop", "spec.nodeName=n1", "app=web", true),
            ("other", "", "", false),
            ("", "spec.nodeName=n2", "", false),
            ("", "spec.nodeName!=n2,metadata.name==web", "", true),
            ("", "", "app,!gone", true),
            ("", "", "app!=web", false),
            ("", "", "gone", false),
        ] {
            assert_eq!(matches_selectors(&pod, namespace, fields, labels), expected, "{namespace} {fields} {labels}");
        }
    }

    #[test]
    fn update_needs_current_version_and_keeps_to_its_subresource() {
        let mut store = Store::default();
        let first = store.put("pods", pod("n1"));
        let mut stale = first.clone();
        store.put("pods", pod("n1"));
        let now = store.get("pods", "shop", "web").unwrap().clone();
        let change = |new: &Value, status| Store::restrict_to_subresource("pods", &now, new.clone(), status);
        assert_eq!(change(&stale, false).unwrap_err().code, 409);
        stale["metadata"]["resourceVersion"] = Value::Null;
        stale["status"] = json!({"phase": "Running"});
        stale["spec"]["nodeName"] = "n2".into();
        let main = change(&stale, false).unwrap();
        assert_eq!((&main["spec"]["nodeName"], &main["status"]), (&json!("n2"), &Value::Null));
        let status = change(&stale, true).unwrap();
        assert_eq!((&status["spec"]["nodeName"], &status["status"]["phase"]), (&json!("n1"), &json!("Running")));
        assert_eq!(status["metadata"]["resourceVersion"], now["metadata"]["resourceVersion"]);
    }

    #[test]
    fn delete_checks_preconditions() {
        let mut store = Store::default();
        let pod = store.put("pods", pod("n1"));
        for key in ["uid", "resourceVersion"] {
            assert_eq!(store.delete("pods", &pod, &json!({"preconditions": {key: "x"}})).unwrap_err().code, 409);
        }
        let right = json!({"preconditions": {"uid": pod["metadata"]["uid"]}});
        store.delete("pods", &pod, &right).unwrap();
        assert!(store.get("pods", "shop", "web").is_none());
    }

    #[test]
    fn compacted_history_is_unavailable() {
        let mut store = Store::default();
        store.put("pods", pod("n1"));
        assert_eq!(store.since(0).map(<[Change]>::len), Some(1));
        store.compact();
        assert!(store.since(1).is_none());
        assert_eq!(store.since(store.version()).map(<[Change]>::len), Some(0));
    }
}
