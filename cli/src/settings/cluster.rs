//! What a cluster's control plane is configured with, read where no file says it.
//!
//! ```text
//! kubeconfig ──▶ Config (context, bounds) ──▶ ConfigMaps istio, istio-sidecar-injector, nodes ──▶ Found
//! ```
//!
//! Only what is asked for is read, and every wait has a bound.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;
use weir_webhook::settings::Nodes;
use weir_webhook::yaml;

use crate::failure::{Failure, both};

/// Bound of one request.
const REQUEST: Duration = Duration::from_secs(10);
/// Bound of everything together.
const ALL: Duration = Duration::from_secs(30);
/// Nodes of one page of a list.
const PAGE: u32 = 500;
/// Names that Istio gives the two ConfigMaps.
const INJECTOR: &str = "istio-sidecar-injector";
const MESH: &str = "istio";

/// Options that lead to a cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Kubeconfig of a cluster whose configuration is used where no file gives it
    #[arg(short = 'c', long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig; alone, of the usual kubeconfig (KUBECONFIG, ~/.kube/config)
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

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
        self.kubeconfig.is_some()
            || [&self.context, &self.inject_config_map, &self.mesh_config_map].into_iter().any(Option::is_some)
    }

    /// Reads what is wanted.
    ///
    /// # Errors
    /// The cluster is not known, not reached in time, or does not have or show it.
    pub(crate) fn read(&self, wanted: Wanted<'_>) -> Result<Found, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::usage(format!("cannot wait for the network: {error}")))?;
        let kubeconfig = self.kubeconfig()?;
        runtime.block_on(async {
            match tokio::time::timeout(ALL, self.read_from(kubeconfig, wanted)).await {
                Ok(found) => found,
                Err(_) => Err(Failure::usage(format!("the cluster did not answer in {} s", ALL.as_secs()))),
            }
        })
    }

    fn kubeconfig(&self) -> Result<Kubeconfig, Failure> {
        let read = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let name = || {
            self.kubeconfig.as_ref().map_or("KUBECONFIG, ~/.kube/config".to_owned(), |path| path.display().to_string())
        };
        let config = read
            .map_err(|error| Failure::usage(format!("cannot read the kubeconfig ({}): {}", name(), causes(&error))))?;
        let context = self.context.as_ref().or(config.current_context.as_ref());
        let known: Vec<&str> = config.contexts.iter().map(|context| context.name.as_str()).collect();
        match context {
            Some(context) if known.contains(&context.as_str()) => Ok(config),
            Some(context) => Err(Failure::usage(format!(
                "the kubeconfig ({}) has no context {context:?}; it has {}",
                name(),
                listed(&known)
            ))),
            None => Err(Failure::usage(format!(
                "the kubeconfig ({}) has no current context; choose one with --context: {}",
                name(),
                listed(&known)
            ))),
        }
    }

    async fn read_from(&self, kubeconfig: Kubeconfig, wanted: Wanted<'_>) -> Result<Found, Failure> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(|error| Failure::usage(format!("the kubeconfig cannot be used: {}", causes(&error))))?;
        config.connect_timeout = Some(REQUEST);
        config.read_timeout = Some(REQUEST);
        config.write_timeout = Some(REQUEST);
        let server = config.cluster_url.to_string();
        let client =
            Client::try_from(config).map_err(|error| Failure::usage(format!("{server}: {}", causes(&error))))?;
        let cluster = Cluster { client, server, namespace: &self.istio_namespace };

        let named = |base: &str, name: &Option<String>| match (name, wanted.revision) {
            (Some(name), _) => name.clone(),
            (None, "") => base.to_owned(),
            (None, revision) => format!("{base}-{revision}"),
        };
        let injector = async {
            if !wanted.values && !wanted.config {
                return Ok((None, None));
            }
            let map = cluster
                .config_map(&named(INJECTOR, &self.inject_config_map), INJECTOR, "--valuesFile and --injectConfigFile")
                .await?;
            both(
                wanted.values.then(|| map.document("values")).transpose(),
                wanted.config.then(|| map.document("config")).transpose(),
            )
        };
        let mesh = async {
            if !wanted.mesh {
                return Ok(None);
            }
            let map = cluster.config_map(&named(MESH, &self.mesh_config_map), MESH, "--meshConfigFile").await?;
            map.document("mesh").map(Some)
        };
        let nodes = async {
            if !wanted.nodes {
                return Ok(None);
            }
            cluster.nodes().await.map(Some)
        };
        let (injector, mesh, nodes) = tokio::join!(injector, mesh, nodes);
        let (((values, config), mesh), nodes) = both(both(injector, mesh), nodes)?;
        Ok(Found { values, config, mesh, nodes })
    }
}

/// A cluster that is asked.
struct Cluster<'a> {
    client: Client,
    server: String,
    namespace: &'a str,
}

/// A ConfigMap with its name.
struct Map {
    name: String,
    data: BTreeMap<String, String>,
}

impl Cluster<'_> {
    async fn config_map(&self, name: &str, base: &str, files: &str) -> Result<Map, Failure> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), self.namespace);
        let what = format!("ConfigMap {}/{name}", self.namespace);
        match maps.get_opt(name).await {
            Ok(Some(map)) => Ok(Map { name: what, data: map.data.unwrap_or_default() }),
            Ok(None) => {
                Err(Failure::usage(format!("{}: there is no {what}; {}", self.server, self.others(&maps, base).await)))
            }
            Err(error) => {
                Err(self.refused(&error, &what, &format!("give {files} instead, or ask for the right to `get` it")))
            }
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
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut versions = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = nodes.list(&page).await.map_err(|error| {
                self.refused(
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

    fn refused(&self, error: &kube::Error, what: &str, advice: &str) -> Failure {
        let server = &self.server;
        Failure::usage(match error {
            kube::Error::Api(status) if status.code == 403 => {
                format!("{server}: you may not read {what} ({}); {advice}", status.message)
            }
            kube::Error::Api(status) if status.code == 401 => {
                format!(
                    "{server}: the cluster does not know you (401 {}); log in again, or choose another --context",
                    status.message
                )
            }
            other => format!("{server}: cannot read {what}: {}", causes(other)),
        })
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

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// An error with all that lies behind it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
