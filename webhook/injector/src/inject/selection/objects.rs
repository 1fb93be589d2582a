//! The MutatingWebhookConfigurations of Weir, whole.
//!
//! One for the revision, named `weir-sidecar-injector[-REVISION]`, and one for each tag, named `weir-revision-tag-TAG`. They have
//! the labels `weir.dev/rev` and `weir.dev/tag`, and none of Istio's: its tools take what has those for Istio's own. None has a
//! `caBundle` unless it is given: the webhook, or cert-manager, writes that field, and nothing else does.

use serde_json::{Map, Value, json};

use super::{AUTO, Installation, NAMESPACE_NAME};
use crate::inject::decision::SYSTEM_NAMESPACES;

/// Label with the revision behind a webhook configuration.
pub const REVISION_LABEL: &str = "weir.dev/rev";
/// Label with the tag that a webhook configuration is for.
pub const TAG_LABEL: &str = "weir.dev/tag";
/// What entries that are off ask for, of namespace and pod: this label, with the value `never-match`.
pub const DEACTIVATED: &str = "weir.dev/deactivated";
/// How the name of every entry ends.
pub const ENTRY_SUFFIX: &str = "sidecar-injector.weir.dev";
/// The namespace of the webhook, where nobody says otherwise.
pub const NAMESPACE: &str = "weir-system";
/// The namespace of the node agent.
pub const NODE_NAMESPACE: &str = "weir-node";
/// Namespaces that providers look after (GKE, whose Autopilot lets nobody intercept them; AKS, for commands that run to an end).
const PROVIDERS: [&str; 9] = [
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

/// Pods that mirror a static pod of a node: the kubelet would make one that was changed anew, for ever.
const NO_MIRROR: (&str, &str) = (
    "no-mirror-pods",
    "!has(object.metadata.annotations) || !('kubernetes.io/config.mirror' in object.metadata.annotations)",
);
/// Pods on the network of their node never get a sidecar.
const NO_HOST_NETWORK: (&str, &str) = ("no-host-network", "!has(object.spec.hostNetwork) || !object.spec.hostNetwork");

/// How the API server gets to the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// By the Service `weir-webhook[-REVISION]` of the webhook's namespace.
    Service,
    /// By a URL, which may lead out of the cluster.
    Url(String),
}

/// What the objects of an [`Installation`] say beyond whom they select.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Namespace of the webhook.
    pub namespace: String,
    /// Where reviews are sent.
    pub target: Target,
    /// `caBundle` (PEM, in base64) where nothing in the cluster writes it.
    pub ca_bundle: Option<String>,
    /// The Certificate of cert-manager whose CA its injector writes into the objects: `NAMESPACE/NAME`.
    pub inject_ca_from: Option<String>,
    /// Namespaces that are never sent, beside those of the system, of providers and our own.
    pub excluded_namespaces: Vec<String>,
    /// Filter by `matchConditions`, which API servers have since 1.28. An older one would drop the field.
    pub match_conditions: bool,
    /// Filter pods on the network of their node in all entries. They are never injected; but who asked hears why only if they are sent.
    pub skip_host_network: bool,
}

impl Default for Serving {
    /// As the manifests have it.
    fn default() -> Self {
        Self {
            namespace: NAMESPACE.to_owned(),
            target: Target::Service,
            ca_bundle: None,
            inject_ca_from: None,
            excluded_namespaces: Vec::new(),
            match_conditions: true,
            skip_host_network: false,
        }
    }
}

/// A name with the revision behind it, as all objects of a revision have it: none for the default one.
pub fn with_revision(base: &str, revision: &str) -> String {
    if revision.is_empty() || revision == super::DEFAULT { base.to_owned() } else { format!("{base}-{revision}") }
}

/// The name of the webhook configuration of a revision.
pub fn configuration_name(revision: &str) -> String {
    with_revision("weir-sidecar-injector", revision)
}

/// The name of the webhook configuration of a tag.
pub fn tag_configuration_name(tag: &str) -> String {
    format!("weir-revision-tag-{tag}")
}

impl Installation {
    /// Its webhook configurations: that of the revision, then those of its tags.
    pub fn configurations(&self, serving: &Serving) -> Vec<Value> {
        self.all_names().into_iter().map(|name| self.configuration(name, serving)).collect()
    }

