//! Which pods the API server sends to the webhook: the selectors of the MutatingWebhookConfigurations, and what they come to.
//!
//! ```text
//! labels of namespace and pod ─┬─▶ wish: who is asked for a sidecar, by one table ─▶ is it this installation?
//!                              └─▶ entries of the configurations, as the API server evaluates them ─▶ objects, whole
//! ```
//!
//! The two agree for all labels (tested). The table can say why; the entries are what a cluster has. [`objects`] makes the
//! MutatingWebhookConfigurations of Weir of them; those below `manifests/` are the same ones (tested too).
//!
//! Source: Istio's chart `istiod`, templates of the MutatingWebhookConfiguration and of revision tags.

pub mod objects;

use serde_json::{Map, Value, json};

use super::decision::{INJECT, SYSTEM_NAMESPACES};
use super::selector::Selector;

/// Label of a namespace that asks for the default injector.
pub const INJECTION: &str = "istio-injection";
/// Label of a namespace or a pod that names the revision of an injector.
pub const REVISION: &str = "istio.io/rev";
/// Label that every namespace has, with its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// The revision of an installation that has none, and the tag that makes a revision the default one.
const DEFAULT: &str = "default";
/// How the name of the entry for namespaces that nobody has labelled begins.
const AUTO: &str = "auto.";

/// What decides whose pods an installation is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Installation {
    /// Its revision; empty or `default` for none.
    pub revision: String,
    /// Tags that stand for its revision.
    pub tags: Vec<String>,
    /// `sidecarInjectorWebhook.enableNamespacesByDefault`.
    pub by_default: bool,
    /// Another installation has become the default one: what says `default` here, revision or tag, is off.
    pub deactivated: bool,
}

/// The labels that the API server looks at.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Those of the namespace.
    pub namespace: &'a Map<String, Value>,
    /// Those of the pod.
    pub pod: &'a Map<String, Value>,
}

/// Whose sidecar labels ask for, and the label that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Label `sidecar.istio.io/inject: "false"` of the pod.
    PodRefuses,
    /// Label `istio-injection` of the namespace is none of those that select.
    NamespaceRefuses(String),
    /// Label `istio-injection: enabled` of the namespace: the default injector.
    NamespaceEnabled,
    /// Label `istio.io/rev` of the namespace.
    NamespaceRevision(String),
    /// Label `istio.io/rev` of the pod.
    PodRevision(String),
    /// Label `sidecar.istio.io/inject: "true"` of the pod: the default injector.
    PodAsks,
    /// Label `sidecar.istio.io/inject` of the pod is neither.
    PodUnclear(String),
    /// No label: the default injector, where it takes namespaces by default.
    Nothing,
}

/// What becomes of a wish at an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The API server sends the pod.
    Sent,
    /// It does not.
    NotSent {
        /// Why.
        why: String,
        /// What has to change for the pod to be sent.
        remedy: String,
    },
}

/// Reads the labels by the table of Istio's documentation: the first row that fits counts.
pub fn wish(labels: Labels<'_>) -> Wish {
    let of = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
    let asks = of(labels.pod, INJECT);
    if asks.as_deref() == Some("false") {
        return Wish::PodRefuses;
    }
    if let Some(value) = of(labels.namespace, INJECTION) {
        return if value == "enabled" { Wish::NamespaceEnabled } else { Wish::NamespaceRefuses(value) };
    }
    if let Some(revision) = of(labels.namespace, REVISION) {
        return Wish::NamespaceRevision(revision);
    }
    if let Some(revision) = of(labels.pod, REVISION) {
        return Wish::PodRevision(revision);
    }
    match asks {
        Some(value) if value == "true" => Wish::PodAsks,
        Some(value) => Wish::PodUnclear(value),
        None => Wish::Nothing,
    }
}

impl Installation {
    /// The name of its revision, as labels say it.
    pub fn revision(&self) -> &str {
        if self.revision.is_empty() { DEFAULT } else { &self.revision }
    }

    /// Whether it is the one that is meant where no revision is named.
    pub fn is_default(&self) -> bool {
        self.names().contains(&DEFAULT)
    }

