//! HTTP ports whose every wait has a bound: connections, TLS handshakes, request headers, idle time, drain.
//!
//! An accept loop of our own, because server crates do not combine three bounds: a connection beyond the limit takes the place of an
//! idle one (table.rs) or stays in the kernel's backlog, the protocol is chosen by ALPN (a server that sniffs it waits for ever for a
//! client that sends nothing after its handshake), and a connection without a complete request is closed whatever it trickles in.

mod addr;
mod connection;
mod table;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{self, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use self::addr::ListenAddr;
use self::connection::Connection;
use self::table::ConnectionTable;

/// ALPN name of HTTP/2.
pub const H2: &[u8] = b"h2";
/// HTTP versions to offer by ALPN, best first.
pub const ALPN: [&[u8]; 2] = [H2, b"http/1.1"];

/// Pause after a failed `accept` (no file descriptors left), which must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of a port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections; a further one takes the place of an idle one, or waits. One client address may have half of them, rounded up,
    /// and as many that wait.
    pub connections: NonZeroUsize,
    /// Time for the TLS handshake, and again for the headers of the first request.
    pub handshake: Duration,
    /// Time without a request before a connection is closed.
    pub idle: Duration,
    /// Time for requests in flight at shutdown.
    pub drain: Duration,
}

/// Counts what happens to connections.
#[derive(Debug, Clone, Default)]
pub struct ConnectionMetrics {
    /// Open connections.
    pub open: Gauge,
    /// TLS handshakes that failed.
    pub handshake_failures: Counter,
}

/// A port and the router that answers on it. Handlers find [`PeerAddr`] and [`ArrivalTime`] in the request's extensions.
pub struct Port {
    /// Source of connections.
    pub listener: TcpListener,
    /// `None` for plain HTTP.
    pub tls: Option<TlsAcceptor>,
    /// Service that answers requests.
    pub router: Router,
    /// Bounds.
    pub limits: Limits,
    /// Counters of the connections.
    pub metrics: ConnectionMetrics,
}

/// Address of the client, as a request extension.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

/// When the headers of a request had arrived, as a request extension.
#[derive(Debug, Clone, Copy)]
pub struct ArrivalTime(pub Instant);

/// Closes the connection that a request came on when it is cancelled, as a request extension.
#[derive(Debug, Clone)]
pub struct CloseConnection(pub CancellationToken);

/// Binds the first candidate address that the kernel accepts.
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

/// Serves until `shutdown` is cancelled, then drains. Returns how many connections were aborted.
pub async fn serve(port: Port, shutdown: CancellationToken) -> usize {
    let Port { listener, tls, router, limits, metrics } = port;
    let max = limits.connections.get();
    let table = ConnectionTable::new(max, max.div_ceil(2));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Nobody is waited for here: behind the connections of one client may be that of another.
        let (table, router, tls) = (Arc::clone(&table), router.clone(), tls.clone());
        let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
        tasks.spawn(async move {
            let first_request_by = time::Instant::now() + limits.handshake;
            let admitted = tokio::select! {
                admitted = table.admit(peer.ip(), first_request_by) => admitted,
                () = shutdown.cancelled() => return,
            };
            let Some(place) = admitted else {
                debug!(%peer, "closed a connection of a client that has too many");
                return;
            };
            let open = OpenConnection::new(&metrics);
            let connection = Connection { peer, router, limits, state: Arc::clone(&place.state), shutdown };
            connection.run(stream, tls, &metrics).await;
            drop((place, open));
        });
    }
    drop(listener);
    let drained = timeout(limits.drain, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_ok() {
        return 0;
    }
    let aborted = tasks.len();
    tasks.shutdown().await;
    aborted
}

/// Counts a connection for as long as it exists.
struct OpenConnection(Gauge);

impl OpenConnection {
    fn new(metrics: &ConnectionMetrics) -> Self {
        metrics.open.inc();
        Self(metrics.open.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::Extension;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn serves_with_peer_address_and_closes_idle_connections() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = (Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port());
        let router = Router::new().route("/", get(|Extension(PeerAddr(peer))| async move { peer.ip().to_string() }));
        let (idle, drain) = (Duration::from_millis(200), Duration::from_secs(10));
        let limits = Limits { connections: NonZeroUsize::MIN, handshake: idle, idle, drain };
        let metrics = ConnectionMetrics::default();
        let shutdown = CancellationToken::new();
        let port = Port { listener, tls: None, router, limits, metrics: metrics.clone() };
        let server = tokio::spawn(serve(port, shutdown.clone()));

        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("127.0.0.1"), "{response}");

        shutdown.cancel();
        assert_eq!((server.await.unwrap(), metrics.open.get()), (0, 0));
    }
}
