//! One list and one watch that never give up.
//!
//! The list comes in pages and each is trimmed before the next is asked for, so that memory is bounded by what is kept.
//! A watch ends after some minutes by itself and goes on where it was; one that is too old begins again with a list. An answer 401 makes
//! a new client, which reads the token anew. Everything that can wait has a bound.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Error, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::cache::Cache;
use crate::connect::{Connect, Refusal, SILENCE};
use crate::stop::Stop;

/// Objects in one page of a list.
const PAGE: u32 = 50;
/// For one page.
const LIST_WAIT: Duration = Duration::from_secs(30);
/// How long a watch lasts, in seconds. The server sends bookmarks about every minute where nothing happens.
const WATCH_SECONDS: u32 = 240;
/// First and longest pause after an error.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// Keeps a cache up to date: lists objects of type `K`, keeps a `T` of each.
pub struct Follower<K, T> {
    /// Makes clients.
    pub connect: Connect,
    /// What is followed, for messages: `the pods of the node`.
    pub what: &'static str,
    /// Where the objects are: of a namespace, or all.
    pub api: Box<dyn Fn(Client) -> Api<K> + Send + Sync>,
    /// Which of them: a field selector; empty for all.
    pub fields: String,
    /// Which of them: a label selector; empty for all.
    pub labels: String,
    /// What is kept of an object.
    pub keep: Box<dyn Fn(K) -> T + Send + Sync>,
    /// The cache.
    pub cache: Cache<T>,
}

/// Why a watch is over.
#[derive(Debug)]
enum Ended {
    /// Its time was up, or the connection broke in the middle: it can go on.
    Interrupted,
    /// It cannot go on from where it was.
    TooOld,
    /// The server knows no objects of this kind: a definition that is not installed.
    NoSuchKind,
    /// An error.
    Failed(Refusal),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match &error {
            Error::Api(status) if status.code == 410 => Self::TooOld,
            _ => Self::Failed(error.into()),
        }
    }
}

impl<K, T> Follower<K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: PartialEq + Send + Sync + 'static,
{
    /// Follows until told to stop.
    pub async fn run(self, stop: Stop) {
        tokio::select! {
            () = self.follow() => {}
            () = stop.requested() => {}
        }
    }

    async fn follow(&self) {
        let mut pause = PAUSES.0;
        loop {
            match self.follow_once(&mut pause).await {
                Ended::Interrupted | Ended::TooOld => {}
                Ended::NoSuchKind => {
                    if !self.cache.is_synced() || !self.cache.all().is_empty() {
                        info!("the API server has no such kind as {}; it is asked again", self.what);
                    }
                    self.cache.heard_now();
                    self.cache.replace([]);
                    pause = PAUSES.1;
                }
                Ended::Failed(refusal) => {
                    warn!(reason = refusal.reason, code = refusal.code, "no answer about {}", self.what);
                    self.cache.troubled(refusal.to_string());
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Lists, then watches for as long as that goes well. A success makes the next pause short.
    async fn follow_once(&self, pause: &mut Duration) -> Ended {
        let client = match (self.connect)() {
            Ok(client) => client,
            Err(reason) => return Ended::Failed(Refusal::unanswered(reason)),
        };
        let api = (self.api)(client);
        let mut version = match self.list(&api).await {
            Ok(version) => version,
            Err(ended) => return ended,
        };
        info!(count = self.cache.all().len(), version, "{} are known", self.what);
        *pause = PAUSES.0;
        let mut errors = 0;
        loop {
            let before = version.clone();
            match self.watch(&api, &mut version).await {
                Ended::TooOld => {
                    debug!(version, "the watch of {} is too old and begins again", self.what);
                    return Ended::TooOld;
                }
                Ended::NoSuchKind => return Ended::NoSuchKind,
                Ended::Interrupted => errors = 0,
                // A new client has to be made, or the server is not what it was: better begin anew.
                failed @ Ended::Failed(_) if errors >= 2 => return failed,
                failed @ Ended::Failed(Refusal { code: Some(401), .. }) => return failed,
                Ended::Failed(refusal) => {
                    debug!(%refusal, "the watch of {} broke", self.what);
                    self.cache.troubled(refusal.to_string());
                    errors += 1;
                }
            }
            if version == before {
                sleep(PAUSES.0).await;
            }
        }
    }

    /// Replaces the cache; returns the version to watch from.
    async fn list(&self, api: &Api<K>) -> Result<String, Ended> {
        let mut all = Vec::new();
        let mut params = ListParams::default().fields(&self.fields).labels(&self.labels).limit(PAGE);
        loop {
            let page = timeout(LIST_WAIT, api.list(&params));
            let page = match page.await {
                Ok(Ok(page)) => page,
                Ok(Err(Error::Api(status))) if status.code == 404 => return Err(Ended::NoSuchKind),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let reason = format!("the API server takes too long to list {}", self.what);
                    return Err(Ended::Failed(Refusal::unanswered(reason)));
                }
            };
            self.cache.heard_now();
            all.extend(page.items.into_iter().map(|object| {
                let (uid, _) = identity(&object);
                (uid, (self.keep)(object))
            }));
            let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) else {
                self.cache.replace(all);
                return Ok(page.metadata.resource_version.unwrap_or_default());
            };
            params = params.continue_token(&token);
        }
    }

    async fn watch(&self, api: &Api<K>, version: &mut String) -> Ended {
        let params = WatchParams::default().fields(&self.fields).labels(&self.labels).timeout(WATCH_SECONDS);
        let opened = match timeout(LIST_WAIT, api.watch(&params, version)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return error.into(),
            Err(_) => {
                let reason = "the API server takes too long to begin a watch";
                return Ended::Failed(Refusal::unanswered(reason));
            }
        };
        self.cache.heard_now();
        let mut events = std::pin::pin!(opened);
        loop {
            let event = match timeout(SILENCE, events.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Ended::Interrupted,
                Ok(Err(error)) => return error.into(),
                Err(_) => return Ended::Failed(Refusal::unanswered("the API server is silent")),
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let (uid, newest) = identity(&object);
                    *version = newest;
                    self.cache.put(uid, (self.keep)(object));
                }
                WatchEvent::Deleted(object) => {
                    let (uid, newest) = identity(&object);
                    *version = newest;
                    self.cache.remove(&uid);
                }
                WatchEvent::Bookmark(bookmark) => version.clone_from(&bookmark.metadata.resource_version),
                WatchEvent::Error(status) => return Error::Api(status).into(),
            }
            self.cache.heard_now();
        }
    }
}

/// Uid and version of an object.
fn identity(object: &impl Resource) -> (String, String) {
    let meta = object.meta();
    (meta.uid.clone().unwrap_or_default(), meta.resource_version.clone().unwrap_or_default())
}
