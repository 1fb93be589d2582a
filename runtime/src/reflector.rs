//! Keeps a [`Cache`] current by list and watch, for ever.
//!
//! `kube::runtime::watcher` keeps the client that it was given and treats a kind that is not installed as one more error; here, 401 or
//! an unreachable server gets a new client (with the rotated token and CA), and a missing kind is an empty, synced cache.
//! Lists are trimmed page by page, so that memory is bounded by what is kept, and an interrupted watch continues where it was.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Error, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::cache::Cache;
use crate::client::{ApiError, ClientFactory, READ_TIMEOUT};

/// Objects per page of a list.
const PAGE_SIZE: u32 = 50;
/// Time for one page, or for a watch to begin.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Duration of a watch. The server sends bookmarks about every minute if nothing happens.
const WATCH_TIMEOUT_SECONDS: u32 = 240;
/// First and longest pause after an error.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// Consecutive watch errors before the objects are listed again.
const MAX_WATCH_ERRORS: u32 = 3;

/// Lists and watches objects of type `K`, and keeps a `T` of each in a cache.
pub struct Reflector<K, T> {
    /// Creates clients.
    pub client_factory: ClientFactory,
    /// Name of the objects, for logs and errors: `pods of this node`.
    pub kind: &'static str,
    /// Scope of the objects: one namespace, or all.
    pub api: Box<dyn Fn(Client) -> Api<K> + Send + Sync>,
    /// Field selector; empty for all objects.
    pub field_selector: String,
    /// Label selector; empty for all objects.
    pub label_selector: String,
    /// Reduces an object to what is kept of it.
    pub transform: Box<dyn Fn(K) -> T + Send + Sync>,
    /// The store.
    pub cache: Cache<T>,
}

/// Why a list or watch ended.
#[derive(Debug)]
enum WatchEnd {
    /// The watch timed out or lost its connection; it can continue.
    Interrupted,
    /// The resource version is too old to continue from.
    Expired,
    /// The server does not serve this kind: its definition is not installed.
    KindNotServed,
    Failed(ApiError),
}

impl From<Error> for WatchEnd {
    fn from(error: Error) -> Self {
        match &error {
            Error::Api(status) if status.code == 410 => Self::Expired,
            _ => Self::Failed(error.into()),
        }
    }
}

impl<K, T> Reflector<K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: PartialEq + Send + Sync + 'static,
{
    /// Keeps the cache current until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.run_forever()).await;
    }

    async fn run_forever(&self) {
        let kind = self.kind;
        let mut pause = BACKOFF.0;
        loop {
            match self.list_and_watch(&mut pause).await {
                WatchEnd::Interrupted | WatchEnd::Expired => {}
                WatchEnd::KindNotServed => {
                    if !self.cache.is_synced() || !self.cache.all().is_empty() {
                        info!(kind, "kind is not served; retrying");
                    }
                    self.cache.record_contact();
                    self.cache.replace([]);
                    pause = BACKOFF.1;
                }
                WatchEnd::Failed(error) => {
                    warn!(kind, error = error.reason, code = error.status, "list failed; retrying");
                    self.cache.record_error(error.to_string());
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Lists, then watches until that fails for good. A list that succeeds resets `pause`.
    async fn list_and_watch(&self, pause: &mut Duration) -> WatchEnd {
        let kind = self.kind;
        let client = match (self.client_factory)() {
            Ok(client) => client,
            Err(reason) => return WatchEnd::Failed(ApiError::no_response(reason)),
        };
        let api = (self.api)(client);
        let mut version = match self.list(&api).await {
            Ok(version) => version,
            Err(end) => return end,
        };
        info!(kind, count = self.cache.all().len(), resource_version = version, "cache synced");
        *pause = BACKOFF.0;
        let mut errors = 0;
        loop {
            let before = version.clone();
            match self.watch(&api, &mut version).await {
                WatchEnd::Expired => {
                    debug!(kind, resource_version = version, "watch expired; listing again");
                    return WatchEnd::Expired;
                }
                WatchEnd::KindNotServed => return WatchEnd::KindNotServed,
                WatchEnd::Interrupted => errors = 0,
                WatchEnd::Failed(error) => {
                    errors += 1;
                    // A new client is needed, or the server is another one: start from scratch.
                    if errors >= MAX_WATCH_ERRORS || error.status == Some(401) {
                        return WatchEnd::Failed(error);
                    }
                    debug!(kind, %error, "watch failed; retrying");
                    self.cache.record_error(error.to_string());
                }
            }
            if version == before {
                sleep(BACKOFF.0).await;
            }
        }
    }

    /// Replaces the cache; returns the resource version to watch from.
    async fn list(&self, api: &Api<K>) -> Result<String, WatchEnd> {
        let mut all = Vec::new();
        let (fields, labels) = (&self.field_selector, &self.label_selector);
        let mut params = ListParams::default().fields(fields).labels(labels).limit(PAGE_SIZE);
        loop {
            let page = match timeout(LIST_TIMEOUT, api.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(Error::Api(status))) if status.code == 404 => return Err(WatchEnd::KindNotServed),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let reason = format!("list of {} timed out", self.kind);
                    return Err(WatchEnd::Failed(ApiError::no_response(reason)));
                }
            };
            self.cache.record_contact();
            all.extend(page.items.into_iter().map(|object| {
                let (uid, _) = uid_and_version(&object);
                (uid, (self.transform)(object))
            }));
            let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) else {
                self.cache.replace(all);
                return Ok(page.metadata.resource_version.unwrap_or_default());
            };
            params = params.continue_token(&token);
        }
    }

    async fn watch(&self, api: &Api<K>, version: &mut String) -> WatchEnd {
        let (fields, labels) = (&self.field_selector, &self.label_selector);
        let params = WatchParams::default().fields(fields).labels(labels).timeout(WATCH_TIMEOUT_SECONDS);
        let opened = match timeout(LIST_TIMEOUT, api.watch(&params, version)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return error.into(),
            Err(_) => return WatchEnd::Failed(ApiError::no_response("watch request timed out")),
        };
        self.cache.record_contact();
        let mut events = std::pin::pin!(opened);
        loop {
            let event = match timeout(READ_TIMEOUT, events.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return WatchEnd::Interrupted,
                Ok(Err(error)) => return error.into(),
                Err(_) => {
                    let reason = format!("watch timed out: no event for {} s", READ_TIMEOUT.as_secs());
                    return WatchEnd::Failed(ApiError::no_response(reason));
                }
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let (uid, newest) = uid_and_version(&object);
                    *version = newest;
                    self.cache.put(uid, (self.transform)(object));
                }
                WatchEvent::Deleted(object) => {
                    let (uid, newest) = uid_and_version(&object);
                    *version = newest;
                    self.cache.remove(&uid);
                }
                WatchEvent::Bookmark(bookmark) => version.clone_from(&bookmark.metadata.resource_version),
                WatchEvent::Error(status) => return Error::Api(status).into(),
            }
            self.cache.record_contact();
        }
    }
}

fn uid_and_version(object: &impl Resource) -> (String, String) {
    let meta = object.meta();
    (meta.uid.clone().unwrap_or_default(), meta.resource_version.clone().unwrap_or_default())
}
