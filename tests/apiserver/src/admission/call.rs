//! Calls of webhooks as kube-apiserver makes them: HTTP/1.1 over TLS, one connection pool per address and CA bundle, new connections to
//! the next replica in turn, and a timeout over the whole call.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::WebhookEntry;
use crate::tls::{self, Pair};
use crate::{Shared, lock};

/// Idle connections per pool, and how long they are kept (client-go's and Go's defaults).
const MAX_IDLE: usize = 25;
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Repetitions of a call after a response 429 or 5xx with `Retry-After`.
const RETRIES: usize = 10;

/// Connections to webhooks, and the addresses of their replicas.
#[derive(Debug, Default)]
pub(in super::super) struct WebhookClient {
    /// By namespace, Service and port.
    endpoints: Mutex<HashMap<(String, String, u16), Vec<SocketAddr>>>,
    pools: Mutex<HashMap<(String, String), Arc<Pool>>>,
    identity: Mutex<Option<Pair>>,
    turn: AtomicUsize,
}

/// Connections to one address that trust one CA bundle.
#[derive(Debug)]
struct Pool {
    tls: Arc<ClientConfig>,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

type Sender = SendRequest<Full<Bytes>>;

/// The address of a webhook, from its `clientConfig`.
#[derive(Debug)]
enum WebhookAddress {
    Service { namespace: String, name: String, port: u16 },
    Address { host: String, port: u16 },
}

impl WebhookClient {
    pub(super) fn set_endpoints(&self, namespace: &str, service: &str, port: u16, replicas: &[SocketAddr]) {
        lock(&self.endpoints).insert((namespace.to_owned(), service.to_owned(), port), replicas.to_vec());
    }

    pub(super) fn set_client_certificate(&self, pair: Option<Pair>) {
        *lock(&self.identity) = pair;
        lock(&self.pools).clear();
    }

    /// Returns the address of the next replica behind a Service.
    pub(in super::super) fn resolve(&self, namespace: &str, name: &str, port: u16) -> Option<SocketAddr> {
        let endpoints = lock(&self.endpoints);
        let replicas = endpoints.get(&(namespace.to_owned(), name.to_owned(), port))?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        replicas.get(turn.checked_rem(replicas.len())?).copied()
    }

    fn pool(&self, address: &str, bundle: &str) -> Result<Arc<Pool>, String> {
        let mut pools = lock(&self.pools);
        let key = (address.to_owned(), bundle.to_owned());
        if let Some(found) = pools.get(&key) {
            return Ok(Arc::clone(found));
        }
        let roots = if bundle.is_empty() { Some(RootCertStore::empty()) } else { tls::parse_bundle(bundle) };
        let roots = roots.ok_or("unable to load root certificates: unable to parse bytes as PEM block")?;
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match &*lock(&self.identity) {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let (chain, key) = pair.der().map_err(|error| error.to_string())?;
                config.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        let pool = Arc::new(Pool { tls: Arc::new(config), idle: Mutex::default() });
        // Bundles that are rotated away would leave their connections behind.
        if pools.len() > 64 {
            pools.clear();
        }
        pools.insert(key, Arc::clone(&pool));
        Ok(pool)
    }
}

/// Posts a review. The error is what kube-apiserver says after `failed calling webhook "NAME": `.
pub(super) async fn post_review(shared: &Arc<Shared>, hook: &WebhookEntry, review: &Value) -> Result<Value, String> {
    let config = &hook.entry["clientConfig"];
    let timeout = hook.timeout();
    let (address, path) = address_of(config)?;
    let host = match &address {
        WebhookAddress::Service { namespace, name, port } => format!("{name}.{namespace}.svc:{port}"),
        WebhookAddress::Address { host, port } => format!("{host}:{port}"),
    };
    let url = format!("https://{host}{path}?timeout={}s", timeout.as_secs());
    let failed = |why: String| format!("failed to call webhook: Post \"{url}\": {why}");
    let pool = shared.webhooks.pool(&host, config["caBundle"].as_str().unwrap_or_default()).map_err(failed)?;
    let body = Bytes::from(review.to_string());
    let asking = async {
        let mut left = RETRIES;
        loop {
            let (status, wait, body) = exchange(shared, &pool, &address, &host, &url, &body).await.map_err(failed)?;
            match wait {
                Some(wait) if left > 0 && (status.as_u16() == 429 || status.is_server_error()) => {
                    left -= 1;
                    tokio::time::sleep(wait).await;
                }
                _ => return Ok((status, body)),
            }
        }
    };
    let (status, answer) = tokio::time::timeout(timeout, asking)
        .await
        .unwrap_or_else(|_| Err(failed("context deadline exceeded".to_owned())))?;
    if !status.is_success() {
        return Err(format!("failed to call webhook: {}", status_text(status, &answer)));
    }
    serde_json::from_slice(&answer).map_err(|error| format!("failed to call webhook: {error}"))
}

fn address_of(config: &Value) -> Result<(WebhookAddress, String), String> {
    if let Some(url) = config["url"].as_str() {
        let rest = url.strip_prefix("https://").unwrap_or(url);
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match host.rsplit_once(':') {
            Some((name, port)) => {
                (name, port.parse().map_err(|_| format!("failed to call webhook: parse {url:?}: invalid port"))?)
            }
            None => (host, 443),
        };
        return Ok((WebhookAddress::Address { host: host.to_owned(), port }, path.to_owned()));
    }
    let service = &config["service"];
    let text = |key: &str| service[key].as_str().unwrap_or_default().to_owned();
    let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
    let path = Some(text("path")).filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    Ok((WebhookAddress::Service { namespace: text("namespace"), name: text("name"), port }, path))
}

/// Sends one request and returns the status, `Retry-After` and body of the response.
async fn exchange(
    shared: &Shared,
    pool: &Pool,
    address: &WebhookAddress,
    host: &str,
    url: &str,
    body: &Bytes,
) -> Result<(StatusCode, Option<Duration>, Bytes), String> {
    let target = url.strip_prefix("https://").and_then(|rest| rest.strip_prefix(host)).unwrap_or("/");
    loop {
        let kept = take_idle(pool);
        let reused = kept.is_some();
        let mut sender = match kept {
            Some(sender) => sender,
            None => dial(shared, pool, address).await?,
        };
        let request = Request::post(target)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body.clone()))
            .map_err(|error| error.to_string())?;
        match sender.try_send_request(request).await {
            Ok(answer) => {
                let status = answer.status();
                let wait =
                    answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                let body = answer.into_body().collect().await.map_err(|_| "unexpected EOF".to_owned())?.to_bytes();
                if sender.ready().await.is_ok() {
                    let mut idle = lock(&pool.idle);
                    if idle.len() < MAX_IDLE {
                        idle.push((sender, Instant::now()));
                    }
                }
                return Ok((status, wait.map(Duration::from_secs), body));
            }
            // Nothing was sent on the idle connection: use another one.
            Err(error) if reused && error.message().is_some() => {}
            Err(_) => return Err("EOF".to_owned()),
        }
    }
}

