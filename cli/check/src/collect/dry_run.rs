//! Dry-run pods: the API server calls its webhooks for them and stores nothing (`dryRun=All`).

use serde_json::{Map, Value, json};
use weir_injector::decision::INJECT_LABEL;
use weir_injector::selection::{Labels, REVISION_LABEL, namespace_labels};

use super::api::{ApiReader, ApiResponse, ApiTransport};
use crate::snapshot::object::StringMap;
use crate::snapshot::{DryRunOutcome, DryRunResult, Snapshot};

/// A pod that the webhook entries of a revision select.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DryRunTarget {
    revision: String,
    namespace: String,
    labels: StringMap,
}

/// Namespaces that are tried for one revision: one may have an exhausted quota, or not be the user's.
const MAX_DRY_RUNS: usize = 3;

/// Creates a pod for each revision in a namespace that it injects: in `wanted` unless that is empty, else in `limit` if that is given.
pub(super) async fn create_pods<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    snapshot: &Snapshot,
    wanted: &str,
    limit: Option<&str>,
) -> Vec<DryRunResult> {
    let image = webhook_image(snapshot);
    let mut results = Vec::new();
    for targets in targets(snapshot, wanted, limit) {
        let mut last = None;
        for target in targets {
            let path = format!("/api/v1/namespaces/{}/pods?dryRun=All&fieldManager=weir-check", target.namespace);
            let response = match reader.send("POST", &path, Some(&pod(&target, image))).await {
                Ok(response) => response,
                Err(reason) => {
                    reader.record_failure("the response to the dry-run pod", reason);
                    break;
                }
            };
            // Permission and quota may differ in another namespace; a webhook answers the same everywhere.
            let is_final = response.code != 403 || response.body.contains("admission webhook");
            let DryRunTarget { revision, namespace, .. } = target;
            last = Some(DryRunResult { revision, namespace, outcome: outcome(&response) });
            if is_final {
                break;
            }
        }
        results.extend(last);
    }
    results
}

fn outcome(response: &ApiResponse) -> DryRunOutcome {
    let body: Option<Value> = serde_json::from_str(&response.body).ok();
    match (response.code, body) {
        (200..=299, Some(pod)) => DryRunOutcome::Admitted(pod),
        (code, Some(status)) => {
            DryRunOutcome::Rejected { code, message: status["message"].as_str().unwrap_or_default().to_owned() }
        }
        (code, None) => DryRunOutcome::Rejected { code, message: response.excerpt() },
    }
}

/// Returns the image of a webhook that is installed.
fn webhook_image(snapshot: &Snapshot) -> &str {
    let deployments = snapshot.webhook.controllers.iter().flatten();
    let mut containers = deployments.flat_map(|deployment| &deployment.spec.template.spec.containers);
    containers.find(|container| container.name == "weir-webhook").map_or("weir-webhook", |container| &container.image)
}

/// Returns a few targets for each revision whose entries select anything: namespaces that it injects first, then labelled pods.
fn targets(snapshot: &Snapshot, wanted: &str, limit: Option<&str>) -> Vec<Vec<DryRunTarget>> {
    let is_candidate =
        |name: &str| if wanted.is_empty() { limit.is_none_or(|limit| limit == name) } else { name == wanted };
    let namespaces: Vec<(&str, StringMap)> = snapshot
        .namespaces
        .iter()
        .flatten()
        .filter(|namespace| !namespace.is_terminating() && is_candidate(&namespace.metadata.name))
        .map(|namespace| {
            let name = namespace.metadata.name.as_str();
            (name, namespace_labels(name, namespace.metadata.labels.clone()))
        })
        .collect();
    let label = |key: &str, value: &str| Map::from_iter([(key.to_owned(), Value::from(value))]);
    let unlabelled = &Map::new();
    let mut all = Vec::new();
    for configuration in snapshot.configurations.iter().flatten() {
        let Some(revision) = configuration.revision().filter(|_| configuration.tag().is_none()) else { continue };
        let selects = &|namespace: &StringMap, pod: &StringMap| {
            configuration.webhooks.iter().any(|entry| entry.selects(Labels { namespace, pod }))
        };
        // A pod with the label is injected whatever the policy. The first two need a namespace whose unlabelled pods are selected.
        let attempts = [
            (true, label(INJECT_LABEL, "true")),
            (true, Map::new()),
            (false, label(INJECT_LABEL, "true")),
            (false, label(REVISION_LABEL, revision)),
        ];
        let found = attempts.iter().flat_map(|(is_meshed, labels)| {
            let selected = namespaces.iter().filter(move |(_, namespace)| {
                selects(namespace, labels) && (!*is_meshed || selects(namespace, unlabelled))
            });
            selected.map(|(name, _)| DryRunTarget {
                revision: revision.to_owned(),
                namespace: (*name).to_owned(),
                labels: labels.clone(),
            })
        });
        all.push(found.take(MAX_DRY_RUNS).collect());
    }
    all
}

/// Returns a pod that every Pod Security level admits, with an image that the cluster runs already.
fn pod(target: &DryRunTarget, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "weir-check-", "namespace": target.namespace, "labels": target.labels},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "probe",
                "image": image,
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}
