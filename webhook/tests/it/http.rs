//! Every HTTP status of the router, without a socket. A stand-in for injection does what the pod's annotation says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use weir_injector::settings::Settings;
use weir_injector::{InjectError, InjectOutcome, InjectRequest, SkipReason};
use weir_webhook::certs;
use weir_webhook::health::ServerHealth;
use weir_webhook::metrics::Metrics;
use weir_webhook::server::bodies::BodyLimit;
use weir_webhook::server::concurrency::ConcurrencyLimit;
use weir_webhook::server::log_limit::LogLimiter;
use weir_webhook::server::router::{self, AppState, BODY_LIMIT};
use weir_webhook::tls::ServerCert;

fn obey(request: &InjectRequest, _: &Settings) -> Result<InjectOutcome, InjectError> {
    match request.pod["metadata"]["annotations"]["want"].as_str() {
        Some("deny") => Err(InjectError::Invalid(vec!["a: bad".to_owned(), "b: worse".to_owned()])),
        Some("off") => Ok(InjectOutcome::Skipped { reason: SkipReason::OptedOut, warnings: Vec::new() }),
        Some("host") => {
            Ok(InjectOutcome::Skipped { reason: SkipReason::HostNetwork, warnings: vec!["a label is odd".to_owned()] })
        }
        Some("panic") => panic!("asked for"),
        Some("slow") => {
            std::thread::sleep(Duration::from_millis(1500));
            Ok(InjectOutcome::Skipped { reason: SkipReason::OptedOut, warnings: Vec::new() })
        }
        _ => {
            let mut pod = request.pod.clone();
            pod["metadata"]["labels"] = json!({"seen": "yes"});
            let mut warnings: Vec<_> = request.url_env.iter().map(|(name, value)| format!("{name}={value}")).collect();
            warnings.extend(request.namespace.iter().map(|namespace| format!("namespace {namespace}")));
            Ok(InjectOutcome::Injected { pod, templates: vec!["sidecar".to_owned()], warnings })
        }
    }
}

fn app() -> Arc<AppState> {
    app_with(64, Some(Settings::from_values_and_mesh(None, None).unwrap()))
}

fn app_with(slots: usize, settings: Option<Settings>) -> Arc<AppState> {
    let generated = certs::generate(&["localhost".to_owned()], 1, SystemTime::now()).unwrap();
    let cert = ServerCert::from_pem(generated.cert.as_bytes(), generated.key.as_bytes(), SystemTime::now()).unwrap();
    let health = ServerHealth::new(Arc::new(ArcSwap::from_pointee(Some(cert))));
    health.settings().set_ok("ConfigurationLoaded", "ok");
    Arc::new(AppState {
        settings: Arc::new(ArcSwapOption::from_pointee(settings)),
        metrics: Arc::new(Metrics::new()),
        health: Arc::new(health),
        concurrency: ConcurrencyLimit::new(NonZeroUsize::new(slots).unwrap(), Duration::from_secs(4)),
        bodies: BodyLimit::new(32 << 20),
        log_limiter: LogLimiter::new(0),
        inject: obey,
    })
}

fn review(version: &str, want: &str) -> Value {
    json!({
        "apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview",
        "request": {
            "uid": "uid-1", "operation": "CREATE", "namespace": "shop",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-", "annotations": {"want": want}}},
        },
    })
}

struct Received {
    status: StatusCode,
    allow: Option<String>,
    retry_after: Option<String>,
    content_type: String,
    text: String,
}

impl Received {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn message(&self) -> String {
        self.json()["response"]["status"]["message"].as_str().unwrap().to_owned()
    }

    fn patch(&self) -> json_patch::Patch {
        let base64 = self.json()["response"]["patch"].as_str().unwrap().to_owned();
        serde_json::from_slice(&base64::engine::general_purpose::STANDARD.decode(base64).unwrap()).unwrap()
    }
}

