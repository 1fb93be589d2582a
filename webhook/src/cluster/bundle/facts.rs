//! A MutatingWebhookConfiguration, as far as it matters here.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, WebhookClientConfig};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};

use super::trust::Trust;

/// What the names of our entries end with.
pub const SUFFIX: &str = "sidecar-injector.weir.dev";

/// What is kept of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// `resourceVersion`.
    pub version: String,
    /// Our entries in it.
    pub entries: Vec<Entry>,
}

/// One of our entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// `clientConfig.caBundle`, decoded; empty for none.
    pub bundle: Vec<u8>,
    /// The name that the API server expects in the certificate: `SERVICE.NAMESPACE.svc`, or the host of the URL.
    pub host: String,
}

impl From<MutatingWebhookConfiguration> for Facts {
    fn from(object: MutatingWebhookConfiguration) -> Self {
        let ours = object.webhooks.unwrap_or_default().into_iter().filter(|entry| entry.name.ends_with(SUFFIX));
        let entry = |entry: k8s_openapi::api::admissionregistration::v1::MutatingWebhook| Entry {
            host: host(&entry.client_config),
            bundle: entry.client_config.ca_bundle.map(|bytes| bytes.0).unwrap_or_default(),
            name: entry.name,
        };
        Self {
            name: object.metadata.name.unwrap_or_default(),
            uid: object.metadata.uid.unwrap_or_default(),
            version: object.metadata.resource_version.unwrap_or_default(),
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
    // A port is after the last colon, unless that is within an IPv6 address.
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

impl Facts {
    /// Whether an entry has another bundle than `trust`.
    pub fn differs(&self, trust: &Trust) -> bool {
        self.entries.iter().any(|entry| !trust.is(&entry.bundle))
    }

    /// Whether every entry trusts all of `trust`, and perhaps more.
    pub fn trusts(&self, trust: &Trust) -> bool {
        self.entries.iter().all(|entry| trust.is_in(&entry.bundle))
    }

    /// What is applied: the bundle of all our entries. One that was left out would lose the bundle that was applied before.
    pub fn patch(&self, trust: &Trust) -> Value {
        let bundle = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, trust.pem());
        let entries =
            self.entries.iter().map(|entry| json!({"name": entry.name, "clientConfig": {"caBundle": bundle}}));
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": self.name, "uid": self.uid, "resourceVersion": self.version},
            "webhooks": entries.collect::<Vec<_>>(),
        })
    }

    /// As events refer to it.
    pub fn reference(&self) -> ObjectReference {
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
    use crate::server::certs;

    fn facts(webhooks: &Value) -> Facts {
        let object = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "7"}, "webhooks": webhooks});
        serde_json::from_value::<MutatingWebhookConfiguration>(object).unwrap().into()
    }

    fn service() -> Value {
        json!({"service": {"name": "weir-webhook", "namespace": "weir-system"}})
    }

    #[test]
    fn sees_our_entries_only_and_the_name_that_the_api_server_expects() {
        let found = facts(&json!([
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
    fn applies_the_bundle_of_every_entry_and_nothing_else() {
        let ca = certs::make(&["localhost".to_owned()], 1, SystemTime::now()).unwrap().ca;
        let trust = Trust::parse(&ca).unwrap();
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &ca);
        let mut right = service();
        right["caBundle"] = json!(encoded);
        let found = facts(&json!([
            {"name": "object.sidecar-injector.weir.dev", "clientConfig": right},
            {"name": "namespace.sidecar-injector.weir.dev", "clientConfig": service()},
        ]));
        assert!(found.differs(&trust) && !found.trusts(&trust));
        let patch = found.patch(&trust);
        assert_eq!(patch["metadata"], json!({"name": "n", "uid": "u", "resourceVersion": "7"}));
        assert_eq!(
            patch["webhooks"],
            json!([
                {"name": "object.sidecar-injector.weir.dev", "clientConfig": {"caBundle": encoded}},
                {"name": "namespace.sidecar-injector.weir.dev", "clientConfig": {"caBundle": encoded}},
            ])
        );
        assert!(!facts(&json!([])).differs(&trust), "nothing of ours, nothing to write");
    }
}