fn take_idle(pool: &Pool) -> Option<Sender> {
    let mut idle = lock(&pool.idle);
    while let Some((sender, since)) = idle.pop() {
        if sender.is_ready() && since.elapsed() < IDLE_TIMEOUT {
            return Some(sender);
        }
    }
    None
}

async fn dial(shared: &Shared, pool: &Pool, address: &WebhookAddress) -> Result<Sender, String> {
    let (addr, name) = match address {
        WebhookAddress::Address { host, port } => {
            let addr = tokio::net::lookup_host((host.as_str(), *port)).await.ok().and_then(|mut found| found.next());
            (addr.ok_or_else(|| format!("dial tcp: lookup {host}: no such host"))?, host.clone())
        }
        WebhookAddress::Service { namespace, name, port } => {
            let addr = shared.webhooks.resolve(namespace, name, *port).ok_or_else(|| {
                let there = shared.state().store.get("services", namespace, name).is_some();
                if there {
                    format!("no endpoints available for service \"{name}\"")
                } else {
                    format!("service \"{name}\" not found")
                }
            })?;
            (addr, format!("{name}.{namespace}.svc"))
        }
    };
    let tcp = TcpStream::connect(addr).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("dial tcp {addr}: connect: connection refused"),
        _ => format!("dial tcp {addr}: {error}"),
    })?;
    let _ = tcp.set_nodelay(true);
    let server = ServerName::try_from(name.clone()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::clone(&pool.tls))
        .connect(server, tcp)
        .await
        .map_err(|error| handshake_error(&error, &name))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Words a failed handshake as Go does.
fn handshake_error(error: &std::io::Error, name: &str) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let why = match inner {
        Some(rustls::Error::InvalidCertificate(error)) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "certificate signed by unknown authority".to_owned()
            }
            CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                let names: Vec<&str> = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect();
                format!("certificate is valid for {}, not {name}", names.join(", "))
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("certificate is not valid for any names, but wanted to match {name}")
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => "certificate has expired or is not yet valid".to_owned(),
            other => other.to_string(),
        },
        Some(rustls::Error::AlertReceived(alert)) => return format!("remote error: tls: {alert:?}"),
        Some(other) => return format!("tls: {other}"),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => return "EOF".to_owned(),
        None => return error.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}

/// Words an error status as client-go does.
fn status_text(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        500 => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        503 => "the server is currently unable to handle the request".to_owned(),
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}
