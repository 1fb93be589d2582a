//! An API server of either kind with what clients need: the tests' own, or a real one. What a test does goes for both.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use weir_apiserver::{ApiServer, Real, User, kubeconfig, real_or_skip};

/// Far longer than anything here takes; a bound, never a measure.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
const TOKEN: &str = "admins-token";

/// Runs tests that take a `&Cluster` on both kinds.
macro_rules! on_both {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        mod on_the_tests_own {
            $(#[test] $(#[$meta])* fn $name() { super::$name(&crate::cluster::Cluster::fake()); })*
        }
        mod on_a_real_one {
            $(#[test] $(#[$meta])* fn $name() {
                if let Some(cluster) = crate::cluster::Cluster::real_or_skip() { super::$name(&cluster); }
            })*
        }
    };
}
pub(crate) use on_both;

/// A running API server; it ends with the last value of it.
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
    Real { _lives: Real },
}

/// An answer: its status, its `Warning` headers and its body.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Said {
    pub(crate) code: u16,
    pub(crate) warnings: Vec<String>,
    pub(crate) body: Value,
}

impl Said {
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// The body of an answer that must be good.
    #[track_caller]
    pub(crate) fn good(self) -> Value {
        assert!(self.code < 300, "{}: {}", self.code, self.body);
        self.body
    }
}

impl Cluster {
    pub(crate) fn fake() -> Self {
        let server = ApiServer::cluster().unwrap();
        server.know(TOKEN, User::admin());
        server.authorize_by_roles();
        let (url, ca) = (server.url(), server.ca().unwrap().to_owned());
        Self::new(Server::Fake(server), url, ca)
    }

    pub(crate) fn real_or_skip() -> Option<Self> {
        let server = real_or_skip()?;
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
        // A load has many connections, and none of them is to be made anew.
        let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false);
        let config = config.max_idle_connections(1024).max_idle_connections_per_host(1024);
        let agent = config.timeout_global(Some(PATIENCE)).build().into();
        Self { server: Arc::new(server), url, ca, kubeconfig: path, dir: Arc::new(dir), agent }
    }

    /// The tests' own server, where it is that.
    pub(crate) fn own(&self) -> Option<&ApiServer> {
        match &*self.server {
            Server::Fake(server) => Some(server),
            Server::Real { .. } => None,
        }
    }

    /// A kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubeconfig with another token, in a file of that name.
    pub(crate) fn kubeconfig_with(&self, name: &str, token: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        kubeconfig(&path, &self.url, Some(&self.ca), Some(token)).unwrap();
        path
    }

    /// A token of a service account, as a pod of it would have one.
    pub(crate) fn token_of(&self, namespace: &str, account: &str) -> String {
        match &*self.server {
            Server::Fake(server) => {
                let token = format!("{namespace}-{account}-token");
                server.know(&token, User::service_account(namespace, account));
                token
            }
            Server::Real { .. } => {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
                let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}});
                self.post(&path, &request).good()["status"]["token"].as_str().unwrap().to_owned()
            }
        }
    }

    /// Where replicas of webhooks have to listen to be reached: endpoints of a real server may not be loopback addresses.
    pub(crate) fn address(&self) -> IpAddr {
        match &*self.server {
            Server::Fake(_) => Ipv4Addr::LOCALHOST.into(),
            Server::Real { .. } => {
                // No packet is sent: the kernel says which address it would use. The other end is of RFC 5737.
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                socket
                    .connect((Ipv4Addr::new(198, 51, 100, 1), 9))
                    .expect("an address that is not loopback, and a route");
                socket.local_addr().unwrap().ip()
            }
        }
    }

    fn try_request(&self, method: &str, path: &str, content: &str, body: Option<&Value>) -> Result<Said, String> {
        let request = axum::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("user-agent", "tests")
            .header("content-type", content);
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut answer = self.agent.run(request.body(body).unwrap()).map_err(|error| error.to_string())?;
        let warnings = answer.headers().get_all("warning");
        let warnings = warnings.iter().map(|value| value.to_str().unwrap().to_owned()).collect();
        let code = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
        Ok(Said { code, warnings, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    #[track_caller]
    fn request(&self, method: &str, path: &str, content: &str, body: Option<&Value>) -> Said {
        self.try_request(method, path, content, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Posts an object; the error is that of the connection.
    pub(crate) fn try_post(&self, path: &str, body: &Value) -> Result<Said, String> {
        self.try_request("POST", path, "application/json", Some(body))
    }

    pub(crate) fn get(&self, path: &str) -> Said {
        self.request("GET", path, "application/json", None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Said {
        self.request("POST", path, "application/json", Some(body))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Said {
        self.request("PUT", path, "application/json", Some(body))
    }

    pub(crate) fn delete(&self, path: &str) -> Said {
        self.request("DELETE", path, "application/json", None)
    }

    pub(crate) fn merge(&self, path: &str, change: &Value) -> Said {
        self.request("PATCH", path, "application/merge-patch+json", Some(change))
    }

    /// Server-side apply; `query` is `fieldManager=...`, and `force=true` or nothing.
    pub(crate) fn apply(&self, path: &str, query: &str, object: &Value) -> Said {
        self.request("PATCH", &format!("{path}?{query}"), "application/apply-patch+yaml", Some(object))
    }

    /// A namespace with its default service account, which controllers would make.
    pub(crate) fn namespace(&self, name: &str, labels: &Value) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.post("/api/v1/namespaces", &namespace).good();
        self.account(name, "default");
    }

    /// The same, if it is not there yet.
    pub(crate) fn ensure_namespace(&self, name: &str, labels: &Value) {
        if self.get(&format!("/api/v1/namespaces/{name}")).code == 404 {
            self.namespace(name, labels);
        }
    }

    /// A service account, if it is not there yet.
    pub(crate) fn ensure_account(&self, namespace: &str, name: &str) {
        if self.get(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}")).code == 404 {
            self.account(namespace, name);
        }
    }

    /// A service account.
    pub(crate) fn account(&self, namespace: &str, name: &str) {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.post(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), &account).good();
    }

    /// Lets the port of a Service lead to these replicas, as its endpoints do; without the Service it stays without effect.
    pub(crate) fn route(&self, namespace: &str, service: &str, port: u16, replicas: &[SocketAddr]) {
        if let Server::Fake(server) = &*self.server {
            return server.route(namespace, service, port, replicas);
        }
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        let selected = format!("{slices}?labelSelector=kubernetes.io/service-name={service}");
        self.delete(&selected).good();
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
            self.post(&slices, &slice).good();
        }
    }
}

/// Polls until there is something.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match found() {
            Ok(found) => return found,
            Err(why) => assert!(begun.elapsed() < PATIENCE, "{what}: not in time: {why}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
