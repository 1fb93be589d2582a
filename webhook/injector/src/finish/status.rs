//! The record of an injection: the annotation `sidecar.istio.io/status`.

use serde::Serialize;
use serde_json::Value;

pub use crate::annotations::STATUS;

/// Names of what the templates added, in their order; `None` for lists to which they added nothing.
///
/// Serialized with the keys in this order and `null` for absent lists, as Istio's tools expect it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InjectionStatus {
    /// `spec.initContainers`.
    pub init_containers: Option<Vec<String>>,
    /// `spec.containers`.
    pub containers: Option<Vec<String>>,
    /// `spec.volumes`.
    pub volumes: Option<Vec<String>>,
    /// `spec.imagePullSecrets`.
    pub image_pull_secrets: Option<Vec<String>>,
    /// Revision of the injector; never empty.
    pub revision: String,
}

impl InjectionStatus {
    /// Builds the record of an overlay; an empty revision is `default`.
    pub fn of_overlay(overlay: &Value, revision: &str) -> Self {
        let names = |field: &str| names(overlay.get("spec")?.get(field)?);
        Self {
            init_containers: names("initContainers"),
            containers: names("containers"),
            volumes: names("volumes"),
            image_pull_secrets: names("imagePullSecrets"),
            revision: if revision.is_empty() { "default".to_owned() } else { revision.to_owned() },
        }
    }

    /// Parses a record. Ignores unknown keys and values of other types, so that records of all versions can be read; returns
    /// `None` if the text is not a JSON object.
    pub fn parse(text: &str) -> Option<Self> {
        let Ok(Value::Object(record)) = serde_json::from_str(text) else { return None };
        let list = |key: &str| {
            let items = record.get(key)?.as_array()?;
            Some(items.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        };
        Some(Self {
            init_containers: list("initContainers"),
            containers: list("containers"),
            volumes: list("volumes"),
            image_pull_secrets: list("imagePullSecrets"),
            revision: record.get("revision").and_then(Value::as_str).unwrap_or("default").to_owned(),
        })
    }

    /// Returns the record of a pod; `None` if it has none, or an invalid one.
    pub fn of_pod(pod: &Value) -> Option<Self> {
        Self::parse(super::annotation(pod, STATUS)?)
    }

    /// Returns the annotation's value.
    pub fn to_json(&self) -> String {
        // Strings and lists of strings can always be serialized.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Sets the annotation of a pod.
    pub fn write(&self, pod: &mut Value) {
        super::annotate(pod, STATUS, &self.to_json());
    }
}

/// Returns the names of the items of a list; `None` if it is absent or empty.
fn names(list: &Value) -> Option<Vec<String>> {
    let names = list.as_array()?.iter().filter_map(|item| item["name"].as_str());
    let names: Vec<String> = names.map(str::to_owned).collect();
    (!names.is_empty()).then_some(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn record_has_ordered_keys_and_null_for_absent_lists() {
        let template = json!({"spec": {
            "volumes": [{"name": "b"}, {"name": "a"}], "containers": [], "initContainers": [{"name": "istio-validation"}, {"name": "istio-proxy"}]}});
        let mut pod = json!({});
        InjectionStatus::of_overlay(&template, "").write(&mut pod);
        assert_eq!(
            pod["metadata"]["annotations"][STATUS],
            r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null,"volumes":["b","a"],"imagePullSecrets":null,"revision":"default"}"#
        );
    }

    #[test]
    fn written_record_is_read_back() {
        let template = json!({"spec": {"containers": [{"name": "istio-proxy"}], "imagePullSecrets": [{"name": "s"}]}});
        let status = InjectionStatus::of_overlay(&template, "canary");
        let mut pod = json!({"metadata": {"annotations": null}});
        status.write(&mut pod);
        assert_eq!(InjectionStatus::of_pod(&pod), Some(status));
    }

    #[test]
    fn records_of_other_versions_are_read_leniently() {
        let status =
            InjectionStatus::parse(r#"{"version":"x","initContainers":"istio-init","containers":["a",1],"newer":{}}"#);
        let expected =
            InjectionStatus { containers: Some(vec!["a".into()]), revision: "default".into(), ..Default::default() };
        assert_eq!(status, Some(expected));
    }

    #[test]
    fn text_that_is_not_an_object_is_not_a_record() {
        assert_eq!(InjectionStatus::parse("injected"), None);
        assert_eq!(InjectionStatus::parse("[]"), None);
        assert_eq!(InjectionStatus::of_pod(&json!({"metadata": {}})), None);
    }
}
