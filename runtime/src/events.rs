//! Kubernetes events. Equal ones are counted as one series, and there is a bound on how many go out: whoever
//! reads them has to find the first ones, and the API server has other work.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
pub use kube::runtime::events::Reporter;
use kube::runtime::events::{Event, EventType, Recorder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use crate::connect::Connect;
use crate::stop::Stop;

/// Events that nobody has sent yet; what finds no room is dropped and counted.
const ROOM: usize = 128;
/// At once, and then one every [`REFILL`].
const BURST: u32 = 25;
/// See [`BURST`].
const REFILL: Duration = Duration::from_secs(2);
/// For one event.
const WAIT: Duration = Duration::from_secs(10);
/// Longest text (Kubernetes: `note` of an event has at most 1 KiB).
const MAX_NOTE: usize = 1024;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// What it is about.
    pub about: ObjectReference,
    /// `Warning` or `Normal`.
    pub warning: bool,
    /// A word for machines, in upper camel case.
    pub reason: &'static str,
    /// A sentence for people.
    pub note: String,
}

/// Where events go in.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::Sender<Told>,
    dropped: Counter,
}

/// Sends what goes in.
#[derive(Debug)]
pub struct Teller {
    receiver: mpsc::Receiver<Told>,
    sent: Counter,
    dropped: Counter,
}

/// Both ends, with the metrics `PREFIX_events_total` and `PREFIX_events_dropped_total`.
pub fn channel(registry: &mut Registry, prefix: &str) -> (Events, Teller) {
    let (sender, receiver) = mpsc::channel(ROOM);
    let (sent, dropped) = (Counter::default(), Counter::default());
    registry.register(format!("{prefix}_events"), "Kubernetes events sent", sent.clone());
    registry.register(
        format!("{prefix}_events_dropped"),
        "Kubernetes events not sent: too many, or refused",
        dropped.clone(),
    );
    (Events { sender, dropped: dropped.clone() }, Teller { receiver, sent, dropped })
}

impl Events {
    /// Hands an event on, never waiting.
    pub fn tell(&self, told: Told) {
        if self.sender.try_send(told).is_err() {
            self.dropped.inc();
        }
    }
}

impl Teller {
    /// Sends until told to stop, in the name of `reporter`.
    pub async fn run(mut self, connect: Connect, reporter: Reporter, stop: Stop) {
        tokio::select! {
            () = self.send_all(&connect, &reporter) => {}
            () = stop.requested() => {}
        }
    }

    async fn send_all(&mut self, connect: &Connect, reporter: &Reporter) {
        let mut recorder: Option<Recorder> = None;
        let mut bucket = Bucket::new(Instant::now());
        while let Some(told) = self.receiver.recv().await {
            if !bucket.take(Instant::now()) {
                self.dropped.inc();
                continue;
            }
            let event = Event {
                type_: if told.warning { EventType::Warning } else { EventType::Normal },
                reason: told.reason.to_owned(),
                note: Some(shorten(told.note)),
                action: told.reason.to_owned(),
                secondary: None,
            };
            let current = match &recorder {
                Some(recorder) => Some(recorder),
                None => match connect() {
                    Ok(client) => Some(&*recorder.insert(Recorder::new(client, reporter.clone()))),
                    Err(error) => {
                        debug!(error, "no client for events");
                        None
                    }
                },
            };
            let published = match current {
                Some(current) => timeout(WAIT, current.publish(&event, &told.about))
                    .await
                    .is_ok_and(|sent| sent.inspect_err(|error| debug!(%error, "an event was refused")).is_ok()),
                None => false,
            };
            if published {
                self.sent.inc();
            } else {
                self.dropped.inc();
                // With a new client the token is read anew.
                recorder = None;
            }
        }
        // Nobody is left who could tell anything; the part itself goes on until the end.
        std::future::pending::<()>().await;
    }
}

fn shorten(mut note: String) -> String {
    if note.len() > MAX_NOTE {
        note.truncate(note.floor_char_boundary(MAX_NOTE - 3));
        note.push_str("...");
    }
    note
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { tokens: BURST, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.tokens < BURST && now.saturating_duration_since(self.filled) >= REFILL {
            self.tokens += 1;
            self.filled += REFILL;
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
    fn lets_a_burst_through_and_then_a_trickle() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), BURST as usize);
        assert!(bucket.take(start + REFILL) && !bucket.take(start + REFILL));
        assert_eq!((0..100).filter(|_| bucket.take(start + 1000 * REFILL)).count(), BURST as usize);
    }

    #[test]
    fn never_waits_and_counts_what_it_drops() {
        let (events, _teller) = channel(&mut Registry::default(), "weir");
        for _ in 0..2 * ROOM {
            events.tell(Told { about: ObjectReference::default(), warning: true, reason: "X", note: String::new() });
        }
        assert_eq!(events.dropped.get(), ROOM as u64);
    }

    #[test]
    fn keeps_a_note_within_the_bound_of_the_api() {
        assert_eq!(shorten("é".repeat(2000)).len(), MAX_NOTE - 1);
        assert_eq!(shorten("short".to_owned()), "short");
    }
}
