//! Backoff against another writer that keeps reverting our changes.

use std::time::{Duration, Instant};

/// Consecutive repairs without delay. A network's installer may write its file several times while it starts.
const FREE_REPAIRS: u32 = 5;
/// Delay after the first repair that is not free; doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(30);
/// Time without a repair after which contention is over.
const QUIET_PERIOD: Duration = Duration::from_mins(2);

/// Delays repairs once they follow each other too often.
#[derive(Debug, Default)]
pub struct ContentionBackoff {
    consecutive: u32,
    last: Option<Instant>,
}

impl ContentionBackoff {
    /// Records a repair. Returns whether contention begins with it.
    pub fn record_repair(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.consecutive = self.consecutive.saturating_add(1);
        self.last = Some(now);
        self.consecutive == FREE_REPAIRS + 1
    }

    /// Forgets repairs after a quiet period. Returns whether that ends contention.
    pub fn expire(&mut self, now: Instant) -> bool {
        let quiet = self.last.is_some_and(|last| now.saturating_duration_since(last) >= QUIET_PERIOD);
        let ended = quiet && self.is_contended();
        if quiet {
            *self = Self::default();
        }
        ended
    }

    /// Returns whether another writer keeps reverting our changes.
    pub fn is_contended(&self) -> bool {
        self.consecutive > FREE_REPAIRS
    }

    /// Returns how long the next repair has to wait.
    pub fn delay(&self, now: Instant) -> Duration {
        let Some(last) = self.last.filter(|_| self.is_contended()) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(self.consecutive - FREE_REPAIRS - 1).unwrap_or(u32::MAX);
        let delay = FIRST_DELAY.saturating_mul(factor).min(MAX_DELAY);
        delay.saturating_sub(now.saturating_duration_since(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_repairs_are_immediate() {
        let mut backoff = ContentionBackoff::default();
        let now = Instant::now();
        for _ in 0..FREE_REPAIRS {
            assert!(!backoff.record_repair(now));
            assert_eq!(backoff.delay(now), Duration::ZERO);
        }
        assert!(backoff.record_repair(now), "contention begins");
        assert!(!backoff.record_repair(now), "and goes on");
    }

    #[test]
    fn ten_overwrites_per_second_get_a_bounded_number_of_repairs() {
        let mut backoff = ContentionBackoff::default();
        let start = Instant::now();
        let mut writes = 0_u32;
        for tick in 0..36_000_u32 {
            let now = start + Duration::from_millis(100) * tick;
            if backoff.delay(now).is_zero() {
                backoff.record_repair(now);
                writes += 1;
            }
        }
        // An hour: the free ones, 1 + 2 + 4 + 8 + 16 s, then one in 30 s.
        assert!((120..=131).contains(&writes), "{writes}");
    }

    #[test]
    fn contention_ends_once_after_a_quiet_period() {
        let mut backoff = ContentionBackoff::default();
        let now = Instant::now();
        for _ in 0..50 {
            backoff.record_repair(now);
        }
        assert_eq!(backoff.delay(now), MAX_DELAY);
        assert!(!backoff.expire(now + QUIET_PERIOD / 2));
        assert!(backoff.expire(now + QUIET_PERIOD) && !backoff.expire(now + QUIET_PERIOD));
        assert!(!backoff.is_contended());
    }
}
