//! Keeps a [`Cache`] current by list and watch, for ever.
//!
//! `kube::runtime::watcher` keeps the client that it was given and treats a kind that is not installed as one more error; here, 401 or
//! an unreachable server gets a new client (with the rotated token and CA), and a missing kind is an empty, synced cache.
//! Memory is bounded by what is kept and by one object: lists and events are split while they arrive, each object is parsed alone into a
//! type without the fields that nobody reads, and one that is too large, or malformed, is skipped and named instead of ending the process.
//! An interrupted watch continues where it was.

mod limits;
mod response;
mod split;

use std::time::Duration;

use kube::api::{ListParams, WatchParams};
use kube::core::{Request, Status};
use kube::{Api, Client, Error, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::limits::ObjectLimits;
use self::limits::{HeadMetadata, MAX_OBJECT_BYTES, ObjectHead, Usage};
use self::response::Response;
use self::split::{LineSplitter, ListSplitter, Piece};
use crate::cache::{Cache, SkippedObject};
use crate::client::{ApiError, ClientFactory, READ_TIMEOUT};

/// Objects per page of a list: of the first one, and at most.
const PAGE_SIZE: u32 = 100;
const MAX_PAGE_SIZE: u32 = 500;
/// Bytes of a page from which the next one is half as long, and up to which it is twice as long.
const LARGE_PAGE: usize = 8 << 20;
const SMALL_PAGE: usize = 2 << 20;
/// Time for a watch to begin.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for one page, which may have 150 MB before pages shrink.
const PAGE_TIMEOUT: Duration = Duration::from_mins(2);
/// Duration of a watch. The server sends bookmarks about every minute if nothing happens.
const WATCH_TIMEOUT_SECONDS: u32 = 240;
/// First and longest pause after an error.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// Consecutive watch errors before the objects are listed again.
const MAX_WATCH_ERRORS: u32 = 3;
/// Bytes of a watch event around its object.
const EVENT_OVERHEAD: usize = 1 << 10;

/// Lists and watches objects of type `K`, and keeps a `T` of each in a cache. `K` should have only the fields that are read: others are
/// skipped while parsing.
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
    /// Sizes beyond which objects are skipped.
    pub limits: ObjectLimits,
    /// Reduces an object to what is kept of it.
    pub transform: Box<dyn Fn(K) -> T + Send + Sync>,
    /// The store.
    pub cache: Cache<T>,
}

/// The objects of an [`Api`].
struct Collection {
    client: Client,
    url: String,
}

/// State that is kept between lists.
#[derive(Debug)]
struct ListState {
    page_size: u32,
    usage: Usage,
}

/// A list without its items.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListEnvelope {
    metadata: ListMetadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
struct EventLine<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Reason for the end of a list or watch.
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

impl WatchEnd {
    /// Returns the end that an error status means; `code` is that of the response.
    fn from_status(status: Status, code: Option<u16>) -> Self {
        match code.unwrap_or(status.code) {
            410 => Self::Expired,
            code => Self::Failed(ApiError { status: Some(code), reason: status.message }),
        }
    }
}

impl From<Error> for WatchEnd {
    fn from(error: Error) -> Self {
        Self::Failed(error.into())
    }
}

