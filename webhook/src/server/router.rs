//! Routes, and what HTTP itself can get wrong.
//!
//! | status | when |
//! |---|---|
//! | 200 | an AdmissionReview was answered, allowed or denied |
//! | 400 | empty body, no JSON (with line and column), no AdmissionReview (with the path) |
//! | 405, 404 | another method, another path |
//! | 408 | the body did not come in time |
//! | 413 | a body beyond 6 MiB (Istio answers 400; RFC 9110 15.5.14 has a status for it) |
//! | 415 | a `Content-Type` other than `application/json`; parameters such as `charset` are fine |
//! | 429 | so many reviews at once that the answer would come too late, see [`super::gate`] |
//! | 500 | a defect of ours |
//! | 503 | there is no configuration yet |
//!
//! Every answer of `/inject` but 404 and 405 has an AdmissionReview as body, so that whoever reads it finds the text at `response.status.message`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt as _;
use tracing::{info, warn};

use super::gate::{self, Arrived, Gate, Time};
use super::health::Health;
use super::lines::Lines;
use super::live::Current;
use super::metrics::{self, Failure, Metrics};
use super::review::{self, Answer, Decide, Decision};
use weir_injector::inject::url::parse_inject_path;

/// Largest body, as Istio's. The API server's own limit for a pod is 1.5 MiB (etcd).
pub const BODY_LIMIT: usize = 6 << 20;
/// A client that sends more gets its answer only when it has stopped sending; this much more is thrown away for that.
const DISCARD_LIMIT: usize = 3 * BODY_LIMIT;

/// What handlers share.
#[derive(Debug)]
pub struct App {
    /// The settings of the moment.
    pub settings: Current,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// State behind the probes.
    pub health: Arc<Health>,
    /// How many reviews are worked on at once, and for how long.
    pub gate: Gate,
    /// Bound of the log.
    pub lines: Lines,
    /// Who decides.
    pub decide: Decide,
}

/// Routes of the TLS port.
pub fn https(app: Arc<App>) -> Router {
    Router::new()
        .route("/inject", post(inject))
        .route("/inject/", post(inject))
        .route("/inject/{*params}", post(inject_with_params))
        .merge(probes())
        .with_state(app)
}

/// Routes of the plain port.
pub fn http(app: Arc<App>) -> Router {
    Router::new().route("/metrics", get(render_metrics)).merge(probes()).with_state(app)
}

fn probes() -> Router<Arc<App>> {
    Router::new()
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        // Istio's name.
        .route("/ready", get(ready))
}

async fn alive() -> &'static str {
    "ok\n"
}

async fn ready(State(app): State<Arc<App>>) -> (StatusCode, String) {
    let state = app.health.readiness(SystemTime::now());
    let status = if state.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, state.detail)
}

async fn render_metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], app.metrics.render())
}

async fn inject(State(app): State<Arc<App>>, request: Request) -> Response {
    handle(&app, request, BTreeMap::new()).await
}

async fn inject_with_params(State(app): State<Arc<App>>, Path(params): Path<String>, request: Request) -> Response {
    let (env, ignored) = parse_inject_path(&params);
    // The author of the pod can do nothing about the URL, so this is for the administrator.
    if !ignored.is_empty() {
        warn!(path = params.as_str(), ?ignored, "parts of the URL in the webhook configuration mean nothing");
    }
    handle(&app, request, env).await
}

async fn handle(app: &App, request: Request, url_env: BTreeMap<String, String>) -> Response {
    app.metrics.request();
    let _counted = app.metrics.in_flight();
    let arrived = request.extensions().get().map_or_else(Instant::now, |Arrived(at)| *at);
    let time = app.gate.time(arrived, request.uri().query());
    let (answer, took) = match work(app, request, url_env, time).await {
        Ok(done) => done,
        Err(refused) => (*refused, Duration::ZERO),
    };
    count(&app.metrics, &answer);
    if app.lines.admit(matches!(answer.decision, Decision::Failed(_))) {
        log(&answer, took);
    } else {
        app.metrics.line_left_out();
    }
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, [(CONTENT_TYPE, "application/json")], answer.reply.to_json()).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(gate::RETRY_AFTER));
    }
    response
}

