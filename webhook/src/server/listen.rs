//! Accepting connections: TLS, HTTP, and a bound on everything that waits.
//!
//! An own loop instead of a server crate, because three bounds are needed that those do not have together: connections beyond the limit
//! stay in the kernel's queue, the protocol is chosen by ALPN (a sniffing server waits for ever for a client that sends nothing after
//! its handshake), and a connection without a complete request is closed whatever it dribbles.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::gate::Arrived;
use super::metrics::Metrics;
use super::tls::H2;
use crate::args::ListenAddr;

/// A refused `accept` (no file descriptors left) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a peer has to take note of a shutdown of its idle connection.
const GOODBYE: Duration = Duration::from_secs(1);
/// HTTP/2: requests at once in one connection. The API server multiplexes all its reviews into few connections.
const STREAMS: u32 = 256;
/// HTTP/2: pings find peers that are gone without a word.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WAIT: Duration = Duration::from_secs(10);
/// HTTP/2: streams that a client may open and reset before the connection is closed (CVE-2023-44487, "rapid reset"), before
/// and after their request was taken up.
const RESETS_PENDING: usize = 32;
const RESETS: usize = 512;
/// HTTP/2: bytes of bodies that a connection may have sent and nobody has read. More waits at the client.
const WINDOW: u32 = 1 << 20;
/// HTTP/2: the same for one request; nearly all reviews are smaller.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bound on the head of a request, HTTP/1 and HTTP/2.
const HEAD_BYTES: usize = 32 << 10;

/// Bounds of a port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: NonZeroUsize,
    /// For the TLS handshake, and again for the head of the first request.
    pub handshake: Duration,
    /// Without a request.
    pub idle: Duration,
    /// For what is under way when the server stops.
    pub drain: Duration,
}

/// One port and what answers on it.
pub struct Port {
    /// Where connections come from.
    pub listener: TcpListener,
    /// `None` for plain HTTP.
    pub tls: Option<TlsAcceptor>,
    /// What answers.
    pub router: Router,
    /// Bounds.
    pub limits: Limits,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
}

/// Binds the first candidate that the kernel takes.
///
/// # Errors
/// The reason for the last candidate.
pub async fn bind(addr: ListenAddr) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in addr.candidates() {
        match TcpListener::bind(candidate).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Serves until `stop` turns true, then drains. Returns how many connections had to be cut.
pub async fn serve(port: Port, mut stop: watch::Receiver<bool>) -> usize {
    let Port { listener, tls, router, limits, metrics } = port;
    let slots = Arc::new(Semaphore::new(limits.connections.get().min(Semaphore::MAX_PERMITS)));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = async {
                // Never closed, so there always is a permit in the end.
                let slot = Arc::clone(&slots).acquire_owned().await.ok();
                (slot, listener.accept().await)
            } => accepted,
            () = stopped(&mut stop) => break,
        };
        let (slot, (stream, peer)) = match accepted {
            (slot, Ok(connection)) => (slot, connection),
            (_, Err(error)) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, router, metrics, stop) = (tls.clone(), router.clone(), Arc::clone(&metrics), stop.clone());
        tasks.spawn(async move {
            let _slot = slot;
            let _counted = metrics.connection();
            connection(stream, peer, tls, router, limits, &metrics, stop).await;
        });
    }
    drop(listener);
    let drained = timeout(limits.drain, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_ok() {
        return 0;
    }
    let cut = tasks.len();
    tasks.shutdown().await;
    cut
}

/// Until the server stops, or nobody is left who could say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    metrics: &Metrics,
    mut stop: watch::Receiver<bool>,
) {
    // Answers are small and wanted now; where this fails, they come later.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return http(stream, false, router, limits, stop).await;
    };
    let handshake = tokio::select! {
        handshake = timeout(limits.handshake, tls.accept(stream)) => handshake,
        () = stopped(&mut stop) => return,
    };
    match handshake {
        Ok(Ok(stream)) => {
            let h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
            http(stream, h2, router, limits, stop).await;
        }
        Ok(Err(error)) => {
            metrics.handshake_failed();
            debug!(%peer, %error, "TLS handshake failed");
        }
        Err(_) => {
            metrics.handshake_failed();
            debug!(%peer, "TLS handshake timed out");
        }
    }
}

/// When a connection last had a request under way.
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

    /// When to look (again) whether the connection is idle; `None`: it is.
    fn idle_at(&self, idle: Duration) -> Option<Instant> {
        let now = Instant::now();
        self.with(|(busy, until)| if *busy > 0 { Some(now + idle) } else { (*until > now).then_some(*until) })
    }
}

/// A request under way.
struct Busy(Arc<Activity>, Duration);

impl Busy {
    fn new(activity: &Arc<Activity>, idle: Duration) -> Self {
        activity.with(|(busy, _)| *busy += 1);
        Self(Arc::clone(activity), idle)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.with(|(busy, until)| {
            *busy -= 1;
            *until = Instant::now() + self.1;
        });
    }
}

async fn http<S>(stream: S, h2: bool, router: Router, limits: Limits, stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Activity::new(Instant::now() + limits.handshake);
    let requests = Arc::clone(&activity);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arrived(std::time::Instant::now()));
        let busy = Busy::new(&requests, limits.idle);
        let answer = router.clone().oneshot(request.map(Body::new));
        async move {
            let answer: Result<_, Infallible> = answer.await;
            drop(busy);
            answer
        }
    });
    let io = TokioIo::new(stream);
    if h2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_pending_accept_reset_streams(RESETS_PENDING)
            .max_local_error_reset_streams(RESETS)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WAIT)
            .serve_connection(io, service);
        drive(connection, http2::Connection::graceful_shutdown, &activity, limits.idle, stop).await;
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(io, service);
        drive(connection, http1::Connection::graceful_shutdown, &activity, limits.idle, stop).await;
    }
}

/// Polls a connection until it ends, is idle for too long, or the server stops (the caller bounds what is under way then).
async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    goodbye: impl Fn(Pin<&mut C>),
    activity: &Activity,
    idle: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    loop {
        let Some(look_at) = activity.idle_at(idle) else {
            goodbye(connection.as_mut());
            let _ = timeout(GOODBYE, connection).await;
            return;
        };
        tokio::select! {
            // A reset by the peer, or bytes that are no HTTP: nothing to do about either.
            _ = &mut connection => return,
            () = sleep_until(look_at) => {}
            () = stopped(&mut stop), if !stopping => {
                stopping = true;
                goodbye(connection.as_mut());
            }
        }
    }
}
