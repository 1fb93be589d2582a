//! Facts that analyzers share about a snapshot: the installed revisions, their settings, and every injector.

use std::collections::{BTreeMap, HashSet};

use serde_json::Map;
use weir_injector::selection::configurations::{configuration_name, with_revision};
use weir_injector::selection::{Labels, namespace_labels};
use weir_injector::settings::Settings;

use super::settings::{self, SettingsProblem};
use crate::finding::{FindingObject, Findings};
use crate::flags::Flags;
use crate::snapshot::Snapshot;
use crate::snapshot::object::StringMap;
use crate::snapshot::own::{Controller, OwnPod};
use crate::snapshot::webhooks::{WebhookConfiguration, WebhookEntry};

pub(super) struct ClusterView<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Installed revisions of Weir, by name.
    pub(super) revisions: Vec<InstalledRevision<'a>>,
    /// Webhook configurations that inject sidecars, Weir's and others'.
    pub(super) injectors: Vec<InjectorWebhook<'a>>,
    /// Labels of namespaces as the API server sees them.
    pub(super) namespaces: BTreeMap<&'a str, StringMap>,
}

/// An installed revision of Weir.
pub(super) struct InstalledRevision<'a> {
    /// `default` for an installation without a revision.
    pub(super) revision: String,
    pub(super) deployment: Option<&'a Controller>,
    /// Flags of the Deployment; empty without one.
    pub(super) flags: Flags,
    pub(super) configuration: Option<&'a WebhookConfiguration>,
    /// Webhook configurations of its tags.
    pub(super) tags: Vec<&'a WebhookConfiguration>,
    /// `None` if unknown or invalid.
    pub(super) settings: Option<Settings>,
    settings_problems: Vec<SettingsProblem>,
}

/// A webhook configuration that injects sidecars.
pub(super) struct InjectorWebhook<'a> {
    pub(super) configuration: &'a WebhookConfiguration,
    entries: Vec<&'a WebhookEntry>,
}

impl<'a> ClusterView<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let namespaces = snapshot.namespaces.iter().flatten().map(|namespace| {
            let name = namespace.metadata.name.as_str();
            (name, namespace_labels(name, namespace.metadata.labels.clone()))
        });
        Self {
            snapshot,
            revisions: installed_revisions(snapshot),
            injectors: snapshot.configurations.iter().flatten().filter_map(InjectorWebhook::new).collect(),
            namespaces: namespaces.collect(),
        }
    }

    pub(super) fn revision(&self, revision: &str) -> Option<&InstalledRevision<'a>> {
        self.revisions.iter().find(|installed| installed.revision == revision)
    }

    /// Returns the injectors to which the API server sends a pod.
    pub(super) fn injectors_for(&self, labels: Labels<'_>) -> Vec<&InjectorWebhook<'a>> {
        self.injectors.iter().filter(|injector| injector.selects(labels)).collect()
    }

    pub(super) fn labels(&self, namespace: &str) -> StringMap {
        let known = self.namespaces.get(namespace).cloned();
        known.unwrap_or_else(|| namespace_labels(namespace, Map::new()))
    }

    /// Returns the pods of a Deployment that are not being deleted.
    pub(super) fn webhook_pods(&self, deployment: &Controller) -> Vec<&'a OwnPod> {
        let pods = self.snapshot.webhook.pods.iter().flatten();
        let selector = &deployment.spec.selector;
        pods.filter(|pod| !pod.is_terminating() && selector.matches(&pod.metadata.labels)).collect()
    }

    pub(super) fn report_settings_problems(&self, findings: &mut Findings) {
        for problem in self.revisions.iter().flat_map(|installed| &installed.settings_problems) {
            findings.add(problem.fault, problem.object.clone(), &problem.text);
        }
    }

    /// Returns the names of all objects that a revision consists of, and of the policies that may apply to it.
    pub(super) fn object_names(&self, installed: &InstalledRevision<'_>) -> HashSet<String> {
        let snapshot = self.snapshot;
        let configurations = installed.configurations().map(|configuration| &configuration.metadata.name);
        let pods = installed.deployment.map(|deployment| self.webhook_pods(deployment)).unwrap_or_default();
        let pods = pods.into_iter().map(|pod| &pod.metadata.name);
        let policies = snapshot.webhook.policies.iter().flatten().map(|policy| &policy.metadata.name);
        let config_maps = snapshot.config_maps.iter().flatten().map(|map| &map.metadata.name);
        let names = configurations.chain(pods).chain(policies).chain(config_maps).cloned();
        // The Service has the name of the Deployment.
        names.chain([installed.deployment_name()]).collect()
    }
}

