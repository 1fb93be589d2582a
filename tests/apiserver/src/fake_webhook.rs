//! An admission webhook whose responses a test decides.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::listen::MaybeTlsListener;
use crate::tls::{Pair, server_config};

/// Response of the webhook to a review.
#[derive(Debug, Clone)]
pub enum FakeReply {
    /// The `response` of the AdmissionReview; a missing `uid` is filled in.
    Response(Value),
    /// An HTTP status with `Retry-After` seconds and no body.
    Status(u16, Option<u64>),
    /// Any body, JSON.
    Body(Value),
    /// No response; the connection stays open.
    Silence,
}

impl FakeReply {
    /// Allows the object unchanged.
    pub fn allow() -> Self {
        Self::Response(json!({ "allowed": true }))
    }

    /// Allows the object with a JSON patch.
    pub fn patch(patch: &Value) -> Self {
        let patch = STANDARD.encode(patch.to_string());
        Self::Response(json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch }))
    }
}

type ReplyFn = Arc<dyn Fn(&Value) -> FakeReply + Send + Sync>;

/// A running webhook. Stops when dropped.
#[derive(Debug)]
pub struct FakeWebhook {
    addr: SocketAddr,
    reviews: Arc<Mutex<Vec<Value>>>,
    runtime: Option<Runtime>,
}

impl FakeWebhook {
    /// Starts a webhook on a free port of `ip` with the certificate `pair`; it responds to every review with `reply`, whatever the path.
    ///
    /// # Errors
    /// When no port is free, or the certificate is invalid.
    pub fn start(
        ip: IpAddr,
        pair: &Pair,
        reply: impl Fn(&Value) -> FakeReply + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let tls = Arc::new(server_config(pair)?);
        let listener = runtime.block_on(TcpListener::bind((ip, 0)))?;
        let addr = listener.local_addr()?;
        let reviews: Arc<Mutex<Vec<Value>>> = Arc::default();
        let reply: ReplyFn = Arc::new(reply);
        let app = Router::new().fallback(answer).with_state((Arc::clone(&reviews), reply));
        runtime.spawn(async move { axum::serve(MaybeTlsListener::start(listener, addr, Some(tls)), app).await });
        Ok(Self { addr, reviews, runtime: Some(runtime) })
    }

    /// Returns the address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the reviews it has received.
    pub fn reviews(&self) -> Vec<Value> {
        self.reviews.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for FakeWebhook {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(State((reviews, reply)): State<(Arc<Mutex<Vec<Value>>>, ReplyFn)>, body: Bytes) -> Response {
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    reviews.lock().unwrap_or_else(PoisonError::into_inner).push(review.clone());
    let json = |body: Value| ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    match reply(&review) {
        FakeReply::Response(mut response) => {
            if response["uid"].is_null() {
                response["uid"] = review["request"]["uid"].clone();
            }
            json(json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }))
        }
        FakeReply::Body(body) => json(body),
        FakeReply::Status(code, after) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let headers = after.map(|seconds| [(header::RETRY_AFTER, seconds.to_string())]);
            headers.map_or_else(|| status.into_response(), |headers| (status, headers).into_response())
        }
        FakeReply::Silence => std::future::pending().await,
    }
}
