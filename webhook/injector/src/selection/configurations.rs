//! Weir's MutatingWebhookConfigurations as complete objects.
//!
//! There is one for the revision, `weir-sidecar-injector[-REVISION]`, and one for each tag, `weir-revision-tag-TAG`. They have
//! the labels `weir.dev/rev` and `weir.dev/tag` and none of Istio's, because `istioctl` treats objects with those as its own.
//! The webhook or cert-manager writes `caBundle`, unless it is given here.

use serde_json::{Map, Value, json};

use super::{AUTO, InjectorRevision, NAMESPACE_NAME};
use crate::decision::SYSTEM_NAMESPACES;

/// Label of Weir's objects with their revision.
pub const OWNER_REVISION_LABEL: &str = "weir.dev/rev";
/// Label of a tag's webhook configuration with the tag.
pub const OWNER_TAG_LABEL: &str = "weir.dev/tag";
/// Label that the entries of a deactivated configuration require, with the value `never-match`; no object has it.
pub const DEACTIVATED_LABEL: &str = "weir.dev/deactivated";
/// Suffix of the name of every entry.
pub const ENTRY_SUFFIX: &str = "sidecar-injector.weir.dev";
/// Default namespace of the webhook.
pub const WEBHOOK_NAMESPACE: &str = "weir-system";
/// Namespace of the node agent.
pub const AGENT_NAMESPACE: &str = "weir-node";
/// Namespaces that cloud providers manage: those of GKE, where Autopilot rejects webhooks that intercept them, and of AKS for
/// `az aks command invoke`.
const PROVIDER_NAMESPACES: [&str; 9] = [
    "gke-managed-system",
    "gke-managed-cim",
    "gke-managed-filestorecsi",
    "gke-managed-parallelstorecsi",
    "gke-managed-volumepopulator",
    "gke-managed-checkpointing",
    "gke-gmp-system",
    "gmp-system",
    "aks-command",
];

/// Match condition that excludes mirror pods: the kubelet recreates a mirror pod that differs from its static pod.
const NO_MIRROR: (&str, &str) = (
    "no-mirror-pods",
    "!has(object.metadata.annotations) || !('kubernetes.io/config.mirror' in object.metadata.annotations)",
);
/// Match condition that excludes pods with `hostNetwork`, which never get a sidecar.
const NO_HOST_NETWORK: (&str, &str) = ("no-host-network", "!has(object.spec.hostNetwork) || !object.spec.hostNetwork");

/// Address at which the API server reaches the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookTarget {
    /// The Service `weir-webhook[-REVISION]` in the webhook's namespace.
    Service,
    /// A URL, which may lead out of the cluster.
    Url(String),
}

/// Fields of the webhook configurations of an [`InjectorRevision`], besides its selectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookOptions {
    /// Namespace of the webhook.
    pub namespace: String,
    /// Address to which the API server sends reviews.
    pub target: WebhookTarget,
    /// `caBundle` (PEM, in base64), if nothing in the cluster writes it.
    pub ca_bundle: Option<String>,
    /// `NAMESPACE/NAME` of the Certificate whose CA cert-manager writes into the objects.
    pub inject_ca_from: Option<String>,
    /// Namespaces that are excluded besides those of the system, of cloud providers and of Weir.
    pub excluded_namespaces: Vec<String>,
    /// Whether to filter by `matchConditions`, which API servers before Kubernetes 1.28 drop.
    pub match_conditions: bool,
    /// Whether all entries exclude pods with `hostNetwork`. They are never injected, but only the webhook can warn their users.
    pub skip_host_network: bool,
}

impl Default for WebhookOptions {
    /// Returns the options of the manifests.
    fn default() -> Self {
        Self {
            namespace: WEBHOOK_NAMESPACE.to_owned(),
            target: WebhookTarget::Service,
            ca_bundle: None,
            inject_ca_from: None,
            excluded_namespaces: Vec::new(),
            match_conditions: true,
            skip_host_network: false,
        }
    }
}

/// Appends the revision to the name of an object, except the default one.
pub fn with_revision(base: &str, revision: &str) -> String {
    if revision.is_empty() || revision == super::DEFAULT { base.to_owned() } else { format!("{base}-{revision}") }
}

/// Returns the name of a revision's webhook configuration.
pub fn configuration_name(revision: &str) -> String {
    with_revision("weir-sidecar-injector", revision)
}

/// Returns the name of a tag's webhook configuration.
pub fn tag_configuration_name(tag: &str) -> String {
    format!("weir-revision-tag-{tag}")
}

