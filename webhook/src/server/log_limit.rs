//! Limits the number of reviews that are logged per second.
//!
//! Ten thousand pods at once are ten thousand lines, which cost more than the injections and hide failures. Denials and failures have a
//! limit of their own, so that no number of injections suppresses one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::info;

/// Limits lines about successful reviews, and lines about denials and failures.
#[derive(Debug)]
pub struct LogLimiter {
    /// Lines of each kind per second; 0 disables the limit.
    per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Start of the current second.
    since: Instant,
    /// Lines of the current second: successes, failures.
    written: [u32; 2],
    /// Suppressed lines that are not reported yet.
    suppressed: u64,
}

impl LogLimiter {
    /// Allows so many lines of each kind per second; 0 disables the limit.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::new(State { since: Instant::now(), written: [0; 2], suppressed: 0 }) }
    }

    /// Returns whether a line may be written; also reports the lines suppressed before it.
    pub fn allow(&self, failure: bool) -> bool {
        let (allowed, suppressed) = self.allow_at(failure, Instant::now());
        log_suppressed(suppressed);
        allowed
    }

    /// Reports suppressed lines, because the next line may come late.
    pub fn flush(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let suppressed = std::mem::take(&mut state.suppressed);
        drop(state);
        log_suppressed(suppressed);
    }

    /// Returns whether a line may be written, and how many were suppressed in earlier seconds.
    fn allow_at(&self, failure: bool, now: Instant) -> (bool, u64) {
        if self.per_second == 0 {
            return (true, 0);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut suppressed = 0;
        if now.saturating_duration_since(state.since) >= Duration::from_secs(1) {
            suppressed = std::mem::take(&mut state.suppressed);
            (state.since, state.written) = (now, [0; 2]);
        }
        let written = &mut state.written[usize::from(failure)];
        let allowed = *written < self.per_second;
        if allowed {
            *written += 1;
        } else {
            state.suppressed += 1;
        }
        (allowed, suppressed)
    }
}

fn log_suppressed(suppressed: u64) {
    if suppressed > 0 {
        info!(suppressed, "suppressed review log lines; raise --log-max-per-second to see all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn injections_suppress_no_denial() {
        let limiter = LogLimiter::new(2);
        let start = Instant::now();
        let injections: Vec<bool> = (0..5).map(|_| limiter.allow_at(false, start).0).collect();
        assert_eq!(injections, [true, true, false, false, false]);
        assert_eq!(limiter.allow_at(true, start), (true, 0));
        assert_eq!(limiter.allow_at(false, start + Duration::from_secs(1)), (true, 3));
        assert_eq!(limiter.allow_at(false, start + Duration::from_secs(3)), (true, 0));
    }

    #[test]
    fn zero_disables_the_limit() {
        let limiter = LogLimiter::new(0);
        assert!((0..1000).all(|_| limiter.allow_at(false, Instant::now()) == (true, 0)));
    }
}
