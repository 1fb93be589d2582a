//! One connection, from its TLS handshake to its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::debug;

use super::table::ConnectionState;
use super::{ArrivalTime, CloseConnection, ConnectionMetrics, H2, Limits, PeerAddr};

/// Time for a peer to react to GOAWAY, or `connection: close`, on an idle connection.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);
/// The same for a connection that makes room for another, whose place is counted no longer.
const CLOSE_GRACE: Duration = Duration::from_millis(100);
/// HTTP/2: concurrent requests of a connection. The API server multiplexes its reviews into few connections, and opens another one
/// when all streams are taken.
const MAX_STREAMS: u32 = 128;
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
/// Bytes of the headers of a request; those of an API server have less than 1 KiB.
const MAX_HEADER_BYTES: usize = 16 << 10;

pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) router: Router,
    pub(super) limits: Limits,
    pub(super) state: Arc<ConnectionState>,
    pub(super) shutdown: CancellationToken,
}

impl Connection {
    pub(super) async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>, metrics: &ConnectionMetrics) {
        // Responses are small and wanted now; if this fails, they are late.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return self.serve(stream, false).await };
        let handshake = tokio::select! {
            handshake = timeout(self.limits.handshake, tls.accept(stream)) => handshake,
            () = self.state.close.cancelled() => return,
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
        let Self { peer, router, limits, state, shutdown } = self;
        let requests = Arc::clone(&state);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(PeerAddr(peer));
            request.extensions_mut().insert(ArrivalTime(std::time::Instant::now()));
            request.extensions_mut().insert(CloseConnection(requests.close.clone()));
            let in_flight = Arc::new(InFlightRequest::new(&requests, limits.idle));
            let body = TrackedBody::new(&in_flight);
            let response = router.clone().oneshot(request.map(|incoming| Body::new(body(incoming))));
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
            drive(connection, http2::Connection::graceful_shutdown, &state, limits.idle, shutdown).await;
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .max_buf_size(MAX_HEADER_BYTES)
                .serve_connection(io, service);
            drive(connection, http1::Connection::graceful_shutdown, &state, limits.idle, shutdown).await;
        }
    }
}

/// Keeps a connection from being idle, and from being closed for others once its body is complete.
struct InFlightRequest {
    state: Arc<ConnectionState>,
    idle: Duration,
    complete: AtomicBool,
}

impl InFlightRequest {
    fn new(state: &Arc<ConnectionState>, idle: Duration) -> Self {
        state.begin_request();
        Self { state: Arc::clone(state), idle, complete: AtomicBool::new(false) }
    }

    fn complete(&self) {
        if !self.complete.swap(true, Ordering::Relaxed) {
            self.state.complete_request();
        }
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.state.end_request(self.complete.load(Ordering::Relaxed), self.idle);
    }
}

/// A body that records when it is complete.
struct TrackedBody {
    incoming: Incoming,
    request: Arc<InFlightRequest>,
}

impl TrackedBody {
    fn new(request: &Arc<InFlightRequest>) -> impl FnOnce(Incoming) -> Self + use<> {
        let request = Arc::clone(request);
        move |incoming| {
            if incoming.is_end_stream() {
                request.complete();
            }
            Self { incoming, request }
        }
    }
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.incoming.is_end_stream() {
            self.request.complete();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Polls a connection until it ends, is idle for too long, must make room, or the server shuts down (the caller bounds the drain).
async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    graceful_shutdown: impl Fn(Pin<&mut C>),
    state: &ConnectionState,
    idle: Duration,
    shutdown: CancellationToken,
) {
    let mut connection = std::pin::pin!(connection);
    let mut shutting_down = false;
    loop {
        let Some(next_check) = state.next_idle_check(idle) else {
            graceful_shutdown(connection.as_mut());
            let _ = timeout(GOAWAY_GRACE, connection).await;
            return;
        };
        tokio::select! {
            // Also a reset by the peer, or bytes that are not HTTP; nothing can be done about either.
            _ = &mut connection => return,
            () = sleep_until(next_check) => {}
            () = state.close.cancelled() => {
                graceful_shutdown(connection.as_mut());
                let _ = timeout(CLOSE_GRACE, connection).await;
                return;
            }
            () = shutdown.cancelled(), if !shutting_down => {
                shutting_down = true;
                graceful_shutdown(connection.as_mut());
            }
        }
    }
}