async fn send(
    router: Router,
    method: Method,
    path: &str,
    content_type: Option<&str>,
    body: impl Into<Body>,
) -> Received {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(content_type) = content_type {
        request = request.header(CONTENT_TYPE, content_type);
    }
    let answer = router.oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let headers = answer.headers().clone();
    let header = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, allow, retry_after) = (answer.status(), header(ALLOW), header(RETRY_AFTER));
    let content_type = header(CONTENT_TYPE).unwrap_or_default();
    let text = String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Received { status, allow, retry_after, content_type, text }
}

async fn post(app: &Arc<AppState>, body: impl Into<Body>) -> Received {
    send(router::https(Arc::clone(app)), Method::POST, "/inject", Some("application/json"), body).await
}

#[tokio::test]
async fn pod_is_patched_in_both_versions() {
    for version in ["v1", "v1beta1"] {
        let review = review(version, "");
        let got = post(&app(), review.to_string()).await;
        assert_eq!((got.status, got.content_type.as_str()), (StatusCode::OK, "application/json"));
        let answer = got.json();
        assert_eq!(answer["apiVersion"], review["apiVersion"]);
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "uid-1");
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert_eq!(answer["response"]["auditAnnotations"]["decision"], "injected");
        assert_eq!(answer["response"]["warnings"], json!(["namespace shop"]));
        let mut pod = review["request"]["object"].clone();
        json_patch::patch(&mut pod, &got.patch()).unwrap();
        assert_eq!(pod["metadata"]["labels"]["seen"], "yes");
    }
}

#[tokio::test]
async fn denial_lists_every_error() {
    let app = app();
    let got = post(&app, review("v1", "deny").to_string()).await;
    assert_eq!(got.status, StatusCode::OK);
    let response = got.json()["response"].clone();
    assert_eq!((&response["allowed"], &response["uid"]), (&json!(false), &json!("uid-1")));
    assert_eq!(response["status"]["code"], 422);
    assert_eq!(got.message(), "weir: a: bad; b: worse");
    assert!(app.metrics.render().contains("sidecar_injection_failure_total{reason=\"denied\"} 1"));
    assert!(app.metrics.render().contains("sidecar_injection_success_total 0"), "a denial is not a success");
}

#[tokio::test]
async fn skip_warns_unless_the_author_opted_out() {
    let app = app();
    let host = post(&app, review("v1", "host").to_string()).await.json()["response"].clone();
    assert_eq!((&host["allowed"], &host["patch"]), (&json!(true), &Value::Null));
    assert!(host["warnings"][0].as_str().unwrap().contains("host network"), "{host}");
    assert_eq!(host["warnings"][1], "a label is odd");
    assert_eq!(host["auditAnnotations"], json!({"decision": "skipped", "reason": "host_network"}));

    let off = post(&app, review("v1", "off").to_string()).await.json()["response"].clone();
    assert_eq!((&off["allowed"], &off["warnings"]), (&json!(true), &Value::Null));
    assert_eq!(off["auditAnnotations"]["reason"], "explicitly_off");

    let metrics = app.metrics.render();
    for reason in ["host_network", "explicitly_off"] {
        assert!(metrics.contains(&format!("sidecar_injection_skip_total{{reason=\"{reason}\"}} 1")), "{metrics}");
    }
}

#[tokio::test]
async fn other_operations_and_kinds_are_allowed_unchanged() {
    let change = |key: &str, value: Value| {
        let mut review = review("v1", "deny");
        review["request"][key] = value;
        review
    };
    for review in [
        change("operation", json!("UPDATE")),
        change("subResource", json!("status")),
        change("kind", json!({"group": "apps", "version": "v1", "kind": "Deployment"})),
        change("kind", json!({"group": "example.org", "version": "v1", "kind": "Pod"})),
    ] {
        let got = post(&app(), review.to_string()).await;
        assert_eq!(got.status, StatusCode::OK);
        assert_eq!(got.json()["response"], json!({"uid": "uid-1", "allowed": true}), "{review}");
    }
}

