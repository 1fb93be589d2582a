//! Requests to an API server, limited in number, time and size.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::snapshot::ReadFailure;
use crate::snapshot::object::{parse, parse_text};
use crate::snapshot::reports::Readiness;

/// Concurrent requests to the API server, and as many to pods of Weir, so that pods that do not respond delay nothing else.
const MAX_CONCURRENT: usize = 24;
/// Timeout of a request to a pod of Weir.
const POD_TIMEOUT: Duration = Duration::from_secs(10);
/// A page of 500 large pods has about 20 MiB.
const MAX_RESPONSE_BYTES: usize = 96 << 20;
/// Objects per page of a list.
const PAGE_SIZE: u32 = 500;

/// The API server's response.
#[derive(Debug, Clone)]
pub(crate) struct ApiResponse {
    /// HTTP status.
    pub(crate) code: u16,
    pub(crate) body: String,
}

impl ApiResponse {
    /// Returns the first 200 characters of the body, for messages.
    pub(crate) fn excerpt(&self) -> String {
        self.body.chars().take(200).collect::<String>().trim().to_owned()
    }

    /// Returns the object in a successful response.
    fn object(&self) -> Result<Value, String> {
        let body: Value = serde_json::from_str(&self.body).unwrap_or(Value::Null);
        match (self.code, &body["message"]) {
            (200..=299, _) if body.is_object() => Ok(body),
            (code, Value::String(message)) => Err(format!("{code}: {message}")),
            (code, _) => Err(format!("{code}: {}", self.excerpt())),
        }
    }

    /// Parses the object in a successful response.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, String> {
        self.object().and_then(parse)
    }

    /// Returns the page in a successful response to a list.
    fn page(&self) -> Result<Page<'_>, String> {
        match (self.code, serde_json::from_str(&self.body)) {
            (200..=299, Ok(page)) if self.body.trim_start().starts_with('{') => Ok(page),
            _ => Err(self.object().err().unwrap_or_else(|| format!("{}: {}", self.code, self.excerpt()))),
        }
    }
}

/// A page of a list. Its objects are parsed one at a time: as [`Value`]s, all of them would take several times the memory of the text.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Page<'a> {
    metadata: PageMetadata,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PageMetadata {
    #[serde(rename = "continue")]
    token: Option<String>,
}

impl Page<'_> {
    /// Returns the query parameter for the next page.
    fn continue_parameter(&self) -> Option<String> {
        let token = self.metadata.token.as_deref().filter(|token| !token.is_empty())?;
        Some(format!("&continue={}", percent_encoded(token)))
    }
}

/// Sends requests to an API server.
pub(crate) trait ApiTransport {
    /// Sends one request and returns the response, whatever its status.
    ///
    /// # Errors
    /// Why there is no response.
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<ApiResponse, String>;
}

impl ApiTransport for kube::Client {
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<ApiResponse, String> {
        let mut request = http::Request::builder().method(method).uri(path).header("Accept", "application/json, */*");
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = request.body(Body::from(body)).map_err(|error| error.to_string())?;
        let response = kube::Client::send(self, request).await.map_err(|error| error_chain(&error))?;
        let code = response.status().as_u16();
        let (mut frames, mut body) = (Limited::new(response.into_body(), MAX_RESPONSE_BYTES), Vec::new());
        while let Some(frame) = frames.frame().await {
            if let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() {
                body.extend_from_slice(&data);
            }
        }
        let body =
            String::from_utf8(body).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        Ok(ApiResponse { code, body })
    }
}

/// Returns an error with its sources, without those whose text it repeats.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Reads objects, and records what cannot be read.
pub(crate) struct ApiReader<'a, A> {
    transport: &'a A,
    slots: Semaphore,
    pod_slots: Semaphore,
    request_timeout: Duration,
    failures: RefCell<Vec<ReadFailure>>,
}

impl<'a, A: ApiTransport> ApiReader<'a, A> {
    pub(crate) fn new(transport: &'a A, request_timeout: Duration) -> Self {
        let slots = || Semaphore::new(MAX_CONCURRENT);
        Self { transport, slots: slots(), pod_slots: slots(), request_timeout, failures: RefCell::default() }
    }

