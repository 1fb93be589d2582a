//! The two plain HTTP ports: `/healthz` and `/readyz` for the kubelet; `/metrics` for Prometheus, and `/logging`, which changes log levels
//! for clients on the pod's own loopback (`kubectl port-forward`).

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tracing::info;
use weir_runtime::health::Health;
use weir_runtime::listen::{Limits, PeerAddr};
use weir_runtime::logging::{LogLevelHandle, LogLevels};

use crate::metrics::MetricsRegistry;

/// Bounds of both ports. Prometheus and the kubelet simply connect again.
pub const LIMITS: Limits = Limits {
    connections: NonZeroUsize::new(128).unwrap(),
    handshake: Duration::from_secs(10),
    idle: Duration::from_mins(2),
    drain: Duration::from_secs(1),
};

/// Routes of the health port.
pub fn health_router(health: Health) -> Router {
    let ready = get(|State(health): State<Health>, headers: HeaderMap, RawQuery(query): RawQuery| async move {
        health.readiness().respond(&headers, query.as_deref())
    });
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", ready).with_state(health)
}

/// Routes of the monitoring port.
pub fn monitoring_router(metrics: MetricsRegistry, levels: Option<LogLevelHandle>) -> Router {
    let scrape = get(|State(metrics): State<MetricsRegistry>, headers: HeaderMap| async move {
        weir_runtime::metrics::respond(&headers, metrics.render())
    });
    let logging = get(show_levels).put(set_levels).post(set_levels).with_state(Arc::new(levels));
    Router::new().route("/metrics", scrape).with_state(metrics).route("/logging", logging)
}

async fn show_levels(State(levels): State<Arc<Option<LogLevelHandle>>>) -> String {
    levels.as_ref().as_ref().map_or_else(|| "fixed\n".to_owned(), |levels| format!("{}\n", levels.current()))
}

async fn set_levels(
    State(handle): State<Arc<Option<LogLevelHandle>>>,
    Extension(PeerAddr(peer)): Extension<PeerAddr>,
    RawQuery(query): RawQuery,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "log levels can be changed on loopback only; use kubectl port-forward\n")
            .into_response();
    }
    // No character of a level needs to be escaped in a query.
    let wanted = query.as_deref().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("level=")));
    let Some(wanted) = wanted else {
        return (StatusCode::BAD_REQUEST, "pass ?level=debug, or ?level=default:info,install:debug\n").into_response();
    };
    let levels = match LogLevels::parse(wanted, env!("CARGO_CRATE_NAME")) {
        Ok(levels) => levels,
        Err(reason) => return (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response(),
    };
    match handle.as_ref().as_ref().map(|handle| handle.set(&levels)) {
        Some(Ok(())) => {
            info!(levels = levels.text(), "changed log levels");
            format!("{}\n", levels.text()).into_response()
        }
        Some(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        None => (StatusCode::CONFLICT, "log levels of this process cannot be changed\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt as _;
    use weir_runtime::health::ReadinessImpact;

    use super::*;

    async fn send(router: &Router, method: &str, path: &str) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(PeerAddr(([127, 0, 0, 1], 1).into()));
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ports_serve_probes_metrics_and_log_levels() {
        let health = Health::default();
        let condition = health.register("install", ReadinessImpact::Blocking, "NoNetwork", "no network configuration");
        let router = health_router(health).merge(monitoring_router(MetricsRegistry::default(), None));

        assert_eq!(send(&router, "GET", "/healthz").await.0, 200);
        assert_eq!(send(&router, "GET", "/readyz").await, (503, "[-]install: no network configuration\n".to_owned()));
        condition.set_ok("Installed", "done");
        let (status, json) = send(&router, "GET", "/readyz?format=json").await;
        assert!(status == 200 && json.starts_with("{\"ready\":true,"), "{json}");
        assert!(send(&router, "GET", "/metrics").await.1.contains("weir_agent_build_info"));
        assert_eq!(send(&router, "GET", "/logging").await.1, "fixed\n");
        assert_eq!(send(&router, "PUT", "/logging?level=loud").await.0, 400);
        assert_eq!(send(&router, "PUT", "/logging?level=debug").await.0, 409);
    }
}
