//! A brake for the case that somebody else keeps undoing our work: the first repairs are immediate, those of a war get rarer and rarer.

use std::time::{Duration, Instant};

/// Repairs in a row that are immediate. A network's installer may well write its file several times while it starts.
const FREE: u32 = 5;
/// Wait after the first repair that is not free; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// So long after the last repair a war is over.
const QUIET: Duration = Duration::from_mins(2);

/// Counts repairs in a row.
#[derive(Debug, Default)]
pub struct Damper {
    streak: u32,
    last: Option<Instant>,
}

impl Damper {
    /// Something had to be put back. Returns whether that makes it a war that was none before.
    pub fn repaired(&mut self, now: Instant) -> bool {
        self.settle(now);
        self.streak = self.streak.saturating_add(1);
        self.last = Some(now);
        self.streak == FREE + 1
    }

    /// Lets old repairs be forgotten. Returns whether that ends a war.
    pub fn settle(&mut self, now: Instant) -> bool {
        let over = self.last.is_some_and(|last| now.saturating_duration_since(last) >= QUIET);
        let war = over && self.is_war();
        if over {
            *self = Self::default();
        }
        war
    }

    /// Whether somebody fights.
    pub fn is_war(&self) -> bool {
        self.streak > FREE
    }

    /// How long the next repair has to wait.
    pub fn wait(&self, now: Instant) -> Duration {
        let Some(last) = self.last.filter(|_| self.is_war()) else { return Duration::ZERO };
        let doubled = 1_u32.checked_shl(self.streak - FREE - 1).unwrap_or(u32::MAX);
        let wait = FIRST_WAIT.saturating_mul(doubled).min(MAX_WAIT);
        wait.saturating_sub(now.saturating_duration_since(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_repairs_are_immediate() {
        let mut damper = Damper::default();
        let now = Instant::now();
        for _ in 0..FREE {
            assert!(!damper.repaired(now));
            assert_eq!(damper.wait(now), Duration::ZERO);
        }
        assert!(damper.repaired(now), "this one makes it a war");
        assert!(!damper.repaired(now), "which it is already");
    }

    #[test]
    fn a_rewriter_at_ten_hertz_gets_a_bounded_number_of_answers() {
        let mut damper = Damper::default();
        let start = Instant::now();
        let mut writes = 0_u32;
        for tick in 0..36_000_u32 {
            let now = start + Duration::from_millis(100) * tick;
            if damper.wait(now).is_zero() {
                damper.repaired(now);
                writes += 1;
            }
        }
        // An hour: the free ones, 1 + 2 + 4 + 8 + 16 s, then one in 30 s.
        assert!((120..=131).contains(&writes), "{writes}");
    }

    #[test]
    fn a_war_is_over_when_nobody_has_fought_for_a_while() {
        let mut damper = Damper::default();
        let now = Instant::now();
        for _ in 0..50 {
            damper.repaired(now);
        }
        assert_eq!(damper.wait(now), MAX_WAIT);
        assert!(!damper.settle(now + QUIET / 2));
        assert!(damper.settle(now + QUIET), "the end is told");
        assert!(!damper.settle(now + QUIET), "once");
        assert!(!damper.is_war());
    }
}