    /// What becomes of a pod of these labels. `namespace` is the name of its namespace.
    pub fn admits(&self, labels: Labels<'_>, namespace: &str) -> Admission {
        let not_sent = |why: String, remedy: String| Admission::NotSent { why, remedy };
        let names = self.names().join("' or '");
        // Without a name it means nobody: another one has taken the name that it had.
        let again = names.is_empty().then(|| "make this revision the default one again".to_owned());
        let to_default = |label: &str| {
            if self.is_default() {
                return Admission::Sent;
            }
            let remedy =
                format!("label the namespace {REVISION}={names} instead, or make this revision the default one");
            not_sent(
                format!(
                    "{label} asks for the default injector, and revision '{}' is not the default one",
                    self.revision()
                ),
                again.clone().unwrap_or(remedy),
            )
        };
        let to_revision = |whose: &str, revision: &str| {
            if self.names().contains(&revision) {
                return Admission::Sent;
            }
            let this = match &again {
                Some(_) => format!("revision '{}' is off, because another one is the default", self.revision()),
                None => format!("this one is '{names}'"),
            };
            not_sent(
                format!("label {REVISION}={revision} of the {whose} names another injector; {this}"),
                again.clone().unwrap_or_else(|| format!("set label {REVISION} of the {whose} to '{names}'")),
            )
        };
        let ask = format!(
            "label the namespace {INJECTION}=enabled or {REVISION}={0}, or the pod {INJECT}=true or {REVISION}={0}",
            self.revision()
        );
        match wish(labels) {
            Wish::PodRefuses => {
                not_sent(format!("label {INJECT}=false of the pod"), format!("remove the label {INJECT} from the pod"))
            }
            Wish::NamespaceRefuses(value) => not_sent(
                format!("label {INJECTION}={value} of the namespace, which no label of a pod overrides"),
                format!("set the label to 'enabled', or remove it and set the pod's label {INJECT} to 'true'"),
            ),
            Wish::NamespaceEnabled => to_default(&format!("label {INJECTION}=enabled of the namespace")),
            Wish::NamespaceRevision(revision) => to_revision("namespace", &revision),
            Wish::PodRevision(revision) => to_revision("pod", &revision),
            Wish::PodAsks => to_default(&format!("label {INJECT}=true of the pod")),
            Wish::PodUnclear(value) => not_sent(
                format!(
                    "label {INJECT}={value} of the pod is neither 'true' nor 'false', and the namespace has no label"
                ),
                format!("set the pod's label {INJECT} to 'true'"),
            ),
            Wish::Nothing if !self.by_default => {
                not_sent("no label of the namespace or the pod asks for a sidecar".to_owned(), ask)
            }
            Wish::Nothing if SYSTEM_NAMESPACES.contains(&namespace) => not_sent(
                format!("namespace {namespace} belongs to the system, and no label asks for a sidecar"),
                "run the pod in another namespace".to_owned(),
            ),
            Wish::Nothing => to_default("enableNamespacesByDefault"),
        }
    }

    /// Its revision and its tags: what a label `istio.io/rev` may say to mean it.
    fn names(&self) -> Vec<&str> {
        let mut names = self.all_names();
        names.retain(|name| !self.is_off(name));
        names
    }

    /// Those that are off, too: each has a configuration.
    fn all_names(&self) -> Vec<&str> {
        let mut names = vec![self.revision()];
        names.extend(self.tags.iter().map(String::as_str).filter(|tag| *tag != self.revision()));
        names
    }

    /// Whether the configuration of a revision or tag selects nothing.
    fn is_off(&self, name: &str) -> bool {
        self.deactivated && name == DEFAULT
    }

    /// The entries of its webhook configurations, one configuration for the revision and one for each tag. Names are those of
    /// Istio.
    pub fn entries(&self) -> Vec<Entry> {
        let of = |name: &str| {
            let suffix = if name == self.revision() { String::new() } else { format!(" (tag {name})") };
            let entries = self.entries_of(name, "istio.io/deactivated").into_iter();
            entries
                .map(|(prefix, [namespace, pod])| Entry {
                    name: format!("{prefix}sidecar-injector.istio.io{suffix}"),
                    namespace_selector: json!({"matchExpressions": namespace}),
                    object_selector: json!({"matchExpressions": pod}),
                })
                .collect::<Vec<_>>()
        };
        self.all_names().into_iter().flat_map(of).collect()
    }

    /// The entries for a revision or tag: the start of the name, and what is asked of the labels of namespace and pod.
    /// `never` is the label that no object has, for entries that are off.
    fn entries_of(&self, name: &str, never: &str) -> Vec<(&'static str, [Vec<Value>; 2])> {
        let not_refused = || json!({"key": INJECT, "operator": "NotIn", "values": ["false"]});
        let absent = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
        let is = |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
        let mut entries = vec![
            ("rev.namespace.", [vec![is(REVISION, name), absent(INJECTION)], vec![not_refused()]]),
            ("rev.object.", [vec![absent(REVISION), absent(INJECTION)], vec![not_refused(), is(REVISION, name)]]),
        ];
        if name == DEFAULT {
            entries.push(("namespace.", [vec![is(INJECTION, "enabled")], vec![not_refused()]]));
            let neither = || vec![absent(INJECTION), absent(REVISION)];
            entries.push(("object.", [neither(), vec![is(INJECT, "true"), absent(REVISION)]]));
            if self.by_default {
                let system = json!({"key": NAMESPACE_NAME, "operator": "NotIn", "values": SYSTEM_NAMESPACES});
                entries.push((AUTO, [[neither(), vec![system]].concat(), vec![absent(INJECT), absent(REVISION)]]));
            }
        }
        if self.is_off(name) {
            for selector in entries.iter_mut().flat_map(|(_, selectors)| selectors) {
                selector.push(is(never, "never-match"));
            }
        }
        entries
    }
}

