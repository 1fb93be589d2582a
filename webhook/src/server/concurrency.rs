//! Limits the number of reviews that are decided at once, orders the others, and bounds their waiting.
//!
//! A rejection makes the API server apply the failure policy, or retry, so no request is rejected that can still be answered in time. The
//! API server states its timeout in the URL (`?timeout=5s`; `k8s.io/client-go`, `rest.Request.Timeout`). An answer after that is wasted
//! work, so a review that has waited for most of it is rejected with 429 and `Retry-After`, on which the API server's client retries within
//! its timeout (`k8s.io/client-go/rest`, `with_retry.go`), by then perhaps at another replica.
//!
//! Decisions run on threads of their own, so that probes are answered whatever a review costs. Large bodies leave at least one of these
//! threads to the others, and decide one after the other where together they would need more than [`DECISION_MEMORY`].

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use humantime::parse_duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::bodies::LARGE_BODY;

/// Seconds after which a client should retry.
pub const RETRY_AFTER: u32 = 1;
/// Memory for all large bodies that are decided at once, by [`JsonSize`](super::json_size::JsonSize). One that needs more is decided
/// alone among large ones.
pub const DECISION_MEMORY: usize = 96 << 20;
/// Unit of the permits for bytes.
const KIB: usize = 1 << 10;

/// Limits concurrent reviews.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    turns: Arc<Semaphore>,
    large_turns: Arc<Semaphore>,
    large_kib: Arc<Semaphore>,
    /// Longest budget of a request, and that of one without a timeout.
    max_budget: Duration,
}

/// The time that a request may take.
#[derive(Debug, Clone, Copy)]
pub struct RequestBudget {
    arrived: Instant,
    total: Duration,
}

/// Permission to decide a review, for as long as it exists.
#[derive(Debug)]
pub struct Turn {
    _turn: OwnedSemaphorePermit,
    _large: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl ConcurrencyLimit {
    /// Allows at most `reviews` at once, and no more than processors (at least two, so that a large review does not hold up the others).
    /// Each request gets at most `max_budget`.
    pub fn new(reviews: NonZeroUsize, max_budget: Duration) -> Self {
        let threads = available_parallelism().map_or(2, NonZeroUsize::get).max(2).min(reviews.get());
        Self {
            turns: Arc::new(Semaphore::new(threads)),
            large_turns: Arc::new(Semaphore::new((threads - 1).max(1))),
            large_kib: Arc::new(Semaphore::new(DECISION_MEMORY / KIB)),
            max_budget,
        }
    }

    /// Returns the budget of a request by its arrival and the query of its URL.
    pub fn budget(&self, arrived: Instant, query: Option<&str>) -> RequestBudget {
        let requested =
            query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("timeout="));
        let requested = requested.and_then(|text| parse_duration(text).ok()).filter(|timeout| !timeout.is_zero());
        RequestBudget { arrived, total: requested.map_or(self.max_budget, |timeout| timeout.min(self.max_budget)) }
    }

    /// Waits for the turn of a complete body of `bytes`, whose decision needs so much memory; `None` if it would come too late.
    pub async fn acquire(&self, budget: RequestBudget, bytes: usize, memory: usize) -> Option<Turn> {
        timeout(budget.max_queue_time(), self.turn(bytes, memory)).await.ok()?
    }

    /// Large bodies wait for each other first, so that they hold no turn meanwhile. Semaphores are never closed.
    async fn turn(&self, bytes: usize, memory: usize) -> Option<Turn> {
        let large = if bytes > LARGE_BODY {
            let kib = u32::try_from(memory.min(DECISION_MEMORY) / KIB).ok()?;
            let turn = Arc::clone(&self.large_turns).acquire_owned().await.ok()?;
            Some((turn, Arc::clone(&self.large_kib).acquire_many_owned(kib).await.ok()?))
        } else {
            None
        };
        Some(Turn { _turn: Arc::clone(&self.turns).acquire_owned().await.ok()?, _large: large })
    }
}

impl RequestBudget {
    /// Returns the time left for the request to arrive completely.
    pub fn remaining(self) -> Duration {
        self.total.saturating_sub(self.arrived.elapsed())
    }

    /// Returns the whole budget.
    pub fn total(self) -> Duration {
        self.total
    }

    /// Returns the time since the request arrived.
    pub fn elapsed(self) -> Duration {
        self.arrived.elapsed()
    }

    /// A quarter of the budget is for the decision, and for the network.
    fn max_queue_time(self) -> Duration {
        (self.total * 3 / 4).saturating_sub(self.arrived.elapsed())
    }

    /// Returns whether an answer would come too late.
    pub fn is_exhausted(self) -> bool {
        self.max_queue_time().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(slots: usize) -> ConcurrencyLimit {
        ConcurrencyLimit::new(NonZeroUsize::new(slots).unwrap(), Duration::from_secs(4))
    }

    #[test]
    fn timeout_of_the_client_is_bounded_by_the_flag() {
        let limit = limit(1);
        let now = Instant::now();
        for (query, seconds) in [
            (None, 4),
            (Some("timeout=2s"), 2),
            (Some("a=b&timeout=3s"), 3),
            (Some("timeout=1m30s"), 4),
            (Some("timeout=0s"), 4),
            (Some("timeout=soon"), 4),
        ] {
            assert_eq!(limit.budget(now, query).total, Duration::from_secs(seconds), "{query:?}");
        }
    }

    #[tokio::test]
    async fn exhausted_budget_gets_no_turn() {
        let limit = limit(1);
        let long_ago = Instant::now().checked_sub(Duration::from_millis(900)).unwrap();
        let first = limit.acquire(limit.budget(Instant::now(), None), 1, 1).await.unwrap();
        let exhausted = limit.budget(long_ago, Some("timeout=1s"));
        assert!(exhausted.is_exhausted() && limit.acquire(exhausted, 1, 1).await.is_none());
        let tight = limit.budget(Instant::now(), Some("timeout=40ms"));
        assert!(limit.acquire(tight, 1, 1).await.is_none(), "taken");
        drop(first);
        assert!(limit.acquire(limit.budget(Instant::now(), None), 1, 1).await.is_some());
    }

    #[tokio::test]
    async fn large_bodies_leave_a_turn_to_small_ones() {
        let limit = limit(2);
        let budget = || limit.budget(Instant::now(), Some("timeout=200ms"));
        let large = limit.acquire(budget(), 6 << 20, 1).await.unwrap();
        assert!(limit.acquire(budget(), LARGE_BODY + 1, 1).await.is_none(), "one large body at a time");
        assert!(limit.acquire(budget(), LARGE_BODY, 1).await.is_some());
        drop(large);
        assert!(limit.acquire(budget(), LARGE_BODY + 1, 1).await.is_some());
    }
}
