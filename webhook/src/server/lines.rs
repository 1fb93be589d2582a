//! How many lines of the log a second of reviews may make.
//!
//! Ten thousand pods at once are ten thousand lines, which cost more than the injections and hide what went wrong. Denials and failures
//! have a bound of their own, so that no crowd of injections pushes one of them out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::info;

/// One bound for each kind of line.
#[derive(Debug)]
pub struct Lines {
    /// Lines of each kind in one second; 0 is no limit.
    most: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Start of the second.
    since: Instant,
    /// Lines of this second: what went as it should, what did not.
    written: [u32; 2],
    /// Lines left out that nobody has told yet.
    left_out: u64,
}

impl Lines {
    /// With so many lines of each kind in one second; 0 is no limit.
    pub fn new(most: u32) -> Self {
        Self { most, state: Mutex::new(State { since: Instant::now(), written: [0; 2], left_out: 0 }) }
    }

    /// Whether there is room for a line; told in the log where lines were left out before.
    pub fn admit(&self, failure: bool) -> bool {
        let (admitted, left_out) = self.admit_at(failure, Instant::now());
        tell(left_out);
        admitted
    }

    /// Tells what was left out, where the next line may be long in coming.
    pub fn report(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = std::mem::take(&mut state.left_out);
        drop(state);
        tell(left_out);
    }

    /// Whether there is room, and how many were left out in seconds before.
    fn admit_at(&self, failure: bool, now: Instant) -> (bool, u64) {
        if self.most == 0 {
            return (true, 0);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if now.saturating_duration_since(state.since) >= Duration::from_secs(1) {
            left_out = std::mem::take(&mut state.left_out);
            (state.since, state.written) = (now, [0; 2]);
        }
        let written = &mut state.written[usize::from(failure)];
        let admitted = *written < self.most;
        if admitted {
            *written += 1;
        } else {
            state.left_out += 1;
        }
        (admitted, left_out)
    }
}

fn tell(left_out: u64) {
    if left_out > 0 {
        info!(left_out, "lines about reviews were left out, see --log-max-per-second");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_injections_pushes_no_denial_out_and_what_is_left_out_is_counted() {
        let lines = Lines::new(2);
        let start = Instant::now();
        let routine: Vec<bool> = (0..5).map(|_| lines.admit_at(false, start).0).collect();
        assert_eq!(routine, [true, true, false, false, false]);
        assert_eq!(lines.admit_at(true, start), (true, 0));
        assert_eq!(lines.admit_at(false, start + Duration::from_secs(1)), (true, 3));
        assert_eq!(lines.admit_at(false, start + Duration::from_secs(3)), (true, 0));
    }

    #[test]
    fn zero_is_no_limit() {
        let lines = Lines::new(0);
        assert!((0..1000).all(|_| lines.admit_at(false, Instant::now()) == (true, 0)));
    }
}