/// Objects of the same revision.
#[derive(Default)]
struct RevisionObjects<'a> {
    deployment: Option<(&'a Controller, Flags)>,
    configuration: Option<&'a WebhookConfiguration>,
    tags: Vec<&'a WebhookConfiguration>,
}

fn installed_revisions(snapshot: &Snapshot) -> Vec<InstalledRevision<'_>> {
    let mut found: BTreeMap<String, RevisionObjects<'_>> = BTreeMap::new();
    for deployment in snapshot.webhook.controllers.iter().flatten() {
        let Some(rest) = deployment.metadata.name.strip_prefix("weir-webhook") else { continue };
        let flags = Flags::of_webhook(deployment);
        let by_name = rest.strip_prefix('-').unwrap_or("default");
        let revision = flags.get("revision").unwrap_or(by_name).to_owned();
        found.entry(revision).or_default().deployment = Some((deployment, flags));
    }
    let configurations = snapshot.configurations.iter().flatten();
    let with_revision = configurations.filter_map(|configuration| Some((configuration.revision()?, configuration)));
    let (tags, own): (Vec<_>, Vec<_>) = with_revision.partition(|(_, configuration)| configuration.tag().is_some());
    for (revision, configuration) in own {
        found.entry(revision.to_owned()).or_default().configuration = Some(configuration);
    }
    // A tag alone is no installation.
    for (revision, tag) in tags {
        if let Some(objects) = found.get_mut(revision) {
            objects.tags.push(tag);
        }
    }
    found
        .into_iter()
        .map(|(revision, RevisionObjects { deployment, configuration, tags })| {
            let (deployment, flags) = deployment.unzip();
            let flags = flags.unwrap_or_default();
            let (settings, settings_problems) = deployment
                .map_or((None, Vec::new()), |deployment| settings::load(snapshot, deployment, &flags, &revision));
            InstalledRevision { revision, deployment, flags, configuration, tags, settings, settings_problems }
        })
        .collect()
}

impl<'a> InjectorWebhook<'a> {
    fn new(configuration: &'a WebhookConfiguration) -> Option<Self> {
        let injects = |entry: &&WebhookEntry| entry.name.contains("sidecar-injector") && entry.matches_pod_create();
        let entries: Vec<&WebhookEntry> = configuration.webhooks.iter().filter(injects).collect();
        (!entries.is_empty()).then_some(Self { configuration, entries })
    }

    fn selects(&self, labels: Labels<'_>) -> bool {
        self.entries.iter().any(|entry| entry.selects(labels))
    }

    pub(super) fn name(&self) -> &'a str {
        &self.configuration.metadata.name
    }

    /// Returns the revision of Weir that it belongs to; `None` for another injector.
    pub(super) fn revision(&self) -> Option<&'a str> {
        self.configuration.revision()
    }
}

impl<'a> InstalledRevision<'a> {
    pub(super) fn configuration_object(&self) -> FindingObject {
        match self.configuration {
            Some(configuration) => configuration.object(),
            None => FindingObject::cluster_scoped("MutatingWebhookConfiguration", &configuration_name(&self.revision)),
        }
    }

    pub(super) fn deployment_name(&self) -> String {
        match self.deployment {
            Some(deployment) => deployment.metadata.name.clone(),
            None => with_revision("weir-webhook", &self.revision),
        }
    }

    pub(super) fn deployment_object(&self, namespace: &str) -> FindingObject {
        FindingObject::new("Deployment", namespace, &self.deployment_name())
    }

    /// Returns its webhook configurations: of the revision and of its tags.
    pub(super) fn configurations(&self) -> impl Iterator<Item = &'a WebhookConfiguration> {
        self.configuration.into_iter().chain(self.tags.iter().copied())
    }

    /// Returns the webhook entries of all its webhook configurations.
    pub(super) fn entries(&self) -> impl Iterator<Item = &'a WebhookEntry> {
        self.configurations().flat_map(|configuration| &configuration.webhooks)
    }
}
