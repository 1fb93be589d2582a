//! An API server, fake or real, with a client of an administrator.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use weir_apiserver::{ApiServer, KubeApiserver, User, kube_apiserver_or_skip, kubeconfig};
use weir_tests::TIMEOUT;

const TOKEN: &str = "admin-token";

/// Runs tests that take a `&Cluster` with both API servers: `fake::NAME` and `real::NAME`.
macro_rules! on_both {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        mod fake {
            $(#[test] $(#[$meta])* fn $name() { super::$name(&super::super::api_server::Cluster::fake()); })*
        }
        mod real {
            $(#[test] $(#[$meta])* fn $name() {
                if let Some(cluster) = super::super::api_server::Cluster::kube_apiserver_or_skip() { super::$name(&cluster); }
            })*
        }
    };
}
pub(crate) use on_both;

/// A running API server. Stops when its last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    server: Arc<Server>,
    url: String,
    ca: String,
    kubeconfig: PathBuf,
    dir: Arc<tempfile::TempDir>,
    agent: ureq::Agent,
}

#[derive(Debug)]
enum Server {
    Fake(ApiServer),
    Real { _lives: KubeApiserver },
}

/// A response: status, `Warning` headers, body.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Response {
    pub(crate) code: u16,
    pub(crate) warnings: Vec<String>,
    pub(crate) body: Value,
}

impl Response {
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// Returns the body of a response that must be a success.
    #[track_caller]
    pub(crate) fn expect_ok(self) -> Value {
        assert!(self.code < 300, "{}: {}", self.code, self.body);
        self.body
    }
}

impl Cluster {
    pub(crate) fn fake() -> Self {
        let server = ApiServer::cluster().unwrap();
        server.add_token(TOKEN, User::admin());
        server.authorize_by_roles();
        let (url, ca) = (server.url(), server.ca().unwrap().to_owned());
        Self::new(Server::Fake(server), url, ca)
    }

    pub(crate) fn kube_apiserver_or_skip() -> Option<Self> {
        let server = kube_apiserver_or_skip()?;
        let (url, ca) = (server.url().to_owned(), server.ca().to_owned());
        Some(Self::new(Server::Real { _lives: server }, url, ca))
    }

