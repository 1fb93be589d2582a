//! Kubernetes events. Equal ones are counted as one series, and their rate is limited: readers must find the first ones, and
//! the API server has other work.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
pub use kube::runtime::events::Reporter;
use kube::runtime::events::{Event, EventType, Recorder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::ClientFactory;

/// Events waiting to be sent; further ones are dropped and counted.
const QUEUE_CAPACITY: usize = 128;
/// Events that may be sent at once; then one every [`REFILL_INTERVAL`].
const BURST: u32 = 25;
const REFILL_INTERVAL: Duration = Duration::from_secs(2);
/// Time to send one event.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest note that Kubernetes accepts, in bytes.
const MAX_NOTE: usize = 1024;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// The object that the event is about.
    pub regarding: ObjectReference,
    /// Whether its type is `Warning` instead of `Normal`.
    pub warning: bool,
    /// Stable word in upper camel case, for programs.
    pub reason: &'static str,
    /// Sentence for people.
    pub note: String,
}

/// Queues events.
#[derive(Debug, Clone)]
pub struct EventRecorder {
    sender: mpsc::Sender<EventRecord>,
    dropped: Counter,
}

/// Sends queued events to the API server.
#[derive(Debug)]
pub struct EventPublisher {
    receiver: mpsc::Receiver<EventRecord>,
    sent: Counter,
    dropped: Counter,
}

/// Returns both ends, with the metrics `PREFIX_events_total` and `PREFIX_events_dropped_total`.
pub fn channel(registry: &mut Registry, prefix: &str) -> (EventRecorder, EventPublisher) {
    let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
    let (sent, dropped) = (Counter::default(), Counter::default());
    registry.register(format!("{prefix}_events"), "Kubernetes events sent", sent.clone());
    registry.register(
        format!("{prefix}_events_dropped"),
        "Kubernetes events dropped: rate limit, full queue or rejected by the API server",
        dropped.clone(),
    );
    (EventRecorder { sender, dropped: dropped.clone() }, EventPublisher { receiver, sent, dropped })
}

impl EventRecorder {
    /// Queues an event without waiting.
    pub fn record(&self, event: EventRecord) {
        if self.sender.try_send(event).is_err() {
            self.dropped.inc();
        }
    }
}

impl EventPublisher {
    /// Sends events in the name of `reporter` until shutdown.
    pub async fn run(mut self, client_factory: ClientFactory, reporter: Reporter, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.send_all(&client_factory, &reporter)).await;
    }

    async fn send_all(&mut self, client_factory: &ClientFactory, reporter: &Reporter) {
        let mut recorder: Option<Recorder> = None;
        let mut bucket = TokenBucket::new(Instant::now());
        while let Some(record) = self.receiver.recv().await {
            if !bucket.take(Instant::now()) {
                self.dropped.inc();
                continue;
            }
            if recorder.is_none() {
                recorder = client_factory()
                    .inspect_err(|error| debug!(error, "cannot create a client for events"))
                    .ok()
                    .map(|client| Recorder::new(client, reporter.clone()));
            }
            if send(recorder.as_ref(), record).await {
                self.sent.inc();
            } else {
                self.dropped.inc();
                // A new client reads the token again.
                recorder = None;
            }
        }
        // All recorders are gone, but a task must not end before shutdown.
        std::future::pending::<()>().await;
    }
}

/// Sends one event; returns whether the API server accepted it.
async fn send(recorder: Option<&Recorder>, record: EventRecord) -> bool {
    let Some(recorder) = recorder else { return false };
    let event = Event {
        type_: if record.warning { EventType::Warning } else { EventType::Normal },
        reason: record.reason.to_owned(),
        note: Some(truncate_note(record.note)),
        action: record.reason.to_owned(),
        secondary: None,
    };
    match timeout(SEND_TIMEOUT, recorder.publish(&event, &record.regarding)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            debug!(reason = record.reason, %error, "event rejected");
            false
        }
        Err(_) => false,
    }
}

fn truncate_note(mut note: String) -> String {
    if note.len() > MAX_NOTE {
        note.truncate(note.floor_char_boundary(MAX_NOTE - 3));
        note.push_str("...");
    }
    note
}

#[derive(Debug)]
struct TokenBucket {
    tokens: u32,
    filled: Instant,
}

impl TokenBucket {
    fn new(now: Instant) -> Self {
        Self { tokens: BURST, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.tokens < BURST && now.saturating_duration_since(self.filled) >= REFILL_INTERVAL {
            self.tokens += 1;
            self.filled += REFILL_INTERVAL;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_allows_a_burst_and_then_a_trickle() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(start);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), BURST as usize);
        assert!(bucket.take(start + REFILL_INTERVAL) && !bucket.take(start + REFILL_INTERVAL));
        assert_eq!((0..100).filter(|_| bucket.take(start + 1000 * REFILL_INTERVAL)).count(), BURST as usize);
    }

    #[test]
    fn full_queue_drops_and_counts() {
        let (recorder, _publisher) = channel(&mut Registry::default(), "weir");
        for _ in 0..2 * QUEUE_CAPACITY {
            let regarding = ObjectReference::default();
            recorder.record(EventRecord { regarding, warning: true, reason: "X", note: String::new() });
        }
        assert_eq!(recorder.dropped.get(), QUEUE_CAPACITY as u64);
    }

    #[test]
    fn notes_are_truncated_to_the_limit_of_the_api() {
        assert_eq!(truncate_note("é".repeat(2000)).len(), MAX_NOTE - 1);
        assert_eq!(truncate_note("short".to_owned()), "short");
    }
}
