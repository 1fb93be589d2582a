//! Serves the new connections of a pod, `GET /connections/NAMESPACE/NAME/SECONDS`, for `weir explain --observe`. Nothing in the pod is changed,
//! and nobody can use it to watch pods from afar: it is served on the node's loopback only, like `/pods`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::Semaphore;
use weir_kernel::connections::{ConnectionMonitor, NewConnection};
use weir_runtime::listen::PeerAddr;

use crate::pods::{PodCache, PodFacts};
use crate::repair::{NetnsLookup, NetnsPaths, ProtectedNetns, Visits, open_connections};
use crate::socket::Attachments;

/// Longest time of one observation, in seconds.
const MAX_SECONDS: u64 = 60;
/// Most connections of one observation.
const MAX_CONNECTIONS: usize = 1000;
/// Observations at the same time; each is a blocked thread.
const MAX_CONCURRENT: usize = 4;

/// Observes the connections of this node's pods.
#[derive(Debug, Clone)]
pub struct ConnectionObserver {
    /// Pods of the node.
    pub pods: PodCache,
    /// Network namespaces that the plugin has reported.
    pub attachments: Attachments,
    /// Where the host's directories are mounted.
    pub netns_paths: NetnsPaths,
    /// Limits on visits of namespaces.
    pub visits: Visits,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Observed {
    connections: Vec<Connection>,
    /// Whether there may have been more.
    truncated: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
    reply_source: SocketAddr,
}

impl From<NewConnection> for Connection {
    fn from(connection: NewConnection) -> Self {
        let NewConnection { protocol, source, destination, reply_source } = connection;
        Self { protocol, source, destination, reply_source }
    }
}

impl ConnectionObserver {
    /// Returns the route.
    pub fn router(self) -> Router {
        let slots = Arc::new(Semaphore::new(MAX_CONCURRENT));
        Router::new().route("/connections/{namespace}/{name}/{seconds}", get(observe).with_state((self, slots)))
    }

    /// Subscribes to the connections of a pod.
    fn open(&self, pod: &PodFacts) -> Result<ConnectionMonitor, String> {
        if pod.ips.is_empty() {
            return Err("it has no address yet".to_owned());
        }
        let protected = ProtectedNetns::discover(&self.netns_paths.host_proc);
        let lookup = NetnsLookup::new(&self.netns_paths, &self.attachments, &self.visits);
        let mut reason = "network namespace not found".to_owned();
        for (path, _) in lookup.candidates(pod) {
            let (protected, ips, at) = (protected.clone(), pod.ips.clone(), path.clone());
            match self.visits.run(&path.to_string_lossy(), move || open_connections(&at, &protected, &ips)) {
                Ok(Ok(Some(monitor))) => return Ok(monitor),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => reason = format!("{}: {error}", path.display()),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }
}

async fn observe(
    State((observer, slots)): State<(ConnectionObserver, Arc<Semaphore>)>,
    Extension(PeerAddr(peer)): Extension<PeerAddr>,
    Path((namespace, name, seconds)): Path<(String, String, u64)>,
) -> Response {
    let refused = |status: StatusCode, reason: String| (status, reason + "\n").into_response();
    if !peer.ip().to_canonical().is_loopback() {
        let reason = "/connections is served on loopback only; use kubectl port-forward";
        return refused(StatusCode::FORBIDDEN, reason.to_owned());
    }
    if !(1..=MAX_SECONDS).contains(&seconds) {
        return refused(StatusCode::BAD_REQUEST, format!("seconds must be 1 to {MAX_SECONDS}, found {seconds}"));
    }
    let Some(pod) = observer.pods.find("", &namespace, &name) else {
        return refused(StatusCode::NOT_FOUND, format!("pod {namespace}/{name} is not on this node"));
    };
    let Ok(slot) = slots.try_acquire_owned() else {
        return refused(StatusCode::TOO_MANY_REQUESTS, format!("{MAX_CONCURRENT} pods are being observed; try later"));
    };
    let work = move || {
        let _slot = slot;
        let monitor = observer.open(&pod)?;
        monitor.collect(Duration::from_secs(seconds), MAX_CONNECTIONS).map_err(|error| error.to_string())
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok((connections, truncated))) => {
            let connections = connections.into_iter().map(Connection::from).collect();
            Json(Observed { connections, truncated }).into_response()
        }
        Ok(Err(reason)) => refused(StatusCode::SERVICE_UNAVAILABLE, format!("pod {namespace}/{name}: {reason}")),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
