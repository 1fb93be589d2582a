//! A small Kubernetes API server for tests, in the test's process: objects of any kind with resource versions, list and watch with
//! selectors, patches and server-side apply, preconditions, RBAC and admission webhooks. Tests can inject faults.
//!
//! ```text
//! request ──▶ listen.rs (plain, or TLS: tls.rs) ──▶ http.rs ──▶ Target (target.rs) ──▶ response, or a stream of events (watch.rs)
//!               ├─ fault.rs: slow, 401, 410, 500, hanging, as a test has asked for
//!               ├─ auth.rs, rbac.rs: authentication, authorization
//!               ├─ discovery.rs, resources.rs: groups, versions, resources
//!               ├─ proxy.rs: the proxy subresource of Services and pods
//!               └─ write.rs ──▶ admission.rs: plugins, webhooks ──▶ apply.rs, fields.rs: field ownership ──▶ Store (store.rs)
//! ```
//!
//! There are two modes. [`ApiServer::start`] keeps what it is given, over plain HTTP; namespaces need not exist. [`ApiServer::cluster`]
//! is like a new cluster: TLS, the namespaces every cluster has, known resources only, the admission plugins `NamespaceLifecycle` and
//! `ServiceAccount`. Both call the configured webhooks. Only MutatingWebhookConfigurations are validated and defaulted; bodies are
//! JSON, never protobuf.
//!
//! Versions, preconditions, subresources and selectors behave as in kube-apiserver (Kubernetes API concepts: "Efficient detection of
//! changes", "Patch", "Preconditions"). `kube_apiserver.rs` starts that one, so that the same tests can run against both.

mod admission;
mod apply;
mod auth;
mod discovery;
pub mod fake_webhook;
mod fault;
mod fields;
mod forward_proxy;
mod http;
mod kube_apiserver;
mod listen;
mod port_forward;
mod proxy;
mod rbac;
mod resources;
mod store;
mod target;
pub mod tls;
mod validate;
mod watch;
mod write;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch as channel;

pub use self::admission::Audit;
pub use self::auth::{RequestAttributes, User};
pub use self::fault::{FaultTarget, ServerFault};
pub use self::forward_proxy::ForwardProxy;
pub use self::kube_apiserver::{ExtraFlags, KubeApiserver, assets_or_skip, kube_apiserver_or_skip};
use self::listen::MaybeTlsListener;
use self::store::Store;
use self::tls::Authority;

/// A running server. Stops when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    serving: Mutex<Option<Serving>>,
    /// The CA certificate, PEM, and the configuration that serves a certificate signed by it; `None` for plain HTTP.
    tls: Option<(String, Arc<rustls::ServerConfig>)>,
}

/// The serving thread and its stop signal.
#[derive(Debug)]
struct Serving {
    stop: channel::Sender<bool>,
    thread: JoinHandle<()>,
}

/// State shared by requests and tests.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Whether it behaves like a cluster (see [`ApiServer::cluster`]).
    cluster: bool,
    webhooks: admission::WebhookClient,
    /// The newest resource version; watches wait for changes of it.
    version: channel::Sender<u64>,
    /// Incremented to end all open watches.
    dropped_watches: channel::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    faults: Vec<fault::PendingFault>,
    auth: auth::Auth,
    requests: Vec<String>,
    audit: VecDeque<Audit>,
    pod_ports: proxy::PodPorts,
    /// Logs by namespace and name of the pod.
    pod_logs: HashMap<(String, String), String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the store and wakes the watches.
    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let (result, version) = {
            let mut state = self.state();
            (change(&mut state.store), state.store.version())
        };
        self.version.send_replace(version);
        result
    }
}

