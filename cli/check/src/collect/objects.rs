//! Objects of Weir's namespaces, and users' workloads and pods.

use std::collections::{BTreeSet, HashSet};

use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weir_injector::selection::{INJECTION_LABEL, REVISION_LABEL};

use super::api::{ApiReader, ApiTransport};
use crate::flags::Flags;
use crate::snapshot::cluster::ConfigMap;
use crate::snapshot::own::WebhookSecret;
use crate::snapshot::pods::{MeshPod, PodDeduplicator, PodFilter};
use crate::snapshot::workloads::{FailedCreate, Workload, WorkloadDocument};
use crate::snapshot::{InstallNamespaces, NamespaceObjects, Snapshot};

async fn list_in<A: ApiTransport, T: DeserializeOwned>(
    reader: &ApiReader<'_, A>,
    namespace: &str,
    group: &str,
    resource: &str,
) -> Option<Vec<T>> {
    let path = format!("/{group}/namespaces/{namespace}/{resource}");
    reader.list(&format!("{resource} of {namespace}"), &path).await
}

pub(super) async fn webhook_objects<A: ApiTransport>(reader: &ApiReader<'_, A>, namespace: &str) -> NamespaceObjects {
    let (controllers, pods, services, slices, policies, budgets) = tokio::join!(
        list_in(reader, namespace, "apis/apps/v1", "deployments"),
        list_in(reader, namespace, "api/v1", "pods"),
        list_in(reader, namespace, "api/v1", "services"),
        list_in(reader, namespace, "apis/discovery.k8s.io/v1", "endpointslices"),
        list_in(reader, namespace, "apis/networking.k8s.io/v1", "networkpolicies"),
        list_in(reader, namespace, "apis/policy/v1", "poddisruptionbudgets"),
    );
    NamespaceObjects { controllers, pods, services, slices, policies, budgets }
}

pub(super) async fn agent_objects<A: ApiTransport>(reader: &ApiReader<'_, A>, namespace: &str) -> NamespaceObjects {
    let (controllers, pods) = tokio::join!(
        list_in(reader, namespace, "apis/apps/v1", "daemonsets"),
        list_in(reader, namespace, "api/v1", "pods"),
    );
    NamespaceObjects { controllers, pods, ..NamespaceObjects::default() }
}

/// Lists a kind of `admissionregistration.k8s.io/v1` that API servers before 1.30 do not have.
async fn admission_objects<A: ApiTransport>(reader: &ApiReader<'_, A>, kind: &str) -> Option<Vec<Value>> {
    let path = format!("/apis/admissionregistration.k8s.io/v1/{}", kind.to_lowercase());
    reader.list_if_known(kind, &path).await
}

/// Returns the texts at a JSON pointer.
fn texts(objects: &[Value], pointer: &str) -> Vec<String> {
    objects.iter().filter_map(|object| object.pointer(pointer)?.as_str().map(str::to_owned)).collect()
}

/// Reads the names of all ValidatingAdmissionPolicies.
pub(super) async fn policies<A: ApiTransport>(reader: &ApiReader<'_, A>) -> Option<Vec<String>> {
    let policies = admission_objects(reader, "ValidatingAdmissionPolicies").await?;
    Some(texts(&policies, "/metadata/name"))
}

/// Reads the names of the ValidatingAdmissionPolicies that have a binding.
pub(super) async fn bound_policies<A: ApiTransport>(reader: &ApiReader<'_, A>) -> Option<Vec<String>> {
    let bindings = admission_objects(reader, "ValidatingAdmissionPolicyBindings").await?;
    Some(texts(&bindings, "/spec/policyName"))
}

/// Reads the ConfigMaps of the agents, and those of the other namespaces that hold settings documents.
pub(super) async fn config_maps<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    namespaces: &InstallNamespaces,
) -> Option<Vec<ConfigMap>> {
    let InstallNamespaces { webhook, agent, istio } = namespaces;
    let lists = BTreeSet::from([webhook, agent, istio]).into_iter().map(async |namespace| {
        let keep = |map: ConfigMap| {
            let has_settings = ["values", "config", "mesh"].iter().any(|key| map.data.contains_key(*key));
            (has_settings || namespace == agent).then_some(map)
        };
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        reader.filter_list(&format!("configmaps of {namespace}"), &path, keep).await
    });
    concat(join_all(lists).await)
}

