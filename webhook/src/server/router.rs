//! Routes, and the errors of HTTP itself.
//!
//! | status | when |
//! |---|---|
//! | 200 | an AdmissionReview was answered, allowed or denied |
//! | 400 | the body is empty, not JSON (with line and column), or not an AdmissionReview (with the path) |
//! | 405, 404 | another method, another path |
//! | 408 | the body did not arrive in time |
//! | 413 | the body exceeds 6 MiB (Istio answers 400; RFC 9110 15.5.14 has a status for it) |
//! | 415 | the `Content-Type` is not `application/json`; parameters such as `charset` are allowed |
//! | 429 | so many reviews that the answer would come too late ([`super::concurrency`]), or no room for a body ([`super::bodies`]) |
//! | 500 | a bug of the webhook |
//! | 503 | no injector configuration yet |
//!
//! Every response of `/inject` but 404 and 405 has an AdmissionReview as body, so that clients find the message at
//! `response.status.message`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, SizeHint};
use tracing::{info, warn};
use weir_injector::admission::AdmissionResult;
use weir_injector::url::parse_inject_path;
use weir_runtime::CancellationToken;
use weir_runtime::listen::{ArrivalTime, CloseConnection, PeerAddr};

use super::bodies::{BodyLimit, HeldBody, NoRoom};
use super::concurrency::{self, ConcurrencyLimit, RequestBudget};
use super::json_size::JsonSize;
use super::log_limit::LogLimiter;
use super::review::{self, InjectFn, ReviewOutcome, ReviewResult};
use crate::health::ServerHealth;
use crate::metrics::{Metrics, ReviewFailure};
use crate::settings_builder::CurrentSettings;

/// Largest body, as Istio's. The API server's own limit for a pod is 1.5 MiB (etcd).
pub const BODY_LIMIT: usize = 6 << 20;
/// A client that sends more gets its response only when it has finished sending; at most this much is discarded for that.
const DISCARD_LIMIT: usize = 3 * BODY_LIMIT;
/// Time for a body, and bytes per second that prolong it, up to the budget of its request.
const BODY_TIME: Duration = Duration::from_secs(3);
const MIN_BODY_RATE: usize = 1 << 20;

/// State that handlers share.
#[derive(Debug)]
pub struct AppState {
    /// Settings in use.
    pub settings: CurrentSettings,
    /// Metrics of the server.
    pub metrics: Arc<Metrics>,
    /// Conditions behind the probes.
    pub health: Arc<ServerHealth>,
    /// Limit of concurrent reviews.
    pub concurrency: ConcurrencyLimit,
    /// Limit of the memory that bodies take.
    pub bodies: Arc<BodyLimit>,
    /// Limit of the log.
    pub log_limiter: LogLimiter,
    /// Injects pods.
    pub inject: InjectFn,
}

/// Returns the routes of the TLS port.
pub fn https(app: Arc<AppState>) -> Router {
    Router::new()
        .route("/inject", post(inject))
        .route("/inject/", post(inject))
        .route("/inject/{*params}", post(inject_with_params))
        .merge(probes())
        .with_state(app)
}

/// Returns the routes of the plain port.
pub fn http(app: Arc<AppState>) -> Router {
    Router::new().route("/metrics", get(render_metrics)).merge(probes()).with_state(app)
}

fn probes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(healthz))
        .route("/readyz", get(readyz))
        // Istio's name.
        .route("/ready", get(readyz))
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(app): State<Arc<AppState>>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    app.health.readiness(SystemTime::now()).respond(&headers, query.as_deref())
}

async fn render_metrics(State(app): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    weir_runtime::metrics::respond(&headers, app.metrics.render())
}

async fn inject(State(app): State<Arc<AppState>>, request: Request) -> Response {
    handle(&app, request, BTreeMap::new()).await
}

async fn inject_with_params(
    State(app): State<Arc<AppState>>,
    Path(params): Path<String>,
    request: Request,
) -> Response {
    let (env, ignored) = parse_inject_path(&params);
    // The author of the pod cannot change the URL, so this is for the administrator.
    if !ignored.is_empty() {
        warn!(path = params.as_str(), ?ignored, "ignored unknown parameters in the webhook URL");
    }
    handle(&app, request, env).await
}