/// One entry of a MutatingWebhookConfiguration, as far as it selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// `namespaceSelector`.
    pub namespace_selector: Value,
    /// `objectSelector`.
    pub object_selector: Value,
}

impl Entry {
    /// Whether the API server sends a pod of these labels for this entry.
    ///
    /// # Errors
    /// A selector that the API server would not have taken.
    pub fn matches(&self, labels: Labels<'_>) -> Result<bool, String> {
        let namespace = Selector::parse(&self.namespace_selector)?;
        let pod = Selector::parse(&self.object_selector)?;
        Ok(namespace.matches(Some(labels.namespace)) && pod.matches(Some(labels.pod)))
    }
}

/// The labels of a namespace as the API server sees them: it adds the name.
pub fn namespace_labels(name: &str, mut labels: Map<String, Value>) -> Map<String, Value> {
    labels.insert(NAMESPACE_NAME.to_owned(), name.into());
    labels
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const VALUES: [&[Option<&str>]; 4] = [
        &[None, Some("enabled"), Some("disabled"), Some("")],
        &[None, Some("default"), Some("r1"), Some("canary")],
        &[None, Some("true"), Some("false"), Some("yes"), Some("")],
        &[None, Some("default"), Some("r1"), Some("canary")],
    ];

    /// All combinations of the four labels, in namespaces of the system and others.
    pub(super) fn combinations(mut look: impl FnMut(&str, Labels<'_>)) {
        for name in ["shop", "kube-system", "weir-system", "weir-node"] {
            for injection in VALUES[0] {
                for namespace_revision in VALUES[1] {
                    for inject in VALUES[2] {
                        for revision in VALUES[3] {
                            let map = |pairs: [(&str, Option<&str>); 2]| -> Map<String, Value> {
                                let set = pairs
                                    .into_iter()
                                    .filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?))));
                                set.collect()
                            };
                            let namespace = map([(INJECTION, *injection), (REVISION, *namespace_revision)]);
                            let pod = map([(INJECT, *inject), (REVISION, *revision)]);
                            let namespace = namespace_labels(name, namespace);
                            look(name, Labels { namespace: &namespace, pod: &pod });
                        }
                    }
                }
            }
        }
    }

    pub(super) fn installations() -> Vec<Installation> {
        let mut all = Vec::new();
        for revision in ["", "r1"] {
            for tags in [&[][..], &["canary"], &["canary", "default"]] {
                for by_default in [false, true] {
                    for deactivated in [false, true] {
                        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
                        all.push(Installation { revision: revision.to_owned(), tags, by_default, deactivated });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn the_entries_select_what_the_table_says_for_all_labels() {
        let mut compared = 0;
        for installation in installations() {
            let entries = installation.entries();
            combinations(|name, labels| {
                let matching: Vec<&str> = entries
                    .iter()
                    .filter(|entry| entry.matches(labels).unwrap())
                    .map(|entry| entry.name.as_str())
                    .collect();
                let sent = installation.admits(labels, name) == Admission::Sent;
                assert_eq!(!matching.is_empty(), sent, "{installation:?} {name} {labels:?}: {matching:?}");
                assert!(matching.len() <= 1, "sent twice: {matching:?}");
                compared += 1;
            });
        }
        assert_eq!(compared, 24 * 4 * 4 * 4 * 5 * 4);
    }

    #[test]
    fn a_pod_that_is_not_sent_is_told_why_and_what_helps() {
        let namespace = namespace_labels("shop", Map::from_iter([(REVISION.to_owned(), "old".into())]));
        let installation =
            Installation { revision: "r1".to_owned(), tags: vec!["stable".to_owned()], ..Installation::default() };
        let admission = installation.admits(Labels { namespace: &namespace, pod: &Map::new() }, "shop");
        let Admission::NotSent { why, remedy } = admission else { panic!("sent") };
        assert_eq!(why, "label istio.io/rev=old of the namespace names another injector; this one is 'r1' or 'stable'");
        assert_eq!(remedy, "set label istio.io/rev of the namespace to 'r1' or 'stable'");
    }
}
