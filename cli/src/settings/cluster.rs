//! Reads the configuration of a cluster's control plane: the ConfigMaps `istio` and `istio-sidecar-injector`, and the nodes' versions.
//! Only what is requested is read.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use weir_injector::settings::Nodes;
use weir_injector::yaml;

use crate::cluster::{Cluster, ConnectArgs, PAGE_SIZE, join_names};
use crate::failure::{Failure, join};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Names that Istio gives the two ConfigMaps.
const INJECTOR: &str = "istio-sidecar-injector";
const MESH: &str = "istio";
/// Weir's own ConfigMap, which holds the documents of both, and its namespace.
const OWN: &str = "weir-webhook";
const OWN_NAMESPACE: &str = "weir-system";

/// Options for a cluster's configuration.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster (its configuration is used unless a file is given)")]
pub(crate) struct ClusterConfigArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,

    /// Namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAMESPACE", default_value = "istio-system")]
    istio_namespace: String,

    /// ConfigMap of the injector [default: `istio-sidecar-injector` and the revision]
    #[arg(long = "injectConfigMapName", value_name = "CONFIGMAP")]
    inject_config_map: Option<String>,

    /// ConfigMap of the mesh configuration [default: `istio` and the revision]
    #[arg(long = "meshConfigMapName", value_name = "CONFIGMAP")]
    mesh_config_map: Option<String>,
}

/// Objects to read from the cluster.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "one for each document")]
pub(crate) struct DocumentRequest<'a> {
    pub(crate) values: bool,
    pub(crate) config: bool,
    pub(crate) mesh: bool,
    /// The versions of the nodes.
    pub(crate) nodes: bool,
    /// Revision of the control plane; empty for none.
    pub(crate) revision: &'a str,
}

/// Objects that were read from the cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterDocuments {
    pub(crate) values: Option<Value>,
    pub(crate) config: Option<Value>,
    pub(crate) mesh: Option<Value>,
    pub(crate) nodes: Option<Nodes>,
}

impl ClusterConfigArgs {
    /// Returns whether any option names a cluster.
    pub(crate) fn is_given(&self) -> bool {
        self.connect.is_given() || self.inject_config_map.is_some() || self.mesh_config_map.is_some()
    }

    /// Reads what is requested.
    ///
    /// # Errors
    /// The cluster is unreachable, or a document is missing or not readable.
    pub(crate) fn read(&self, request: DocumentRequest<'_>) -> Result<ClusterDocuments, Failure> {
        self.connect.run(TIMEOUT, async |cluster| self.read_from(cluster, request).await)
    }

    async fn read_from(&self, cluster: Cluster, request: DocumentRequest<'_>) -> Result<ClusterDocuments, Failure> {
        let plane = ControlPlane { cluster, namespace: &self.istio_namespace };
        let named = |base: &str, name: &Option<String>| match (name, request.revision) {
            (Some(name), _) => name.clone(),
            (None, "") => base.to_owned(),
            (None, revision) => format!("{base}-{revision}"),
        };
        let injector = async {
            if !request.values && !request.config {
                return Ok((None, None));
            }
            let name = named(INJECTOR, &self.inject_config_map);
            let ours = self.inject_config_map.is_none().then(|| named(OWN, &None));
            let map = plane.config_map(&name, ours, INJECTOR, "--valuesFile and --injectConfigFile").await?;
            join(
                request.values.then(|| map.document("values")).transpose(),
                // Optional in Weir's own ConfigMap, whose values have the same settings.
                request
                    .config
                    .then(|| map.document("config"))
                    .filter(|_| !map.ours || map.data.contains_key("config"))
                    .transpose(),
            )
        };
        let mesh = async {
            if !request.mesh {
                return Ok(None);
            }
            let ours = self.mesh_config_map.is_none().then(|| named(OWN, &None));
            let map = plane.config_map(&named(MESH, &self.mesh_config_map), ours, MESH, "--meshConfigFile").await?;
            map.document("mesh").map(Some)
        };
        let nodes = async {
            if !request.nodes {
                return Ok(None);
            }
            plane.nodes().await.map(Some)
        };
        let (injector, mesh, nodes) = tokio::join!(injector, mesh, nodes);
        let (((values, config), mesh), nodes) = join(join(injector, mesh), nodes)?;
        Ok(ClusterDocuments { values, config, mesh, nodes })
    }
}

