//! A small Kubernetes API server in this process: objects of any kind with resource versions, list and watch with selectors, patches,
//! preconditions; and told to, it misbehaves.
//!
//! ```text
//! request ──http.rs──▶ Target (target.rs) ──▶ Store (store.rs: objects, history) ──▶ answer, or a stream of events
//!             │
//!             └─ trouble.rs: slow, 401, 410, 500, hung, as a test has asked for
//! ```
//!
//! It keeps what it is given, without defaults, validation or admission. What it does with versions, preconditions, subresources and
//! selectors is what the real one does (Kubernetes API concepts: "Efficient detection of changes", "Patch", "Preconditions").

mod http;
mod store;
mod target;
mod trouble;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::store::Store;
pub use self::trouble::{Trouble, When};

/// A running server; it ends with the value.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    serving: Option<Serving>,
}

/// The thread that serves, and what ends it.
#[derive(Debug)]
struct Serving {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// What requests and tests share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The newest resource version; watches wait for it to change.
    version: watch::Sender<u64>,
    /// Counts up to end every watch that is open.
    cut: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    troubles: Vec<trouble::Pending>,
    token: Option<String>,
    asked: Vec<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut server = Self::absent()?;
        server.appear()?;
        Ok(server)
    }

    /// A server that is not there yet: its address is known, and connections are refused until [`appear`](Self::appear).
    ///
    /// # Errors
    /// When no port can be had.
    pub fn absent() -> anyhow::Result<Self> {
        let addr = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let state = Mutex::new(State::default());
        let shared = Shared { state, version: watch::Sender::new(0), cut: watch::Sender::new(0) };
        Ok(Self { shared: Arc::new(shared), addr, serving: None })
    }

    /// Begins to serve; nothing changes where it does already.
    ///
    /// # Errors
    /// When the port has been taken meanwhile.
    pub fn appear(&mut self) -> anyhow::Result<()> {
        if self.serving.is_some() {
            return Ok(());
        }
        let listener = std::net::TcpListener::bind(self.addr).with_context(|| format!("port {}", self.addr))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = watch::channel(false);
        let app = http::app(Arc::clone(&self.shared));
        let thread = thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = axum::serve(listener, app).into_future() => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
            // Connections end with the runtime, watches in the middle.
            runtime.shutdown_background();
        })?;
        self.serving = Some(Serving { stop, thread });
        Ok(())
    }

    /// Stops serving in the middle of everything; objects are kept.
    pub fn disappear(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.stop.send_replace(true);
            let _ = serving.thread.join();
        }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Its address, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Writes a kubeconfig that leads here into `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let path = folder.join("kubeconfig");
        let user = match &self.shared.state().token {
            Some(token) => json!({ "token": token }),
            None => json!({}),
        };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{ "name": "fake", "cluster": { "server": self.url() } }],
            "users": [{ "name": "fake", "user": user }],
            "contexts": [{ "name": "fake", "context": { "cluster": "fake", "user": "fake" } }],
        });
        std::fs::write(&path, config.to_string())?;
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

    /// From now on only requests with this bearer token are served, all others get 401; `None` serves everybody.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.state().token = token.map(str::to_owned);
    }

    /// Ends every open watch in the middle of its stream.
    pub fn drop_watches(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Forgets the history: a watch from before gets 410, as after a compaction of etcd.
    pub fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// The requests so far, `METHOD PATH?QUERY` each.
    pub fn asked(&self) -> Vec<String> {
        self.shared.state().asked.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.disappear();
    }
}

/// The kubeconfig of a real API server, if `KUBECONFIG` names one; where not, prints that no real server was tried. A test makes a
/// namespace of its own there, and removes it.
pub fn real_or_skip() -> Option<PathBuf> {
    let found = std::env::var_os("KUBECONFIG").map(PathBuf::from).filter(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: KUBECONFIG names no file, so nothing was tried against a real API server");
    }
    found
}
