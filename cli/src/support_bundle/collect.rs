//! Reads what a bundle has. What cannot be read is noted, and the rest is read.

use k8s_openapi::api::core::v1::{Event, Node, Pod, Secret};
use kube::Api;
use kube::api::{ListParams, LogParams};
use serde_json::{Value, json};
use weir_check::{CheckScope, analyze, collect, print};

use super::{BundleFile, redact};
use crate::cluster::{Cluster, PAGE_SIZE, error_chain};
use crate::objects::{ALL, POD, SECRET};

const PART_OF: &str = "app.kubernetes.io/part-of=weir";
/// Limit of pods whose logs are read.
const MAX_PODS: usize = 50;
/// Limit of the log of a container.
const MAX_LOG: i64 = 1 << 20;
/// Limit of all logs.
const MAX_LOGS: usize = 64 << 20;
/// Limit of events and of nodes.
const MAX_ITEMS: u32 = 1000;

/// Reads a cluster.
pub(super) struct Collector<'a> {
    cluster: &'a Cluster,
    log_lines: u32,
    files: Vec<BundleFile>,
    errors: Vec<String>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(cluster: &'a Cluster, log_lines: u32) -> Self {
        Self { cluster, log_lines, files: Vec::new(), errors: Vec::new() }
    }

    /// Reads everything.
    pub(super) async fn collect(mut self, scope: &CheckScope) -> Vec<BundleFile> {
        self.versions().await;
        match collect(&self.cluster.client, scope).await {
            Ok(snapshot) => self.add("check.json", print::json(&analyze(&snapshot))),
            Err(error) => self.errors.push(format!("check: {error}")),
        }
        let namespaces = [scope.namespaces.webhook.as_str(), scope.namespaces.agent.as_str()];
        let pods = self.objects(&namespaces).await;
        for namespace in namespaces {
            self.secrets(namespace).await;
            self.events(namespace).await;
        }
        self.logs(&pods).await;
        if !self.errors.is_empty() {
            let errors = self.errors.join("\n") + "\n";
            self.add("errors.txt", errors);
        }
        self.files
    }

    fn add(&mut self, path: &str, content: String) {
        self.files.push(BundleFile { path: path.to_owned(), content });
    }

    fn add_json(&mut self, path: &str, value: &Value) {
        self.add(path, format!("{value:#}\n"));
    }

    async fn versions(&mut self) {
        let version = self.cluster.kubernetes_version().await;
        let components = crate::version::components(self.cluster).await;
        let client = env!("CARGO_PKG_VERSION");
        let mut document = json!({"client": client, "context": self.cluster.context, "server": self.cluster.server});
        match version {
            Ok(version) => document["kubernetes"] = version.into(),
            Err(failure) => self.errors.push(failure.to_string().trim_end().to_owned()),
        }
        match components {
            Ok(components) => document["components"] = components.iter().map(ToString::to_string).collect(),
            Err(failure) => self.errors.push(failure.to_string().trim_end().to_owned()),
        }
        let nodes = Api::<Node>::all(self.cluster.client.clone()).list(&ListParams::default().limit(MAX_ITEMS)).await;
        match nodes {
            Ok(nodes) => {
                let info = |node: Node| {
                    let info = node.status.and_then(|status| status.node_info);
                    json!({"name": node.metadata.name, "info": info})
                };
                document["nodes"] = nodes.items.into_iter().map(info).collect();
            }
            Err(error) => self.errors.push(format!("nodes: {}", error_chain(&error))),
        }
        self.add_json("versions.json", &document);
    }

    /// Reads the objects of Weir, without Secrets; returns the pods.
    async fn objects(&mut self, namespaces: &[&str]) -> Vec<Value> {
        let mut kinds = ALL.to_vec();
        kinds.retain(|kind| *kind != SECRET && *kind != POD);
        for kind in kinds {
            match self.cluster.objects(kind, "", PART_OF).await {
                Ok(found) => self.add_objects(kind.plural, found),
                Err(failure) => self.errors.push(failure.to_string().trim_end().to_owned()),
            }
        }
        let mut pods = Vec::new();
        for namespace in namespaces {
            match self.cluster.objects(POD, namespace, "").await {
                Ok(found) => pods.extend(found),
                Err(failure) => self.errors.push(failure.to_string().trim_end().to_owned()),
            }
        }
        self.add_objects(POD.plural, pods.clone());
        pods
    }

    fn add_objects(&mut self, plural: &str, mut found: Vec<Value>) {
        if !found.is_empty() {
            found.iter_mut().for_each(redact::object);
            self.add_json(&format!("objects/{plural}.json"), &found.into());
        }
    }

    /// Lists Secrets by their metadata: the API server does not send their data.
    async fn secrets(&mut self, namespace: &str) {
        let secrets: Api<Secret> = Api::namespaced(self.cluster.client.clone(), namespace);
        match secrets.list_metadata(&ListParams::default().limit(PAGE_SIZE)).await {
            Ok(list) => {
                let about = |metadata: &kube::api::ObjectMeta| json!({"name": metadata.name, "labels": metadata.labels, "created": metadata.creation_timestamp});
                let secrets: Value = list.items.iter().map(|item| about(&item.metadata)).collect();
                self.add_json(&format!("objects/secrets-{namespace}.json"), &secrets);
            }
            Err(error) => self.errors.push(format!("secrets of {namespace}: {}", error_chain(&error))),
        }
    }

    async fn events(&mut self, namespace: &str) {
        let events: Api<Event> = Api::namespaced(self.cluster.client.clone(), namespace);
        match events.list(&ListParams::default().limit(MAX_ITEMS)).await {
            Ok(list) => {
                let mut events: Vec<Value> =
                    list.items.iter().filter_map(|event| serde_json::to_value(event).ok()).collect();
                events.iter_mut().for_each(redact::object);
                self.add_json(&format!("events-{namespace}.json"), &events.into());
            }
            Err(error) => self.errors.push(format!("events of {namespace}: {}", error_chain(&error))),
        }
    }

    /// Reads the last lines of the logs of all containers, also those before a restart.
    async fn logs(&mut self, pods: &[Value]) {
        let mut total = 0;
        if pods.len() > MAX_PODS {
            self.errors.push(format!("logs: of the first {MAX_PODS} of {} pods only", pods.len()));
        }
        for pod in pods.iter().take(MAX_PODS) {
            let name = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
            let (namespace, pod_name) = (name("namespace"), name("name"));
            let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &namespace);
            for (container, restarts) in containers(pod) {
                for previous in [false, true].into_iter().filter(|previous| !previous || restarts > 0) {
                    let params = LogParams {
                        container: Some(container.clone()),
                        tail_lines: Some(self.log_lines.into()),
                        limit_bytes: Some(MAX_LOG),
                        previous,
                        timestamps: true,
                        ..LogParams::default()
                    };
                    let before = if previous { "-previous" } else { "" };
                    match api.logs(&pod_name, &params).await {
                        Ok(log) if total + log.len() > MAX_LOGS => {
                            self.errors.push(format!("logs: no more than {MAX_LOGS} bytes"));
                            return;
                        }
                        Ok(log) => {
                            total += log.len();
                            self.add(&format!("logs/{namespace}/{pod_name}-{container}{before}.log"), log);
                        }
                        Err(error) => self.errors.push(format!(
                            "log of {namespace}/{pod_name} {container}{before}: {}",
                            error_chain(&error)
                        )),
                    }
                }
            }
        }
    }
}

/// Returns the containers of a pod with the number of their restarts.
fn containers(pod: &Value) -> Vec<(String, i64)> {
    let statuses = ["initContainerStatuses", "containerStatuses"].map(|list| pod["status"][list].as_array());
    let restarts = |name: &str| {
        let mut statuses = statuses.iter().flatten().flat_map(|list| list.iter());
        statuses.find(|status| status["name"] == name).and_then(|status| status["restartCount"].as_i64()).unwrap_or(0)
    };
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    let names = lists.into_iter().flatten().flatten().filter_map(|container| container["name"].as_str());
    names.map(|name| (name.to_owned(), restarts(name))).collect()
}
