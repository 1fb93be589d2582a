//! A snapshot, read: which installations there are, what they are configured with, and who else injects.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use weir_injector::inject::selection::objects::{REVISION_LABEL, TAG_LABEL, configuration_name, with_revision};
use weir_injector::inject::selection::{Entry, Labels, namespace_labels};
use weir_injector::inject::selector::Selector;
use weir_injector::settings::Settings;

use super::flags::{Flags, flags};
use super::settings::{self, Trouble};
use crate::check::finding::Object;
use crate::check::gather::probe::entries;
use crate::check::snapshot::Snapshot;

/// The kind of what tells the API server to call a webhook.
pub(super) const CONFIGURATION: &str = "MutatingWebhookConfiguration";

/// A snapshot, read.
pub(super) struct View<'a> {
    /// What was read.
    pub(super) snapshot: &'a Snapshot,
    /// Our installations, by revision.
    pub(super) installations: Vec<Installed<'a>>,
    /// Everything that injects sidecars, ours and others'.
    pub(super) injectors: Vec<Injector<'a>>,
    /// Labels of namespaces as the API server sees them.
    pub(super) namespaces: BTreeMap<&'a str, Map<String, Value>>,
}

/// One installation of ours.
pub(super) struct Installed<'a> {
    /// `default` for none.
    pub(super) revision: String,
    /// Its Deployment, if there is one.
    pub(super) deployment: Option<&'a Value>,
    /// Its flags; nothing without a Deployment.
    pub(super) flags: Flags,
    /// Its webhook configuration.
    pub(super) configuration: Option<&'a Value>,
    /// Those of its tags.
    pub(super) tags: Vec<&'a Value>,
    /// Its settings; `None` where they are not known.
    pub(super) settings: Option<Settings>,
    /// What is wrong with them.
    pub(super) troubles: Vec<Trouble>,
}

/// A webhook configuration that injects sidecars.
pub(super) struct Injector<'a> {
    /// Its object.
    pub(super) object: &'a Value,
    /// The installation that it belongs to, if it is ours.
    pub(super) revision: Option<&'a str>,
    entries: Vec<(String, Selector, Selector)>,
}

impl<'a> View<'a> {
    /// Reads a snapshot.
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let namespaces = snapshot.namespaces.iter().flatten().filter_map(|namespace| {
            let name = namespace["metadata"]["name"].as_str()?;
            let labels = namespace["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            Some((name, namespace_labels(name, labels)))
        });
        let injectors = snapshot.configurations.iter().flatten().filter_map(Injector::of);
        Self {
            snapshot,
            installations: installations(snapshot),
            injectors: injectors.collect(),
            namespaces: namespaces.collect(),
        }
    }

    /// The installation of a revision.
    pub(super) fn installation(&self, revision: &str) -> Option<&Installed<'a>> {
        self.installations.iter().find(|installed| installed.revision == revision)
    }

    /// Injectors that are sent a pod.
    pub(super) fn sent_to(&self, labels: Labels<'_>) -> Vec<&Injector<'a>> {
        self.injectors.iter().filter(|injector| injector.selects(labels).is_some()).collect()
    }

    /// Labels of a namespace.
    pub(super) fn labels(&self, namespace: &str) -> Map<String, Value> {
        let known = self.namespaces.get(namespace).cloned();
        known.unwrap_or_else(|| namespace_labels(namespace, Map::new()))
    }
}

/// What belongs together by its revision.
#[derive(Default)]
struct Parts<'a> {
    deployment: Option<&'a Value>,
    configuration: Option<&'a Value>,
    tags: Vec<&'a Value>,
}

