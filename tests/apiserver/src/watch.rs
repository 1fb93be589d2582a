//! Lists and watches.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Shared;
use super::http::{line, status};
use super::store::{StatusError, matches_selectors};
use super::target::Target;

/// Duration of a watch without `timeoutSeconds`.
const WATCH_TIMEOUT: Duration = Duration::from_mins(5);

pub(super) fn list_of(shared: &Shared, target: &Target, query: &HashMap<String, String>) -> Value {
    let state = shared.state();
    let (fields, labels) = selectors(query);
    let number = |key: &str| query.get(key).and_then(|text| text.parse::<usize>().ok());
    let (start, limit) = (number("continue").unwrap_or(0), number("limit").filter(|limit| *limit > 0));
    let objects = state.store.list(&target.resource);
    let mut items: Vec<Value> = objects
        .filter(|object| matches_selectors(object, &target.namespace, &fields, &labels))
        .skip(start)
        .take(limit.map_or(usize::MAX, |limit| limit + 1))
        .cloned()
        .collect();
    let mut metadata = json!({ "resourceVersion": state.store.version().to_string() });
    if let Some(limit) = limit.filter(|limit| items.len() > *limit) {
        items.truncate(limit);
        metadata["continue"] = (start + limit).to_string().into();
    }
    json!({
        "apiVersion": target.api_version, "kind": format!("{}List", target.kind(&state.store)), "metadata": metadata, "items": items,
    })
}

fn selectors(query: &HashMap<String, String>) -> (String, String) {
    let text = |key: &str| query.get(key).cloned().unwrap_or_default();
    (text("fieldSelector"), text("labelSelector"))
}

/// The state of a watch.
struct Watch {
    shared: Arc<Shared>,
    target: Target,
    fields: String,
    labels: String,
    seen: u64,
    newest: watch::Receiver<u64>,
    dropped: watch::Receiver<u64>,
    until: tokio::time::Instant,
    over: bool,
    /// Events of the objects that exist when a watch without a version starts.
    initial: String,
}

pub(super) fn watch_stream(shared: Arc<Shared>, target: Target, query: &HashMap<String, String>) -> Response {
    let (fields, labels) = selectors(query);
    let seconds = query.get("timeoutSeconds").and_then(|text| text.parse().ok());
    let until = tokio::time::Instant::now() + seconds.map_or(WATCH_TIMEOUT, Duration::from_secs);
    let given = query.get("resourceVersion").and_then(|text| text.parse().ok()).filter(|version| *version != 0);
    let (newest, dropped) = (shared.version.subscribe(), shared.dropped_watches.subscribe());
    let seen = given.unwrap_or_else(|| shared.state().store.version());
    let mut watch =
        Watch { shared, target, fields, labels, seen, newest, dropped, until, over: false, initial: String::new() };
    if given.is_none() {
        watch.initial = watch.initial_events();
    }
    let events = stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((Ok::<_, Infallible>(chunk), watch))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(events)).into_response()
}

impl Watch {
    /// Returns the next events, one per line; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            self.newest.borrow_and_update();
            let lines = std::mem::take(&mut self.initial) + &self.new_events();
            if !lines.is_empty() {
                return Some(lines.into());
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                _ = self.dropped.changed() => return None,
                () = tokio::time::sleep_until(self.until) => {
                    self.over = true;
                    let metadata = json!({ "resourceVersion": self.seen.to_string() });
                    let object = json!({ "apiVersion": self.target.api_version, "kind": self.target.kind(&self.shared.state().store), "metadata": metadata });
                    return Some(line(&json!({ "type": "BOOKMARK", "object": object })).into());
                }
            }
        }
        None
    }

    fn initial_events(&self) -> String {
        let state = self.shared.state();
        let objects = state.store.list(&self.target.resource);
        let objects =
            objects.filter(|object| matches_selectors(object, &self.target.namespace, &self.fields, &self.labels));
        objects.map(|object| line(&json!({ "type": "ADDED", "object": object }))).collect()
    }

    fn new_events(&mut self) -> String {
        let state = self.shared.state();
        let Some(changes) = state.store.since(self.seen) else {
            self.over = true;
            let gone = StatusError::new(410, "Expired", format!("too old resource version: {}", self.seen));
            return line(&json!({ "type": "ERROR", "object": status(&gone) }));
        };
        let mut lines = String::new();
        for change in changes {
            self.seen = change.version;
            if change.resource != self.target.resource {
                continue;
            }
            let matches =
                |object: &&Value| matches_selectors(object, &self.target.namespace, &self.fields, &self.labels);
            let event = match (change.before.as_ref().filter(matches), change.after.as_ref().filter(matches)) {
                (None, Some(after)) => json!({ "type": "ADDED", "object": after }),
                (Some(_), Some(after)) => json!({ "type": "MODIFIED", "object": after }),
                (Some(before), None) => json!({ "type": "DELETED", "object": before }),
                (None, None) => continue,
            };
            lines.push_str(&line(&event));
        }
        lines
    }
}
