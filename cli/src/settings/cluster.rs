//! What a cluster's control plane is configured with, read where no file says it.
//!
//! ```text
//! kubeconfig ──▶ Config (context, bounds) ──▶ ConfigMaps istio, istio-sidecar-injector, nodes ──▶ Found
//! ```
//!
//! Only what is asked for is read, and every wait has a bound.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use weir_injector::settings::Nodes;
use weir_injector::yaml;

use crate::cluster::{Cluster, ConnectArgs, PAGE, listed};
use crate::failure::{Failure, both};

/// Bound of everything together.
const ALL: Duration = Duration::from_secs(30);
/// Names that Istio gives the two ConfigMaps.
const INJECTOR: &str = "istio-sidecar-injector";
const MESH: &str = "istio";
/// Name of our own one, which holds the documents of both, and its namespace.
const OWN: &str = "weir-webhook";
const OWN_NAMESPACE: &str = "weir-system";

/// Options that lead to a cluster's configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster, whose configuration is used where no file gives it")]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    connect: ConnectArgs,

    /// Namespace of the control plane in that cluster
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAME", default_value = "istio-system")]
    istio_namespace: String,

    /// ConfigMap of the injector in that cluster; without it, `istio-sidecar-injector` and the revision
    #[arg(long = "injectConfigMapName", value_name = "NAME")]
    inject_config_map: Option<String>,

    /// ConfigMap of the mesh configuration in that cluster; without it, `istio` and the revision
    #[arg(long = "meshConfigMapName", value_name = "NAME")]
    mesh_config_map: Option<String>,
}

/// What is wanted of the cluster.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "one for each thing that can be asked for")]
pub(crate) struct Wanted<'a> {
    /// The document `values`.
    pub(crate) values: bool,
    /// The document `config`.
    pub(crate) config: bool,
    /// The document `mesh`.
    pub(crate) mesh: bool,
    /// Versions of the nodes.
    pub(crate) nodes: bool,
    /// Revision of the control plane; empty for none.
    pub(crate) revision: &'a str,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The document `values`.
    pub(crate) values: Option<Value>,
    /// The document `config`.
    pub(crate) config: Option<Value>,
    /// The document `mesh`.
    pub(crate) mesh: Option<Value>,
    /// Versions of the nodes.
    pub(crate) nodes: Option<Nodes>,
}

impl ClusterArgs {
    /// Whether the user wants a cluster to be asked.
    pub(crate) fn any(&self) -> bool {
        self.connect.any() || self.inject_config_map.is_some() || self.mesh_config_map.is_some()
    }

    /// Reads what is wanted.
    ///
    /// # Errors
    /// The cluster is not known, not reached in time, or does not have or show it.
    pub(crate) fn read(&self, wanted: Wanted<'_>) -> Result<Found, Failure> {
        self.connect.ask(ALL, async |cluster| self.read_from(cluster, wanted).await)
    }

    async fn read_from(&self, cluster: Cluster, wanted: Wanted<'_>) -> Result<Found, Failure> {
        let plane = ControlPlane { cluster, namespace: &self.istio_namespace };
        let named = |base: &str, name: &Option<String>| match (name, wanted.revision) {
            (Some(name), _) => name.clone(),
            (None, "") => base.to_owned(),
            (None, revision) => format!("{base}-{revision}"),
        };
        let injector = async {
            if !wanted.values && !wanted.config {
                return Ok((None, None));
            }
            let name = named(INJECTOR, &self.inject_config_map);
            let ours = self.inject_config_map.is_none().then(|| named(OWN, &None));
            let map = plane.config_map(&name, ours, INJECTOR, "--valuesFile and --injectConfigFile").await?;
            both(
                wanted.values.then(|| map.document("values")).transpose(),
                // Ours may do without: what stands in Istio's is in the values of ours.
                wanted
                    .config
                    .then(|| map.document("config"))
                    .filter(|_| !map.ours || map.data.contains_key("config"))
                    .transpose(),
            )
        };
        let mesh = async {
            if !wanted.mesh {
                return Ok(None);
            }
            let ours = self.mesh_config_map.is_none().then(|| named(OWN, &None));
            let map = plane.config_map(&named(MESH, &self.mesh_config_map), ours, MESH, "--meshConfigFile").await?;
            map.document("mesh").map(Some)
        };
        let nodes = async {
            if !wanted.nodes {
                return Ok(None);
            }
            plane.nodes().await.map(Some)
        };
        let (injector, mesh, nodes) = tokio::join!(injector, mesh, nodes);
        let (((values, config), mesh), nodes) = both(both(injector, mesh), nodes)?;
        Ok(Found { values, config, mesh, nodes })
    }
}

