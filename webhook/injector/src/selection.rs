//! Which pods the API server sends to the webhook, by the labels of the pod and of its namespace.
//!
//! ```text
//! labels ─┬─▶ requested_injector ─▶ InjectorRevision::select: Selected, or NotSelected with the reason
//!         └─▶ webhook_entries, evaluated by the API server ─▶ configurations: complete Kubernetes objects
//! ```
//!
//! Both ways give the same result for all labels, which the tests verify: `select` can say why a pod is not sent, and the
//! entries are what a cluster evaluates. The MutatingWebhookConfigurations in `manifests/` are those of [`configurations`].
//!
//! Source: Istio's chart `istiod`, templates of the MutatingWebhookConfiguration and of revision tags.

pub mod configurations;

use serde_json::{Map, Value, json};

use crate::decision::{INJECT_LABEL, SYSTEM_NAMESPACES};
use crate::selector::Selector;

/// Label of a namespace that enables injection by the default injector.
pub const INJECTION_LABEL: &str = "istio-injection";
/// Label of a namespace or a pod with the revision, or a tag, of its injector.
pub const REVISION_LABEL: &str = "istio.io/rev";
/// Label with its name that every namespace has.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Name of the revision without a name, and of the tag that makes a revision the default one.
const DEFAULT: &str = "default";
/// Prefix of the webhook entry for namespaces without labels.
const AUTO: &str = "auto.";

/// The revision, tags and switches that determine which pods the API server sends to an injector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InjectorRevision {
    /// Name of the revision; empty means `default`.
    pub revision: String,
    /// Tags that point to the revision.
    pub tags: Vec<String>,
    /// `sidecarInjectorWebhook.enableNamespacesByDefault`.
    pub enable_namespaces_by_default: bool,
    /// Another revision is the default: the revision or tag `default` of this one selects nothing.
    pub deactivated: bool,
}

/// The labels that webhook entries select by.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Labels of the namespace.
    pub namespace: &'a Map<String, Value>,
    /// Labels of the pod.
    pub pod: &'a Map<String, Value>,
}

/// The injector that labels request, and the label that requests it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestedInjector {
    /// None: label `sidecar.istio.io/inject: "false"` of the pod.
    PodOptOut,
    /// None: label `istio-injection` of the namespace with a value other than `enabled`.
    NamespaceOptOut(String),
    /// The default one: label `istio-injection: enabled` of the namespace.
    NamespaceEnabled,
    /// The named one: label `istio.io/rev` of the namespace.
    NamespaceRevision(String),
    /// The named one: label `istio.io/rev` of the pod.
    PodRevision(String),
    /// The default one: label `sidecar.istio.io/inject: "true"` of the pod.
    PodOptIn,
    /// None: label `sidecar.istio.io/inject` of the pod with another value.
    PodInvalidLabel(String),
    /// The default one, if it selects namespaces by default: no label.
    Unlabelled,
}

/// Whether the API server sends a pod to an injector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The pod is sent.
    Selected,
    /// The pod is not sent.
    NotSelected {
        /// Reason for the fault.
        reason: String,
        /// Change after which the pod is sent.
        remedy: String,
    },
}

/// Returns the injector that labels request. Rules in the order of Istio's documentation; the first that applies decides.
pub fn requested_injector(labels: Labels<'_>) -> RequestedInjector {
    let value = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
    let inject = value(labels.pod, INJECT_LABEL);
    if inject.as_deref() == Some("false") {
        return RequestedInjector::PodOptOut;
    }
    if let Some(value) = value(labels.namespace, INJECTION_LABEL) {
        return if value == "enabled" {
            RequestedInjector::NamespaceEnabled
        } else {
            RequestedInjector::NamespaceOptOut(value)
        };
    }
    if let Some(revision) = value(labels.namespace, REVISION_LABEL) {
        return RequestedInjector::NamespaceRevision(revision);
    }
    if let Some(revision) = value(labels.pod, REVISION_LABEL) {
        return RequestedInjector::PodRevision(revision);
    }
    match inject {
        Some(value) if value == "true" => RequestedInjector::PodOptIn,
        Some(value) => RequestedInjector::PodInvalidLabel(value),
        None => RequestedInjector::Unlabelled,
    }
}

