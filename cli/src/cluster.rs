//! Connects to a cluster's API server by `--kubeconfig` and `--context`, with a timeout for every request and for the whole command.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use weir_runtime::proxy::{kubeconfig_proxy, set_proxy};

use crate::completion;
use crate::duration;
use crate::failure::Failure;

/// Timeout of one request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects in one page of a list.
pub(crate) const PAGE_SIZE: u32 = 500;

/// Options for the connection to a cluster.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ConnectArgs {
    /// Use this kubeconfig
    #[arg(short = 'c', long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig
    #[arg(long, value_name = "CONTEXT", add = completion::contexts())]
    context: Option<String>,

    /// Act as this user (impersonation) [default: `as` of the kubeconfig]
    #[arg(long = "as", value_name = "USER")]
    impersonate: Option<String>,

    /// Act as a member of this group, with --as; repeatable
    #[arg(long = "as-group", value_name = "GROUP", requires = "impersonate")]
    impersonate_groups: Vec<String>,

    /// Wait at most this long for each response of the API server [default: 10s, or --timeout where a command waits]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    request_timeout: Option<Duration>,
}

/// A connected cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// URL of the API server, for messages.
    pub(crate) server: String,
    /// Context of the kubeconfig; `in-cluster` for the service account of the pod.
    pub(crate) context: String,
}

/// Names the cluster in messages.
impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "context {}, {}", self.context, self.server)
    }
}

impl ConnectArgs {
    /// Returns options for a kubeconfig and a context.
    pub(crate) fn named(kubeconfig: Option<PathBuf>, context: Option<String>) -> Self {
        Self { kubeconfig, context, ..Self::default() }
    }

    /// Returns whether any of the options is set.
    pub(crate) fn is_given(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Returns whether there is a kubeconfig with a context, or the process runs in a cluster.
    pub(crate) fn finds_cluster(&self) -> bool {
        self.kubeconfig().is_ok() || Config::incluster().is_ok()
    }

    /// Returns whether a kubeconfig or the pod's service account leads to a cluster, without connecting to it.
    ///
    /// # Errors
    /// Neither does.
    pub(crate) fn require_cluster(&self) -> Result<(), Failure> {
        match self.kubeconfig() {
            Err(failure) if self.is_given() || Config::incluster().is_err() => Err(failure),
            _ => Ok(()),
        }
    }

    /// Connects and runs `work`, within `timeout`.
    ///
    /// # Errors
    /// The cluster is unknown or does not respond in time, or `work` fails.
    pub(crate) fn run<T>(
        &self,
        timeout: Duration,
        work: impl AsyncFnOnce(Cluster) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.run_within(REQUEST_TIMEOUT, true, timeout, work)
    }

    /// Like [`Self::run`], without the shorter timeout of a single request, and without retries: a pod that is not ready answers 503 with
    /// its conditions.
    ///
    /// # Errors
    /// See [`Self::run`].
    pub(crate) fn run_unretried<T>(
        &self,
        timeout: Duration,
        work: impl AsyncFnOnce(Cluster) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.run_within(timeout, false, timeout, work)
    }

    fn run_within<T>(
        &self,
        request: Duration,
        retries: bool,
        timeout: Duration,
        work: impl AsyncFnOnce(Cluster) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::usage(format!("cannot start the async runtime: {error}")))?;
        runtime.block_on(async {
            let run = async { work(self.connect(request, retries).await?).await };
            match tokio::time::timeout(timeout, run).await {
                Ok(answer) => answer,
                Err(_) => Err(Failure::usage(format!(
                    "not done within {} s; pass a longer --timeout if the cluster is only slow",
                    timeout.as_secs()
                ))),
            }
        })
    }