    fn configuration(&self, name: &str, serving: &Serving) -> Value {
        let revision = self.revision();
        let mut labels = json!({
            "app.kubernetes.io/name": "weir-webhook",
            "app.kubernetes.io/part-of": "weir",
            REVISION_LABEL: revision,
        });
        let object_name = if name == revision {
            configuration_name(revision)
        } else {
            labels[TAG_LABEL] = name.into();
            tag_configuration_name(name)
        };
        // AKS adds terms of its own to selectors of others unless it is told not to, and does so again after every apply.
        let mut annotations = json!({"admissions.enforcer/disabled": "true"});
        if let Some(certificate) = &serving.inject_ca_from {
            annotations["cert-manager.io/inject-ca-from"] = certificate.as_str().into();
        }
        let entries = self.entries_of(name, DEACTIVATED).into_iter();
        let webhooks: Vec<Value> =
            entries.map(|(prefix, selectors)| serving.entry(prefix, selectors, revision)).collect();
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": object_name, "labels": labels, "annotations": annotations},
            "webhooks": webhooks,
        })
    }
}

impl Serving {
    fn entry(&self, prefix: &str, [mut namespace, pod]: [Vec<Value>; 2], revision: &str) -> Value {
        // What the cluster needs before the webhook can run, the webhook itself, and the agent.
        let ours = [self.namespace.as_str(), NODE_NAMESPACE];
        let excluded = SYSTEM_NAMESPACES.into_iter().chain(ours).chain(PROVIDERS);
        let excluded: Vec<&str> = excluded.chain(self.excluded_namespaces.iter().map(String::as_str)).collect();
        namespace.retain(|term| term["key"] != NAMESPACE_NAME);
        namespace.push(json!({"key": NAMESPACE_NAME, "operator": "NotIn", "values": excluded}));

        let mut client = match &self.target {
            Target::Service => json!({"service": {
                "name": with_revision("weir-webhook", revision),
                "namespace": self.namespace,
                "path": "/inject",
                "port": 443,
            }}),
            Target::Url(url) => json!({"url": url}),
        };
        if let Some(bundle) = &self.ca_bundle {
            client["caBundle"] = bundle.as_str().into();
        }
        let by_default = prefix == AUTO;
        let mut entry = json!({
            "name": format!("{prefix}{ENTRY_SUFFIX}"),
            "admissionReviewVersions": ["v1"],
            "clientConfig": client,
            "rules": [{
                "operations": ["CREATE"],
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }],
            // Who opted in: rather no pod than one outside the mesh that nobody notices. Who did not: rather the pod.
            "failurePolicy": if by_default { "Ignore" } else { "Fail" },
            "matchPolicy": "Equivalent",
            // Injection is idempotent, so containers that other webhooks add later can be looked at too.
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
            "timeoutSeconds": 5,
            "namespaceSelector": {"matchExpressions": namespace},
            "objectSelector": {"matchExpressions": pod},
        });
        if self.match_conditions {
            let conditions = [Some(NO_MIRROR), (by_default || self.skip_host_network).then_some(NO_HOST_NETWORK)];
            let conditions = conditions.into_iter().flatten();
            entry["matchConditions"] =
                conditions.map(|(name, expression)| json!({"name": name, "expression": expression})).collect();
        }
        entry
    }
}

/// Turns a webhook configuration off, or on again: what [`Installation::deactivated`] says of the whole, for an object that is
/// there already. `None` where it is as it should be.
pub fn switched(configuration: &Value, off: bool) -> Option<Value> {
    let term = json!({"key": DEACTIVATED, "operator": "In", "values": ["never-match"]});
    let mut changed = configuration.clone();
    for entry in changed["webhooks"].as_array_mut()? {
        for selector in ["namespaceSelector", "objectSelector"] {
            let fields = entry.as_object_mut()?;
            let selector = fields.entry(selector).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
            let terms = selector.entry("matchExpressions").or_insert_with(|| json!([])).as_array_mut()?;
            // In front of what the object itself adds, as the whole has it.
            terms.retain(|found| found["key"] != DEACTIVATED);
            if off {
                let at = terms.iter().position(|found| found["key"] == NAMESPACE_NAME).unwrap_or(terms.len());
                terms.insert(at, term.clone());
            }
        }
    }
    (changed != *configuration).then_some(changed)
}

#[cfg(test)]
mod tests;