/// Waits for a turn, reads the review and answers it; gives back how long the decision took.
async fn work(
    app: &App,
    request: Request,
    url_env: BTreeMap<String, String>,
    time: Time,
) -> Result<(Answer, Duration), Box<Answer>> {
    let late = || {
        let message = "more reviews are waiting than can be answered in time".to_owned();
        refuse(429, Failure::Overloaded, message)
    };
    let _turn = app.gate.enter(time).await.ok_or_else(late)?;
    let (parts, body) = request.into_parts();
    let body = receive(time, &parts.headers, body).await?;
    app.metrics.waited(time.waited());
    if time.is_too_late() {
        return Err(late());
    }
    let Some(settings) = app.settings.load_full() else {
        let message = "the injector has no configuration yet; its readiness says why".to_owned();
        return Err(refuse(503, Failure::NotReady, message));
    };
    let start = Instant::now();
    let answer = review::answer(&body, url_env, &settings, app.decide);
    let took = start.elapsed();
    app.metrics.took(took);
    Ok((answer, took))
}

fn refuse(status: u16, failure: Failure, message: String) -> Box<Answer> {
    Box::new(review::refusal(status, failure, message))
}

fn count(metrics: &Metrics, answer: &Answer) {
    match &answer.decision {
        Decision::Injected { templates, patch_bytes } => metrics.injected(templates, *patch_bytes),
        Decision::Skipped(reason) => metrics.skipped(*reason),
        Decision::NotAPod => metrics.not_a_pod(),
        Decision::Failed(failure) => metrics.failed(*failure),
    }
    if answer.subject.dry_run {
        metrics.dry_run();
    }
}

/// One line for a decision. Names are handed over as values: the formatters quote them, so that a name with a line break forges nothing.
fn log(answer: &Answer, took: Duration) {
    let Answer { reply, decision, subject, .. } = answer;
    let namespace = subject.namespace.as_str();
    let pod = subject.pod.as_str();
    let uid = reply.uid.as_str();
    let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let (name, reason, dry_run) = (decision.name(), decision.reason(), subject.dry_run);
    match (decision, &reply.verdict) {
        (Decision::Injected { templates, patch_bytes }, _) => {
            info!(
                namespace,
                pod,
                uid,
                decision = name,
                templates = templates.as_str(),
                patch_bytes,
                warnings = reply.warnings.len(),
                dry_run,
                duration_us,
                "review"
            );
        }
        (Decision::Skipped(_) | Decision::NotAPod, _) => {
            info!(namespace, pod, uid, decision = name, reason, dry_run, duration_us, "review");
        }
        (Decision::Failed(_), weir_injector::admission::Verdict::Denied { message, .. }) => {
            let (status, error) = (answer.status, message.as_str());
            warn!(namespace, pod, uid, decision = name, reason, status, error, dry_run, duration_us, "review");
        }
        (Decision::Failed(_), _) => warn!(namespace, pod, uid, decision = name, reason, duration_us, "review"),
    }
}

async fn receive(time: Time, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Box<Answer>> {
    let content_type = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    if !content_type.as_deref().is_some_and(is_json) {
        let got = content_type.map_or_else(|| "none".to_owned(), |found| format!("{found:?}"));
        let message = format!("Content-Type is {got}; application/json is expected");
        return Err(refuse(415, Failure::MediaType, message));
    }
    match tokio::time::timeout(time.left(), collect(headers, body)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(Unread::TooLarge)) => {
            let message = format!("the body is larger than {BODY_LIMIT} bytes");
            Err(refuse(413, Failure::TooLarge, message))
        }
        Ok(Err(Unread::Broken(reason))) => {
            Err(refuse(400, Failure::BadRequest, format!("the body broke off: {reason}")))
        }
        Err(_) => Err(refuse(408, Failure::Timeout, format!("the body did not arrive within {:?}", time.budget()))),
    }
}

fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

enum Unread {
    TooLarge,
    Broken(String),
}

async fn collect(headers: &HeaderMap, mut body: Body) -> Result<Vec<u8>, Unread> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > DISCARD_LIMIT) {
        return Err(Unread::TooLarge);
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(64 << 10));
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Unread::Broken(error.to_string()))?;
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        if seen > DISCARD_LIMIT {
            return Err(Unread::TooLarge);
        }
        if seen <= BODY_LIMIT {
            bytes.extend_from_slice(data);
        } else {
            bytes = Vec::new();
        }
    }
    if seen > BODY_LIMIT { Err(Unread::TooLarge) } else { Ok(bytes) }
}
