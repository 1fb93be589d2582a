//! Webhook configurations.

use serde::Deserialize;
use weir_injector::selection::Labels;
use weir_injector::selection::configurations::{OWNER_REVISION_LABEL, OWNER_TAG_LABEL};

use super::object::{LabelSelector, Metadata};
use crate::finding::FindingObject;

/// A MutatingWebhookConfiguration.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WebhookConfiguration {
    pub(crate) metadata: Metadata,
    pub(crate) webhooks: Vec<WebhookEntry>,
}

/// An item of `webhooks`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WebhookEntry {
    pub(crate) name: String,
    pub(crate) namespace_selector: LabelSelector,
    pub(crate) object_selector: LabelSelector,
    rules: Vec<Rule>,
    pub(crate) client_config: ClientConfig,
    pub(crate) failure_policy: String,
    pub(crate) timeout_seconds: Option<u64>,
    pub(crate) admission_review_versions: Vec<String>,
    pub(crate) match_conditions: Vec<MatchCondition>,
    pub(crate) side_effects: String,
    pub(crate) reinvocation_policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClientConfig {
    pub(crate) ca_bundle: String,
    pub(crate) url: Option<String>,
    pub(crate) service: Option<ServiceReference>,
}

/// The Service that a webhook entry calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceReference {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) path: String,
    port: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MatchCondition {
    pub(crate) name: String,
}

impl WebhookConfiguration {
    /// Returns the revision of Weir that the configuration belongs to; `None` for another injector's.
    pub(crate) fn revision(&self) -> Option<&str> {
        self.metadata.label(OWNER_REVISION_LABEL)
    }

    /// Returns the tag, if the configuration belongs to one.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.metadata.label(OWNER_TAG_LABEL)
    }

    pub(crate) fn object(&self) -> FindingObject {
        self.metadata.object("MutatingWebhookConfiguration")
    }
}

impl WebhookEntry {
    /// Returns whether the API server sends a pod with these labels.
    pub(crate) fn selects(&self, labels: Labels<'_>) -> bool {
        self.namespace_selector.matches(labels.namespace) && self.object_selector.matches(labels.pod)
    }

    /// Returns whether the rules match the creation of pods.
    pub(crate) fn matches_pod_create(&self) -> bool {
        let has = |list: &[String], word: &str| list.iter().any(|item| item == word || item == "*");
        self.rules.iter().any(|rule| {
            has(&rule.operations, "CREATE")
                && has(&rule.api_groups, "")
                && has(&rule.api_versions, "v1")
                && has(&rule.resources, "pods")
        })
    }
}

impl ServiceReference {
    pub(crate) fn port(&self) -> u64 {
        self.port.unwrap_or(443)
    }
}
