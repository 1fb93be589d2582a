//! Webhook configurations: whether they exist and do what the manifests do.
//!
//! Selectors are compared by what they select, over all combinations of the relevant labels, not by their text: administrators exclude
//! further namespaces, and some platforms add terms of their own.

use std::collections::BTreeSet;

use serde_json::Map;
use weir_injector::selection::{
    INJECTION_LABEL, InjectorRevision, Labels, WebhookEntry as ExpectedEntry, namespace_labels,
};

use super::selection::{describe_pods, for_each_combination, label};
use super::view::{ClusterView, InstalledRevision};
use crate::fault;
use crate::finding::{FindingObject, Findings};
use crate::snapshot::webhooks::{WebhookConfiguration, WebhookEntry};

/// Suitable timeouts, in seconds. 10 is Kubernetes' default.
const TIMEOUT: std::ops::RangeInclusive<u64> = 2..=10;

/// Names of the match conditions in the manifests.
const MATCH_CONDITIONS: [&str; 2] = ["no-mirror-pods", "no-host-network"];

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    let snapshot = view.snapshot;
    let namespace = &snapshot.install_namespaces.webhook;
    if view.revisions.is_empty() && snapshot.webhook.controllers.is_some() && snapshot.configurations.is_some() {
        let object = FindingObject::new("Deployment", namespace, "weir-webhook");
        findings.add(&fault::NOT_INSTALLED, object, "does not exist");
    }
    for installed in &view.revisions {
        if installed.deployment.is_none() && snapshot.webhook.controllers.is_some() {
            let caller = installed.configuration_object();
            let text = format!("does not exist, but {caller} sends pods to it, and they are rejected");
            findings.add(&fault::NOT_INSTALLED, installed.deployment_object(namespace), text);
        }
        if installed.configuration.is_none() && snapshot.configurations.is_some() {
            let text =
                format!("revision '{}' of the webhook runs, but no webhook configuration calls it", installed.revision);
            findings.add(&fault::WEBHOOK_CONFIGURATION_MISSING, installed.configuration_object(), text);
        }
        for configuration in installed.configurations() {
            let name = configuration.tag().unwrap_or(&installed.revision);
            compare(view, installed, configuration, name, findings);
        }
    }
    for configuration in snapshot.configurations.iter().flatten() {
        if let (Some(tag), Some(revision)) = (configuration.tag(), configuration.revision())
            && view.revision(revision).is_none()
        {
            findings.add_with_fix(
                &fault::TAG_DANGLING,
                configuration.object(),
                format!("tag '{tag}' points to revision '{revision}', which does not exist"),
                format!("weir tag set {tag} --revision REVISION --overwrite, or weir tag remove {tag}"),
            );
        }
    }
}

/// Returns whether a configuration was deactivated for another default injector.
fn is_deactivated(configuration: &WebhookConfiguration) -> bool {
    let mut keys = configuration.webhooks.iter().flat_map(|entry| entry.namespace_selector.keys());
    keys.any(|key| key.ends_with("/deactivated"))
}

/// Compares a configuration with that of the manifests for the revision or tag `name`.
fn compare(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    configuration: &WebhookConfiguration,
    name: &str,
    findings: &mut Findings,
) {
    let object = configuration.object();
    if is_deactivated(configuration) {
        let namespace = namespace_labels("any", label(INJECTION_LABEL, "enabled"));
        if view.injectors_for(Labels { namespace: &namespace, pod: &Map::new() }).is_empty() {
            let text = "its entries for the default injector are deactivated, and no other injector selects their pods";
            findings.add(&fault::DEACTIVATED, object, text);
        }
        return;
    }
    let entries = &configuration.webhooks;
    let expected = InjectorRevision {
        revision: name.to_owned(),
        enable_namespaces_by_default: entries.iter().any(|entry| entry.name.starts_with("auto.")),
        ..InjectorRevision::default()
    };
    let expected = expected.webhook_entries();
    let is_missing = |wanted: &&ExpectedEntry| !entries.iter().any(|entry| prefix(&entry.name) == prefix(&wanted.name));
    let missing = expected.iter().filter(is_missing);
    let missing: Vec<String> =
        missing.map(|wanted| format!("{}sidecar-injector.weir.dev", prefix(&wanted.name))).collect();
    if !missing.is_empty() {
        findings.add(&fault::ENTRY_MISSING, object.clone(), format!("lacks {}", missing.join(", ")));
    }
    let mut altered = BTreeSet::new();
    for entry in entries {
        let Some(wanted) = expected.iter().find(|wanted| prefix(&wanted.name) == prefix(&entry.name)) else {
            continue;
        };
        let differences = selection_differences(view, entry, wanted, name);
        let differences = differences.into_iter().chain(altered_fields(entry).map(str::to_owned));
        altered.extend(differences.map(|difference| format!("{}: {difference}", entry.name)));
        check_entry(view, installed, entry, &object, findings);
    }
    if !altered.is_empty() {
        findings.add(&fault::ENTRY_ALTERED, object, altered.into_iter().collect::<Vec<_>>().join("; "));
    }
}