async fn handle(app: &AppState, request: Request, url_env: BTreeMap<String, String>) -> Response {
    app.metrics.record_request();
    let in_flight = app.metrics.track_in_flight();
    let arrived = request.extensions().get().map_or_else(Instant::now, |ArrivalTime(at)| *at);
    let peer = request.extensions().get().map_or(IpAddr::from(Ipv4Addr::LOCALHOST), |PeerAddr(peer)| peer.ip());
    let close = request.extensions().get().map_or_else(CancellationToken::new, |CloseConnection(close)| close.clone());
    let budget = app.concurrency.budget(arrived, request.uri().query());
    let held = app.bodies.begin(peer.to_canonical());
    let reviewed = review_request(app, &held, request, url_env, budget).await;
    let Reviewed { result, json, duration } = reviewed.unwrap_or_else(Reviewed::rejected);
    count_review(&app.metrics, &result);
    if app.log_limiter.allow(matches!(result.outcome, ReviewOutcome::Failed(_))) {
        log_review(&result, duration);
    } else {
        app.metrics.record_log_suppressed();
    }
    held.send(json.len(), close);
    drop(in_flight);
    let status = StatusCode::from_u16(result.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = Body::new(ResponseBody { json: Full::from(json), _held: held });
    let mut response = (status, [(CONTENT_TYPE, "application/json")], body).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(concurrency::RETRY_AFTER));
    }
    response
}

/// A response body, counted in [`BodyLimit`] until it is sent.
struct ResponseBody {
    json: Full<Bytes>,
    _held: HeldBody,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.json).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.json.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.json.size_hint()
    }
}

/// A review that was decided, or rejected before.
struct Reviewed {
    result: ReviewResult,
    /// The response as text.
    json: Vec<u8>,
    /// Of the decision.
    duration: Duration,
}

impl Reviewed {
    fn rejected(result: Box<ReviewResult>) -> Self {
        Self { json: result.response.to_json(), result: *result, duration: Duration::ZERO }
    }
}

/// Reads the review, waits for its turn and has it decided on another thread.
async fn review_request(
    app: &AppState,
    held: &HeldBody,
    request: Request,
    url_env: BTreeMap<String, String>,
    budget: RequestBudget,
) -> Result<Reviewed, Box<ReviewResult>> {
    let (parts, body) = request.into_parts();
    let body = read_body(held, budget, &parts.headers, body).await?;
    drop(parts);
    held.complete();
    let turn = app.concurrency.acquire(budget, body.len(), JsonSize::scan(&body).memory()).await;
    app.metrics.observe_wait(budget.elapsed());
    let turn = turn.filter(|_| !budget.is_exhausted()).ok_or_else(|| overloaded("too many reviews in flight"))?;
    let Some(settings) = app.settings.load_full() else {
        let message = "no injector configuration yet; see /readyz".to_owned();
        return Err(reject(503, ReviewFailure::NotReady, message));
    };
    let inject = app.inject;
    let decided = tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        let result = review::handle(&body, url_env, &settings, inject);
        let json = result.response.to_json();
        // The turn ends here, even if the client is gone and nobody waits for the result.
        drop((body, turn));
        Reviewed { result, json, duration: start.elapsed() }
    });
    let internal = |_| reject(500, ReviewFailure::Internal, "internal error; see the webhook's log".to_owned());
    let reviewed = decided.await.map_err(internal)?;
    app.metrics.observe_duration(reviewed.duration);
    Ok(reviewed)
}

fn overloaded(what: &str) -> Box<ReviewResult> {
    reject(429, ReviewFailure::Overloaded, format!("{what}; retry later"))
}

fn reject(status: u16, failure: ReviewFailure, message: String) -> Box<ReviewResult> {
    Box::new(review::error_result(status, failure, message))
}

fn count_review(metrics: &Metrics, result: &ReviewResult) {
    match &result.outcome {
        ReviewOutcome::Injected { templates, patch_bytes } => metrics.record_injected(templates, *patch_bytes),
        ReviewOutcome::Skipped(reason) => metrics.record_skipped(*reason),
        ReviewOutcome::NotAPodCreate => metrics.record_not_a_pod(),
        ReviewOutcome::Failed(failure) => metrics.record_failed(*failure),
    }
    for assertion in &result.breached {
        metrics.record_breach(&assertion.name, assertion.action);
    }
    if result.subject.dry_run {
        metrics.record_dry_run();
    }
}

