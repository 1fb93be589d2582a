//! Requests and answers.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::auth::{Access, User};
use super::resources::Resource;
use super::store::Refusal;
use super::target::Target;
use super::trouble::{self, Asked, Trouble};
use super::watch::{list_of, watch_stream};
use super::write::{self, Done, Wish};
use super::{Shared, discovery, proxy};

/// What the real one takes.
const BODY: usize = 3 << 20;

/// So many requests are remembered.
const ASKED: usize = 200_000;

pub(super) fn app(shared: Arc<Shared>) -> Router {
    Router::new().fallback(serve).layer(DefaultBodyLimit::max(BODY)).with_state(shared)
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
    let (trouble, user) = {
        let mut state = shared.state();
        if state.asked.len() == ASKED {
            state.asked.drain(..ASKED / 2);
        }
        state.asked.push(format!("{method} {uri}"));
        let resource = target.as_ref().map_or("", |target| &target.resource);
        let user = state.auth.identify(&headers);
        let name = user.as_ref().map_or("", |user| &user.name);
        let asked = Asked { method: method.as_str(), watch, list, resource, user: name };
        (trouble::next(&mut state.troubles, asked), user)
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
    if matches!(uri.path(), "/readyz" | "/livez" | "/healthz") {
        return "ok".into_response();
    }
    let user = match user {
        Ok(user) => user,
        Err(refusal) => return refuse(&refusal),
    };
    let found = discovery::answer(&shared.state().store, uri.path());
    if let Some(found) = found {
        return answer(StatusCode::OK, &found);
    }
    let unknown = || refuse(&Refusal::new(404, "NotFound", "the server could not find the requested resource"));
    let Some(target) = target else { return unknown() };
    if let Err(refusal) = permitted(&shared, &user, &method, watch, &target, &query) {
        return refuse(&refusal);
    }
    if shared.cluster && Resource::find(&shared.state().store, &target.api_version, &target.resource).is_none() {
        return unknown();
    }
    if target.subresource == "proxy" {
        return proxy::forward(&shared, &method, &target, &uri, &headers, body)
            .await
            .unwrap_or_else(|refusal| refuse(&refusal));
    }
    if list && watch {
        return watch_stream(shared, target, &query);
    }
    if list {
        return answer(StatusCode::OK, &list_of(&shared, &target, &query));
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let wish = Wish {
        method: &method,
        target: &target,
        query: &query,
        content: text(header::CONTENT_TYPE),
        agent: text(header::USER_AGENT),
        user: &user,
        body: &body,
    };
    match write::carry_out(&shared, &wish).await {
        Ok(Done { code, object, warnings }) => {
            let mut response = answer(code, &object);
            for warning in warnings {
                if let Ok(value) = HeaderValue::from_str(&warning_header(&warning)) {
                    response.headers_mut().append(header::WARNING, value);
                }
            }
            response
        }
        Err(refusal) => refuse(&refusal),
    }
}

/// Whether the user may do what the request wants; access reviews of oneself are everybody's.
fn permitted(
    shared: &Shared,
    user: &User,
    method: &Method,
    watch: bool,
    target: &Target,
    query: &HashMap<String, String>,
) -> Result<(), Refusal> {
    let fields = query.get("fieldSelector").map_or("", String::as_str);
    let named = fields.split(',').find_map(|term| term.strip_prefix("metadata.name="));
    let access = Access::of(user.clone(), method, watch, target, named.map(|name| name.trim_start_matches('=')));
    let state = shared.state();
    if target.resource == "selfsubjectaccessreviews" || state.auth.allows(&state.store, &access) {
        return Ok(());
    }
    Err(access.refusal())
}

/// RFC 7234, 5.5: code, agent, text.
fn warning_header(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("299 - \"{}\"", line.replace('\\', "\\\\").replace('"', "\\\""))
}

pub(super) fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn answer(code: StatusCode, value: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

pub(super) fn status(refusal: &Refusal) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": refusal.code, "reason": refusal.reason, "message": refusal.message, "details": refusal.details,
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
