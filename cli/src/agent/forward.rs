//! One HTTP request to a port of a pod, through the API server's port-forward.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use crate::cluster::{Cluster, error_chain};
use crate::failure::Failure;

/// Limit of an answer: some 100,000 pods.
const MAX_ANSWER: usize = 64 << 20;

/// Gets a path from the agent in a pod, within a time limit.
///
/// # Errors
/// The API server refuses the port-forward, or the agent does not answer in time, or not with 200.
pub(super) async fn get(
    cluster: &Cluster,
    (namespace, pod, port): (&str, &str, u16),
    path: &str,
    limit: Duration,
) -> Result<String, Failure> {
    let failure = |reason: &str| {
        Failure::usage(format!(
            "{cluster}: cannot ask the agent in pod {namespace}/{pod}: {reason}; this needs the right to create pods/portforward there"
        ))
    };
    match tokio::time::timeout(limit, request(cluster, namespace, pod, port, path)).await {
        Ok(answer) => answer.map_err(|error| failure(&error_chain(error.as_ref()))),
        Err(_) => Err(failure(&format!("no answer within {} s", limit.as_secs()))),
    }
}

async fn request(cluster: &Cluster, namespace: &str, pod: &str, port: u16, path: &str) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let mut forward = pods.portforward(pod, &[port]).await?;
    let stream = forward.take_stream(port).ok_or_else(|| anyhow::anyhow!("the port is not forwarded"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header("Host", "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| anyhow::anyhow!(error))?;
    connection.abort();
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    anyhow::ensure!(status == 200, "the agent responds {status}: {}", body.trim());
    Ok(body)
}