/// A control plane whose configuration is asked for.
struct ControlPlane<'a> {
    cluster: Cluster,
    namespace: &'a str,
}

/// A ConfigMap with its name.
struct Map {
    name: String,
    /// It is of our own installation.
    ours: bool,
    data: BTreeMap<String, String>,
}

impl ControlPlane<'_> {
    /// The ConfigMap of the control plane, else that of our own installation by the name `ours`: a cluster may have Istio's only, ours
    /// only, or both, and where there are both the user of Istio's options means Istio's.
    async fn config_map(&self, name: &str, ours: Option<String>, base: &str, files: &str) -> Result<Map, Failure> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), self.namespace);
        let what = format!("ConfigMap {}/{name}", self.namespace);
        let found = maps.get_opt(name).await;
        if let (Ok(None), Some(ours)) = (&found, ours) {
            let own: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), OWN_NAMESPACE);
            // Where it may not be read it is as if it were not there: it is the other one that was asked for.
            if let Ok(Some(map)) = own.get_opt(&ours).await {
                let name = format!("ConfigMap {OWN_NAMESPACE}/{ours}");
                return Ok(Map { name, ours: true, data: map.data.unwrap_or_default() });
            }
        }
        match found {
            Ok(Some(map)) => Ok(Map { name: what, ours: false, data: map.data.unwrap_or_default() }),
            Ok(None) => Err(Failure::usage(format!(
                "{}: there is no {what}; {}",
                self.cluster.server,
                self.others(&maps, base).await
            ))),
            Err(error) => Err(self.cluster.refused(
                &error,
                &what,
                &format!("give {files} instead, or ask for the right to `get` it"),
            )),
        }
    }

    /// What there is instead of a ConfigMap.
    async fn others(&self, maps: &Api<ConfigMap>, base: &str) -> String {
        let found = maps.list_metadata(&ListParams::default().limit(PAGE)).await;
        let names = found.map(|list| list.items.into_iter().filter_map(|item| item.metadata.name).collect::<Vec<_>>());
        let names: Vec<String> = names
            .unwrap_or_default()
            .into_iter()
            .filter(|name| *name == base || name.starts_with(&format!("{base}-")))
            .collect();
        if names.is_empty() {
            return format!("namespace {} has none of that kind; --istioNamespace names another one", self.namespace);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        format!("namespace {} has {}; --revision chooses", self.namespace, listed(&names))
    }

    async fn nodes(&self) -> Result<Nodes, Failure> {
        let nodes: Api<Node> = Api::all(self.cluster.client.clone());
        let mut versions = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = nodes.list(&page).await.map_err(|error| {
                self.cluster.refused(
                    &error,
                    "the nodes, whose versions decide about native sidecars",
                    "say --native-sidecars true or false instead",
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

impl Map {
    /// One of its documents.
    fn document(&self, key: &str) -> Result<Value, Failure> {
        let Some(text) = self.data.get(key) else {
            let keys: Vec<&str> = self.data.keys().map(String::as_str).collect();
            return Err(Failure::refused(vec![format!("{} has no key {key:?}; it has {}", self.name, listed(&keys))]));
        };
        yaml::from_str(text).map_err(|error| Failure::refused(vec![format!("{}, key {key}: {error}", self.name)]))
    }
}
