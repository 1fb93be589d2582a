//! A small Kubernetes API server in this process: objects of any kind with resource versions, list and watch with selectors, patches and
//! server-side apply, preconditions, admission by webhooks; and told to, it misbehaves.
//!
//! ```text
//! request ──▶ listen.rs (plain, or TLS: tls.rs) ──▶ http.rs ──▶ Target (target.rs) ──▶ answer, or a stream of events (watch.rs)
//!               ├─ trouble.rs: slow, 401, 410, 500, hung, as a test has asked for
//!               ├─ auth.rs, rbac.rs: who asks, and whether they may
//!               ├─ discovery.rs, resources.rs: what there is to ask for
//!               ├─ proxy.rs: on to a Service or a pod
//!               └─ write.rs ──▶ admission.rs: plugins, webhooks ──▶ apply.rs, fields.rs: who owns what ──▶ Store (store.rs)
//! ```
//!
//! There are two kinds. [`ApiServer::start`] gives one that keeps what it is given, plain HTTP, without namespaces having to exist.
//! [`ApiServer::cluster`] gives one that is like a new cluster: TLS, the namespaces every cluster has, only known resources, the
//! plugins `NamespaceLifecycle` and `ServiceAccount`. Both ask the webhooks that are configured in them. Beyond
//! MutatingWebhookConfigurations nothing is validated or filled in; bodies are JSON, never protobuf. What it does with versions, preconditions, subresources and
//! selectors is what the real one does; real.rs starts that one, so that both can be held against each other (Kubernetes API concepts: "Efficient detection of changes", "Patch", "Preconditions").

mod admission;
mod apply;
mod auth;
mod discovery;
mod fields;
pub mod hook;
mod http;
mod listen;
mod proxy;
mod rbac;
mod real;
mod resources;
mod store;
mod target;
pub mod tls;
mod trouble;
mod validate;
mod watch;
mod write;

use std::collections::VecDeque;
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
pub use self::auth::{Access, User};
use self::listen::Door;
pub use self::real::{Real, real_or_skip};
use self::store::Store;
use self::tls::Authority;
pub use self::trouble::{Trouble, When};

/// A running server; it ends with the value.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    serving: Mutex<Option<Serving>>,
    /// The CA of its own certificate, PEM, and how it is shown; without, it serves plain HTTP.
    tls: Option<(String, Arc<rustls::ServerConfig>)>,
}

/// The thread that serves, and what ends it.
#[derive(Debug)]
struct Serving {
    stop: channel::Sender<bool>,
    thread: JoinHandle<()>,
}

