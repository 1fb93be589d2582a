//! Reads a response of the API server part by part.

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::core::Status;
use kube::{Client, Error};

use super::WatchEnd;

/// Bytes of an error response that are read.
const MAX_ERROR: usize = 64 << 10;

/// The body of a successful response.
pub(super) struct Response(Body);

impl Response {
    /// Sends a request.
    pub(super) async fn open(client: Client, request: axum::http::Request<Vec<u8>>) -> Result<Self, WatchEnd> {
        let response = client.send(request.map(Body::from)).await?;
        let code = response.status();
        let mut body = Self(response.into_body());
        if code.is_success() {
            return Ok(body);
        }
        let mut text = Vec::new();
        while text.len() < MAX_ERROR {
            match body.next().await {
                Ok(Some(part)) => text.extend_from_slice(&part),
                Ok(None) | Err(_) => break,
            }
        }
        let unreadable = || Status { message: String::from_utf8_lossy(&text).into_owned(), ..Status::default() };
        let status = serde_json::from_slice(&text).unwrap_or_else(|_| unreadable());
        Err(WatchEnd::from_status(status, Some(code.as_u16())))
    }

    /// Returns the next part of the body; `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.0.frame().await.transpose()? {
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}
