//! What an earlier injection left in a pod: the record of what it added, and the containers as the user wrote them.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use super::annotations::{OVERRIDES, STATUS, Texts};

/// The record of an earlier injection; empty on a pod that was never injected.
#[derive(Debug, Default)]
pub(crate) struct Previous {
    /// The pod carries a record, readable or not.
    pub(crate) injected: bool,
    containers: Names,
    init_containers: Names,
}

/// What is recorded about one list of containers.
#[derive(Debug, Default)]
struct Names {
    /// Those that a template brought or changed.
    injected: HashSet<String>,
    /// Those that the user had written, as he wrote them.
    stored: HashMap<String, Value>,
}

impl Names {
    fn new(injected: Option<Vec<String>>, stored: Vec<Value>) -> Self {
        let mut names = Self { injected: injected.unwrap_or_default().into_iter().collect(), ..Self::default() };
        for container in stored {
            if let Some(name) = container["name"].as_str() {
                names.stored.entry(name.to_owned()).or_insert(container);
            }
        }
        names
    }
}

/// The annotation `sidecar.istio.io/status`, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    init_containers: Option<Vec<String>>,
    containers: Option<Vec<String>>,
}

/// The annotation `proxy.istio.io/overrides`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Overrides {
    containers: Vec<Value>,
    init_containers: Vec<Value>,
}

impl Previous {
    /// Reads the record of a pod. A status that is no JSON counts as a record of nothing, as in Istio; and as there, stored
    /// containers count where the status is lost.
    ///
    /// # Errors
    /// The stored containers cannot be read: injecting without them would lose what the user wrote.
    pub(crate) fn read(annotations: Texts<'_>) -> Result<Self, String> {
        let status = annotations.get(STATUS);
        let stored = match annotations.get(OVERRIDES) {
            None => Overrides::default(),
            Some(text) => serde_json::from_str(text).map_err(|error| {
                let text: String = text.chars().take(80).collect();
                format!("invalid value '{text}' for annotation '{OVERRIDES}': {error}")
            })?,
        };
        let injected = status.is_some();
        let status: Status = status.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok(Self {
            injected,
            containers: Names::new(status.containers, stored.containers),
            init_containers: Names::new(status.init_containers, stored.init_containers),
        })
    }

    /// The container came from a template, or was changed by one.
    pub(crate) fn injected_container(&self, name: &str) -> bool {
        self.containers.injected.contains(name)
    }

    /// The init container came from a template, or was changed by one.
    pub(crate) fn injected_init_container(&self, name: &str) -> bool {
        self.init_containers.injected.contains(name)
    }

    /// The user's own version of a container.
    pub(crate) fn stored_container(&self, name: &str) -> Option<&Value> {
        self.containers.stored.get(name)
    }

    /// The user's own version of an init container.
    pub(crate) fn stored_init_container(&self, name: &str) -> Option<&Value> {
        self.init_containers.stored.get(name)
    }

    /// The user's own version of a container of either kind: a proxy that was an ordinary container may be native now.
    pub(crate) fn stored(&self, name: &str) -> Option<&Value> {
        self.stored_container(name).or_else(|| self.stored_init_container(name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_istio_writes_with_its_nulls() {
        let pod = json!({"metadata": {"annotations": {
            STATUS: r#"{"initContainers":["istio-init","istio-proxy"],"containers":null,"volumes":["a"],"imagePullSecrets":null,"revision":"default"}"#,
            OVERRIDES: r#"{"containers":[{"name":"istio-proxy","resources":{}}]}"#,
        }}});
        let previous = Previous::read(Texts::of(&pod, "annotations")).unwrap();
        assert!(previous.injected && previous.injected_init_container("istio-proxy"));
        assert!(!previous.injected_container("istio-proxy"));
        assert_eq!(previous.stored("istio-proxy"), Some(&json!({"name": "istio-proxy", "resources": {}})));
    }

    #[test]
    fn a_status_that_is_no_json_records_nothing_but_broken_overrides_are_refused() {
        let pod = json!({"metadata": {"annotations": {STATUS: "injected"}}});
        let previous = Previous::read(Texts::of(&pod, "annotations")).unwrap();
        assert!(previous.injected && !previous.injected_container("istio-proxy"));
        let pod = json!({"metadata": {"annotations": {STATUS: "{}", OVERRIDES: "["}}});
        assert!(Previous::read(Texts::of(&pod, "annotations")).unwrap_err().contains(OVERRIDES));
        let pod = json!({"metadata": {"annotations": {OVERRIDES: "["}}});
        assert!(Previous::read(Texts::of(&pod, "annotations")).unwrap_err().contains(OVERRIDES));
    }
}
