//! Webhook configurations: whether they are there, and say what the manifests say.
//!
//! Selectors are compared by what they select, over all combinations of labels that matter, not by how they are written: an
//! administrator may exclude further namespaces, and some platforms add terms of their own.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use weir_injector::inject::decision::INJECT;
use weir_injector::inject::selection::objects::{REVISION_LABEL, TAG_LABEL};
use weir_injector::inject::selection::{Entry, INJECTION, Installation, Labels, REVISION, namespace_labels};

use super::view::{CONFIGURATION, Installed, View, takes_pods};
use crate::check::fault;
use crate::check::finding::{Findings, Object};
use crate::check::gather::probe::entries;

/// Bounds of a timeout that does no harm, in seconds. 10 is Kubernetes' default.
const TIMEOUT: std::ops::RangeInclusive<u64> = 2..=10;

/// Conditions of the manifests, by name.
const CONDITIONS: [&str; 2] = ["no-mirror-pods", "no-host-network"];

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    let snapshot = view.snapshot;
    let places = &snapshot.places;
    if view.installations.is_empty() && snapshot.weir.controllers.is_some() && snapshot.configurations.is_some() {
        let text = "the webhook is not installed there";
        findings.add(&fault::NOT_INSTALLED, Object::new("Deployment", &places.weir, "weir-webhook"), text);
    }
    for installed in &view.installations {
        if installed.deployment.is_none() && snapshot.weir.controllers.is_some() {
            let object = installed.deployment_object(&places.weir);
            let text = format!("it is not there, and {} sends pods to it: none of them starts", installed.object());
            findings.add(&fault::NOT_INSTALLED, object, text);
        }
        if installed.configuration.is_none() && snapshot.configurations.is_some() {
            let text = format!("revision '{}' of the webhook runs, and nobody calls it", installed.revision);
            findings.add(&fault::WEBHOOK_CONFIGURATION_MISSING, installed.object(), text);
        }
        for configuration in installed.configurations() {
            let name = configuration["metadata"]["labels"][TAG_LABEL].as_str().unwrap_or(&installed.revision);
            compare(view, installed, configuration, name, findings);
        }
    }
    for configuration in snapshot.configurations.iter().flatten() {
        let labels = &configuration["metadata"]["labels"];
        let (Some(tag), Some(revision)) = (labels[TAG_LABEL].as_str(), labels[REVISION_LABEL].as_str()) else {
            continue;
        };
        if view.installation(revision).is_none() {
            findings.fixed(
                &fault::TAG_DANGLING,
                Object::of(CONFIGURATION, configuration),
                format!("tag '{tag}' stands for revision '{revision}', which is not there"),
                format!("weir tag set {tag} --revision REVISION --overwrite, or weir tag remove {tag}"),
            );
        }
    }
}

/// Whether a configuration was turned off for another default injector.
fn is_off(configuration: &Value) -> bool {
    let entries = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
    let off = |entry: &Value| {
        let terms = entry["namespaceSelector"]["matchExpressions"].as_array().map_or(&[][..], Vec::as_slice);
        terms.iter().any(|term| term["key"].as_str().is_some_and(|key| key.ends_with("/deactivated")))
    };
    !entries.is_empty() && entries.iter().any(off)
}

/// Compares one configuration with what it has to be for the revision or tag `name`.
fn compare(view: &View<'_>, installed: &Installed<'_>, configuration: &Value, name: &str, findings: &mut Findings) {
    let object = Object::of(CONFIGURATION, configuration);
    if is_off(configuration) {
        let namespace = namespace_labels("any", label(INJECTION, "enabled"));
        let labels = Labels { namespace: &namespace, pod: &Map::new() };
        if view.sent_to(labels).is_empty() {
            let text = "its entries for the default injector are off, and no other injector takes their pods";
            findings.add(&fault::DEACTIVATED, object, text);
        }
        return;
    }
    let live = entries(configuration);
    let by_default = live.iter().any(|entry| entry.name.starts_with("auto."));
    let installation = Installation { revision: name.to_owned(), tags: Vec::new(), by_default, deactivated: false };
    let expected = installation.entries();
    let prefix = |entry: &Entry| entry.name.split("sidecar-injector").next().unwrap_or_default().to_owned();
    let missing: Vec<String> = expected
        .iter()
        .map(&prefix)
        .filter(|wanted| !live.iter().any(|entry| prefix(entry) == *wanted))
        .map(|wanted| format!("{wanted}sidecar-injector.weir.dev"))
        .collect();
    if !missing.is_empty() {
        findings.add(&fault::ENTRY_MISSING, object.clone(), format!("it lacks {}", missing.join(", ")));
    }
    let raw = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
    let mut altered = BTreeSet::new();
    for (entry, raw) in live.iter().zip(raw) {
        let Some(wanted) = expected.iter().find(|wanted| prefix(wanted) == prefix(entry)) else { continue };
        altered
            .extend(differences(view, entry, wanted, name).map(|difference| format!("{}: {difference}", entry.name)));
        altered.extend(fields(raw).map(|difference| format!("{}: {difference}", entry.name)));
        if raw["failurePolicy"] == "Ignore" && !entry.name.starts_with("auto.") {
            findings.add(&fault::FAILURE_POLICY_IGNORE, object.clone(), format!("entry {}", entry.name));
        }
        let timeout = raw["timeoutSeconds"].as_u64().unwrap_or(10);
        if !TIMEOUT.contains(&timeout) {
            let text = format!(
                "entry {} has {timeout} s; {} to {} s are sensible",
                entry.name,
                TIMEOUT.start(),
                TIMEOUT.end()
            );
            findings.add(&fault::TIMEOUT_UNSUITABLE, object.clone(), text);
        }
        if let Some(wrong) = target(view, installed, raw) {
            findings.add(&fault::WRONG_TARGET, object.clone(), format!("entry {}: {wrong}", entry.name));
        }
    }
    if !altered.is_empty() {
        let texts: Vec<&str> = altered.iter().map(String::as_str).collect();
        findings.add(&fault::ENTRY_ALTERED, object, texts.join("; "));
    }
}

