//! An admission webhook of a test's own making, to stand beside the project's or in its place.

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

use crate::listen::Door;
use crate::tls::{Pair, server_config};

/// What a webhook does with a review.
#[derive(Debug, Clone)]
pub enum Answer {
    /// `response` of the AdmissionReview; its `uid` is filled in where it has none.
    Response(Value),
    /// An HTTP status with `Retry-After` seconds and no body.
    Status(u16, Option<u64>),
    /// Any body, as JSON.
    Body(Value),
    /// None, and the connection stays open.
    Silence,
}

impl Answer {
    /// Allowed as it is.
    pub fn allow() -> Self {
        Self::Response(json!({ "allowed": true }))
    }

    /// Allowed with a JSON patch.
    pub fn patch(patch: &Value) -> Self {
        let patch = STANDARD.encode(patch.to_string());
        Self::Response(json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch }))
    }
}

type Reply = Arc<dyn Fn(&Value) -> Answer + Send + Sync>;

/// A running webhook; it ends with the value.
#[derive(Debug)]
pub struct Hook {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Value>>>,
    runtime: Option<Runtime>,
}

impl Hook {
    /// Starts one on a port of `ip` that shows the certificate `pair` and answers every review with `reply`, whatever the path.
    ///
    /// # Errors
    /// When no port can be had, or the certificate is none.
    pub fn start(
        ip: IpAddr,
        pair: &Pair,
        reply: impl Fn(&Value) -> Answer + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let tls = Arc::new(server_config(pair)?);
        let listener = runtime.block_on(TcpListener::bind((ip, 0)))?;
        let addr = listener.local_addr()?;
        let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
        let reply: Reply = Arc::new(reply);
        let app = Router::new().fallback(answer).with_state((Arc::clone(&seen), reply));
        runtime.spawn(async move { axum::serve(Door::open(listener, addr, Some(tls)), app).await });
        Ok(Self { addr, seen, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The reviews it was asked about.
    pub fn seen(&self) -> Vec<Value> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(State((seen, reply)): State<(Arc<Mutex<Vec<Value>>>, Reply)>, body: Bytes) -> Response {
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(review.clone());
    let json = |body: Value| ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    match reply(&review) {
        Answer::Response(mut response) => {
            if response["uid"].is_null() {
                response["uid"] = review["request"]["uid"].clone();
            }
            json(json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }))
        }
        Answer::Body(body) => json(body),
        Answer::Status(code, after) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let headers = after.map(|seconds| [(header::RETRY_AFTER, seconds.to_string())]);
            headers.map_or_else(|| status.into_response(), |headers| (status, headers).into_response())
        }
        Answer::Silence => std::future::pending().await,
    }
}
