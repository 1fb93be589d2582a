//! One list and one watch that never give up.
//!
//! The list comes in pages and each is trimmed before the next is asked for, so that the memory of a full node is bounded by what is kept.
//! A watch ends after some minutes by itself and goes on where it was; one that is too old begins again with a list. An answer 401 makes
//! a new client, which reads the token anew. Everything that can wait has a bound.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Error};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{PodFacts, PodObject, Pods};
use crate::stop::Stop;

/// Pods in one page of a list.
const PAGE: u32 = 50;
/// For one page.
const LIST_WAIT: Duration = Duration::from_secs(30);
/// How long a watch lasts, in seconds. The server sends bookmarks about every minute where nothing happens.
const WATCH_SECONDS: u32 = 240;
/// Silence after which a connection counts as dead.
const SILENCE: Duration = Duration::from_secs(15 + 240);
/// First and longest pause after an error.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// Makes a client. It is called again where the server does not know us any more.
pub type Connect = Arc<dyn Fn() -> Result<Client, String> + Send + Sync>;

/// Keeps a cache up to date.
pub struct Follower {
    /// Makes clients.
    pub connect: Connect,
    /// Name of the node.
    pub node: String,
    /// Namespaces whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
    /// The cache.
    pub pods: Pods,
}

/// Why a watch is over.
#[derive(Debug)]
enum Ended {
    /// Its time was up, or the connection broke in the middle: it can go on.
    Interrupted,
    /// It cannot go on from where it was.
    TooOld,
    /// An error.
    Failed(String, Option<u16>),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match &error {
            Error::Api(status) if status.code == 410 => Self::TooOld,
            Error::Api(status) => Self::Failed(error.to_string(), Some(status.code)),
            _ => Self::Failed(in_full(&error), None),
        }
    }
}

/// An error with its causes: the outermost text alone is most often "client error".
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

impl Follower {
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
                Ended::Failed(reason, code) => {
                    warn!(%reason, code, "no answer about the pods of the node");
                    self.pods.troubled(reason);
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
            Err(reason) => return Ended::Failed(reason, None),
        };
        let api: Api<PodObject> = Api::all(client);
        let fields = format!("spec.nodeName={}", self.node);
        let mut version = match self.list(&api, &fields).await {
            Ok(version) => version,
            Err(ended) => return ended,
        };
        info!(pods = self.pods.all().len(), version, "pods of the node are known");
        *pause = PAUSES.0;
        let mut errors = 0;
        loop {
            let before = version.clone();
            match self.watch(&api, &fields, &mut version).await {
                Ended::TooOld => {
                    debug!(version, "the watch is too old and begins again");
                    return Ended::TooOld;
                }
                Ended::Interrupted => errors = 0,
                // A new client has to be made, or the server is not what it was: better begin anew.
                failed @ Ended::Failed(..) if errors >= 2 => return failed,
                failed @ Ended::Failed(_, Some(401)) => return failed,
                Ended::Failed(reason, _) => {
                    debug!(reason, "the watch broke");
                    self.pods.troubled(reason);
                    errors += 1;
                }
            }
            if version == before {
                sleep(PAUSES.0).await;
            }
        }
    }

    /// Replaces the cache; returns the version to watch from.
    async fn list(&self, api: &Api<PodObject>, fields: &str) -> Result<String, Ended> {
        let mut all = Vec::new();
        let mut params = ListParams::default().fields(fields).limit(PAGE);
        loop {
            let page = timeout(LIST_WAIT, api.list(&params));
            let page = page
                .await
                .map_err(|_| Ended::Failed("the API server takes too long to list pods".to_owned(), None))??;
            self.pods.heard_now();
            all.extend(page.items.into_iter().map(|pod| PodFacts::of(pod, &self.exclude_namespaces)));
            let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) else {
                self.pods.replace(all);
                return Ok(page.metadata.resource_version.unwrap_or_default());
            };
            params = params.continue_token(&token);
        }
    }

    async fn watch(&self, api: &Api<PodObject>, fields: &str, version: &mut String) -> Ended {
        let params = WatchParams::default().fields(fields).timeout(WATCH_SECONDS);
        let opened = match timeout(LIST_WAIT, api.watch(&params, version)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return error.into(),
            Err(_) => return Ended::Failed("the API server takes too long to begin a watch".to_owned(), None),
        };
        self.pods.heard_now();
        let mut events = std::pin::pin!(opened);
        loop {
            let event = match timeout(SILENCE, events.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Ended::Interrupted,
                Ok(Err(error)) => return error.into(),
                Err(_) => return Ended::Failed("the API server is silent".to_owned(), None),
            };
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    let facts = PodFacts::of(pod, &self.exclude_namespaces);
                    version.clone_from(&facts.version);
                    self.pods.put(facts);
                }
                WatchEvent::Deleted(pod) => {
                    let facts = PodFacts::of(pod, &self.exclude_namespaces);
                    version.clone_from(&facts.version);
                    self.pods.remove(&facts.uid);
                }
                WatchEvent::Bookmark(bookmark) => version.clone_from(&bookmark.metadata.resource_version),
                WatchEvent::Error(status) => return Error::Api(status).into(),
            }
            self.pods.heard_now();
        }
    }
}