impl InjectorRevision {
    /// Returns the webhook configurations: that of the revision, then those of its tags.
    pub fn webhook_configurations(&self, options: &WebhookOptions) -> Vec<Value> {
        self.all_names().into_iter().map(|name| self.webhook_configuration(name, options)).collect()
    }

    fn webhook_configuration(&self, name: &str, options: &WebhookOptions) -> Value {
        let revision = self.revision();
        let mut labels = json!({
            "app.kubernetes.io/name": "weir-webhook",
            "app.kubernetes.io/part-of": "weir",
            OWNER_REVISION_LABEL: revision,
        });
        let object_name = if name == revision {
            configuration_name(revision)
        } else {
            labels[OWNER_TAG_LABEL] = name.into();
            tag_configuration_name(name)
        };
        // Without it, AKS adds expressions to the selectors after every apply.
        let mut annotations = json!({"admissions.enforcer/disabled": "true"});
        if let Some(certificate) = &options.inject_ca_from {
            annotations["cert-manager.io/inject-ca-from"] = certificate.as_str().into();
        }
        let entries = self.webhook_entries_for(name, DEACTIVATED_LABEL).into_iter();
        let webhooks: Vec<Value> =
            entries.map(|(prefix, selectors)| options.entry(prefix, selectors, revision)).collect();
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": object_name, "labels": labels, "annotations": annotations},
            "webhooks": webhooks,
        })
    }
}

impl WebhookOptions {
    fn entry(&self, prefix: &str, [mut namespace, pod]: [Vec<Value>; 2], revision: &str) -> Value {
        let ours = [self.namespace.as_str(), AGENT_NAMESPACE];
        let excluded = SYSTEM_NAMESPACES.into_iter().chain(ours).chain(PROVIDER_NAMESPACES);
        let excluded: Vec<&str> = excluded.chain(self.excluded_namespaces.iter().map(String::as_str)).collect();
        namespace.retain(|term| term["key"] != NAMESPACE_NAME);
        namespace.push(json!({"key": NAMESPACE_NAME, "operator": "NotIn", "values": excluded}));

        let mut client_config = match &self.target {
            WebhookTarget::Service => json!({"service": {
                "name": with_revision("weir-webhook", revision),
                "namespace": self.namespace,
                "path": "/inject",
                "port": 443,
            }}),
            WebhookTarget::Url(url) => json!({"url": url}),
        };
        if let Some(bundle) = &self.ca_bundle {
            client_config["caBundle"] = bundle.as_str().into();
        }
        let is_auto = prefix == AUTO;
        let mut entry = json!({
            "name": format!("{prefix}{ENTRY_SUFFIX}"),
            "admissionReviewVersions": ["v1"],
            "clientConfig": client_config,
            "rules": [{
                "operations": ["CREATE"],
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }],
            // A pod that opted in must not run outside the mesh unnoticed; one that did not must be able to start.
            "failurePolicy": if is_auto { "Ignore" } else { "Fail" },
            "matchPolicy": "Equivalent",
            // Injection is idempotent, so that it can be repeated for containers that other webhooks add later.
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
            "timeoutSeconds": 5,
            "namespaceSelector": {"matchExpressions": namespace},
            "objectSelector": {"matchExpressions": pod},
        });
        if self.match_conditions {
            let conditions = [Some(NO_MIRROR), (is_auto || self.skip_host_network).then_some(NO_HOST_NETWORK)];
            let conditions = conditions.into_iter().flatten();
            entry["matchConditions"] =
                conditions.map(|(name, expression)| json!({"name": name, "expression": expression})).collect();
        }
        entry
    }
}

/// Returns an existing webhook configuration with or without the expressions that deactivate it, see
/// [`InjectorRevision::deactivated`]; `None` if nothing changes.
pub fn with_deactivated(configuration: &Value, deactivated: bool) -> Option<Value> {
    let expression = json!({"key": DEACTIVATED_LABEL, "operator": "In", "values": ["never-match"]});
    let mut changed = configuration.clone();
    for entry in changed["webhooks"].as_array_mut()? {
        for selector in ["namespaceSelector", "objectSelector"] {
            let fields = entry.as_object_mut()?;
            let selector = fields.entry(selector).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
            let expressions = selector.entry("matchExpressions").or_insert_with(|| json!([])).as_array_mut()?;
            expressions.retain(|found| found["key"] != DEACTIVATED_LABEL);
            if deactivated {
                // Before the excluded namespaces, where `webhook_configurations` has it.
                let excluded = expressions.iter().position(|found| found["key"] == NAMESPACE_NAME);
                expressions.insert(excluded.unwrap_or(expressions.len()), expression.clone());
            }
        }
    }
    (changed != *configuration).then_some(changed)
}

#[cfg(test)]
mod tests;