impl ApiServer {
    /// Starts a server without objects on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> anyhow::Result<Self> {
        let server = Self::unreachable()?;
        server.start_listening()?;
        Ok(server)
    }

    /// Starts a server that is like a new cluster, over TLS; see the crate's documentation.
    ///
    /// # Errors
    /// When no port is free, or no certificate can be made.
    pub fn cluster() -> anyhow::Result<Self> {
        let authority = Authority::new("kubernetes")?;
        let pair = authority.issue("kube-apiserver", &["127.0.0.1", "localhost", "kubernetes.default.svc"])?;
        let server = Self::build(true, Some((authority.cert(), Arc::new(tls::server_config(&pair)?))))?;
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let labels = json!({ "kubernetes.io/metadata.name": name });
            let metadata = json!({ "name": name, "labels": labels });
            server.put("namespaces", json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
        }
        server.start_listening()?;
        Ok(server)
    }

    /// Creates a server that refuses connections to its address until [`start_listening`](Self::start_listening).
    ///
    /// # Errors
    /// When no port is free.
    pub fn unreachable() -> anyhow::Result<Self> {
        Self::build(false, None)
    }

    fn build(cluster: bool, tls: Option<(String, Arc<rustls::ServerConfig>)>) -> anyhow::Result<Self> {
        let addr = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let shared = Shared {
            state: Mutex::default(),
            cluster,
            webhooks: admission::WebhookClient::default(),
            version: channel::Sender::new(0),
            dropped_watches: channel::Sender::new(0),
        };
        Ok(Self { shared: Arc::new(shared), addr, serving: Mutex::default(), tls })
    }

    /// Starts to serve; a no-op while it serves.
    ///
    /// # Errors
    /// When another process has taken the port.
    pub fn start_listening(&self) -> anyhow::Result<()> {
        let mut serving = lock(&self.serving);
        if serving.is_some() {
            return Ok(());
        }
        let listener =
            std::net::TcpListener::bind(self.addr).with_context(|| format!("cannot listen on {}", self.addr))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stop, mut stopped) = channel::channel(false);
        let app = http::app(Arc::clone(&self.shared));
        let (addr, tls) = (self.addr, self.tls.as_ref().map(|(_, config)| Arc::clone(config)));
        let thread = thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = axum::serve(MaybeTlsListener::start(listener, addr, tls), app).into_future() => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
            // Ends connections, also in the middle of a response.
            runtime.shutdown_background();
        })?;
        *serving = Some(Serving { stop, thread });
        Ok(())
    }

    /// Stops serving and closes connections, also in the middle of a response; objects are kept.
    pub fn stop_listening(&self) {
        if let Some(serving) = lock(&self.serving).take() {
            serving.stop.send_replace(true);
            let _ = serving.thread.join();
        }
    }

    /// Returns its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Returns its address, `http://127.0.0.1:PORT` or `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.addr)
    }

    /// Returns the CA certificate that its own is signed by, PEM; `None` for plain HTTP.
    pub fn ca(&self) -> Option<&str> {
        self.tls.as_ref().map(|(ca, _)| ca.as_str())
    }

    /// Writes a kubeconfig of an administrator into `dir`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, dir: &Path) -> anyhow::Result<PathBuf> {
        let token = self.shared.state().auth.admin_token().map(str::to_owned);
        self.kubeconfig_with(dir, token.as_deref())
    }

    /// Writes a kubeconfig with a bearer token into `dir`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_with(&self, dir: &Path, token: Option<&str>) -> anyhow::Result<PathBuf> {
        let path = dir.join("kubeconfig");
        kubeconfig(&path, &self.url(), self.ca(), token)?;
        Ok(path)
    }

    /// Writes a kubeconfig of an administrator with another URL of this server, and perhaps a proxy that leads to it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_through(&self, dir: &Path, url: &str, proxy: Option<&str>) -> anyhow::Result<PathBuf> {
        let token = self.shared.state().auth.admin_token().map(str::to_owned);
        let path = dir.join("kubeconfig");
        kubeconfig(&path, url, self.ca(), token.as_deref())?;
        if let Some(proxy) = proxy {
            let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
            config["clusters"][0]["cluster"]["proxy-url"] = proxy.into();
            std::fs::write(&path, config.to_string())?;
        }
        Ok(path)
    }

    /// Returns its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Creates or replaces an object of a resource (`pods`, `nodes`, `configmaps`, ...) and returns it with its `uid` and
    /// `resourceVersion`. Nothing is authorized, admitted or validated.
    pub fn put(&self, resource: &str, object: Value) -> Value {
        self.shared.change(|store| store.put(resource, object))
    }

    /// Returns an object; `namespace` is empty for cluster-scoped ones.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.state().store.get(resource, namespace, name).cloned()
    }

    /// Returns all objects of a resource.
    pub fn list(&self, resource: &str) -> Vec<Value> {
        self.shared.state().store.list(resource).cloned().collect()
    }

    /// Removes an object without any check.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.change(|store| store.remove(resource, namespace, name))
    }

    /// Injects a fault into the next `times` requests that match `target`.
    pub fn inject_fault(&self, target: FaultTarget, fault: ServerFault, times: usize) {
        self.shared.state().faults.push(fault::PendingFault { target, fault, times });
    }

    /// Removes all injected faults.
    pub fn clear_faults(&self) {
        self.shared.state().faults.clear();
    }

    /// Ends all open watches in the middle of their streams.
    pub fn drop_watches(&self) {
        self.shared.dropped_watches.send_modify(|count| *count += 1);
    }

    /// Discards the history, as a compaction of etcd does: a watch from an earlier version gets 410.
    pub fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// Returns the latest requests, each as `METHOD PATH?QUERY`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

/// Writes a kubeconfig for a server with its CA certificate (PEM) and a bearer token.
///
/// # Errors
/// When it cannot be written.
pub fn kubeconfig(path: &Path, url: &str, ca: Option<&str>, token: Option<&str>) -> anyhow::Result<()> {
    let user = token.map_or_else(|| json!({}), |token| json!({ "token": token }));
    let mut cluster = json!({ "server": url });
    if let Some(ca) = ca {
        cluster["certificate-authority-data"] = STANDARD.encode(ca).into();
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": cluster }],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
    });
    std::fs::write(path, config.to_string()).with_context(|| path.display().to_string())
}
