//! Requests to the API server.

use std::path::Path;

use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

/// Media type of a JSON body.
pub(crate) const JSON: &str = "application/json";
/// Media type of a strategic merge patch, the patch of a kubelet.
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A client of the API server.
#[derive(Clone)]
pub(crate) struct Api(Client);

impl Api {
    /// Creates a client for the current context of a kubeconfig.
    pub(crate) async fn new(kubeconfig: &Path) -> anyhow::Result<Self> {
        let read = Kubeconfig::read_from(kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        config.proxy_url = None;
        Ok(Self(Client::try_from(config)?))
    }

    /// Returns the client for other kinds of requests.
    pub(crate) fn client(&self) -> &Client {
        &self.0
    }

    /// Sends a request and returns the body of the response.
    ///
    /// # Errors
    /// There is no response, or its status is not a success.
    pub(crate) async fn send(&self, method: &str, path: &str, content: &str, body: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let request = http::Request::builder().method(method).uri(path).header("content-type", content);
        let request = request.header("accept", JSON).body(Body::from(body))?;
        let response = self.0.send(request).await.with_context(|| format!("{method} {path}"))?;
        let status = response.status();
        let body = response.into_body().collect().await.with_context(|| format!("{method} {path}"))?.to_bytes();
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&body[..body.len().min(500)]));
        }
        Ok(body.into())
    }

    /// Creates an object.
    pub(crate) async fn post(&self, path: &str, object: &Value) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.send("POST", path, JSON, serde_json::to_vec(object)?).await?)?)
    }

    /// Applies an object server-side.
    pub(crate) async fn apply(&self, path: &str, object: &Value) -> anyhow::Result<()> {
        let path = format!("{path}?fieldManager=weir-scale&force=true");
        self.send("PATCH", &path, "application/apply-patch+yaml", serde_json::to_vec(object)?).await?;
        Ok(())
    }

    /// Changes the status of an object.
    pub(crate) async fn patch_status(&self, path: &str, status: &Value) -> anyhow::Result<()> {
        let body = serde_json::to_vec(&serde_json::json!({ "status": status }))?;
        self.send("PATCH", &format!("{path}/status"), STRATEGIC, body).await?;
        Ok(())
    }
}