    fn new(server: Server, url: String, ca: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        kubeconfig(&path, &url, Some(&ca), Some(TOKEN)).unwrap();
        let root = Certificate::from_pem(ca.as_bytes()).unwrap();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[root]))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        // Load tests keep many connections open.
        let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false);
        let config = config.max_idle_connections(1024).max_idle_connections_per_host(1024);
        let agent = config.timeout_global(Some(TIMEOUT)).build().into();
        Self { server: Arc::new(server), url, ca, kubeconfig: path, dir: Arc::new(dir), agent }
    }

    pub(crate) fn fake_server(&self) -> Option<&ApiServer> {
        match &*self.server {
            Server::Fake(server) => Some(server),
            Server::Real { .. } => None,
        }
    }

    /// Returns a kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Writes a kubeconfig with another token into a file of that name.
    pub(crate) fn kubeconfig_with(&self, name: &str, token: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        kubeconfig(&path, &self.url, Some(&self.ca), Some(token)).unwrap();
        path
    }

    /// Returns a token of a service account, as its pods have one.
    pub(crate) fn service_account_token(&self, namespace: &str, account: &str) -> String {
        match &*self.server {
            Server::Fake(server) => {
                let token = format!("{namespace}-{account}-token");
                server.add_token(&token, User::service_account(namespace, account));
                token
            }
            Server::Real { .. } => {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
                let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}});
                self.post(&path, &request).expect_ok()["status"]["token"].as_str().unwrap().to_owned()
            }
        }
    }

    /// Returns the address on which webhooks must listen: endpoints of a real server must not be loopback addresses.
    pub(crate) fn webhook_address(&self) -> IpAddr {
        match &*self.server {
            Server::Fake(_) => Ipv4Addr::LOCALHOST.into(),
            Server::Real { .. } => {
                // No packet is sent: the kernel tells which address it would use for one. The destination is of RFC 5737.
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                socket
                    .connect((Ipv4Addr::new(198, 51, 100, 1), 9))
                    .expect("an address that is not loopback, and a route");
                socket.local_addr().unwrap().ip()
            }
        }
    }

    fn try_request(&self, method: &str, path: &str, content: &str, body: Option<&Value>) -> Result<Response, String> {
        let request = axum::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("user-agent", "tests")
            .header("content-type", content);
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut response = self.agent.run(request.body(body).unwrap()).map_err(|error| error.to_string())?;
        let warnings =
            response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
        let code = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(|error| error.to_string())?;
        Ok(Response { code, warnings, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    #[track_caller]
    fn request(&self, method: &str, path: &str, content: &str, body: Option<&Value>) -> Response {
        self.try_request(method, path, content, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Posts an object. The error is a connection error.
    pub(crate) fn try_post(&self, path: &str, body: &Value) -> Result<Response, String> {
        self.try_request("POST", path, "application/json", Some(body))
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.request("GET", path, "application/json", None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path, "application/json", Some(body))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Response {
        self.request("PUT", path, "application/json", Some(body))
    }

    pub(crate) fn delete(&self, path: &str) -> Response {
        self.request("DELETE", path, "application/json", None)
    }

    pub(crate) fn merge_patch(&self, path: &str, change: &Value) -> Response {
        self.request("PATCH", path, "application/merge-patch+json", Some(change))
    }

    /// Applies an object server-side; `query` is `fieldManager=NAME`, optionally with `&force=true`.
    pub(crate) fn apply(&self, path: &str, query: &str, object: &Value) -> Response {
        self.request("PATCH", &format!("{path}?{query}"), "application/apply-patch+yaml", Some(object))
    }

    /// Creates a namespace and its default service account, which controllers would create.
    pub(crate) fn create_namespace(&self, name: &str, labels: &Value) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.post("/api/v1/namespaces", &namespace).expect_ok();
        self.create_service_account(name, "default");
    }

    /// Creates a namespace unless it exists.
    pub(crate) fn ensure_namespace(&self, name: &str, labels: &Value) {
        if self.get(&format!("/api/v1/namespaces/{name}")).code == 404 {
            self.create_namespace(name, labels);
        }
    }

    /// Creates a service account unless it exists.
    pub(crate) fn ensure_service_account(&self, namespace: &str, name: &str) {
        if self.get(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}")).code == 404 {
            self.create_service_account(namespace, name);
        }
    }

    /// Creates a service account.
    pub(crate) fn create_service_account(&self, namespace: &str, name: &str) {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.post(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), &account).expect_ok();
    }

    /// Sets the ready replicas behind a port of a Service.
    pub(crate) fn set_endpoints(&self, namespace: &str, service: &str, port: u16, replicas: &[SocketAddr]) {
        if let Server::Fake(server) = &*self.server {
            return server.set_endpoints(namespace, service, port, replicas);
        }
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        let selected = format!("{slices}?labelSelector=kubernetes.io/service-name={service}");
        self.delete(&selected).expect_ok();
        let found = self.get(&format!("/api/v1/namespaces/{namespace}/services/{service}")).body;
        let ports = found["spec"]["ports"].as_array().into_iter().flatten();
        let name =
            ports.into_iter().find(|found| found["port"] == port).map_or(Value::Null, |port| port["name"].clone());
        for (number, replica) in replicas.iter().enumerate() {
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": format!("{service}-{number}"), "labels": {"kubernetes.io/service-name": service}},
                "ports": [{"name": name, "port": replica.port(), "protocol": "TCP"}],
                "endpoints": [{"addresses": [replica.ip()], "conditions": {"ready": true}}],
            });
            self.post(&slices, &slice).expect_ok();
        }
    }
}
