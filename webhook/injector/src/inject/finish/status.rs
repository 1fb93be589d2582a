//! The record of an injection, annotation `sidecar.istio.io/status`: what the template brought, and which revision.

use serde::Serialize;
use serde_json::Value;

/// The annotation's name.
pub const STATUS: &str = "sidecar.istio.io/status";

/// Names of what a template brought, in its order; `None` for a list that it does not have.
///
/// Written as JSON with the keys in this order and `null` for absent lists, as Istio's tools know it.
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
    /// The record of a template (a pod with only what is added) and a revision; an empty one is `default`.
    pub fn of_template(template: &Value, revision: &str) -> Self {
        let names = |field: &str| names(template.get("spec")?.get(field)?);
        Self {
            init_containers: names("initContainers"),
            containers: names("containers"),
            volumes: names("volumes"),
            image_pull_secrets: names("imagePullSecrets"),
            revision: if revision.is_empty() { "default".to_owned() } else { revision.to_owned() },
        }
    }

    /// Reads a record. Unknown keys, keys of another type and names that are no text are passed over, so that records of
    /// any age are understood; `None` where the text is no JSON object.
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

    /// The record that a pod carries; `None` where it carries none that can be read.
    pub fn of_pod(pod: &Value) -> Option<Self> {
        Self::parse(super::annotation(pod, STATUS)?)
    }

    /// The text of the annotation.
    pub fn to_json(&self) -> String {
        // Texts and lists of texts always have a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Writes the record into a pod.
    pub fn write(&self, pod: &mut Value) {
        super::annotate(pod, STATUS, &self.to_json());
    }
}

/// Names of the items of a list; `None` where it is absent or empty.
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
    fn the_record_has_its_keys_in_order_and_null_for_what_is_absent() {
        let template = json!({"spec": {
            "volumes": [{"name": "b"}, {"name": "a"}], "containers": [], "initContainers": [{"name": "istio-validation"}, {"name": "istio-proxy"}]}});
        let mut pod = json!({});
        InjectionStatus::of_template(&template, "").write(&mut pod);
        assert_eq!(
            pod["metadata"]["annotations"][STATUS],
            r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null,"volumes":["b","a"],"imagePullSecrets":null,"revision":"default"}"#
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let template = json!({"spec": {"containers": [{"name": "istio-proxy"}], "imagePullSecrets": [{"name": "s"}]}});
        let status = InjectionStatus::of_template(&template, "canary");
        let mut pod = json!({"metadata": {"annotations": null}});
        status.write(&mut pod);
        assert_eq!(InjectionStatus::of_pod(&pod), Some(status));
    }

    #[test]
    fn records_of_other_versions_are_read_as_far_as_they_go() {
        let status =
            InjectionStatus::parse(r#"{"version":"x","initContainers":"istio-init","containers":["a",1],"newer":{}}"#);
        let expected =
            InjectionStatus { containers: Some(vec!["a".into()]), revision: "default".into(), ..Default::default() };
        assert_eq!(status, Some(expected));
    }

    #[test]
    fn a_text_that_is_no_object_is_no_record() {
        assert_eq!(InjectionStatus::parse("injected"), None);
        assert_eq!(InjectionStatus::parse("[]"), None);
        assert_eq!(InjectionStatus::of_pod(&json!({"metadata": {}})), None);
    }
}
