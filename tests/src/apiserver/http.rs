//! Requests and answers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Shared;
use super::store::{Refusal, merge, selected};
use super::target::Target;
use super::trouble::{self, Asked, Trouble};

/// How long a watch lasts that names no `timeoutSeconds`.
const WATCH: Duration = Duration::from_mins(5);

pub(super) fn app(shared: Arc<Shared>) -> Router {
    Router::new().fallback(serve).with_state(shared)
}

async fn serve(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let query = query(uri.query().unwrap_or_default());
    let target = Target::parse(uri.path());
    let watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let list = method == Method::GET && target.as_ref().is_some_and(|target| target.name.is_empty());
    let (trouble, permitted) = {
        let mut state = shared.state();
        state.asked.push(format!("{method} {uri}"));
        let asked = Asked { method: method.as_str(), watch, list };
        let trouble = trouble::next(&mut state.troubles, asked);
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let permitted = state.token.as_ref().is_none_or(|token| bearer == Some(&format!("Bearer {token}")));
        (trouble, permitted)
    };
    match trouble {
        Some(Trouble::Slow(time)) => tokio::time::sleep(time).await,
        Some(Trouble::Hang) => std::future::pending().await,
        Some(Trouble::Status(code)) => return refuse(&Refusal::new(code, reason_of(code), "as a test asked for")),
        Some(Trouble::ErrorEvent(code)) => {
            let status = status(&Refusal::new(code, reason_of(code), "as a test asked for"));
            return line(&json!({ "type": "ERROR", "object": status })).into_response();
        }
        None => {}
    }
    if !permitted {
        return refuse(&Refusal::new(401, "Unauthorized", "Unauthorized"));
    }
    if uri.path() == "/version" {
        return answer(StatusCode::OK, &json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0"}));
    }
    let Some(target) = target else {
        return refuse(&Refusal::new(404, "NotFound", "the server could not find the requested resource"));
    };
    if list && watch {
        return watch_stream(shared, target, &query);
    }
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match carry_out(&shared, &method, &target, &query, content, &body) {
        Ok((code, value)) => answer(code, &value),
        Err(refusal) => refuse(&refusal),
    }
}

fn carry_out(
    shared: &Shared,
    method: &Method,
    target: &Target,
    query: &HashMap<String, String>,
    content: &str,
    body: &[u8],
) -> Result<(StatusCode, Value), Refusal> {
    let Target { resource, namespace, name, .. } = target;
    let read = || -> Result<Value, Refusal> {
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(body).map_err(|error| Refusal::new(400, "BadRequest", error.to_string()))
    };
    if *method == Method::GET && name.is_empty() {
        return Ok((StatusCode::OK, list_of(shared, target, query)));
    }
    if *method == Method::POST {
        let created = read()?;
        return shared
            .change(|store| store.create(resource, namespace, created))
            .map(|made| (StatusCode::CREATED, made));
    }
    let patch = read()?;
    shared.change(|store| {
        let found = store.get(resource, namespace, name).cloned();
        let old = match found {
            Some(old) => old,
            None if content == "application/apply-patch+yaml" => {
                return store.create(resource, namespace, patch).map(|made| (StatusCode::CREATED, made));
            }
            None => return Err(Refusal::new(404, "NotFound", format!("{resource} \"{name}\" not found"))),
        };
        let done = match method.as_str() {
            "GET" => Ok(old),
            "DELETE" => store.delete(resource, &old, &patch),
            "PUT" => store.update(resource, &old, patch, target.subresource == "status"),
            "PATCH" => {
                let mut new = old.clone();
                if content == "application/json-patch+json" {
                    let invalid = |message: String| Refusal::new(422, "Invalid", message);
                    let patch: json_patch::Patch =
                        serde_json::from_value(patch).map_err(|error| invalid(error.to_string()))?;
                    json_patch::patch(&mut new, &patch).map_err(|error| invalid(error.to_string()))?;
                } else {
                    merge(&mut new, &patch);
                }
                store.update(resource, &old, new, target.subresource == "status")
            }
            other => Err(Refusal::new(405, "MethodNotAllowed", other)),
        };
        done.map(|object| (StatusCode::OK, object))
    })
}

fn list_of(shared: &Shared, target: &Target, query: &HashMap<String, String>) -> Value {
    let state = shared.state();
    let (fields, labels) = selectors(query);
    let number = |key: &str| query.get(key).and_then(|text| text.parse::<usize>().ok());
    let (start, limit) = (number("continue").unwrap_or(0), number("limit").filter(|limit| *limit > 0));
    let objects = state.store.list(&target.resource);
    let mut items: Vec<Value> = objects
        .filter(|object| selected(object, &target.namespace, &fields, &labels))
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
        "apiVersion": target.api_version, "kind": format!("{}List", target.kind()), "metadata": metadata, "items": items,
    })
}