    async fn connect(&self, request: Duration, retries: bool) -> Result<Cluster, Failure> {
        let (context, mut config) = self.config().await?;
        config.connect_timeout = Some(REQUEST_TIMEOUT);
        let request = self.request_timeout.unwrap_or(request);
        config.read_timeout = Some(request);
        config.write_timeout = Some(request);
        if let Some(user) = &self.impersonate {
            let auth = &mut config.auth_info;
            (auth.impersonate, auth.impersonate_groups) = (Some(user.clone()), Some(self.impersonate_groups.clone()));
            // They are of the user in the kubeconfig.
            (auth.impersonate_uid, auth.impersonate_user_extra) = (None, None);
        }
        config.default_retry = retries;
        let server = config.cluster_url.to_string();
        let plugin = config.auth_info.exec.as_ref().and_then(|exec| exec.command.clone());
        let client = Client::try_from(config).map_err(|error| {
            let plugin =
                plugin.map(|plugin| format!("credential plugin {plugin} of the kubeconfig: ")).unwrap_or_default();
            Failure::usage(format!("context {context}, {server}: {plugin}{}", error_chain(&error)))
        })?;
        Ok(Cluster { client, server, context })
    }

    /// Finds the configuration as kubectl does: the named kubeconfig, else the default one, else the pod's service account.
    async fn config(&self) -> Result<(String, Config), Failure> {
        let kubeconfig = match self.kubeconfig() {
            Ok(kubeconfig) => kubeconfig,
            Err(failure) if self.is_given() => return Err(failure),
            Err(failure) => {
                let mut config = Config::incluster().map_err(|_| failure)?;
                set_proxy(&mut config, None).map_err(Failure::usage)?;
                return Ok(("in-cluster".to_owned(), config));
            }
        };
        let context = self.context.clone().or(kubeconfig.current_context.clone()).unwrap_or_default();
        let proxy = kubeconfig_proxy(&kubeconfig, Some(&context)).map(str::to_owned);
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(|error| Failure::usage(format!("cannot use the kubeconfig: {}", error_chain(&error))))?;
        set_proxy(&mut config, proxy.as_deref()).map_err(Failure::usage)?;
        Ok((context, config))
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
            .map_err(|error| Failure::usage(format!("cannot read kubeconfig {}: {}", name(), error_chain(&error))))?;
        let context = self.context.as_ref().or(config.current_context.as_ref());
        let known: Vec<&str> = config.contexts.iter().map(|context| context.name.as_str()).collect();
        match context {
            Some(context) if known.contains(&context.as_str()) => Ok(config),
            Some(context) => Err(Failure::usage(format!(
                "kubeconfig {} has no context {context:?}; contexts: {}",
                name(),
                join_names(&known)
            ))),
            None => Err(Failure::usage(format!(
                "kubeconfig {} has no current context; pass --context: {}",
                name(),
                join_names(&known)
            ))),
        }
    }
}

impl Cluster {
    /// Returns the version of the API server, such as `v1.33.1-gke.100`.
    ///
    /// # Errors
    /// The API server is unreachable or rejects the request.
    pub(crate) async fn kubernetes_version(&self) -> Result<String, Failure> {
        let version = self.client.apiserver_version().await;
        let version = version
            .map_err(|error| self.read_failure(&error, "its version", "it is readable for everybody by default"))?;
        Ok(version.git_version)
    }

    /// Returns the failure for `what` that could not be read; `advice` is for missing permissions.
    pub(crate) fn read_failure(&self, error: &kube::Error, what: &str, advice: &str) -> Failure {
        let reason = match error {
            kube::Error::Api(status) if status.code == 403 => format!("forbidden ({}); {advice}", status.message),
            kube::Error::Api(status) if status.code == 401 => unauthorized(&status.message),
            other => error_chain(other),
        };
        Failure::usage(format!("{self}: cannot read {what}: {reason}"))
    }
}

/// Describes a 401 response.
pub(crate) fn unauthorized(message: &str) -> String {
    format!("unauthorized (401 {message}); log in again or choose another --context")
}

/// Joins names; `none` without any.
pub(crate) fn join_names(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Returns the message of an error with those of its causes.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
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