struct ControlPlane<'a> {
    cluster: Cluster,
    namespace: &'a str,
}

/// The documents of a ConfigMap.
struct ConfigMapData {
    /// Name for messages.
    name: String,
    /// Whether it is Weir's own ConfigMap.
    ours: bool,
    data: BTreeMap<String, String>,
}

impl ControlPlane<'_> {
    /// Reads the control plane's ConfigMap, else Weir's own with the name `ours`. Istio's has precedence, because the options are Istio's.
    async fn config_map(
        &self,
        name: &str,
        ours: Option<String>,
        base: &str,
        files: &str,
    ) -> Result<ConfigMapData, Failure> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), self.namespace);
        let what = format!("ConfigMap {}/{name}", self.namespace);
        let found = maps.get_opt(name).await;
        if let (Ok(None), Some(ours)) = (&found, ours) {
            let own: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), OWN_NAMESPACE);
            // An error here is not reported: the other ConfigMap is the one that was requested.
            if let Ok(Some(map)) = own.get_opt(&ours).await {
                let name = format!("ConfigMap {OWN_NAMESPACE}/{ours}");
                return Ok(ConfigMapData { name, ours: true, data: map.data.unwrap_or_default() });
            }
        }
        match found {
            Ok(Some(map)) => Ok(ConfigMapData { name: what, ours: false, data: map.data.unwrap_or_default() }),
            Ok(None) => Err(Failure::usage(format!(
                "{}: {what} not found; {}",
                self.cluster.server,
                self.others(&maps, base).await
            ))),
            Err(error) => Err(self.cluster.read_failure(
                &error,
                &what,
                &format!("pass {files} instead, or ask for permission to `get` it"),
            )),
        }
    }

    /// Describes which similar ConfigMaps exist.
    async fn others(&self, maps: &Api<ConfigMap>, base: &str) -> String {
        let found = maps.list_metadata(&ListParams::default().limit(PAGE_SIZE)).await;
        let names = found.map(|list| list.items.into_iter().filter_map(|item| item.metadata.name).collect::<Vec<_>>());
        let names: Vec<String> = names
            .unwrap_or_default()
            .into_iter()
            .filter(|name| *name == base || name.starts_with(&format!("{base}-")))
            .collect();
        if names.is_empty() {
            return format!("namespace {} has no similar one; pass --istioNamespace", self.namespace);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        format!("namespace {} has {}; choose one with --revision", self.namespace, join_names(&names))
    }

    async fn nodes(&self) -> Result<Nodes, Failure> {
        let nodes: Api<Node> = Api::all(self.cluster.client.clone());
        let mut versions = Vec::new();
        let mut page = ListParams::default().limit(PAGE_SIZE);
        loop {
            let list = nodes.list(&page).await.map_err(|error| {
                self.cluster.read_failure(
                    &error,
                    "the nodes, whose versions decide about native sidecars",
                    "pass --native-sidecars true or false instead",
                )
            })?;
            let version = |node: Node| Some((node.metadata.name?, node.status?.node_info?.kubelet_version));
            versions.extend(list.items.into_iter().filter_map(version));
            match list.metadata.continue_ {
                Some(next) if !next.is_empty() => page = page.continue_token(&next),
                _ => return Ok(versions.into_iter().collect()),
            }
        }
    }
}

impl ConfigMapData {
    fn document(&self, key: &str) -> Result<Value, Failure> {
        let Some(text) = self.data.get(key) else {
            let keys: Vec<&str> = self.data.keys().map(String::as_str).collect();
            return Err(Failure::findings(vec![format!(
                "{} has no key {key:?}; keys: {}",
                self.name,
                join_names(&keys)
            )]));
        };
        yaml::from_str(text).map_err(|error| Failure::findings(vec![format!("{}, key {key}: {error}", self.name)]))
    }
}
