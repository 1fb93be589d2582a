//! How a client of the API server is made, and how its failures are told.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use tokio::time::timeout;

/// For one short request, from the connection to the end of the answer.
pub const REQUEST: Duration = Duration::from_secs(10);
/// Silence after which a connection counts as dead; watches are told to end before.
pub(crate) const SILENCE: Duration = Duration::from_secs(15 + 240);

/// Makes a client. It is called again where the server does not know us any more, or cannot be reached.
pub type Connect = Arc<dyn Fn() -> Result<Client, String> + Send + Sync>;

/// Makes clients of the API server of the cluster that this runs in, or of `KUBECONFIG`. Each reads the token anew.
///
/// # Errors
/// Neither is there, in words.
pub async fn infer() -> Result<Connect, String> {
    let config = Config::infer().await.map_err(|error| format!("no API server is configured: {error}"))?;
    Ok(fixed(config))
}

/// Makes clients of the API server of the cluster that this runs in, or of that kubeconfig, in its current context. The token of a
/// file is read again every minute by each client; in the cluster, the CA with every client.
///
/// # Errors
/// Not in a cluster, or the kubeconfig cannot be used, in words.
pub async fn connector(kubeconfig: Option<&Path>) -> Result<Connect, String> {
    let Some(path) = kubeconfig else {
        let in_cluster =
            || Config::incluster().map_err(|error| format!("this is no pod of a cluster: {}", in_full(&error)));
        in_cluster()?;
        return Ok(Arc::new(move || client(in_cluster()?)));
    };
    let unusable = |error: &dyn std::error::Error| format!("kubeconfig {}: {}", path.display(), in_full(error));
    let read = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    Ok(fixed(config.map_err(|error| unusable(&error))?))
}

fn fixed(config: Config) -> Connect {
    Arc::new(move || client(config.clone()))
}

fn client(mut config: Config) -> Result<Client, String> {
    // Short requests have bounds of their own, see `bounded`.
    config.connect_timeout = Some(REQUEST);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(REQUEST);
    Client::try_from(config).map_err(|error| format!("no client of the API server: {}", in_full(&error)))
}

/// Why the API server did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of its answer; `None` where there was none.
    pub code: Option<u16>,
    /// In words.
    pub reason: String,
}

impl Refusal {
    /// Without an answer.
    pub fn unanswered(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into() }
    }

    /// Whether another client may do better: the server does not know this one, or was not reached.
    pub fn needs_new_client(&self) -> bool {
        matches!(self.code, None | Some(401))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => write!(f, "{} ({code})", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match &error {
            Error::Api(status) => Self { code: Some(status.code), reason: status.message.clone() },
            _ => Self::unanswered(in_full(&error)),
        }
    }
}

/// One request within [`REQUEST`].
///
/// # Errors
/// The server refuses, or is not there in time.
pub async fn bounded<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Refusal> {
    match timeout(REQUEST, request).await {
        Ok(answer) => answer.map_err(Refusal::from),
        Err(_) => Err(Refusal::unanswered(format!("the API server did not answer in {} s", REQUEST.as_secs()))),
    }
}

/// An error with its causes: the outermost text alone is most often "client error".
pub fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_which_kubeconfig_cannot_be_used() {
        let refused = connector(Some(Path::new("/nonexistent/config"))).await.err().unwrap_or_default();
        assert!(refused.contains("/nonexistent/config") && refused.contains("No such file"), "{refused}");
    }

    #[test]
    fn tells_an_answer_from_none() {
        let status = kube::core::Status::failure("leases are forbidden", "Forbidden").with_code(403).boxed();
        let refusal = Refusal::from(Error::Api(status));
        assert_eq!(refusal.to_string(), "leases are forbidden (403)");
        assert!(!refusal.needs_new_client() && Refusal::unanswered("connection refused").needs_new_client());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_ends() {
        let refused = bounded(std::future::pending::<Result<(), Error>>()).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (None, "the API server did not answer in 10 s"));
    }
}