fn selectors(query: &HashMap<String, String>) -> (String, String) {
    let text = |key: &str| query.get(key).cloned().unwrap_or_default();
    (text("fieldSelector"), text("labelSelector"))
}

/// Where a watch stands.
struct Watch {
    shared: Arc<Shared>,
    target: Target,
    fields: String,
    labels: String,
    seen: u64,
    newest: watch::Receiver<u64>,
    cut: watch::Receiver<u64>,
    until: tokio::time::Instant,
    over: bool,
    /// Lines that come before any change.
    first: String,
}

fn watch_stream(shared: Arc<Shared>, target: Target, query: &HashMap<String, String>) -> Response {
    let (fields, labels) = selectors(query);
    let seconds = query.get("timeoutSeconds").and_then(|text| text.parse().ok());
    let until = tokio::time::Instant::now() + seconds.map_or(WATCH, Duration::from_secs);
    let given = query.get("resourceVersion").and_then(|text| text.parse().ok()).filter(|version| *version != 0);
    let (newest, cut) = (shared.version.subscribe(), shared.cut.subscribe());
    let seen = given.unwrap_or_else(|| shared.state().store.version());
    let mut watch =
        Watch { shared, target, fields, labels, seen, newest, cut, until, over: false, first: String::new() };
    if given.is_none() {
        watch.first = watch.present();
    }
    let events = stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((Ok::<_, Infallible>(chunk), watch))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(events)).into_response()
}

impl Watch {
    /// The next lines; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            self.newest.borrow_and_update();
            let lines = std::mem::take(&mut self.first) + &self.changes();
            if !lines.is_empty() {
                return Some(lines.into());
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                _ = self.cut.changed() => return None,
                () = tokio::time::sleep_until(self.until) => {
                    self.over = true;
                    let metadata = json!({ "resourceVersion": self.seen.to_string() });
                    let object = json!({ "apiVersion": self.target.api_version, "kind": self.target.kind(), "metadata": metadata });
                    return Some(line(&json!({ "type": "BOOKMARK", "object": object })).into());
                }
            }
        }
        None
    }

    /// What there is, as a watch without a version begins.
    fn present(&self) -> String {
        let state = self.shared.state();
        let objects = state.store.list(&self.target.resource);
        let objects = objects.filter(|object| selected(object, &self.target.namespace, &self.fields, &self.labels));
        objects.map(|object| line(&json!({ "type": "ADDED", "object": object }))).collect()
    }

    fn changes(&mut self) -> String {
        let state = self.shared.state();
        let Some(changes) = state.store.since(self.seen) else {
            self.over = true;
            let gone = Refusal::new(410, "Expired", format!("too old resource version: {}", self.seen));
            return line(&json!({ "type": "ERROR", "object": status(&gone) }));
        };
        let mut lines = String::new();
        for change in changes {
            self.seen = change.version;
            if change.resource != self.target.resource {
                continue;
            }
            let meant = |object: &&Value| selected(object, &self.target.namespace, &self.fields, &self.labels);
            let event = match (change.before.as_ref().filter(meant), change.after.as_ref().filter(meant)) {
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

fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn answer(code: StatusCode, value: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn status(refusal: &Refusal) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": refusal.code, "reason": refusal.reason, "message": refusal.message,
    })
}

fn refuse(refusal: &Refusal) -> Response {
    answer(StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &status(refusal))
}

fn reason_of(code: u16) -> &'static str {
    match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    }
}

/// The pairs of a query; `%XX` and `+` are decoded.
fn query(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(first),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
