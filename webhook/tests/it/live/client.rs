//! A client that trusts exactly the given CAs, as the API server does.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::client::conn::{http1, http2};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[derive(Clone)]
pub(crate) struct Client {
    connector: TlsConnector,
    addr: SocketAddr,
}

impl Client {
    /// Offers `alpn` in order of preference.
    pub(crate) fn new(addr: SocketAddr, cas: &[&str], alpn: &[&str]) -> Self {
        let mut roots = RootCertStore::empty();
        for ca in cas {
            roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        // A resumed session would not show the current certificate.
        config.resumption = rustls::client::Resumption::disabled();
        Self { connector: TlsConnector::from(Arc::new(config)), addr }
    }

    /// Connects and does the TLS handshake.
    pub(crate) async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.addr).await?;
        self.connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await
    }

    /// Sends a request on a connection of its own, by HTTP/2 if that was negotiated.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let stream = self.connect().await.unwrap();
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let uri = if h2 { format!("https://localhost{path}") } else { path.to_owned() };
        let request = Request::post(uri)
            .header("content-type", "application/json")
            .header("host", "localhost")
            .body(body.into())
            .unwrap();
        let io = TokioIo::new(stream);
        let answer = if h2 {
            let (mut send, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            send.send_request(request).await.unwrap()
        } else {
            let (mut send, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            send.send_request(request).await.unwrap()
        };
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}

/// Sends a plain request; returns status and body.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> (StatusCode, String) {
    let (mut send, connection) = http1::handshake(TokioIo::new(TcpStream::connect(addr).await.unwrap())).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
    let answer = send.send_request(request).await.unwrap();
    let status = answer.status();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}
