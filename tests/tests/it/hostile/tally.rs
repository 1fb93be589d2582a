//! Honest clients, and what they see.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use weir_lab::webhook::admission_review;
use weir_tests::review_client::{ReviewTarget, probe, send_review};

use super::pod;

/// What the API server waits for a review, by the manifests.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// `failureThreshold` of the manifests' liveness probes.
const FAILURE_THRESHOLD: usize = 3;

/// Times of what succeeded, and reasons of what failed.
#[derive(Debug, Default)]
pub(super) struct Tally {
    times: Vec<Duration>,
    retried: u64,
    failed: Vec<String>,
    /// Failures since the last success, and the most that there were.
    in_a_row: usize,
    most_in_a_row: usize,
}

impl Tally {
    pub(super) fn add(&mut self, result: Result<Duration, String>) {
        match result {
            Ok(time) => {
                self.times.push(time);
                self.in_a_row = 0;
            }
            Err(reason) => {
                self.failed.push(reason);
                self.in_a_row += 1;
            }
        }
        self.most_in_a_row = self.most_in_a_row.max(self.in_a_row);
    }

    /// Waits for several clients, and adds up what they saw.
    pub(super) async fn join(clients: Vec<tokio::task::JoinHandle<Self>>) -> Self {
        let mut sum = Self::default();
        for client in clients {
            let Self { times, retried, failed, most_in_a_row, .. } = client.await.unwrap();
            sum.most_in_a_row = sum.most_in_a_row.max(most_in_a_row);
            sum.times.extend(times);
            sum.retried += retried;
            sum.failed.extend(failed);
        }
        sum
    }

    fn permille(&self, of_thousand: usize) -> Duration {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * of_thousand / 1000).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    pub(super) fn assert_all_succeeded(&self, what: &str) {
        assert!(
            self.failed.is_empty() && !self.times.is_empty(),
            "{what}: {} failed: {:?}",
            self.failed.len(),
            self.failed.first()
        );
    }

    /// Asserts that fewer probes in a row failed than make a kubelet restart the container.
    pub(super) fn assert_no_restart(&self) {
        assert!(self.most_in_a_row < FAILURE_THRESHOLD && !self.times.is_empty(), "{self}: {:?}", self.failed.first());
    }

    pub(super) fn assert_below(&self, what: &str, permille: usize, limit: Duration) {
        let time = self.permille(permille);
        assert!(time < limit, "{what}: {time:?}, expected less than {limit:?}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [500, 990, 1000].map(|part| self.permille(part));
        write!(
            f,
            "{} succeeded, {} failed ({} in a row), {} retried",
            self.times.len(),
            self.failed.len(),
            self.most_in_a_row,
            self.retried
        )?;
        write!(f, "; p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}")
    }
}

/// Sends reviews as an API server does: over one connection, with retries after 429 and after a connection that was closed, within the
/// timeout of the webhook configuration.
pub(super) async fn send_honest_reviews(target: ReviewTarget, done: Arc<AtomicBool>) -> Tally {
    let (mut tally, mut connection) = (Tally::default(), None);
    let review = Bytes::from(admission_review(&pod("web")).to_string());
    while !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut why = "no response".to_owned();
        let answered = timeout(REVIEW_TIMEOUT, async {
            loop {
                if connection.is_none() {
                    connection = target.connect().await;
                }
                let Some(send) = &mut connection else { continue };
                match send_review(send, Body::from(review.clone())).await {
                    Some((200, body)) => return body,
                    Some((429, _)) => {
                        "429".clone_into(&mut why);
                        sleep(Duration::from_secs(1)).await;
                    }
                    Some((code, body)) => {
                        why = format!("{code}: {}", String::from_utf8_lossy(&body));
                        sleep(Duration::from_millis(100)).await;
                    }
                    None => connection = None,
                }
                tally.retried += 1;
            }
        })
        .await;
        match answered.map(|body| serde_json::from_slice::<Value>(&body)) {
            Ok(Ok(reply)) if reply["response"]["patch"].is_string() => tally.add(Ok(begun.elapsed())),
            Ok(reply) => tally.add(Err(format!("{reply:?}"))),
            Err(_) => tally.add(Err(why)),
        }
        sleep(Duration::from_millis(20)).await;
    }
    tally
}

pub(super) async fn send_probes(addr: SocketAddr, done: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally::default();
    while !done.load(Ordering::Relaxed) {
        tally.add(probe(addr).await.ok_or_else(|| format!("{addr}: no response")));
        sleep(Duration::from_millis(100)).await;
    }
    tally
}
