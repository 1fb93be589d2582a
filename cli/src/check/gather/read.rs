//! Reading an API server within bounds.

use std::cell::RefCell;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::check::snapshot::Unread;
use crate::cluster::{Cluster, PAGE, causes};

/// Requests under way at once; as many again to pods of ours, so that some that do not answer keep nothing else waiting.
const AT_ONCE: usize = 24;
/// Bound of a request to a pod of ours.
const OF_POD: Duration = Duration::from_secs(10);
/// Longest answer, in bytes. A page of 500 large pods has some 20 MiB.
const ANSWER: usize = 96 << 20;

/// What the API server answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) code: u16,
    /// Body.
    pub(crate) text: String,
}

/// Somebody who answers as an API server does.
pub(crate) trait Ask {
    /// One request.
    ///
    /// # Errors
    /// Why there is no answer.
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String>;
}

impl Ask for Cluster {
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        let mut request = http::Request::builder().method(method).uri(path).header("Accept", "application/json, */*");
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = request.body(Body::from(body)).map_err(|error| error.to_string())?;
        let response = self.client.send(request).await.map_err(|error| causes(&error))?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER).collect().await.map_err(|error| error.to_string())?;
        Ok(Answer { code, text: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
    }
}

/// Reads, and notes what could not be read.
pub(crate) struct Reader<'a, A> {
    api: &'a A,
    slots: Semaphore,
    pod_slots: Semaphore,
    patience: Duration,
    unread: RefCell<Vec<Unread>>,
}

impl<'a, A: Ask> Reader<'a, A> {
    /// Waits for each answer for at most `patience`.
    pub(crate) fn new(api: &'a A, patience: Duration) -> Self {
        let slots = || Semaphore::new(AT_ONCE);
        Self { api, slots: slots(), pod_slots: slots(), patience, unread: RefCell::default() }
    }

    /// One request, whatever is answered.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        self.within(&self.slots, self.patience, method, path, body).await
    }

    async fn within(
        &self,
        slots: &Semaphore,
        patience: Duration,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        // Never closed.
        let _slot = slots.acquire().await.ok();
        match timeout(patience, self.api.ask(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer in {} s", patience.as_secs())),
        }
    }

    /// One object; `None` where it is not there, or cannot be read, which then is noted as `what`.
    pub(crate) async fn get(&self, what: &str, path: &str) -> Option<Value> {
        match self.ask("GET", path, None).await {
            Ok(answer) if answer.code == 404 => None,
            answer => understood(answer).map_err(|why| self.note(what, why)).ok(),
        }
    }

    /// All objects of a list, whole.
    pub(crate) async fn list(&self, what: &str, path: &str) -> Option<Vec<Value>> {
        let mut all = Vec::new();
        self.pages(what, path, |item| all.push(item)).await.then_some(all)
    }

    /// As [`Self::list`], for kinds that a cluster may not have: then there are none.
    pub(crate) async fn list_if_known(&self, what: &str, path: &str) -> Option<Vec<Value>> {
        match self.ask("GET", &format!("{path}?limit=1"), None).await {
            Ok(answer) if answer.code == 404 => Some(Vec::new()),
            _ => self.list(what, path).await,
        }
    }

    /// Hands on every object of a list, page by page; whether all of them were read.
    pub(crate) async fn pages(&self, what: &str, path: &str, mut each: impl FnMut(Value)) -> bool {
        let and = if path.contains('?') { '&' } else { '?' };
        let mut from = String::new();
        loop {
            let page = format!("{path}{and}limit={PAGE}{from}");
            let answer = self.ask("GET", &page, None).await;
            // The list is older than what the API server remembers: it hands out a way to go on with the present one.
            let renewed = answer.as_ref().ok().filter(|answer| answer.code == 410 && !from.is_empty()).and_then(go_on);
            if let Some(renewed) = renewed {
                from = renewed;
                continue;
            }
            let mut list = match understood(answer) {
                Ok(list) => list,
                Err(why) => {
                    self.note(what, why);
                    return false;
                }
            };
            if let Value::Array(items) = list["items"].take() {
                items.into_iter().for_each(&mut each);
            }
            match list["metadata"]["continue"].as_str() {
                Some(next) if !next.is_empty() => from = format!("&continue={}", escaped(next)),
                _ => return true,
            }
        }
    }

    /// What a pod of ours answers on a port.
    pub(crate) async fn of_pod(&self, namespace: &str, pod: &str, port: u64, path: &str) -> Option<Answer> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/{path}");
        let patience = self.patience.min(OF_POD);
        let answer = self.within(&self.pod_slots, patience, "GET", &path, None).await;
        match answer {
            // 503 is an answer of the pod, too: its conditions.
            Ok(answer) if answer.code == 200 || is_readiness(&answer.text) => Some(answer),
            answer => {
                if let Err(why) = understood(answer) {
                    self.note(&format!("what the pods of {namespace} say of themselves (pods/proxy)"), why);
                }
                None
            }
        }
    }

    /// Notes what could not be read, once.
    pub(crate) fn note(&self, what: &str, why: String) {
        let mut unread = self.unread.borrow_mut();
        if !unread.iter().any(|known| known.what == what) {
            unread.push(Unread { what: what.to_owned(), why });
        }
    }

    /// What could not be read.
    pub(crate) fn into_unread(self) -> Vec<Unread> {
        self.unread.into_inner()
    }
}

/// The object in an answer; else why there is none.
fn understood(answer: Result<Answer, String>) -> Result<Value, String> {
    let answer = answer?;
    let body: Value = serde_json::from_str(&answer.text).unwrap_or(Value::Null);
    match (answer.code, &body["message"]) {
        (200..=299, _) if body.is_object() => Ok(body),
        (code, Value::String(message)) => Err(format!("{code}: {message}")),
        (code, _) => Err(format!("{code}: {}", answer.text.chars().take(200).collect::<String>().trim())),
    }
}

/// Whether a text is the list of conditions of `/readyz`.
fn is_readiness(text: &str) -> bool {
    text.starts_with("[+]") || text.starts_with("[-]") || text.starts_with("[!]")
}

fn go_on(answer: &Answer) -> Option<String> {
    let status: Value = serde_json::from_str(&answer.text).ok()?;
    let next = status["metadata"]["continue"].as_str().filter(|next| !next.is_empty())?;
    Some(format!("&continue={}", escaped(next)))
}

/// A text as part of a query.
fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
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