/// What is wrong with where an entry sends pods.
fn target(view: &View<'_>, installed: &Installed<'_>, entry: &Value) -> Option<String> {
    let service = &entry["clientConfig"]["service"];
    if service.is_null() {
        return None;
    }
    let (namespace, name) = (service["namespace"].as_str()?, service["name"].as_str()?);
    let places = &view.snapshot.places;
    let wanted = installed.deployment_object(&places.weir);
    let path = service["path"].as_str().unwrap_or_default();
    if (namespace, name) != (wanted.namespace.as_str(), wanted.name.as_str()) {
        return Some(format!("it calls Service {namespace}/{name} instead of {}/{}", wanted.namespace, wanted.name));
    }
    (path.split('/').nth(1) != Some("inject"))
        .then(|| format!("it calls path {path:?}; the webhook answers on /inject"))
}

/// Fields of an entry that have to be as they are.
fn fields(entry: &Value) -> impl Iterator<Item = &'static str> {
    let has_v1 = entry["admissionReviewVersions"].as_array().into_iter().flatten().any(|version| version == "v1");
    let mut conditions = entry["matchConditions"].as_array().into_iter().flatten();
    let others = conditions.any(|condition| !CONDITIONS.iter().any(|known| condition["name"] == *known));
    let idle = matches!(entry["sideEffects"].as_str(), Some("None" | "NoneOnDryRun"));
    [
        (!takes_pods(entry), "its rules are not about pods that are created"),
        (others, "it has a matchCondition that is not of the manifests, and may keep pods from being sent"),
        (!has_v1, "admissionReviewVersions lacks v1"),
        (!idle, "sideEffects is not None, so trial runs (dry-run) of pods are refused"),
        (
            entry["reinvocationPolicy"] != "IfNeeded",
            "reinvocationPolicy is not IfNeeded, so containers that others add later are not seen",
        ),
    ]
    .into_iter()
    .filter_map(|(wrong, text)| wrong.then_some(text))
}

/// What an entry selects otherwise than it should.
fn differences(view: &View<'_>, live: &Entry, wanted: &Entry, name: &str) -> impl Iterator<Item = String> {
    let mut found = Vec::new();
    let revisions = [None, Some(name), Some("another")];
    combinations(&revisions, |namespace, pod| {
        let ours = namespace_labels("any", namespace.clone());
        let labels = Labels { namespace: &ours, pod };
        let (is, should) = (live.matches(labels).unwrap_or(false), wanted.matches(labels).unwrap_or(false));
        if is != should && found.is_empty() {
            let verb = if is { "selects" } else { "does not select" };
            found.push(format!("it {verb} {}", words(namespace, pod)));
        }
    });
    let places = &view.snapshot.places;
    let kept_out = ["kube-system", places.weir.as_str()].into_iter().find(|system| {
        let mut selects = false;
        combinations(&revisions, |namespace, pod| {
            let ours = namespace_labels(system, namespace.clone());
            selects |= live.matches(Labels { namespace: &ours, pod }).unwrap_or(false);
        });
        selects
    });
    found.extend(
        kept_out.map(|system| format!("it does not leave out namespace {system}, so the cluster may wait for itself")),
    );
    found.into_iter()
}

/// All combinations of the labels that entries look at.
pub(super) fn combinations(revisions: &[Option<&str>], mut look: impl FnMut(&Map<String, Value>, &Map<String, Value>)) {
    for injection in [None, Some("enabled"), Some("disabled")] {
        for namespace_revision in revisions {
            for inject in [None, Some("true"), Some("false")] {
                for revision in revisions {
                    let map = |pairs: [(&str, Option<&str>); 2]| -> Map<String, Value> {
                        let set =
                            pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?))));
                        set.collect()
                    };
                    let namespace = map([(INJECTION, injection), (REVISION, *namespace_revision)]);
                    let pod = map([(INJECT, inject), (REVISION, *revision)]);
                    look(&namespace, &pod);
                }
            }
        }
    }
}

/// Labels for people.
pub(super) fn words(namespace: &Map<String, Value>, pod: &Map<String, Value>) -> String {
    let labels = |map: &Map<String, Value>| -> String {
        let pairs = map.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        let pairs: Vec<String> = pairs.collect();
        if pairs.is_empty() { "without labels".to_owned() } else { format!("with {}", pairs.join(", ")) }
    };
    format!("pods {} of a namespace {}", labels(pod), labels(namespace))
}

/// One label.
pub(super) fn label(key: &str, value: &str) -> Map<String, Value> {
    Map::from_iter([(key.to_owned(), Value::from(value))])
}
