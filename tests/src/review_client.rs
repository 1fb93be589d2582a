//! A client of the webhook over HTTP/2, as the API server is one, and probes as a kubelet sends them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Timeout of the kubelet's probes, by the manifests.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A webhook to connect to.
#[derive(Clone)]
pub struct ReviewTarget {
    https: SocketAddr,
    connector: TlsConnector,
}

impl std::fmt::Debug for ReviewTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReviewTarget({})", self.https)
    }
}

impl ReviewTarget {
    /// Trusts the authority in the PEM file `ca` only.
    ///
    /// # Errors
    /// When the file has no certificate.
    pub fn new(https: SocketAddr, ca: &Path) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let pem = fs::read(ca).with_context(|| ca.display().to_string())?;
        roots.add(CertificateDer::from_pem_slice(&pem)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { https, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Returns the address.
    pub const fn addr(&self) -> SocketAddr {
        self.https
    }

    /// Opens a connection; `None` when it is refused.
    pub async fn connect(&self) -> Option<SendRequest<Body>> {
        let tcp = TcpStream::connect(self.https).await.ok()?;
        let stream = self.connector.connect(ServerName::try_from("localhost").ok()?, tcp).await.ok()?;
        let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(send)
    }
}

/// Sends a review; returns status and body, or `None` when the connection ends.
pub async fn send_review(send: &mut SendRequest<Body>, body: Body) -> Option<(u16, Bytes)> {
    let request = Request::post("https://localhost/inject?timeout=5s").header("content-type", "application/json");
    send.ready().await.ok()?;
    let response = send.send_request(request.body(body).ok()?).await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.into_body().collect().await.ok()?.to_bytes()))
}

/// Sends a liveness probe; returns how long its answer took, or `None` when it fails.
pub async fn probe(addr: SocketAddr) -> Option<Duration> {
    let begun = Instant::now();
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        text.starts_with("HTTP/1.1 200").then(|| begun.elapsed())
    };
    timeout(PROBE_TIMEOUT, exchange).await.ok()?
}