impl InjectorRevision {
    /// Returns the name of the revision, `default` if it has none.
    pub fn revision(&self) -> &str {
        if self.revision.is_empty() { DEFAULT } else { &self.revision }
    }

    /// Returns whether labels that name no revision mean this one.
    pub fn is_default(&self) -> bool {
        self.active_names().contains(&DEFAULT)
    }

    /// Decides whether a pod with these labels, in the namespace of that name, is sent to this revision.
    pub fn select(&self, labels: Labels<'_>, namespace: &str) -> Selection {
        match requested_injector(labels) {
            RequestedInjector::PodOptOut => not_selected(
                format!("label {INJECT_LABEL}=false of the pod"),
                format!("remove label {INJECT_LABEL} from the pod"),
            ),
            RequestedInjector::NamespaceOptOut(value) => not_selected(
                format!("label {INJECTION_LABEL}={value} of the namespace, which no label of a pod overrides"),
                format!("set the label to 'enabled', or remove it and set label {INJECT_LABEL} of the pod to 'true'"),
            ),
            RequestedInjector::NamespaceEnabled => {
                self.select_default(&format!("label {INJECTION_LABEL}=enabled of the namespace"))
            }
            RequestedInjector::NamespaceRevision(revision) => self.select_revision("namespace", &revision),
            RequestedInjector::PodRevision(revision) => self.select_revision("pod", &revision),
            RequestedInjector::PodOptIn => self.select_default(&format!("label {INJECT_LABEL}=true of the pod")),
            RequestedInjector::PodInvalidLabel(value) => not_selected(
                format!(
                    "label {INJECT_LABEL}={value} of the pod is neither 'true' nor 'false', and the namespace has no label"
                ),
                format!("set label {INJECT_LABEL} of the pod to 'true'"),
            ),
            RequestedInjector::Unlabelled if !self.enable_namespaces_by_default => not_selected(
                "no label of the namespace or the pod enables injection".to_owned(),
                format!(
                    "label the namespace {INJECTION_LABEL}=enabled or {REVISION_LABEL}={0}, \
                     or the pod {INJECT_LABEL}=true or {REVISION_LABEL}={0}",
                    self.revision()
                ),
            ),
            RequestedInjector::Unlabelled if SYSTEM_NAMESPACES.contains(&namespace) => not_selected(
                format!("namespace {namespace} is a system namespace, and no label enables injection"),
                "run the pod in another namespace".to_owned(),
            ),
            RequestedInjector::Unlabelled => self.select_default("enableNamespacesByDefault"),
        }
    }

    fn select_default(&self, source: &str) -> Selection {
        if self.is_default() {
            return Selection::Selected;
        }
        not_selected(
            format!("{source} requests the default injector, but revision '{}' is not the default", self.revision()),
            self.reactivation().unwrap_or_else(|| {
                let names = self.quotable_names();
                format!("label the namespace {REVISION_LABEL}={names} instead, or make this revision the default")
            }),
        )
    }

    fn select_revision(&self, labelled: &str, revision: &str) -> Selection {
        if self.active_names().contains(&revision) {
            return Selection::Selected;
        }
        let names = self.quotable_names();
        let reactivation = self.reactivation();
        let this = match reactivation {
            Some(_) => format!("revision '{}' is deactivated: another revision is the default", self.revision()),
            None => format!("this one is '{names}'"),
        };
        not_selected(
            format!("label {REVISION_LABEL}={revision} of the {labelled} requests another injector; {this}"),
            reactivation.unwrap_or_else(|| format!("set label {REVISION_LABEL} of the {labelled} to '{names}'")),
        )
    }

    /// Returns what makes the revision select pods again if it has no active name.
    fn reactivation(&self) -> Option<String> {
        self.active_names().is_empty().then(|| "make this revision the default again".to_owned())
    }

    /// Returns the active names for a text that puts quotes around them.
    fn quotable_names(&self) -> String {
        self.active_names().join("' or '")
    }

    /// Returns the values of label `istio.io/rev` that mean this revision: its name and its tags.
    fn active_names(&self) -> Vec<&str> {
        let mut names = self.all_names();
        names.retain(|name| !self.is_deactivated(name));
        names
    }

