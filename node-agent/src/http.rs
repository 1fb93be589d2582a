//! The two plain ports. `/healthz`, `/readyz` for the kubelet; `/metrics` for Prometheus, `/logging` for an engineer who has forwarded the
//! port: levels are changed from the pod's own loopback only.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, body::Body};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;
use tracing::{info, warn};

use crate::health::Health;
use crate::logging::{LevelHandle, Levels};
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::stop::Stop;

/// Connections at once on a port; more wait in the kernel's queue.
const CONNECTIONS: usize = 32;
/// For the head of a request.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// For a connection, all in all. Prometheus and the kubelet simply connect again.
const CONNECTION_TIME: Duration = Duration::from_mins(2);
/// A refused `accept` (no file descriptors left) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Listens on all addresses: on those of both families, or on IPv4 alone where the kernel has no IPv6.
///
/// # Errors
/// The kernel's reason.
pub async fn bind(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}

/// What answers on the health port.
pub fn health(health: Health) -> Router {
    let ready = get(|State(health): State<Health>| async move {
        let readiness = health.readiness();
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, readiness.detail)
    });
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", ready).with_state(health)
}

/// What answers on the monitoring port.
pub fn monitoring(metrics: Metrics, levels: Option<LevelHandle>) -> Router {
    let scrape =
        get(|State(metrics): State<Metrics>| async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics.render()) });
    let logging = get(show_levels).put(set_levels).post(set_levels).with_state(Arc::new(levels));
    Router::new().route("/metrics", scrape).with_state(metrics).route("/logging", logging)
}

async fn show_levels(State(levels): State<Arc<Option<LevelHandle>>>) -> String {
    levels.as_ref().as_ref().map_or_else(|| "fixed\n".to_owned(), |levels| format!("{}\n", levels.current()))
}

async fn set_levels(
    State(handle): State<Arc<Option<LevelHandle>>>,
    Extension(Peer(peer)): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "levels are changed from the pod's own loopback: forward the port\n")
            .into_response();
    }
    // Levels are made of characters that nothing needs to escape in a query.
    let wanted = query.as_deref().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("level=")));
    let Some(wanted) = wanted else {
        return (StatusCode::BAD_REQUEST, "say what: ?level=debug, or ?level=default:info,install:debug\n")
            .into_response();
    };
    let levels = match wanted.parse::<Levels>() {
        Ok(levels) => levels,
        Err(reason) => return (StatusCode::BAD_REQUEST, format!("level: {reason}\n")).into_response(),
    };
    match handle.as_ref().as_ref().map(|handle| handle.set(&levels)) {
        Some(Ok(())) => {
            info!(levels = levels.text(), "log levels changed");
            format!("{}\n", levels.text()).into_response()
        }
        Some(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        None => (StatusCode::CONFLICT, "the log belongs to somebody else\n").into_response(),
    }
}

/// Serves until told to stop. Requests under way are cut then: all of them are cheap to repeat.
pub async fn serve(listener: TcpListener, router: Router, stop: Stop) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                // Never closed, so there always is a permit in the end.
                let slot = Arc::clone(&slots).acquire_owned().await.ok();
                (slot, listener.accept().await)
            } => accepted,
            () = stop.requested() => return,
        };
        match accepted {
            (slot, Ok((stream, peer))) => {
                let (router, stop) = (router.clone(), stop.clone());
                tokio::spawn(async move {
                    let _slot = slot;
                    tokio::select! {
                        _ = timeout(CONNECTION_TIME, connection(stream, peer, router)) => {}
                        () = stop.requested() => {}
                    }
                });
            }
            (_, Err(error)) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router) {
    let router = router.layer(Extension(Peer(peer)));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request.map(Body::new)).await.into_response()) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // A client that went away, or that spoke something else.
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::health::Weight;
    use crate::stop;

    async fn ask(port: u16, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_probes_scrapes_and_levels() {
        let (stopper, stop) = stop::pair();
        let conditions = Health::default();
        let condition = conditions.register("install", Weight::Blocking, "no network configuration yet");
        let listener = bind(0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = health(conditions).merge(monitoring(Metrics::default(), None));
        let server = tokio::spawn(serve(listener, router, stop));

        assert!(ask(port, "GET /healthz").await.starts_with("HTTP/1.1 200"));
        let answer = ask(port, "GET /readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("[-]install: no network"), "{answer}");
        condition.good("done");
        assert!(ask(port, "GET /readyz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(port, "GET /metrics").await.contains("weir_agent_build_info"));
        assert!(ask(port, "GET /logging").await.contains("fixed"));
        assert!(ask(port, "PUT /logging?level=loud").await.starts_with("HTTP/1.1 400"));
        assert!(ask(port, "PUT /logging?level=debug").await.starts_with("HTTP/1.1 409"));

        stopper.stop();
        tokio::time::timeout(Duration::from_secs(30), server).await.unwrap().unwrap();
    }
}