/// Logs a review. Names are fields: formatters quote them, so that a line break in a name cannot forge a line.
fn log_review(result: &ReviewResult, duration: Duration) {
    let ReviewResult { response, outcome, subject, .. } = result;
    let (namespace, pod, uid) = (subject.namespace.as_str(), subject.pod.as_str(), response.uid.as_str());
    let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let (decision, reason, dry_run) = (outcome.name(), outcome.reason(), subject.dry_run);
    match (outcome, &response.result) {
        (ReviewOutcome::Injected { templates, patch_bytes }, _) => {
            let (templates, warnings) = (templates.as_str(), response.warnings.len());
            info!(namespace, pod, uid, decision, templates, patch_bytes, warnings, dry_run, duration_us, "review");
        }
        (ReviewOutcome::Skipped(_) | ReviewOutcome::NotAPodCreate, _) => {
            info!(namespace, pod, uid, decision, reason, dry_run, duration_us, "review");
        }
        (ReviewOutcome::Failed(_), AdmissionResult::Denied { message, .. }) => {
            let (status, error) = (result.status, message.as_str());
            warn!(namespace, pod, uid, decision, reason, status, error, dry_run, duration_us, "review");
        }
        (ReviewOutcome::Failed(_), _) => warn!(namespace, pod, uid, decision, reason, duration_us, "review"),
    }
}

async fn read_body(
    held: &HeldBody,
    budget: RequestBudget,
    headers: &HeaderMap,
    body: Body,
) -> Result<Vec<u8>, Box<ReviewResult>> {
    let content_type = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    if !content_type.as_deref().is_some_and(is_json) {
        let found = content_type.map_or_else(|| "none".to_owned(), |found| format!("{found:?}"));
        let message = format!("Content-Type is {found}; application/json is expected");
        return Err(reject(415, ReviewFailure::MediaType, message));
    }
    let read = tokio::select! {
        read = collect_body(held, budget, headers, body) => read,
        () = held.evicted() => Err(BodyError::NoRoom),
    };
    read.map_err(|error| match error {
        BodyError::TooLarge => {
            let message = format!("the body is larger than {BODY_LIMIT} bytes");
            reject(413, ReviewFailure::TooLarge, message)
        }
        BodyError::Interrupted(reason) => {
            reject(400, ReviewFailure::BadRequest, format!("cannot read the request body: {reason}"))
        }
        BodyError::Late(time) => {
            reject(408, ReviewFailure::Timeout, format!("the body did not arrive within {time:?}"))
        }
        BodyError::NoRoom => overloaded("too many bytes of reviews in flight (--max-review-bytes-in-flight)"),
    })
}

fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

enum BodyError {
    TooLarge,
    Interrupted(String),
    Late(Duration),
    NoRoom,
}

impl From<NoRoom> for BodyError {
    fn from(NoRoom: NoRoom) -> Self {
        Self::NoRoom
    }
}

async fn collect_body(
    held: &HeldBody,
    budget: RequestBudget,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<Vec<u8>, BodyError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > DISCARD_LIMIT) {
        return Err(BodyError::TooLarge);
    }
    let mut bytes = Vec::new();
    let mut received = 0;
    loop {
        let allowed = body_time(received).min(budget.total());
        let left = allowed.saturating_sub(budget.elapsed());
        let frame = match tokio::time::timeout(left, body.frame()).await {
            Ok(Some(frame)) => frame.map_err(|error| BodyError::Interrupted(error.to_string()))?,
            Ok(None) => break,
            Err(_) => return Err(BodyError::Late(allowed)),
        };
        let Some(data) = frame.data_ref() else { continue };
        received += data.len();
        if received > DISCARD_LIMIT {
            return Err(BodyError::TooLarge);
        }
        if received <= BODY_LIMIT {
            reserve(held, &mut bytes, data.len())?;
            bytes.extend_from_slice(data);
        } else if !bytes.is_empty() {
            bytes = Vec::new();
            held.resize(0)?;
        }
    }
    if received > BODY_LIMIT { Err(BodyError::TooLarge) } else { Ok(bytes) }
}

/// Makes room for `more` bytes. The buffer grows by doubling, and what it takes counts, not what is in it.
fn reserve(held: &HeldBody, bytes: &mut Vec<u8>, more: usize) -> Result<(), NoRoom> {
    let needed = bytes.len() + more;
    if needed > bytes.capacity() {
        let capacity = needed.next_power_of_two().min(BODY_LIMIT).max(needed);
        held.resize(capacity)?;
        bytes.reserve_exact(capacity - bytes.len());
    }
    Ok(())
}

/// Returns the time for a body of which so many bytes have arrived.
fn body_time(received: usize) -> Duration {
    BODY_TIME + Duration::from_secs((received / MIN_BODY_RATE) as u64)
}
