//! The parts of a MutatingWebhookConfiguration that concern `caBundle`.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, WebhookClientConfig};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};
use weir_injector::selection::configurations::ENTRY_SUFFIX;

use super::trust::TrustBundle;

/// A webhook configuration as last observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObservedConfiguration {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    /// Our webhook entries.
    pub(super) entries: Vec<ObservedEntry>,
}

/// One of our webhook entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObservedEntry {
    pub(super) name: String,
    /// `clientConfig.caBundle`, decoded; empty for none.
    pub(super) bundle: Vec<u8>,
    /// Name that the API server expects in the certificate: `SERVICE.NAMESPACE.svc`, or the host of the URL.
    pub(super) host: String,
}

impl From<MutatingWebhookConfiguration> for ObservedConfiguration {
    fn from(object: MutatingWebhookConfiguration) -> Self {
        let ours = object.webhooks.unwrap_or_default().into_iter().filter(|entry| entry.name.ends_with(ENTRY_SUFFIX));
        let entry = |entry: k8s_openapi::api::admissionregistration::v1::MutatingWebhook| ObservedEntry {
            host: host(&entry.client_config),
            bundle: entry.client_config.ca_bundle.map(|bytes| bytes.0).unwrap_or_default(),
            name: entry.name,
        };
        Self {
            name: object.metadata.name.unwrap_or_default(),
            uid: object.metadata.uid.unwrap_or_default(),
            resource_version: object.metadata.resource_version.unwrap_or_default(),
            entries: ours.map(entry).collect(),
        }
    }
}

fn host(config: &WebhookClientConfig) -> String {
    if let Some(service) = &config.service {
        return format!("{}.{}.svc", service.name, service.namespace);
    }
    let url = config.url.as_deref().unwrap_or_default();
    let authority = url.strip_prefix("https://").unwrap_or(url).split(['/', '?', '#']).next().unwrap_or_default();
    // A port follows the last colon, unless that is within an IPv6 address.
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

impl ObservedConfiguration {
    /// Returns whether an entry's bundle differs from `trust`.
    pub(super) fn differs_from(&self, trust: &TrustBundle) -> bool {
        self.entries.iter().any(|entry| !trust.has_same_certs(&entry.bundle))
    }

    /// Returns whether every entry trusts all of `trust`.
    pub(super) fn trusts_all_of(&self, trust: &TrustBundle) -> bool {
        self.entries.iter().all(|entry| trust.is_subset_of(&entry.bundle))
    }

    /// Returns the object to apply, with the bundle of all our entries: one that was left out would lose its bundle.
    pub(super) fn apply_patch(&self, trust: &TrustBundle) -> Value {
        let bundle = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, trust.pem());
        let entries =
            self.entries.iter().map(|entry| json!({"name": entry.name, "clientConfig": {"caBundle": bundle}}));
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": self.name, "uid": self.uid, "resourceVersion": self.resource_version},
            "webhooks": entries.collect::<Vec<_>>(),
        })
    }

    pub(super) fn object_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("admissionregistration.k8s.io/v1".to_owned()),
            kind: Some("MutatingWebhookConfiguration".to_owned()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::certs;

    fn observed(webhooks: &Value) -> ObservedConfiguration {
        let object = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "7"}, "webhooks": webhooks});
        serde_json::from_value::<MutatingWebhookConfiguration>(object).unwrap().into()
    }

    fn service() -> Value {
        json!({"service": {"name": "weir-webhook", "namespace": "weir-system"}})
    }

    #[test]
    fn only_our_entries_are_observed_with_their_host() {
        let found = observed(&json!([
            {"name": "object.sidecar-injector.weir.dev", "clientConfig": service()},
            {"name": "sidecar-injector.istio.io", "clientConfig": service()},
            {"name": "a.sidecar-injector.weir.dev", "clientConfig": {"url": "https://mesh.example.org:15017/inject"}},
            {"name": "b.sidecar-injector.weir.dev", "clientConfig": {"url": "https://[fd00::1]:443/inject"}},
            {"name": "c.sidecar-injector.weir.dev", "clientConfig": {"url": "https://mesh.example.org/inject?x=1:2"}},
        ]));
        let hosts: Vec<_> = found.entries.iter().map(|entry| entry.host.as_str()).collect();
        assert_eq!(hosts, ["weir-webhook.weir-system.svc", "mesh.example.org", "fd00::1", "mesh.example.org"]);
    }

    #[test]
    fn patch_holds_the_bundle_of_every_entry_only() {
        let ca = certs::generate(&["localhost".to_owned()], 1, SystemTime::now()).unwrap().ca;
        let trust = TrustBundle::parse(&ca).unwrap();
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &ca);
        let mut right = service();
        right["caBundle"] = json!(encoded);
        let found = observed(&json!([
            {"name": "object.sidecar-injector.weir.dev", "clientConfig": right},
            {"name": "namespace.sidecar-injector.weir.dev", "clientConfig": service()},
        ]));
        assert!(found.differs_from(&trust) && !found.trusts_all_of(&trust));
        let patch = found.apply_patch(&trust);
        assert_eq!(patch["metadata"], json!({"name": "n", "uid": "u", "resourceVersion": "7"}));
        assert_eq!(
            patch["webhooks"],
            json!([
                {"name": "object.sidecar-injector.weir.dev", "clientConfig": {"caBundle": encoded}},
                {"name": "namespace.sidecar-injector.weir.dev", "clientConfig": {"caBundle": encoded}},
            ])
        );
        assert!(!observed(&json!([])).differs_from(&trust), "no entry of ours");
    }
}
