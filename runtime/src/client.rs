//! Clients of the API server, bounds on their requests, and their errors.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use tokio::time::timeout;

/// Bound of one short request, from the connection to the end of the response.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection counts as dead; the server is asked to end watches earlier.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(15 + 240);

/// Creates clients. It is called again when the server rejects a client's credentials, or cannot be reached.
pub type ClientFactory = Arc<dyn Fn() -> Result<Client, String> + Send + Sync>;

/// Returns a factory for the cluster that the process runs in, or for the one of `KUBECONFIG`.
///
/// # Errors
/// Neither is configured.
pub async fn inferred_client_factory() -> Result<ClientFactory, String> {
    let config = Config::infer().await.map_err(|error| format!("cannot find a cluster or kubeconfig: {error}"))?;
    Ok(fixed(config))
}

/// Returns a factory for the current context of a kubeconfig, or for the cluster that the process runs in. Each client
/// reads a token file every minute; in the cluster, each client reads the CA as well.
///
/// # Errors
/// The process does not run in a cluster, or the kubeconfig is unusable.
pub async fn client_factory(kubeconfig: Option<&Path>) -> Result<ClientFactory, String> {
    let Some(path) = kubeconfig else {
        let in_cluster =
            || Config::incluster().map_err(|error| format!("not running in a cluster: {}", error_chain(&error)));
        in_cluster()?;
        return Ok(Arc::new(move || client(in_cluster()?)));
    };
    let unusable =
        |error: &dyn std::error::Error| format!("cannot use kubeconfig {}: {}", path.display(), error_chain(error));
    let read = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    Ok(fixed(config.map_err(|error| unusable(&error))?))
}

fn fixed(config: Config) -> ClientFactory {
    Arc::new(move || client(config.clone()))
}

fn client(mut config: Config) -> Result<Client, String> {
    // The bound of a whole short request is that of `with_timeout`.
    config.connect_timeout = Some(REQUEST_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(REQUEST_TIMEOUT);
    Client::try_from(config).map_err(|error| format!("cannot create an API client: {}", error_chain(&error)))
}

/// Error of a request to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status of the response; `None` if there was none.
    pub status: Option<u16>,
    /// Message of the server, or the reason for which it did not respond.
    pub reason: String,
}

impl ApiError {
    /// Returns the error of a request without a response.
    pub fn no_response(reason: impl Into<String>) -> Self {
        Self { status: None, reason: reason.into() }
    }

    /// Returns whether a new client may succeed: the server rejected the credentials, or was not reached.
    pub fn needs_new_client(&self) -> bool {
        matches!(self.status, None | Some(401))
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "{} ({status})", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for ApiError {}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match &error {
            Error::Api(status) => Self { status: Some(status.code), reason: status.message.clone() },
            _ => Self::no_response(error_chain(&error)),
        }
    }
}

/// Runs one request within [`REQUEST_TIMEOUT`].
///
/// # Errors
/// The server rejects the request, or does not respond in time.
pub async fn with_timeout<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, ApiError> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(response) => response.map_err(ApiError::from),
        Err(_) => {
            Err(ApiError::no_response(format!("API server did not respond within {} s", REQUEST_TIMEOUT.as_secs())))
        }
    }
}

/// Renders an error with its causes; the outermost text alone is most often "client error".
pub fn error_chain(error: &dyn std::error::Error) -> String {
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
    async fn unusable_kubeconfig_is_named() {
        let error = client_factory(Some(Path::new("/nonexistent/config"))).await.err().unwrap_or_default();
        assert!(error.contains("/nonexistent/config") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn api_errors_keep_the_status() {
        let status = kube::core::Status::failure("leases are forbidden", "Forbidden").with_code(403).boxed();
        let error = ApiError::from(Error::Api(status));
        assert_eq!(error.to_string(), "leases are forbidden (403)");
        assert!(!error.needs_new_client() && ApiError::no_response("connection refused").needs_new_client());
    }

    #[tokio::test(start_paused = true)]
    async fn request_without_response_times_out() {
        let error = with_timeout(std::future::pending::<Result<(), Error>>()).await.unwrap_err();
        assert_eq!((error.status, error.reason.as_str()), (None, "API server did not respond within 10 s"));
    }
}
