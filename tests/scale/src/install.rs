//! Weir installed on the API server: the objects of `weir manifest generate`, and what controllers and kubelets would add.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use kube::api::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use serde_json::{Value, json};

use crate::api::Api;
use crate::plan::{node_ip, node_name, replica_ip};

/// Namespace of the webhook.
pub(crate) const WEBHOOK_NAMESPACE: &str = "weir-system";
/// Namespace of the agents.
pub(crate) const AGENT_NAMESPACE: &str = "weir-node";
/// Account of the watches that stand for the agents of other nodes.
pub(crate) const WATCHER: &str = "watcher";

/// What was installed.
#[derive(Debug)]
pub(crate) struct Installation {
    /// The Deployment of the webhook.
    pub(crate) webhook: Value,
    /// The DaemonSet of the agents.
    pub(crate) agent: Value,
    objects: Vec<Value>,
}

impl Installation {
    /// Applies the objects, with the feature of the agent that makes requests while nothing happens: the startup taint.
    pub(crate) async fn apply(api: &Api, weir: &Path) -> anyhow::Result<Self> {
        let output = Command::new(weir).args(["manifest", "generate", "--set", "node.taint=true"]).output()?;
        ensure!(output.status.success(), "weir manifest generate: {}", String::from_utf8_lossy(&output.stderr));
        let objects: Vec<Value> = serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout)?)?;
        for object in &objects {
            api.apply(&path(api, object).await?, object).await?;
        }
        let find = |kind: &str| objects.iter().find(|object| object["kind"] == kind).cloned().context(kind.to_owned());
        let installation = Self { webhook: find("Deployment")?, agent: find("DaemonSet")?, objects };
        installation.add_watcher(api).await?;
        Ok(installation)
    }

    /// Adds an account with the rights of an agent.
    async fn add_watcher(&self, api: &Api) -> anyhow::Result<()> {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": WATCHER } });
        api.post(&format!("/api/v1/namespaces/{AGENT_NAMESPACE}/serviceaccounts"), &account).await?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": WATCHER },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "weir-agent" },
            "subjects": [{ "kind": "ServiceAccount", "namespace": AGENT_NAMESPACE, "name": WATCHER }],
        });
        api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await?;
        Ok(())
    }

    /// Returns the number of replicas of the webhook.
    pub(crate) fn replicas(&self) -> usize {
        self.webhook["spec"]["replicas"].as_u64().and_then(|number| number.try_into().ok()).unwrap_or(1)
    }

    /// Returns the data of a ConfigMap.
    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> impl Iterator<Item = (&str, &str)> {
        let map = self.objects.iter().find(|object| {
            let metadata = &object["metadata"];
            object["kind"] == "ConfigMap" && metadata["namespace"] == namespace && metadata["name"] == name
        });
        let data = map.and_then(|map| map["data"].as_object()).into_iter().flatten();
        data.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// Creates the pods of the webhook and of the agents as controllers do, running and ready, and updates the statuses of both.
    pub(crate) async fn add_pods(&self, api: &Api, nodes: usize) -> anyhow::Result<()> {
        for number in 0..self.replicas() {
            let name = format!("weir-webhook-{number}");
            add_pod(api, &self.webhook, WEBHOOK_NAMESPACE, &name, number, &replica_ip(number).to_string()).await?;
        }
        crate::each(0..nodes, async |number| {
            let name = format!("weir-agent-{number:05}");
            add_pod(api, &self.agent, AGENT_NAMESPACE, &name, number, &node_ip(number).to_string()).await
        })
        .await?;
        let replicas = self.replicas();
        let status = json!({
            "observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas,
            "availableReplicas": replicas,
        });
        api.patch_status(&path(api, &self.webhook).await?, &status).await?;
        let status = json!({
            "observedGeneration": 1, "currentNumberScheduled": nodes, "desiredNumberScheduled": nodes,
            "updatedNumberScheduled": nodes, "numberReady": nodes, "numberAvailable": nodes, "numberMisscheduled": 0,
        });
        api.patch_status(&path(api, &self.agent).await?, &status).await
    }

    /// Sets the endpoints of the webhook's Service.
    pub(crate) async fn add_endpoints(&self, api: &Api) -> anyhow::Result<()> {
        let endpoints: Vec<Value> = (0..self.replicas())
            .map(|number| json!({ "addresses": [replica_ip(number)], "conditions": { "ready": true } }))
            .collect();
        let service = self.objects.iter().find(|object| object["kind"] == "Service").context("no Service")?;
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let port = ports.into_iter().find(|port| port["port"] == 443).context("no port 443")?;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": "weir-webhook", "labels": { "kubernetes.io/service-name": "weir-webhook" } },
            "ports": [{ "name": port["name"], "port": crate::webhook::HTTPS_PORT, "protocol": "TCP" }],
            "endpoints": endpoints,
        });
        api.post(&format!("/apis/discovery.k8s.io/v1/namespaces/{WEBHOOK_NAMESPACE}/endpointslices"), &slice).await?;
        Ok(())
    }
}

/// Returns the path of an object.
async fn path(api: &Api, object: &Value) -> anyhow::Result<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = version.rsplit_once('/').unwrap_or(("", &version));
    let (resource, capabilities) = pinned_kind(api.client(), &GroupVersionKind::gvk(group, version, &kind)).await?;
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let namespace = match capabilities.scope {
        Scope::Cluster => String::new(),
        Scope::Namespaced => format!("/namespaces/{}", text(&object["metadata"]["namespace"])),
    };
    Ok(format!("{root}{namespace}/{}/{}", resource.plural, text(&object["metadata"]["name"])))
}

/// Creates a pod of a controller on a node, and marks it ready.
async fn add_pod(
    api: &Api,
    controller: &Value,
    namespace: &str,
    name: &str,
    node: usize,
    ip: &str,
) -> anyhow::Result<()> {
    let template = &controller["spec"]["template"];
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
        "metadata": { "name": name, "labels": template["metadata"]["labels"], "annotations": template["metadata"]["annotations"] },
    });
    pod["spec"]["nodeName"] = node_name(node).into();
    let collection = format!("/api/v1/namespaces/{namespace}/pods");
    api.post(&collection, &pod).await?;
    let conditions = ["Ready", "ContainersReady", "Initialized"].map(|kind| json!({ "type": kind, "status": "True" }));
    let status = json!({
        "phase": "Running", "hostIP": node_ip(node), "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": conditions,
    });
    api.patch_status(&format!("{collection}/{name}"), &status).await
}