    /// Sends one request and returns the response, whatever its status.
    ///
    /// # Errors
    /// Why there is no response.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<ApiResponse, String> {
        self.send_within(&self.slots, self.request_timeout, method, path, body).await
    }

    async fn send_within(
        &self,
        slots: &Semaphore,
        limit: Duration,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<ApiResponse, String> {
        // The semaphores are never closed.
        let _slot = slots.acquire().await.ok();
        match timeout(limit, self.transport.send(method, path, body)).await {
            Ok(response) => response,
            Err(_) => Err(format!("no response within {} s", limit.as_secs())),
        }
    }

    /// Gets an object. Returns `None` if it does not exist or cannot be read; the latter is recorded.
    pub(crate) async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Option<T> {
        let response = self.send("GET", path, None).await;
        if response.as_ref().is_ok_and(|response| response.code == 404) {
            return None;
        }
        let parsed = response.and_then(|response| response.parse());
        parsed.map_err(|reason| self.record_failure(what, reason)).ok()
    }

    /// Lists all objects of a path. Returns `None` if any cannot be read, which is recorded.
    pub(crate) async fn list<T: DeserializeOwned>(&self, what: &str, path: &str) -> Option<Vec<T>> {
        self.filter_list(what, path, Some).await
    }

    /// Like [`Self::list`], but keeps only what `keep` returns.
    pub(crate) async fn filter_list<T: DeserializeOwned, U>(
        &self,
        what: &str,
        path: &str,
        keep: impl Fn(T) -> Option<U>,
    ) -> Option<Vec<U>> {
        let mut all = Vec::new();
        let is_complete = self.for_each(what, path, |object| {
            all.extend(keep(parse_text(object)?));
            Ok(())
        });
        is_complete.await.then_some(all)
    }

    /// Like [`Self::list`], for a kind that the cluster may not have: then the list is empty.
    pub(crate) async fn list_if_known<T: DeserializeOwned>(&self, what: &str, path: &str) -> Option<Vec<T>> {
        match self.send("GET", &format!("{path}?limit=1"), None).await {
            Ok(response) if response.code == 404 => Some(Vec::new()),
            _ => self.list(what, path).await,
        }
    }

    /// Passes every object of a list to `each` as JSON text, page by page. Returns whether all of them were read; a failure is recorded.
    pub(crate) async fn for_each(
        &self,
        what: &str,
        path: &str,
        mut each: impl FnMut(&str) -> Result<(), String>,
    ) -> bool {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut from = String::new();
        loop {
            let response = self.send("GET", &format!("{path}{separator}limit={PAGE_SIZE}{from}"), None).await;
            // The resource version of the list has expired: the response has a token that continues with the current one.
            if let Ok(expired) = &response
                && expired.code == 410
                && !from.is_empty()
                && let Some(token) =
                    serde_json::from_str(&expired.body).ok().and_then(|page: Page<'_>| page.continue_parameter())
            {
                from = token;
                continue;
            }
            let next = response.and_then(|response| {
                let page = response.page()?;
                page.items.iter().flatten().try_for_each(|item| each(item.get()))?;
                Ok(page.continue_parameter())
            });
            match next {
                Ok(Some(token)) => from = token,
                Ok(None) => return true,
                Err(reason) => {
                    self.record_failure(what, reason);
                    return false;
                }
            }
        }
    }

    /// Gets a path from a port of a pod of Weir, through the API server. A failure is recorded, unless the pod has been deleted since it was
    /// listed.
    pub(crate) async fn pod_proxy_get(&self, namespace: &str, pod: &str, port: u64, path: &str) -> Option<ApiResponse> {
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let path = format!("{pods}/{pod}:{port}/proxy/{path}");
        let limit = self.request_timeout.min(POD_TIMEOUT);
        let response = self.send_within(&self.pod_slots, limit, "GET", &path, None).await;
        match response {
            // A pod that is not ready answers 503 with its conditions.
            Ok(response) if response.code == 200 || Readiness::parse(&response.body).is_some() => Some(response),
            response => {
                if let Err(reason) = response.and_then(|response| response.object())
                    && !self.is_deleted(&format!("{pods}/{pod}")).await
                {
                    self.record_failure(&format!("reports of the pods of {namespace} (pods/proxy)"), reason);
                }
                None
            }
        }
    }

    /// Returns whether an object is being deleted, or does not exist any more.
    async fn is_deleted(&self, path: &str) -> bool {
        let Ok(response) = self.send("GET", path, None).await else { return false };
        let is_terminating = |object: Value| object["metadata"]["deletionTimestamp"].is_string();
        response.code == 404 || response.object().is_ok_and(is_terminating)
    }

    /// Records what could not be read, once.
    pub(crate) fn record_failure(&self, what: &str, reason: String) {
        let mut failures = self.failures.borrow_mut();
        if !failures.iter().any(|known| known.what == what) {
            failures.push(ReadFailure { what: what.to_owned(), reason });
        }
    }

    pub(crate) fn into_failures(self) -> Vec<ReadFailure> {
        self.failures.into_inner()
    }
}

/// Percent-encodes a text for a query.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
