//! One connection, from its TLS handshake to its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::debug;

use super::{ArrivalTime, ConnectionMetrics, H2, Limits, PeerAddr};

/// Time for a peer to react to GOAWAY, or `connection: close`, on an idle connection.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);
/// HTTP/2: concurrent requests of a connection. The API server multiplexes all its reviews into few connections.
const MAX_STREAMS: u32 = 256;
/// HTTP/2: pings find peers that disappeared silently.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2: streams that a client may open and reset before the connection is closed (CVE-2023-44487, "rapid reset"), before
/// and after their request was accepted.
const MAX_PENDING_RESETS: usize = 32;
const MAX_RESETS: usize = 512;
/// HTTP/2: bytes of unread bodies per connection, and per request; nearly all reviews are smaller.
const CONNECTION_WINDOW: u32 = 1 << 20;
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes of the headers of a request.
const MAX_HEADER_BYTES: usize = 32 << 10;

pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) router: Router,
    pub(super) limits: Limits,
    pub(super) shutdown: CancellationToken,
}

impl Connection {
    pub(super) async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>, metrics: &ConnectionMetrics) {
        // Responses are small and wanted now; if this fails, they are late.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return self.serve(stream, false).await };
        let handshake = tokio::select! {
            handshake = timeout(self.limits.handshake, tls.accept(stream)) => handshake,
            () = self.shutdown.cancelled() => return,
        };
        let peer = self.peer;
        match handshake {
            Ok(Ok(stream)) => {
                let h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
                self.serve(stream, h2).await;
            }
            Ok(Err(error)) => {
                metrics.handshake_failures.inc();
                debug!(%peer, %error, "TLS handshake failed");
            }
            Err(_) => {
                metrics.handshake_failures.inc();
                debug!(%peer, "TLS handshake timed out");
            }
        }
    }

    async fn serve<S>(self, stream: S, h2: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { peer, router, limits, shutdown } = self;
        let activity = Activity::new(Instant::now() + limits.handshake);
        let requests = Arc::clone(&activity);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(PeerAddr(peer));
            request.extensions_mut().insert(ArrivalTime(std::time::Instant::now()));
            let in_flight = InFlightRequest::new(&requests, limits.idle);
            let response = router.clone().oneshot(request.map(Body::new));
            async move {
                let response: Result<_, Infallible> = response.await;
                drop(in_flight);
                response
            }
        });
        let io = TokioIo::new(stream);
        if h2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
                .max_local_error_reset_streams(MAX_RESETS)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .initial_stream_window_size(STREAM_WINDOW)
                .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .serve_connection(io, service);
            drive(connection, http2::Connection::graceful_shutdown, &activity, limits.idle, shutdown).await;
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .max_buf_size(MAX_HEADER_BYTES)
                .serve_connection(io, service);
            drive(connection, http1::Connection::graceful_shutdown, &activity, limits.idle, shutdown).await;
        }
    }
}

/// Requests in flight of a connection, and the time at which it counts as idle once there are none.
#[derive(Debug)]
struct Activity {
    state: Mutex<(usize, Instant)>,
}

impl Activity {
    fn new(first_request_by: Instant) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((0, first_request_by)) })
    }

    fn with<R>(&self, change: impl FnOnce(&mut (usize, Instant)) -> R) -> R {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns when to check again for idleness; `None` if the connection is idle.
    fn next_idle_check(&self, idle: Duration) -> Option<Instant> {
        let now = Instant::now();
        self.with(|(in_flight, until)| if *in_flight > 0 { Some(now + idle) } else { (*until > now).then_some(*until) })
    }
}

/// Keeps a connection from being idle.
struct InFlightRequest(Arc<Activity>, Duration);

impl InFlightRequest {
    fn new(activity: &Arc<Activity>, idle: Duration) -> Self {
        activity.with(|(in_flight, _)| *in_flight += 1);
        Self(Arc::clone(activity), idle)
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.0.with(|(in_flight, until)| {
            *in_flight -= 1;
            *until = Instant::now() + self.1;
        });
    }
}

/// Polls a connection until it ends, is idle for too long, or the server shuts down (the caller bounds the drain).
async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    graceful_shutdown: impl Fn(Pin<&mut C>),
    activity: &Activity,
    idle: Duration,
    shutdown: CancellationToken,
) {
    let mut connection = std::pin::pin!(connection);
    let mut shutting_down = false;
    loop {
        let Some(next_check) = activity.next_idle_check(idle) else {
            graceful_shutdown(connection.as_mut());
            let _ = timeout(GOAWAY_GRACE, connection).await;
            return;
        };
        tokio::select! {
            // Also a reset by the peer, or bytes that are not HTTP; nothing can be done about either.
            _ = &mut connection => return,
            () = sleep_until(next_check) => {}
            () = shutdown.cancelled(), if !shutting_down => {
                shutting_down = true;
                graceful_shutdown(connection.as_mut());
            }
        }
    }
}