    /// Returns all names; each has a webhook configuration, also if it is deactivated.
    fn all_names(&self) -> Vec<&str> {
        let mut names = vec![self.revision()];
        names.extend(self.tags.iter().map(String::as_str).filter(|tag| *tag != self.revision()));
        names
    }

    fn is_deactivated(&self, name: &str) -> bool {
        self.deactivated && name == DEFAULT
    }

    /// Returns the entries of Istio's webhook configurations: one configuration for the revision and one for each tag.
    pub fn webhook_entries(&self) -> Vec<WebhookEntry> {
        let entries_for = |name: &str| {
            let suffix = if name == self.revision() { String::new() } else { format!(" (tag {name})") };
            let entries = self.webhook_entries_for(name, "istio.io/deactivated").into_iter();
            entries
                .map(|(prefix, [namespace, pod])| WebhookEntry {
                    name: format!("{prefix}sidecar-injector.istio.io{suffix}"),
                    namespace_selector: json!({"matchExpressions": namespace}),
                    object_selector: json!({"matchExpressions": pod}),
                })
                .collect::<Vec<_>>()
        };
        self.all_names().into_iter().flat_map(entries_for).collect()
    }

    /// Returns the entries for a revision or tag: the prefix of the entry's name, and the expressions for the labels of
    /// namespace and pod. No object has the label `never`, which the entries of a deactivated name require.
    fn webhook_entries_for(&self, name: &str, never: &str) -> Vec<(&'static str, [Vec<Value>; 2])> {
        let not_opted_out = || json!({"key": INJECT_LABEL, "operator": "NotIn", "values": ["false"]});
        let absent = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
        let is = |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
        let mut entries = vec![
            ("rev.namespace.", [vec![is(REVISION_LABEL, name), absent(INJECTION_LABEL)], vec![not_opted_out()]]),
            (
                "rev.object.",
                [
                    vec![absent(REVISION_LABEL), absent(INJECTION_LABEL)],
                    vec![not_opted_out(), is(REVISION_LABEL, name)],
                ],
            ),
        ];
        if name == DEFAULT {
            entries.push(("namespace.", [vec![is(INJECTION_LABEL, "enabled")], vec![not_opted_out()]]));
            let neither = || vec![absent(INJECTION_LABEL), absent(REVISION_LABEL)];
            entries.push(("object.", [neither(), vec![is(INJECT_LABEL, "true"), absent(REVISION_LABEL)]]));
            if self.enable_namespaces_by_default {
                let system = json!({"key": NAMESPACE_NAME, "operator": "NotIn", "values": SYSTEM_NAMESPACES});
                let pod = vec![absent(INJECT_LABEL), absent(REVISION_LABEL)];
                entries.push((AUTO, [[neither(), vec![system]].concat(), pod]));
            }
        }
        if self.is_deactivated(name) {
            for selector in entries.iter_mut().flat_map(|(_, selectors)| selectors) {
                selector.push(is(never, "never-match"));
            }
        }
        entries
    }
}

fn not_selected(reason: String, remedy: String) -> Selection {
    Selection::NotSelected { reason, remedy }
}

/// The selectors of one entry in `webhooks` of a MutatingWebhookConfiguration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEntry {
    /// `name`.
    pub name: String,
    /// `namespaceSelector`.
    pub namespace_selector: Value,
    /// `objectSelector`.
    pub object_selector: Value,
}

impl WebhookEntry {
    /// Returns whether the entry selects a pod with these labels.
    ///
    /// # Errors
    /// A selector is invalid.
    pub fn matches(&self, labels: Labels<'_>) -> Result<bool, String> {
        let namespace = Selector::parse(&self.namespace_selector)?;
        let pod = Selector::parse(&self.object_selector)?;
        Ok(namespace.matches(Some(labels.namespace)) && pod.matches(Some(labels.pod)))
    }
}

/// Adds the label with the namespace's name, which the API server sets.
pub fn namespace_labels(name: &str, mut labels: Map<String, Value>) -> Map<String, Value> {
    labels.insert(NAMESPACE_NAME.to_owned(), name.into());
    labels
}

#[cfg(test)]
pub(super) mod tests;
