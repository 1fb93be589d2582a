//! How many reviews are worked on at once, and how long the others may wait.
//!
//! A refusal makes the API server apply the failure policy, or ask again, so nobody is refused who can still be answered in time. The
//! API server says in the URL how long it waits (`?timeout=5s`; `k8s.io/client-go`, `rest.Request.Timeout`). An answer after that is
//! work for nobody, so a review that has waited for most of it is refused: with 429 and `Retry-After`, on which the API server's client
//! asks again by itself within its time (`k8s.io/client-go/rest`, `with_retry.go`), by then perhaps another replica.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use weir_runtime::duration;

/// Seconds after which a client should ask again.
pub const RETRY_AFTER: u32 = 1;

/// Bounds the work at once.
#[derive(Debug)]
pub struct Gate {
    slots: Semaphore,
    /// Bound of a request that does not say how long its client waits.
    longest: Duration,
}

/// When a request came, noted before it waits for anything.
#[derive(Debug, Clone, Copy)]
pub struct Arrived(pub Instant);

/// The time that a request has.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    arrived: Instant,
    budget: Duration,
}

impl Gate {
    /// So many at once, and so long for a request.
    pub fn new(slots: NonZeroUsize, longest: Duration) -> Self {
        Self { slots: Semaphore::new(slots.get().min(Semaphore::MAX_PERMITS)), longest }
    }

    /// The time of a request that came then, with this query in its URL.
    pub fn time(&self, arrived: Instant, query: Option<&str>) -> Time {
        let told = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("timeout="));
        let told = told.and_then(|text| duration(text).ok()).filter(|told| !told.is_zero());
        Time { arrived, budget: told.map_or(self.longest, |told| told.min(self.longest)) }
    }

    /// Waits for a turn; `None` where it would come too late.
    pub async fn enter(&self, time: Time) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        timeout(time.may_wait(), self.slots.acquire()).await.ok()?.ok()
    }
}

impl Time {
    /// Until when the request must be there as a whole.
    pub fn left(self) -> Duration {
        self.budget.saturating_sub(self.arrived.elapsed())
    }

    /// All of it.
    pub fn budget(self) -> Duration {
        self.budget
    }

    /// How long the request has been waiting.
    pub fn waited(self) -> Duration {
        self.arrived.elapsed()
    }

    /// A quarter of the time is for the answer, and for the way there and back.
    fn may_wait(self) -> Duration {
        (self.budget * 3 / 4).saturating_sub(self.arrived.elapsed())
    }

    /// An answer would come too late.
    pub fn is_too_late(self) -> bool {
        self.may_wait().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(slots: usize) -> Gate {
        Gate::new(NonZeroUsize::new(slots).unwrap(), Duration::from_secs(4))
    }

    #[test]
    fn a_client_says_how_long_it_waits_and_the_flag_is_the_bound() {
        let gate = gate(1);
        let now = Instant::now();
        for (query, seconds) in [
            (None, 4),
            (Some("timeout=2s"), 2),
            (Some("a=b&timeout=3s"), 3),
            (Some("timeout=30s"), 4),
            (Some("timeout=0s"), 4),
            (Some("timeout=soon"), 4),
        ] {
            assert_eq!(gate.time(now, query).budget, Duration::from_secs(seconds), "{query:?}");
        }
    }

    #[tokio::test]
    async fn who_has_waited_for_most_of_his_time_is_refused_and_others_get_their_turn() {
        let gate = gate(1);
        let long_ago = Instant::now().checked_sub(Duration::from_millis(900)).unwrap();
        let first = gate.enter(gate.time(Instant::now(), None)).await.unwrap();
        assert!(gate.time(long_ago, Some("timeout=1s")).is_too_late());
        assert!(gate.enter(gate.time(long_ago, Some("timeout=1s"))).await.is_none());
        drop(first);
        assert!(gate.enter(gate.time(Instant::now(), None)).await.is_some());
    }
}