/// Returns all items of all lists, if all of them could be read.
fn concat<T>(lists: Vec<Option<Vec<T>>>) -> Option<Vec<T>> {
    let lists: Option<Vec<Vec<T>>> = lists.into_iter().collect();
    lists.map(|lists| lists.into_iter().flatten().collect())
}

/// Reads the certificates of the Secrets that the webhook's Deployments mount or name by flag.
pub(super) async fn webhook_secrets<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    snapshot: &Snapshot,
) -> Vec<WebhookSecret> {
    let namespace = &snapshot.install_namespaces.webhook;
    let mut names = HashSet::new();
    for deployment in snapshot.webhook.controllers.iter().flatten() {
        let volumes = &deployment.spec.template.spec.volumes;
        names.extend(
            volumes.iter().filter_map(|volume| volume.secret.as_ref()).map(|secret| secret.secret_name.clone()),
        );
        names.extend(Flags::of_webhook(deployment).get("ca-secret").map(str::to_owned));
    }
    let secrets = names.iter().map(async |name| {
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        reader.get(&format!("Secret {namespace}/{name} (its certificates)"), &path).await
    });
    join_all(secrets).await.into_iter().flatten().collect()
}

/// Returns the path of a list in one namespace, or in all of them.
fn list_path(prefix: &str, namespace: Option<&str>, resource: &str) -> String {
    namespace.map_or_else(
        || format!("{prefix}/{resource}"),
        |namespace| format!("{prefix}/namespaces/{namespace}/{resource}"),
    )
}

pub(super) async fn workloads<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    namespace: Option<&str>,
) -> Option<Vec<Workload>> {
    let kinds = [("deployments", "Deployment"), ("statefulsets", "StatefulSet"), ("daemonsets", "DaemonSet")];
    let lists = kinds.map(async |(resource, kind)| {
        let path = list_path("/apis/apps/v1", namespace, resource);
        reader.filter_list(resource, &path, |document: WorkloadDocument| document.into_workload(kind)).await
    });
    concat(join_all(lists).await)
}

/// Reads the events of controllers that could not create a pod. Deployments report that in a condition.
pub(super) async fn failed_creates<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    namespace: Option<&str>,
) -> Option<Vec<FailedCreate>> {
    let path = list_path("/api/v1", namespace, "events?fieldSelector=reason%3DFailedCreate");
    reader.filter_list("events", &path, |event: FailedCreate| (event.reason == "FailedCreate").then_some(event)).await
}

/// Returns the namespaces whose unlabelled pods may be injected; `None` for all, as when unlabelled namespaces are enabled by default.
pub(super) fn meshed_namespaces(snapshot: &Snapshot) -> Option<HashSet<String>> {
    let mut entries = snapshot.configurations.iter().flatten().flat_map(|configuration| &configuration.webhooks);
    let enabled_by_default = entries.any(|entry| entry.name.starts_with("auto.sidecar-injector."));
    let namespaces = snapshot.namespaces.as_ref().filter(|_| !enabled_by_default)?;
    let labelled = namespaces.iter().filter(|namespace| {
        [INJECTION_LABEL, REVISION_LABEL].iter().any(|label| namespace.metadata.labels.contains_key(*label))
    });
    Some(labelled.map(|namespace| namespace.metadata.name.clone()).collect())
}

pub(super) async fn mesh_pods<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    namespace: Option<&str>,
    filter: &PodFilter,
) -> Option<Vec<MeshPod>> {
    let what = namespace.map_or_else(
        || "pods of all namespaces (-n NAME limits the check to one)".to_owned(),
        |namespace| format!("pods of {namespace}"),
    );
    let mut pods = PodDeduplicator::default();
    let is_complete =
        reader.for_each(&what, &list_path("/api/v1", namespace, "pods"), |pod| pods.add(pod, filter)).await;
    is_complete.then(|| pods.into_pods())
}
