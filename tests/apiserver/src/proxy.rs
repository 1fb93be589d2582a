//! `services/NAME:PORT/proxy` and `pods/NAME:PORT/proxy`: requests that the server forwards. As in kube-apiserver, the certificate of an
//! `https:` target is not verified.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::store::StatusError;
use super::target::Target;
use super::{ApiServer, Shared, tls};

const FORWARD_TIMEOUT: Duration = Duration::from_secs(30);

/// Addresses of the ports of pods, by namespace, name and port.
pub(super) type PodPorts = BTreeMap<(String, String, u16), SocketAddr>;

pub(super) async fn forward(
    shared: &Arc<Shared>,
    method: &Method,
    target: &Target,
    uri: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response, StatusError> {
    // `[SCHEME:]NAME[:PORT]`
    let parts: Vec<&str> = target.name.split(':').collect();
    let (secure, name, port) = match parts.as_slice() {
        [name] => (false, *name, ""),
        [name, port] => (false, *name, *port),
        [scheme, name, port] => (*scheme == "https", *name, *port),
        _ => return Err(StatusError::new(400, "BadRequest", format!("invalid proxy target {:?}", target.name))),
    };
    let addr = address(shared, target, name, port)?;
    let unreachable = |error: String| {
        let message = format!("error trying to reach service: {error}");
        StatusError::new(502, "ServiceUnavailable", message)
    };
    let path = format!("{}{}", target.rest, uri.query().map(|query| format!("?{query}")).unwrap_or_default());
    let mut request = Request::builder().method(method.clone()).uri(path).header(header::HOST, name);
    if let Some(kind) = headers.get(header::CONTENT_TYPE) {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    let request = request.body(Full::new(body)).map_err(|error| unreachable(error.to_string()))?;
    let asking = async {
        let tcp = TcpStream::connect(addr).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => format!("dial tcp {addr}: connect: connection refused"),
            _ => format!("dial tcp {addr}: {error}"),
        })?;
        if !secure {
            return send(tcp, request).await;
        }
        let config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny))
            .with_no_client_auth();
        let server = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(server, tcp).await.map_err(|error| error.to_string())?;
        send(stream, request).await
    };
    let answered = tokio::time::timeout(FORWARD_TIMEOUT, asking)
        .await
        .unwrap_or_else(|_| Err("context deadline exceeded".to_owned()));
    let (status, kind, body) = answered.map_err(unreachable)?;
    Ok((status, [(header::CONTENT_TYPE, kind)], body).into_response())
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, String, Bytes), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let kind = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("text/plain")
        .to_owned();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok((status, kind, body))
}

/// Returns the address of a port of a Service or a pod.
fn address(shared: &Shared, target: &Target, name: &str, port: &str) -> Result<SocketAddr, StatusError> {
    let state = shared.state();
    let found = state.store.get(&target.resource, &target.namespace, name);
    let missing = || StatusError::new(404, "NotFound", format!("{} \"{name}\" not found", target.resource));
    let ports = match target.resource.as_str() {
        "services" => found.map(|service| ports(&service["spec"]["ports"], "port")),
        _ => found.map(|pod| {
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            containers.flat_map(|container| ports(&container["ports"], "containerPort")).collect()
        }),
    };
    let ports = ports.ok_or_else(missing)?;
    let number = port
        .parse()
        .ok()
        .or_else(|| ports.iter().find(|(name, _)| port.is_empty() || name == port).map(|(_, number)| *number));
    let addr = match (target.resource.as_str(), number) {
        ("services", Some(number)) => shared.webhooks.resolve(&target.namespace, name, number),
        (_, Some(number)) => state.pod_ports.get(&(target.namespace.clone(), name.to_owned(), number)).copied(),
        (_, None) => None,
    };
    let unavailable = match target.resource.as_str() {
        "services" => format!("no endpoints available for service \"{name}\""),
        _ => "address not allowed".to_owned(),
    };
    addr.ok_or_else(|| StatusError::new(503, "ServiceUnavailable", unavailable))
}

/// Returns the names and numbers of a list of ports.
fn ports(list: &Value, field: &str) -> Vec<(String, u16)> {
    let ports = list.as_array().into_iter().flatten();
    ports
        .filter_map(|port| {
            let number = u16::try_from(port[field].as_u64()?).ok()?;
            Some((port["name"].as_str().unwrap_or_default().to_owned(), number))
        })
        .collect()
}

/// Accepts every certificate.
#[derive(Debug)]
struct AcceptAny;

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ApiServer {
    /// Sets the address of a port of a pod for `pods/NAME:PORT/proxy`.
    pub fn set_pod_address(&self, namespace: &str, pod: &str, port: u16, addr: SocketAddr) {
        self.shared.state().pod_ports.insert((namespace.to_owned(), pod.to_owned(), port), addr);
    }

    /// Sets the log of all containers of a pod.
    pub fn set_pod_log(&self, namespace: &str, pod: &str, log: &str) {
        self.shared.state().pod_logs.insert((namespace.to_owned(), pod.to_owned()), log.to_owned());
    }
}
