//! HTTP requests and responses.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::auth::{RequestAttributes, User};
use super::fault::{self, RequestInfo, ServerFault};
use super::port_forward::Upgrade;
use super::resources::Resource;
use super::store::StatusError;
use super::target::Target;
use super::watch::{list_of, watch_stream};
use super::write::{self, WriteRequest, WriteResponse};
use super::{Shared, discovery, port_forward, proxy};

/// Limit of a request body, as that of kube-apiserver.
const MAX_BODY: usize = 3 << 20;

/// Requests that are kept for [`ApiServer::requests`](super::ApiServer::requests).
const REQUESTS_KEPT: usize = 200_000;

pub(super) fn app(shared: Arc<Shared>) -> Router {
    Router::new().fallback(serve).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(shared)
}

async fn serve(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    upgrade: Upgrade,
    body: Bytes,
) -> Response {
    let query = parse_query(uri.query().unwrap_or_default());
    let target = Target::parse(uri.path());
    let watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let list = method == Method::GET && target.as_ref().is_some_and(|target| target.name.is_empty());
    let (fault, user) = {
        let mut state = shared.state();
        if state.requests.len() == REQUESTS_KEPT {
            state.requests.drain(..REQUESTS_KEPT / 2);
        }
        state.requests.push(format!("{method} {uri}"));
        let resource = target.as_ref().map_or("", |target| &target.resource);
        let user = state.auth.authenticate(&headers);
        let name = user.as_ref().map_or("", |user| &user.name);
        let request = RequestInfo { method: method.as_str(), watch, list, resource, user: name };
        (fault::take_matching(&mut state.faults, request), user)
    };
    match fault {
        Some(ServerFault::Slow(time)) => tokio::time::sleep(time).await,
        Some(ServerFault::Hang) => std::future::pending().await,
        Some(ServerFault::Status(code)) => {
            return error_response(&StatusError::new(code, reason_of(code), "injected by a test"));
        }
        Some(ServerFault::ErrorEvent(code)) => {
            let status = status(&StatusError::new(code, reason_of(code), "injected by a test"));
            return line(&json!({ "type": "ERROR", "object": status })).into_response();
        }
        None => {}
    }
    if matches!(uri.path(), "/readyz" | "/livez" | "/healthz") {
        return "ok".into_response();
    }
    let user = match user {
        Ok(user) => user,
        Err(error) => return error_response(&error),
    };
    let found = discovery::respond(&shared.state().store, uri.path());
    if let Some(found) = found {
        return json_response(StatusCode::OK, &found);
    }
    let unknown =
        || error_response(&StatusError::new(404, "NotFound", "the server could not find the requested resource"));
    let Some(target) = target else { return unknown() };
    if let Err(error) = authorize(&shared, &user, &method, watch, &target, &query) {
        return error_response(&error);
    }
    if shared.cluster && Resource::find(&shared.state().store, &target.api_version, &target.resource).is_none() {
        return unknown();
    }
    if target.subresource == "proxy" {
        return proxy::forward(&shared, &method, &target, &uri, &headers, body)
            .await
            .unwrap_or_else(|error| error_response(&error));
    }
    if target.subresource == "log" {
        let key = (target.namespace, target.name);
        return shared.state().pod_logs.get(&key).cloned().map_or_else(unknown, IntoResponse::into_response);
    }
    if target.subresource == "portforward" {
        let ports = query.get("ports").map_or("", String::as_str);
        return port_forward::forward(&shared, &target, ports, &headers, upgrade)
            .unwrap_or_else(|error| error_response(&error));
    }
    if list && watch {
        return watch_stream(shared, target, &query);
    }
    if list {
        return json_response(StatusCode::OK, &list_of(&shared, &target, &query));
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let request = WriteRequest {
        method: &method,
        target: &target,
        query: &query,
        content_type: text(header::CONTENT_TYPE),
        user_agent: text(header::USER_AGENT),
        user: &user,
        body: &body,
    };
    match write::handle(&shared, &request).await {
        Ok(WriteResponse { code, object, warnings }) => {
            let mut response = json_response(code, &object);
            for warning in warnings {
                if let Ok(value) = HeaderValue::from_str(&warning_header(&warning)) {
                    response.headers_mut().append(header::WARNING, value);
                }
            }
            response
        }
        Err(error) => error_response(&error),
    }
}

/// Checks that the user may do what the request asks for. Everybody may create a SelfSubjectAccessReview.
fn authorize(
    shared: &Shared,
    user: &User,
    method: &Method,
    watch: bool,
    target: &Target,
    query: &HashMap<String, String>,
) -> Result<(), StatusError> {
    let fields = query.get("fieldSelector").map_or("", String::as_str);
    let named = fields.split(',').find_map(|term| term.strip_prefix("metadata.name="));
    let access =
        RequestAttributes::of(user.clone(), method, watch, target, named.map(|name| name.trim_start_matches('=')));
    let state = shared.state();
    if target.resource == "selfsubjectaccessreviews" || state.auth.is_allowed(&state.store, &access) {
        return Ok(());
    }
    Err(access.forbidden())
}

/// Formats a `Warning` header: code, agent, text (RFC 7234, 5.5).
fn warning_header(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("299 - \"{}\"", line.replace('\\', "\\\\").replace('"', "\\\""))
}

pub(super) fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn json_response(code: StatusCode, value: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

pub(super) fn status(error: &StatusError) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": error.code, "reason": error.reason, "message": error.message, "details": error.details,
    })
}

fn error_response(error: &StatusError) -> Response {
    json_response(StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &status(error))
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

/// Parses a query string; `%XX` and `+` are decoded.
fn parse_query(text: &str) -> HashMap<String, String> {
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