impl<K, T> Reflector<K, T>
where
    K: Resource + DeserializeOwned + Send + 'static,
    T: PartialEq + Send + Sync + 'static,
{
    /// Keeps the cache current until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.run_forever()).await;
    }

    async fn run_forever(&self) {
        let kind = self.kind;
        let mut pause = BACKOFF.0;
        let mut state = ListState { page_size: PAGE_SIZE, usage: Usage::default() };
        loop {
            match self.list_and_watch(&mut pause, &mut state).await {
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
    async fn list_and_watch(&self, pause: &mut Duration, state: &mut ListState) -> WatchEnd {
        let kind = self.kind;
        let client = match (self.client_factory)() {
            Ok(client) => client,
            Err(reason) => return WatchEnd::Failed(ApiError::no_response(reason)),
        };
        let url = (self.api)(client.clone()).resource_url().to_owned();
        let collection = Collection { client, url };
        let mut version = match self.list(&collection, state).await {
            Ok(version) => version,
            Err(end) => return end,
        };
        info!(kind, count = self.cache.all().len(), resource_version = version, "cache synced");
        *pause = BACKOFF.0;
        let mut errors = 0;
        loop {
            let before = version.clone();
            match self.watch(&collection, &mut version, &mut state.usage).await {
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
    async fn list(&self, collection: &Collection, state: &mut ListState) -> Result<String, WatchEnd> {
        let (mut all, mut skipped) = (Vec::new(), Vec::new());
        state.usage = Usage::default();
        let (fields, labels) = (&self.field_selector, &self.label_selector);
        let mut params = ListParams::default().fields(fields).labels(labels);
        loop {
            params.limit = Some(state.page_size);
            let page = self.list_page(collection, &params, &mut state.usage, |uid, object| match object {
                Ok(object) => all.push((uid, object)),
                Err(object) => skipped.push((uid, object)),
            });
            let Ok(page) = timeout(PAGE_TIMEOUT, page).await else {
                state.page_size = (state.page_size / 2).max(1);
                let reason = format!("list of {} timed out", self.kind);
                return Err(WatchEnd::Failed(ApiError::no_response(reason)));
            };
            let (metadata, bytes) = page?;
            self.cache.record_contact();
            if bytes > LARGE_PAGE {
                state.page_size = (state.page_size / 2).max(1);
            } else if bytes < SMALL_PAGE {
                state.page_size = (state.page_size * 2).min(MAX_PAGE_SIZE);
            }
            let Some(token) = metadata.continue_token.filter(|token| !token.is_empty()) else {
                self.cache.replace_with_skipped(all, skipped);
                return Ok(metadata.resource_version);
            };
            params = params.continue_token(&token);
        }
    }

    /// Lists one page, and calls `emit` for each object. Returns the metadata of the list, and the length of the page.
    async fn list_page(
        &self,
        collection: &Collection,
        params: &ListParams,
        usage: &mut Usage,
        mut emit: impl FnMut(String, Result<T, SkippedObject>),
    ) -> Result<(ListMetadata, usize), WatchEnd> {
        let request = Request::new(&collection.url).list(params).map_err(Error::BuildRequest)?;
        let mut response = match Response::open(collection.client.clone(), request).await {
            Err(WatchEnd::Failed(ApiError { status: Some(404), .. })) => return Err(WatchEnd::KindNotServed),
            opened => opened?,
        };
        let (mut splitter, mut bytes) = (ListSplitter::new(MAX_OBJECT_BYTES), 0);
        let not_a_list = || WatchEnd::Failed(ApiError::no_response(format!("response is not a list of {}", self.kind)));
        while let Some(part) = response.next().await? {
            bytes += part.len();
            let parsed = splitter.push(&part, |item| {
                if let Some((head, object)) = self.parse(item, usage) {
                    emit(head.uid, object);
                } else {
                    warn!(kind = self.kind, "skipped an object of a list that has no readable metadata");
                }
            });
            parsed.map_err(|_| not_a_list())?;
        }
        let envelope: ListEnvelope = serde_json::from_slice(&splitter.into_envelope()).map_err(|_| not_a_list())?;
        Ok((envelope.metadata, bytes))
    }

    /// Parses an object and reduces it to what is kept, or says why not; `None` if it cannot even be named.
    fn parse(&self, item: Piece, usage: &mut Usage) -> Option<(HeadMetadata, Result<T, SkippedObject>)> {
        let Piece::Text(text) = item else { return None };
        let head = serde_json::from_slice::<ObjectHead>(&text).ok()?.metadata;
        let bytes = text.len();
        let object = usage
            .put(&head, bytes, self.limits)
            .and_then(|()| serde_json::from_slice::<K>(&text).map_err(|error| format!("cannot be parsed: {error}")));
        let object = object.map(&self.transform).map_err(|reason| {
            let skipped = SkippedObject { name: head.full_name(), reason };
            if self.cache.is_newly_skipped(&head.uid, &skipped) {
                warn!(kind = self.kind, object = skipped.name, reason = skipped.reason, bytes, "skipped object");
            }
            skipped
        });
        Some((head, object))
    }

    async fn watch(&self, collection: &Collection, version: &mut String, usage: &mut Usage) -> WatchEnd {
        let (fields, labels) = (&self.field_selector, &self.label_selector);
        let params = WatchParams::default().fields(fields).labels(labels).timeout(WATCH_TIMEOUT_SECONDS);
        let request = match Request::new(&collection.url).watch(&params, version) {
            Ok(request) => request,
            Err(error) => return Error::BuildRequest(error).into(),
        };
        let mut response = match timeout(OPEN_TIMEOUT, Response::open(collection.client.clone(), request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(end)) => return end,
            Err(_) => return WatchEnd::Failed(ApiError::no_response("watch request timed out")),
        };
        self.cache.record_contact();
        let mut lines = LineSplitter::new(MAX_OBJECT_BYTES + EVENT_OVERHEAD);
        loop {
            let part = match timeout(READ_TIMEOUT, response.next()).await {
                Ok(Ok(Some(part))) => part,
                // The server ended the watch, or the connection is lost.
                Ok(Ok(None) | Err(_)) => return WatchEnd::Interrupted,
                Err(_) => {
                    let reason = format!("watch timed out: no event for {} s", READ_TIMEOUT.as_secs());
                    return WatchEnd::Failed(ApiError::no_response(reason));
                }
            };
            for line in lines.push(&part) {
                if let Err(end) = self.apply_event(line, version, usage) {
                    return end;
                }
                self.cache.record_contact();
            }
        }
    }

    fn apply_event(&self, line: Piece, version: &mut String, usage: &mut Usage) -> Result<(), WatchEnd> {
        let Piece::Text(line) = line else {
            warn!(kind = self.kind, "skipped a watch event that is longer than any object");
            return Ok(());
        };
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let invalid = |error| WatchEnd::Failed(ApiError::no_response(format!("cannot parse a watch event: {error}")));
        let event: EventLine = serde_json::from_slice(&line).map_err(invalid)?;
        let object = event.object.get();
        if event.kind == "ERROR" {
            return Err(WatchEnd::from_status(serde_json::from_str(object).map_err(invalid)?, None));
        }
        let head = serde_json::from_str::<ObjectHead>(object).map_err(invalid)?.metadata;
        version.clone_from(&head.resource_version);
        match event.kind {
            "ADDED" | "MODIFIED" => match self.parse(Piece::Text(object.as_bytes().to_vec()), usage) {
                Some((head, Ok(object))) => self.cache.put(head.uid, object),
                Some((head, Err(skipped))) => self.cache.skip(head.uid, skipped),
                None => {}
            },
            "DELETED" => {
                usage.remove(&head.uid);
                self.cache.remove(&head.uid);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