#[tokio::test]
async fn review_without_a_pod_is_denied() {
    for object in [Value::Null, json!("pod"), json!([])] {
        let mut review = review("v1", "");
        review["request"]["object"] = object;
        let got = post(&app(), review.to_string()).await;
        assert_eq!(got.json()["response"]["allowed"], false);
        assert_eq!(got.json()["response"]["status"]["code"], 400);
        assert!(got.message().contains("request.object"), "{}", got.text);
    }
}

#[tokio::test]
async fn body_that_is_not_a_review_gets_400() {
    let cases = [
        ("", "empty"),
        ("{\"apiVersion\":\n nope}", "line 2 column"),
        (r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#, "no request"),
        (r#"{"kind":"Pod","apiVersion":"v1"}"#, "\"Pod\""),
    ];
    for (body, expected) in cases {
        let got = post(&app(), body).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(got.json()["response"]["allowed"], false);
        assert!(got.message().contains(expected), "{}", got.text);
    }
}

#[tokio::test]
async fn malformed_review_gets_its_uid_and_version_back() {
    let mut review = review("v1beta1", "");
    review["request"]["operation"] = json!(7);
    let got = post(&app(), review.to_string()).await;
    assert_eq!(got.status, StatusCode::BAD_REQUEST);
    assert_eq!(got.json()["apiVersion"], "admission.k8s.io/v1beta1");
    assert_eq!(got.json()["response"]["uid"], "uid-1");
    assert!(got.message().contains("request.operation"), "{}", got.text);
}

#[tokio::test]
async fn other_content_types_get_415() {
    let router = || router::https(app());
    let body = review("v1", "").to_string();
    for good in ["application/json", "application/json; charset=utf-8", "Application/JSON ;charset=UTF-8"] {
        let got = send(router(), Method::POST, "/inject", Some(good), body.clone()).await;
        assert_eq!(got.status, StatusCode::OK, "{good}");
    }
    for bad in [Some("text/plain"), Some("application/jsonx"), Some(""), None] {
        let got = send(router(), Method::POST, "/inject", bad, body.clone()).await;
        assert_eq!(got.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{bad:?}");
        assert!(got.message().contains("application/json is expected"), "{}", got.text);
    }
}

#[tokio::test]
async fn body_beyond_the_limit_gets_413() {
    let app = app();
    let padded = |length: usize| {
        let mut text = review("v1", "").to_string();
        text.push_str(&" ".repeat(length - text.len()));
        text
    };
    assert_eq!(post(&app, padded(BODY_LIMIT)).await.status, StatusCode::OK);
    let got = post(&app, padded(BODY_LIMIT + 1)).await;
    assert_eq!(got.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(got.message().contains(&BODY_LIMIT.to_string()), "{}", got.text);
    assert!(app.metrics.render().contains("sidecar_injection_failure_total{reason=\"too_large\"} 1"));
}

/// A body that never ends: the same chunk again and again, or nothing.
struct Endless(Option<&'static [u8]>);

impl hyper::body::Body for Endless {
    type Data = axum::body::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Infallible>>> {
        match self.0 {
            Some(chunk) => std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(chunk.into())))),
            None => std::task::Poll::Pending,
        }
    }
}

#[tokio::test]
async fn endless_body_gets_413() {
    let got = post(&app(), Body::new(Endless(Some(&[b' '; 8192])))).await;
    assert_eq!(got.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn body_that_does_not_arrive_gets_408() {
    let app = app();
    let got = post(&app, Body::new(Endless(None))).await;
    assert_eq!(got.status, StatusCode::REQUEST_TIMEOUT);
    assert!(got.message().contains("3s"), "{}", got.text);
    assert!(app.metrics.render().contains("sidecar_injection_failure_total{reason=\"timeout\"} 1"));
}

#[tokio::test]
async fn review_that_would_be_late_gets_429() {
    let app = app_with(1, Some(Settings::from_values_and_mesh(None, None).unwrap()));
    let ask = |timeout: &str, body: Body| {
        let (path, router) = (format!("/inject?timeout={timeout}"), router::https(Arc::clone(&app)));
        async move { send(router, Method::POST, &path, Some("application/json"), body).await }
    };
    // Takes the only turn.
    let slow = tokio::spawn(ask("4s", review("v1", "slow").to_string().into()));
    while !app.metrics.render().contains("weir_webhook_wait_seconds_count 1") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let live = send(router::https(Arc::clone(&app)), Method::GET, "/livez", None, "").await;
    assert!(live.status.is_success() && !slow.is_finished(), "a review that is decided holds up no probe");
    let got = ask("100ms", review("v1", "").to_string().into()).await;
    assert_eq!((got.status.as_u16(), got.retry_after.as_deref()), (429, Some("1")), "{}", got.text);
    // A longer timeout is enough to get the turn.
    let patient = ask("4s", review("v1", "").to_string().into()).await;
    assert_eq!((slow.await.unwrap().status.as_u16(), patient.status.as_u16()), (200, 200));
    let text = app.metrics.render();
    for line in ["sidecar_injection_failure_total{reason=\"overloaded\"} 1", "weir_webhook_in_flight 0"] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
}

#[tokio::test]
async fn unfinished_bodies_hold_no_turn() {
    let app = app_with(1, Some(Settings::from_values_and_mesh(None, None).unwrap()));
    let unfinished: Vec<_> = (0..600)
        .map(|_| {
            let app = Arc::clone(&app);
            tokio::spawn(async move { post(&app, Body::new(Endless(None))).await.status.as_u16() })
        })
        .collect();
    while !app.metrics.render().contains("weir_webhook_in_flight 512") {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        assert_eq!(post(&app, review("v1", "").to_string()).await.status, StatusCode::OK);
    }
    let mut statuses = BTreeMap::<_, usize>::new();
    for request in unfinished {
        *statuses.entry(request.await.unwrap()).or_default() += 1;
    }
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [408, 429]);
    assert!(statuses[&429] >= 88, "more than the share of one client: {statuses:?}");
}

#[tokio::test]
async fn bodies_over_the_budget_get_429() {
    let app = app();
    let mut text = review("v1", "slow").to_string();
    text.push_str(&" ".repeat(5 << 20));
    let large = (0..8).map(|_| {
        let (app, text) = (Arc::clone(&app), text.clone());
        tokio::spawn(async move { post(&app, text).await })
    });
    let mut statuses = BTreeMap::<_, usize>::new();
    let large: Vec<_> = large.collect();
    // Large bodies have a share of their own.
    assert_eq!(post(&app, review("v1", "").to_string()).await.status, StatusCode::OK);
    for request in large {
        let got = request.await.unwrap();
        if got.status == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(got.retry_after.as_deref(), Some("1"));
        }
        *statuses.entry(got.status.as_u16()).or_default() += 1;
    }
    assert!(statuses[&200] >= 1 && statuses[&429] >= 4, "{statuses:?}");
    assert!(app.metrics.render().contains("weir_webhook_in_flight 0"));
}

#[tokio::test]
async fn without_configuration_reviews_get_503() {
    let got = post(&app_with(1, None), review("v1", "").to_string()).await;
    assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(got.message().contains("no injector configuration yet"), "{}", got.text);
}

#[tokio::test]
async fn templates_patches_and_dry_runs_are_counted() {
    let app = app();
    let mut dry = review("v1", "");
    dry["request"]["dryRun"] = true.into();
    post(&app, dry.to_string()).await;
    let text = app.metrics.render();
    for line in [
        "weir_webhook_templates_total{template=\"sidecar\"} 1",
        "weir_webhook_templates_total{template=\"custom\"} 0",
        "weir_webhook_dry_runs_total 1",
        "weir_webhook_patch_bytes_count 1",
        "weir_webhook_wait_seconds_count 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
}

#[tokio::test]
async fn panic_in_injection_gets_500() {
    let app = app();
    let got = post(&app, review("v1", "panic").to_string()).await;
    assert_eq!(got.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(got.json()["response"]["uid"], "uid-1");
    assert_eq!(got.json()["response"]["allowed"], false);
    assert!(!got.text.contains("asked for"), "the panic message is for the log");
    assert!(app.metrics.render().contains("sidecar_injection_failure_total{reason=\"internal\"} 1"));
    assert_eq!(post(&app, review("v1", "").to_string()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn path_parameters_become_environment_variables() {
    let cases: [(&str, &[(&str, &str)]); 7] = [
        ("/inject", &[]),
        ("/inject/", &[]),
        ("/inject/cluster/c1/net/n1", &[("ISTIO_META_CLUSTER_ID", "c1"), ("ISTIO_META_NETWORK", "n1")]),
        ("/inject/cluster/a--slash--b/", &[("ISTIO_META_CLUSTER_ID", "a/b")]),
        ("/inject/foo/%3D", &[("FOO", "=")]),
        ("/inject/net/n1/odd", &[("ISTIO_META_NETWORK", "n1")]),
        ("/inject/:ENV:A=b/c:ENV:net=n2", &[("A", "b/c"), ("ISTIO_META_NETWORK", "n2")]),
    ];
    for (path, expected) in cases {
        let expected: BTreeMap<_, _> = expected.iter().copied().collect();
        let got =
            send(router::https(app()), Method::POST, path, Some("application/json"), review("v1", "").to_string())
                .await;
        assert_eq!(got.status, StatusCode::OK, "{path}");
        let answer = got.json();
        let found: BTreeMap<_, _> = answer["response"]["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|warning| warning.as_str().unwrap().split_once('='))
            .collect();
        assert_eq!(found, expected, "{path}");
    }
}

#[tokio::test]
async fn other_methods_and_paths_get_405_and_404() {
    let router = || router::https(app());
    let got = send(router(), Method::GET, "/inject", None, "").await;
    assert_eq!((got.status, got.allow.as_deref()), (StatusCode::METHOD_NOT_ALLOWED, Some("POST")));
    assert_eq!(send(router(), Method::PUT, "/inject/a/b", None, "").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(send(router(), Method::POST, "/injection", None, "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(send(router(), Method::GET, "/metrics", None, "").await.status, StatusCode::NOT_FOUND, "not over TLS");
    assert_eq!(send(router::http(app()), Method::POST, "/inject", None, "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn probes_are_served_on_both_ports() {
    let app = app();
    for router in [router::https(Arc::clone(&app)), router::http(Arc::clone(&app))] {
        for path in ["/healthz", "/livez", "/readyz", "/ready"] {
            assert_eq!(send(router.clone(), Method::GET, path, None, "").await.status, StatusCode::OK, "{path}");
        }
    }
    app.health.begin_shutdown();
    let router = router::http(Arc::clone(&app));
    let ready = send(router.clone(), Method::GET, "/readyz", None, "").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text.contains("[-]shutdown: in progress"), "{}", ready.text);
    let json = send(router.clone(), Method::GET, "/readyz?format=json", None, "").await.json();
    assert_eq!((&json["ready"], &json["conditions"][0]["reason"]), (&json!(false), &json!("ShuttingDown")));
    assert_eq!(
        send(router, Method::GET, "/livez", None, "").await.status,
        StatusCode::OK,
        "alive until the process exits"
    );
}

#[tokio::test]
async fn metrics_without_accept_are_in_the_text_format() {
    let got = send(router::http(app()), Method::GET, "/metrics", None, "").await;
    assert_eq!(got.status, StatusCode::OK);
    assert!(got.content_type.starts_with("text/plain; version=0.0.4"), "{}", got.content_type);
    assert!(got.text.contains("# TYPE sidecar_injection_requests_total counter\n"), "{}", got.text);
}
