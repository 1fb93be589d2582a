//! How many reviews run at once, and how long the others may wait.
//!
//! A rejection makes the API server apply the failure policy, or retry, so no request is rejected that can still be answered in time. The
//! API server states its timeout in the URL (`?timeout=5s`; `k8s.io/client-go`, `rest.Request.Timeout`). An answer after that is wasted
//! work, so a review that has waited for most of it is rejected with 429 and `Retry-After`, on which the API server's client retries within
//! its timeout (`k8s.io/client-go/rest`, `with_retry.go`), by then perhaps at another replica.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use humantime::parse_duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Seconds after which a client should retry.
pub const RETRY_AFTER: u32 = 1;

/// Limits concurrent reviews.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    slots: Semaphore,
    /// Longest budget of a request, and that of one without a timeout.
    max_budget: Duration,
}

/// The time that a request may take.
#[derive(Debug, Clone, Copy)]
pub struct RequestBudget {
    arrived: Instant,
    total: Duration,
}

impl ConcurrencyLimit {
    /// Allows `slots` reviews at once, and `max_budget` for each request.
    pub fn new(slots: NonZeroUsize, max_budget: Duration) -> Self {
        Self { slots: Semaphore::new(slots.get().min(Semaphore::MAX_PERMITS)), max_budget }
    }

    /// Returns the budget of a request by its arrival and the query of its URL.
    pub fn budget(&self, arrived: Instant, query: Option<&str>) -> RequestBudget {
        let requested =
            query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("timeout="));
        let requested = requested.and_then(|text| parse_duration(text).ok()).filter(|timeout| !timeout.is_zero());
        RequestBudget { arrived, total: requested.map_or(self.max_budget, |timeout| timeout.min(self.max_budget)) }
    }

    /// Waits for a slot; `None` if it would come too late.
    pub async fn acquire(&self, budget: RequestBudget) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        timeout(budget.max_queue_time(), self.slots.acquire()).await.ok()?.ok()
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

    /// Whether an answer would come too late.
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
    async fn exhausted_budget_gets_no_slot() {
        let limit = limit(1);
        let long_ago = Instant::now().checked_sub(Duration::from_millis(900)).unwrap();
        let first = limit.acquire(limit.budget(Instant::now(), None)).await.unwrap();
        let exhausted = limit.budget(long_ago, Some("timeout=1s"));
        assert!(exhausted.is_exhausted() && limit.acquire(exhausted).await.is_none());
        drop(first);
        assert!(limit.acquire(limit.budget(Instant::now(), None)).await.is_some());
    }
}