fn installations(snapshot: &Snapshot) -> Vec<Installed<'_>> {
    let mut found: BTreeMap<String, Parts<'_>> = BTreeMap::new();
    for deployment in snapshot.weir.controllers.iter().flatten() {
        let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
        let Some(rest) = name.strip_prefix("weir-webhook") else { continue };
        let by_name = rest.strip_prefix('-').unwrap_or("default");
        let revision = flags(deployment).get("revision").unwrap_or(by_name).to_owned();
        found.entry(revision).or_default().deployment = Some(deployment);
    }
    let (tags, own): (Vec<&Value>, Vec<&Value>) = snapshot
        .configurations
        .iter()
        .flatten()
        .filter(|configuration| configuration["metadata"]["labels"][REVISION_LABEL].is_string())
        .partition(|configuration| configuration["metadata"]["labels"].get(TAG_LABEL).is_some());
    let revision = |configuration: &Value| {
        configuration["metadata"]["labels"][REVISION_LABEL].as_str().unwrap_or_default().to_owned()
    };
    for configuration in own {
        found.entry(revision(configuration)).or_default().configuration = Some(configuration);
    }
    // A tag alone makes no installation.
    for tag in tags {
        if let Some(parts) = found.get_mut(&revision(tag)) {
            parts.tags.push(tag);
        }
    }
    found
        .into_iter()
        .map(|(revision, Parts { deployment, configuration, tags })| {
            let flags = deployment.map(flags).unwrap_or_default();
            let (settings, troubles) = deployment
                .map_or((None, Vec::new()), |deployment| settings::of(snapshot, deployment, &flags, &revision));
            Installed { revision, deployment, flags, configuration, tags, settings, troubles }
        })
        .collect()
}

impl<'a> Injector<'a> {
    fn of(object: &'a Value) -> Option<Self> {
        let all = object["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
        let sidecars = |entry: &Value| {
            let name = entry["name"].as_str().unwrap_or_default();
            name.contains("sidecar-injector") && takes_pods(entry)
        };
        let selecting = entries(object).into_iter().zip(all).filter(|(_, entry)| sidecars(entry));
        let parsed = selecting.filter_map(|(Entry { name, namespace_selector, object_selector }, _)| {
            Some((name, Selector::parse(&namespace_selector).ok()?, Selector::parse(&object_selector).ok()?))
        });
        let entries: Vec<_> = parsed.collect();
        let revision = object["metadata"]["labels"][REVISION_LABEL].as_str();
        (!entries.is_empty()).then_some(Self { object, revision, entries })
    }

    /// The entry by which a pod is sent.
    pub(super) fn selects(&self, labels: Labels<'_>) -> Option<&str> {
        let entry = self
            .entries
            .iter()
            .find(|(_, namespace, pod)| namespace.matches(Some(labels.namespace)) && pod.matches(Some(labels.pod)));
        entry.map(|(name, ..)| name.as_str())
    }

    /// Its name.
    pub(super) fn name(&self) -> &'a str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// Whether an entry is about pods that are created.
pub(super) fn takes_pods(entry: &Value) -> bool {
    let has = |list: &Value, word: &str| list.as_array().into_iter().flatten().any(|item| item == word || item == "*");
    let rules = entry["rules"].as_array().map_or(&[][..], Vec::as_slice);
    rules.iter().any(|rule| {
        has(&rule["operations"], "CREATE")
            && has(&rule["apiGroups"], "")
            && has(&rule["apiVersions"], "v1")
            && has(&rule["resources"], "pods")
    })
}

impl Installed<'_> {
    /// Its webhook configuration, as findings name it.
    pub(super) fn object(&self) -> Object {
        let default = configuration_name(&self.revision);
        let name = self.configuration.and_then(|object| object["metadata"]["name"].as_str()).unwrap_or(&default);
        Object::global(CONFIGURATION, name)
    }

    /// Its Deployment, as findings name it.
    pub(super) fn deployment_object(&self, namespace: &str) -> Object {
        let default = with_revision("weir-webhook", &self.revision);
        let name = self.deployment.and_then(|object| object["metadata"]["name"].as_str()).unwrap_or(&default);
        Object::new("Deployment", namespace, name)
    }

    /// Its webhook configurations: of the revision and of the tags.
    pub(super) fn configurations(&self) -> impl Iterator<Item = &Value> {
        self.configuration.into_iter().chain(self.tags.iter().copied())
    }

    /// The entries of all of them.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Value> {
        self.configurations().flat_map(|configuration| configuration["webhooks"].as_array().into_iter().flatten())
    }
}

/// Pods that a selector of a workload selects.
pub(super) fn selected<'a>(pods: Option<&'a Vec<Value>>, selector: &Value) -> Vec<&'a Value> {
    let Ok(selector) = Selector::parse(selector) else { return Vec::new() };
    let pods = pods.into_iter().flatten();
    pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter(|pod| selector.matches(pod["metadata"]["labels"].as_object()))
        .collect()
}

/// Whether the kubelet counts a pod as ready.
pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Containers of a pod, of both lists.
pub(super) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
}
