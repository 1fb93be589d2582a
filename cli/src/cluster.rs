//! A cluster's API server, as every command that asks one reaches it.
//!
//! ```text
//! --kubeconfig, --context ──▶ Config (bounds) ──▶ Cluster { client, server } ──▶ what the command asks, all of it within a bound
//! ```

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::failure::Failure;

/// Bound of one request.
pub(crate) const REQUEST: Duration = Duration::from_secs(10);
/// Objects of one page of a list.
pub(crate) const PAGE: u32 = 500;

/// Options that lead to a cluster.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ConnectArgs {
    /// Kubeconfig of the cluster
    #[arg(short = 'c', long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig; alone, of the usual kubeconfig (KUBECONFIG, ~/.kube/config)
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// A cluster that is asked.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// Its API server.
    pub(crate) client: Client,
    /// What messages call it: its URL.
    pub(crate) server: String,
}

impl ConnectArgs {
    /// Whether the user names a cluster.
    pub(crate) fn any(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Connects, and waits for what `ask` asks, for at most `bound`.
    ///
    /// # Errors
    /// The cluster is not known or does not answer in time; what `ask` fails with.
    pub(crate) fn ask<T>(
        &self,
        bound: Duration,
        ask: impl AsyncFnOnce(Cluster) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.ask_within(REQUEST, bound, ask)
    }

    /// As [`Self::ask`], for requests that may take as long as all of it.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn ask_slowly<T>(
        &self,
        bound: Duration,
        ask: impl AsyncFnOnce(Cluster) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.ask_within(bound, bound, ask)
    }

    fn ask_within<T>(
        &self,
        request: Duration,
        bound: Duration,
        ask: impl AsyncFnOnce(Cluster) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::usage(format!("cannot wait for the network: {error}")))?;
        runtime.block_on(async {
            let asked = async { ask(self.connect(request).await?).await };
            match tokio::time::timeout(bound, asked).await {
                Ok(answer) => answer,
                Err(_) => Err(Failure::usage(format!("the cluster did not answer in {} s", bound.as_secs()))),
            }
        })
    }

    async fn connect(&self, request: Duration) -> Result<Cluster, Failure> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(REQUEST);
        config.read_timeout = Some(request);
        config.write_timeout = Some(request);
        let server = config.cluster_url.to_string();
        let client =
            Client::try_from(config).map_err(|error| Failure::usage(format!("{server}: {}", causes(&error))))?;
        Ok(Cluster { client, server })
    }

    /// As kubectl: what is named, else the usual kubeconfig, else the service account of the pod that this runs in.
    async fn config(&self) -> Result<Config, Failure> {
        let kubeconfig = match self.kubeconfig() {
            Ok(kubeconfig) => kubeconfig,
            Err(failure) if self.any() => return Err(failure),
            Err(failure) => return Config::incluster().map_err(|_| failure),
        };
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(|error| Failure::usage(format!("the kubeconfig cannot be used: {}", causes(&error))))
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
}

impl Cluster {
    /// Why `what` was not read. `advice` is for who may not.
    pub(crate) fn refused(&self, error: &kube::Error, what: &str, advice: &str) -> Failure {
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

/// Names for people.
pub(crate) fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// An error with all that lies behind it.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
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
