//! A pod that is created on trial: the API server asks its webhooks, and stores nothing (`dryRun=All`).

use serde_json::{Map, Value, json};
use weir_injector::inject::decision::INJECT;
use weir_injector::inject::selection::objects::{REVISION_LABEL, TAG_LABEL};
use weir_injector::inject::selection::{Entry, Labels, REVISION, namespace_labels};

use super::read::{Ask, Reader};
use crate::check::snapshot::{Probe, Snapshot};

/// A way to have a pod sent to an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trial {
    revision: String,
    namespace: String,
    labels: Map<String, Value>,
}

/// Namespaces in which it is tried: one may have a quota that is used up, or be somebody else's.
const TRIALS: usize = 3;

/// Creates one pod for each revision, in a namespace that it serves; in `wanted` if that is not empty.
pub(super) async fn create<A: Ask>(
    reader: &Reader<'_, A>,
    snapshot: &Snapshot,
    wanted: &str,
    limited: Option<&str>,
) -> Vec<Probe> {
    let mut probes = Vec::new();
    for trials in trials(snapshot, wanted, limited) {
        let mut last = None;
        for trial in trials {
            let path = format!("/api/v1/namespaces/{}/pods?dryRun=All&fieldManager=weir-check", trial.namespace);
            match reader.ask("POST", &path, Some(&pod(&trial))).await {
                Ok(answer) => {
                    let body = serde_json::from_str(&answer.text).unwrap_or_else(|_| json!({"message": answer.text}));
                    let Trial { revision, namespace, .. } = trial;
                    last = Some(Probe { revision, namespace, code: answer.code, answer: body });
                    // Who may not create pods there, or has no quota left, may elsewhere; a webhook says the same everywhere.
                    if answer.code != 403 || answer.text.contains("admission webhook") {
                        break;
                    }
                }
                Err(why) => {
                    reader.note("the answer to a pod on trial", why);
                    break;
                }
            }
        }
        probes.extend(last);
    }
    probes
}

/// A few for each revision whose entries select anything. Namespaces of the mesh come first, then a label on the pod.
fn trials(snapshot: &Snapshot, wanted: &str, limited: Option<&str>) -> Vec<Vec<Trial>> {
    let namespaces: Vec<(&str, Map<String, Value>)> = snapshot
        .namespaces
        .iter()
        .flatten()
        .filter(|namespace| namespace["status"]["phase"] != "Terminating")
        .filter_map(|namespace| {
            let name = namespace["metadata"]["name"].as_str()?;
            let labels = namespace["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            Some((name, namespace_labels(name, labels)))
        })
        .filter(
            |(name, _)| {
                if wanted.is_empty() { limited.is_none_or(|limit| limit == *name) } else { *name == wanted }
            },
        )
        .collect();
    let mut all = Vec::new();
    for configuration in snapshot.configurations.iter().flatten() {
        let labels = &configuration["metadata"]["labels"];
        let Some(revision) = labels[REVISION_LABEL].as_str().filter(|_| labels.get(TAG_LABEL).is_none()) else {
            continue;
        };
        let entries: Vec<Entry> = entries(configuration);
        let label = |key: &str, value: &str| Map::from_iter([(key.to_owned(), Value::from(value))]);
        // A pod that asks is injected whatever the policy. With the first two, pods without labels have to be sent as well.
        let asks = [
            (true, label(INJECT, "true")),
            (true, Map::new()),
            (false, label(INJECT, "true")),
            (false, label(REVISION, revision)),
        ];
        let none = &Map::new();
        let sent = &|namespace: &Map<String, Value>, pod: &Map<String, Value>| {
            entries.iter().any(|entry| entry.matches(Labels { namespace, pod }) == Ok(true))
        };
        let found = asks.iter().flat_map(|(meshed, labels)| {
            let fit = namespaces
                .iter()
                .filter(move |(_, namespace)| sent(namespace, labels) && (!*meshed || sent(namespace, none)));
            fit.map(|(name, _)| Trial {
                revision: revision.to_owned(),
                namespace: (*name).to_owned(),
                labels: labels.clone(),
            })
        });
        all.push(found.take(TRIALS).collect());
    }
    all
}

/// The entries of a configuration, as far as they select.
pub(crate) fn entries(configuration: &Value) -> Vec<Entry> {
    let entries = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice).iter();
    let entry = |entry: &Value| Entry {
        name: entry["name"].as_str().unwrap_or_default().to_owned(),
        namespace_selector: entry["namespaceSelector"].clone(),
        object_selector: entry["objectSelector"].clone(),
    };
    entries.map(entry).collect()
}

/// A pod that every Pod Security level lets pass.
fn pod(trial: &Trial) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "weir-check-", "namespace": trial.namespace, "labels": trial.labels},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "probe",
                "image": "registry.k8s.io/pause:3.10",
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}