/// Returns the part of a webhook entry's name that tells the entries of one configuration apart.
fn prefix(name: &str) -> &str {
    name.split("sidecar-injector").next().unwrap_or_default()
}

fn check_entry(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    entry: &WebhookEntry,
    object: &FindingObject,
    findings: &mut Findings,
) {
    let name = &entry.name;
    if entry.failure_policy == "Ignore" && !name.starts_with("auto.") {
        findings.add(&fault::FAILURE_POLICY_IGNORE, object.clone(), format!("entry {name}"));
    }
    let timeout = entry.timeout_seconds.unwrap_or(10);
    if !TIMEOUT.contains(&timeout) {
        let text = format!("entry {name} has {timeout} s; use {} to {} s", TIMEOUT.start(), TIMEOUT.end());
        findings.add(&fault::TIMEOUT_UNSUITABLE, object.clone(), text);
    }
    if let Some(wrong) = wrong_target(view, installed, entry) {
        findings.add(&fault::WRONG_TARGET, object.clone(), format!("entry {name} calls {wrong}"));
    }
}

/// Returns what an entry calls, if that is not the webhook of its revision.
fn wrong_target(view: &ClusterView<'_>, installed: &InstalledRevision<'_>, entry: &WebhookEntry) -> Option<String> {
    let service = entry.client_config.service.as_ref()?;
    let (namespace, name) = (&view.snapshot.install_namespaces.webhook, installed.deployment_name());
    if (&service.namespace, &service.name) != (namespace, &name) {
        return Some(format!("Service {}/{} instead of {namespace}/{name}", service.namespace, service.name));
    }
    (service.path.split('/').nth(1) != Some("inject"))
        .then(|| format!("path {:?}; the webhook serves /inject", service.path))
}

/// Returns the fields of an entry that do not have the value of the manifests.
fn altered_fields(entry: &WebhookEntry) -> impl Iterator<Item = &'static str> {
    let has_v1 = entry.admission_review_versions.iter().any(|version| version == "v1");
    let mut conditions = entry.match_conditions.iter();
    let has_unknown_condition = conditions.any(|condition| !MATCH_CONDITIONS.contains(&condition.name.as_str()));
    let has_side_effects = !["None", "NoneOnDryRun"].contains(&entry.side_effects.as_str());
    [
        (!entry.matches_pod_create(), "its rules do not match the creation of pods"),
        (has_unknown_condition, "it has a matchCondition that is not in the manifests and may exclude pods"),
        (!has_v1, "admissionReviewVersions lacks v1"),
        (has_side_effects, "sideEffects is not None, so dry-run requests for pods are rejected"),
        (
            entry.reinvocation_policy != "IfNeeded",
            "reinvocationPolicy is not IfNeeded, so containers that other webhooks add later are not seen",
        ),
    ]
    .into_iter()
    .filter_map(|(is_altered, text)| is_altered.then_some(text))
}

/// Returns where an entry selects other pods than it should.
fn selection_differences(
    view: &ClusterView<'_>,
    entry: &WebhookEntry,
    wanted: &ExpectedEntry,
    name: &str,
) -> Vec<String> {
    let mut found = Vec::new();
    let revisions = [None, Some(name), Some("another")];
    for_each_combination(&revisions, |namespace, pod| {
        let any_namespace = namespace_labels("any", namespace.clone());
        let labels = Labels { namespace: &any_namespace, pod };
        let (is, should) = (entry.selects(labels), wanted.matches(labels).unwrap_or(false));
        if is != should && found.is_empty() {
            let verb = if is { "selects" } else { "does not select" };
            found.push(format!("it {verb} {}", describe_pods(namespace, pod)));
        }
    });
    let selected = ["kube-system", view.snapshot.install_namespaces.webhook.as_str()].into_iter().find(|system| {
        let mut selects = false;
        for_each_combination(&revisions, |namespace, pod| {
            let namespace = namespace_labels(system, namespace.clone());
            selects |= entry.selects(Labels { namespace: &namespace, pod });
        });
        selects
    });
    found.extend(
        selected.map(|system| format!("it does not exclude namespace {system}, which can deadlock the cluster")),
    );
    found
}
