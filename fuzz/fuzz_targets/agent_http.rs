//! Requests to the agent's ports for probes and metrics: each is answered, in little, and none is an error of the server.
#![no_main]

use std::cell::LazyCell;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use tower::ServiceExt as _;
use weir_agent::http::{health_router, monitoring_router};
use weir_agent::metrics::MetricsRegistry;
use weir_fuzz::bounded_target;
use weir_runtime::health::Health;
use weir_runtime::listen::PeerAddr;

/// Largest answer.
const ANSWER: usize = 256 << 10;

thread_local! {
    static RUNTIME: LazyCell<tokio::runtime::Runtime> =
        LazyCell::new(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be made"));
    static ROUTER: LazyCell<Router> =
        LazyCell::new(|| health_router(Health::default()).merge(monitoring_router(MetricsRegistry::default(), None)));
}

// Method and target on the first line, as in HTTP; header lines; a body after an empty line. What HTTP itself refuses is left out.
bounded_target!(|text: &str| {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, target) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or(("GET", head));
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        request = request.header(name, value.trim());
    }
    let Ok(mut request) = request.body(Body::from(body.to_owned())) else { return };
    request.extensions_mut().insert(PeerAddr(([127, 0, 0, 1], 1).into()));
    let router = ROUTER.with(|router| Router::clone(router));
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let response = router.oneshot(request).await.expect("a router always answers");
            let status = response.status();
            assert!(!status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
            assert!(to_bytes(response.into_body(), ANSWER).await.is_ok(), "an answer of more than {ANSWER} bytes");
        });
    });
});