/// What requests and tests share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Whether it is like a cluster, or just keeps objects.
    cluster: bool,
    caller: admission::Caller,
    /// The newest resource version; watches wait for it to change.
    version: channel::Sender<u64>,
    /// Counts up to end every watch that is open.
    cut: channel::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    troubles: Vec<trouble::Pending>,
    auth: auth::Auth,
    asked: Vec<String>,
    audit: VecDeque<Audit>,
    pod_ports: proxy::PodPorts,
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
    /// Starts a server without objects, on a port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start() -> anyhow::Result<Self> {
        let server = Self::absent()?;
        server.appear()?;
        Ok(server)
    }

    /// Starts a server that is like a new cluster, over TLS (see the module).
    ///
    /// # Errors
    /// When no port can be had, or there is no randomness.
    pub fn cluster() -> anyhow::Result<Self> {
        let authority = Authority::new("kubernetes")?;
        let pair = authority.issue("kube-apiserver", &["127.0.0.1", "localhost", "kubernetes.default.svc"])?;
        let server = Self::made(true, Some((authority.cert(), Arc::new(tls::server_config(&pair)?))))?;
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let labels = json!({ "kubernetes.io/metadata.name": name });
            let metadata = json!({ "name": name, "labels": labels });
            server.put("namespaces", json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
        }
        server.appear()?;
        Ok(server)
    }

    /// A server that is not there yet: its address is known, and connections are refused until [`appear`](Self::appear).
    ///
    /// # Errors
    /// When no port can be had.
    pub fn absent() -> anyhow::Result<Self> {
        Self::made(false, None)
    }

    fn made(cluster: bool, tls: Option<(String, Arc<rustls::ServerConfig>)>) -> anyhow::Result<Self> {
        let addr = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let shared = Shared {
            state: Mutex::default(),
            cluster,
            caller: admission::Caller::default(),
            version: channel::Sender::new(0),
            cut: channel::Sender::new(0),
        };
        Ok(Self { shared: Arc::new(shared), addr, serving: Mutex::default(), tls })
    }

    /// Begins to serve; nothing changes where it does already.
    ///
    /// # Errors
    /// When the port has been taken meanwhile.
    pub fn appear(&self) -> anyhow::Result<()> {
        let mut serving = lock(&self.serving);
        if serving.is_some() {
            return Ok(());
        }
        let listener = std::net::TcpListener::bind(self.addr).with_context(|| format!("port {}", self.addr))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stop, mut stopped) = channel::channel(false);
        let app = http::app(Arc::clone(&self.shared));
        let (addr, tls) = (self.addr, self.tls.as_ref().map(|(_, config)| Arc::clone(config)));
        let thread = thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = axum::serve(Door::open(listener, addr, tls), app).into_future() => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
            // Connections end with the runtime, watches in the middle.
            runtime.shutdown_background();
        })?;
        *serving = Some(Serving { stop, thread });
        Ok(())
    }

    /// Stops serving in the middle of everything; objects are kept.
    pub fn disappear(&self) {
        if let Some(serving) = lock(&self.serving).take() {
            serving.stop.send_replace(true);
            let _ = serving.thread.join();
        }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Its address, `http://127.0.0.1:PORT`, or with `https`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.addr)
    }

    /// The certificate of the CA that its own is signed by, PEM; none where it serves plain HTTP.
    pub fn ca(&self) -> Option<&str> {
        self.tls.as_ref().map(|(ca, _)| ca.as_str())
    }

    /// Writes a kubeconfig of an administrator that leads here into `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let token = self.shared.state().auth.admins_token().map(str::to_owned);
        self.kubeconfig_with(folder, token.as_deref())
    }

    /// Writes a kubeconfig with a bearer token that leads here into `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_with(&self, folder: &Path, token: Option<&str>) -> anyhow::Result<PathBuf> {
        let path = folder.join("kubeconfig");
        kubeconfig(&path, &self.url(), self.ca(), token)?;
        Ok(path)
    }

    /// Stores an object of a resource (`pods`, `nodes`, `configmaps`, ...), new or in place of the one of that name, and returns it with
    /// its `uid` and `resourceVersion`. Nothing is checked: this is the cluster doing its work.
    pub fn put(&self, resource: &str, object: Value) -> Value {
        self.shared.change(|store| store.put(resource, object))
    }

    /// The object, if there is one; `namespace` is empty for what belongs to the cluster.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.state().store.get(resource, namespace, name).cloned()
    }

    /// All objects of a resource.
    pub fn list(&self, resource: &str) -> Vec<Value> {
        self.shared.state().store.list(resource).cloned().collect()
    }

    /// Removes an object, as if it had come to its end.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.change(|store| store.remove(resource, namespace, name))
    }

    /// Misbehaves for the next `times` requests that `when` fits.
    pub fn misbehave(&self, when: When, trouble: Trouble, times: usize) {
        self.shared.state().troubles.push(trouble::Pending { when, trouble, times });
    }

    /// Behaves again.
    pub fn behave(&self) {
        self.shared.state().troubles.clear();
    }

    /// Ends every open watch in the middle of its stream.
    pub fn drop_watches(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Forgets the history: a watch from before gets 410, as after a compaction of etcd.
    pub fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// The requests so far, `METHOD PATH?QUERY` each; of very many the latest.
    pub fn asked(&self) -> Vec<String> {
        self.shared.state().asked.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.disappear();
    }
}

/// Writes a kubeconfig for a server, what to trust there, and a bearer token.
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
