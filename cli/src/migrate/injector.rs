//! Injectors of a cluster, by their webhook configurations, and which of them the API server sends a pod to.

use serde_json::{Map, Value, json};
use weir_injector::selection::configurations::{DEACTIVATED_LABEL, OWNER_REVISION_LABEL, OWNER_TAG_LABEL};
use weir_injector::selection::{INJECTION_LABEL, REVISION_LABEL};
use weir_injector::selector::Selector;

use super::object::{label, name};
use crate::revisions::DEFAULT;

/// Label of Istio's configurations with the tag.
const ISTIO_TAG_LABEL: &str = "istio.io/tag";
/// Label key of a selector that matches nothing, in a deactivated configuration of Istio.
const ISTIO_DEACTIVATED: &str = "istio.io/deactivated";
/// Path at which injectors serve.
const INJECT_PATH: &str = "/inject";

/// Whose injector a configuration belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Vendor {
    Istio,
    Weir,
}

/// A webhook configuration that injects sidecars.
#[derive(Debug, Clone)]
pub(super) struct Injector {
    /// Name of the MutatingWebhookConfiguration.
    pub(super) configuration: String,
    pub(super) vendor: Vendor,
    /// Revision of the control plane; `default` if it has no name.
    pub(super) revision: String,
    /// Tag that the configuration is for.
    pub(super) tag: Option<String>,
    /// The Service or URL that the API server sends pods to.
    pub(super) target: String,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    namespace: Result<Selector, String>,
    object: Result<Selector, String>,
    is_deactivated: bool,
}

impl Injector {
    /// Reads a configuration; `None` if it is no injector's.
    pub(super) fn of(configuration: &Value) -> Option<Self> {
        let entries = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
        let injecting: Vec<&Value> = entries.iter().filter(|entry| is_injecting(entry)).collect();
        let first = injecting.first()?;
        let weir = label(configuration, OWNER_REVISION_LABEL);
        let (vendor, revision, tag) = match weir {
            Some(revision) => (Vendor::Weir, Some(revision), label(configuration, OWNER_TAG_LABEL)),
            None => (Vendor::Istio, label(configuration, REVISION_LABEL), label(configuration, ISTIO_TAG_LABEL)),
        };
        Some(Self {
            configuration: name(configuration).to_owned(),
            vendor,
            revision: revision.filter(|revision| !revision.is_empty()).unwrap_or(DEFAULT).to_owned(),
            tag: tag.map(str::to_owned),
            target: target(first),
            entries: injecting.into_iter().map(Entry::of).collect(),
        })
    }

    /// Returns whether the API server sends a pod with these labels to it.
    pub(super) fn selects(&self, namespace: &Map<String, Value>, pod: &Map<String, Value>) -> bool {
        self.entries.iter().any(|entry| {
            let matches = |selector: &Result<Selector, String>, labels| {
                selector.as_ref().is_ok_and(|selector| selector.matches(Some(labels)))
            };
            !entry.is_deactivated && matches(&entry.namespace, namespace) && matches(&entry.object, pod)
        })
    }

    /// Returns whether no pod is sent to it any more.
    pub(super) fn is_deactivated(&self) -> bool {
        self.entries.iter().all(|entry| entry.is_deactivated)
    }

    /// Returns the value of label `istio.io/rev` that selects it.
    pub(super) fn selecting_revision(&self) -> &str {
        self.tag.as_deref().unwrap_or(&self.revision)
    }
}

impl Entry {
    fn of(entry: &Value) -> Self {
        let selector = |key: &str| Selector::parse(entry.get(key).unwrap_or(&json!({})));
        let text = entry["namespaceSelector"].to_string();
        Self {
            namespace: selector("namespaceSelector"),
            object: selector("objectSelector"),
            is_deactivated: [ISTIO_DEACTIVATED, DEACTIVATED_LABEL].iter().any(|key| text.contains(key)),
        }
    }
}

fn is_injecting(entry: &Value) -> bool {
    let client = &entry["clientConfig"];
    let path = client.pointer("/service/path").and_then(Value::as_str);
    let url = client["url"].as_str().and_then(|url| url.splitn(4, '/').nth(3));
    path.is_some_and(|path| path.starts_with(INJECT_PATH))
        || url.is_some_and(|path| path.starts_with(INJECT_PATH.trim_start_matches('/')))
}

fn target(entry: &Value) -> String {
    let service = &entry["clientConfig"]["service"];
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    match entry["clientConfig"]["url"].as_str() {
        Some(url) => url.to_owned(),
        None => format!("service {}/{}", text("namespace"), text("name")),
    }
}

/// Returns the labels of a namespace after its move to a revision.
pub(super) fn moved_labels(labels: &Map<String, Value>, revision: &str) -> Map<String, Value> {
    let mut labels = labels.clone();
    labels.shift_remove(INJECTION_LABEL);
    labels.insert(REVISION_LABEL.to_owned(), revision.into());
    labels
}

#[cfg(test)]
mod tests {
    use weir_injector::selection::InjectorRevision;
    use weir_injector::selection::configurations::WebhookOptions;

    use super::*;
    use crate::migrate::tests::istio_configuration;

    fn labels(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn selection_is_that_of_the_configuration() {
        let istio = Injector::of(&istio_configuration()).unwrap();
        assert_eq!((istio.vendor, istio.revision.as_str(), istio.tag.as_deref()), (Vendor::Istio, "default", None));
        let none = labels(&json!({}));
        assert!(istio.selects(&labels(&json!({"istio-injection": "enabled"})), &none));
        assert!(
            !istio.selects(&none, &none) && istio.selects(&none, &labels(&json!({"sidecar.istio.io/inject": "true"})))
        );
        let moved = moved_labels(&labels(&json!({"istio-injection": "enabled", "team": "a"})), "weir");
        assert_eq!(Value::Object(moved.clone()), json!({"team": "a", "istio.io/rev": "weir"}));
        let revision = InjectorRevision { revision: "weir".to_owned(), ..InjectorRevision::default() };
        let own = revision.webhook_configurations(&WebhookOptions::default());
        let weir = Injector::of(&own[0]).unwrap();
        assert_eq!((weir.vendor, weir.revision.as_str()), (Vendor::Weir, "weir"));
        assert!(weir.selects(&moved, &none) && !istio.selects(&moved, &none));
    }

    #[test]
    fn other_webhooks_and_deactivated_entries_select_nothing() {
        let mut configuration = istio_configuration();
        for entry in configuration["webhooks"].as_array_mut().unwrap() {
            entry["namespaceSelector"] =
                json!({"matchExpressions": [{"key": ISTIO_DEACTIVATED, "operator": "Exists"}]});
        }
        let off = Injector::of(&configuration).unwrap();
        assert!(
            off.is_deactivated() && !off.selects(&labels(&json!({"istio-injection": "enabled"})), &labels(&json!({})))
        );
        configuration["webhooks"] = json!([{"clientConfig": {"service": {"name": "istiod", "path": "/validate"}}}]);
        assert!(Injector::of(&configuration).is_none());
    }
}
