//! When a pod is inspected after a notification. Whoever has `NET_ADMIN` in a pod decides how many notifications there are, so that each pod
//! has a budget: the first inspections are immediate, further ones as fast as the budget is refilled.

use std::time::{Duration, Instant};

/// Inspections of a full budget.
const BURST: f64 = 20.0;
/// Time in which one inspection is added to the budget.
const REFILL: Duration = Duration::from_millis(500);
/// An inspection that takes longer counts several times: a pod with very many rules gets fewer of them.
const LONG: Duration = Duration::from_millis(100);
/// Pause before an inspection, so that changes that come together are inspected together.
const DEBOUNCE: Duration = Duration::from_millis(2);

/// Budget of one pod. Time is an input.
#[derive(Debug)]
pub(super) struct Pacing {
    budget: f64,
    updated: Instant,
    contended: bool,
}

impl Pacing {
    pub(super) fn new(now: Instant) -> Self {
        Self { budget: BURST, updated: now, contended: false }
    }

    /// Returns when the pod is to be inspected that was reported to have changed now.
    pub(super) fn next_inspection(&mut self, now: Instant) -> Instant {
        self.refill(now);
        now + REFILL.mul_f64((1.0 - self.budget).max(0.0)).max(DEBOUNCE)
    }

    /// Records an inspection. Returns whether contention begins with it: another writer keeps changing the namespace.
    pub(super) fn record_inspection(&mut self, begun: Instant, ended: Instant) -> bool {
        self.refill(ended);
        self.budget -= 1.0 + ended.saturating_duration_since(begun).as_secs_f64() / LONG.as_secs_f64();
        let begins = self.budget < 1.0 && !self.contended;
        self.contended |= begins;
        begins
    }

    /// Returns when contention ends, unless there are further inspections; `None` where there is none.
    pub(super) fn contention_end(&self) -> Option<Instant> {
        self.contended.then(|| self.updated + REFILL.mul_f64(BURST - self.budget))
    }

    /// Ends contention if the budget is full again. Returns whether it has ended.
    pub(super) fn end_contention(&mut self, now: Instant) -> bool {
        self.refill(now);
        let ends = self.contended && self.budget >= BURST;
        self.contended &= !ends;
        ends
    }

    fn refill(&mut self, now: Instant) {
        let added = now.saturating_duration_since(self.updated).as_secs_f64() / REFILL.as_secs_f64();
        self.budget = (self.budget + added).min(BURST);
        self.updated = self.updated.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// Inspects for a time as often as the budget allows, each inspection taking `length`. Returns their number.
    fn attack(pacing: &mut Pacing, start: Instant, time: Duration, length: Duration) -> (u32, u32) {
        let (mut now, mut inspections, mut contentions) = (start, 0, 0);
        loop {
            now = pacing.next_inspection(now);
            if now > start + time {
                return (inspections, contentions);
            }
            inspections += 1;
            contentions += u32::from(pacing.record_inspection(now, now + length));
            now += length;
        }
    }

    #[test]
    fn first_inspections_are_immediate() {
        let start = Instant::now();
        let mut pacing = Pacing::new(start);
        for number in 0..15 {
            let now = start + MILLI * 20 * number;
            assert_eq!(pacing.next_inspection(now), now + DEBOUNCE);
            assert!(!pacing.record_inspection(now, now + MILLI * 5));
        }
        assert_eq!(pacing.contention_end(), None);
    }

    #[test]
    fn an_attacker_gets_a_bounded_number_of_inspections() {
        let start = Instant::now();
        let minute = Duration::from_mins(1);
        let (inspections, contentions) = attack(&mut Pacing::new(start), start, minute, MILLI * 5);
        assert!((120..=141).contains(&inspections), "{inspections}");
        assert_eq!(contentions, 1, "reported once");
        // A pod with as many rules as are read.
        let (inspections, _) = attack(&mut Pacing::new(start), start, minute, MILLI * 3000);
        assert!(inspections <= 7, "{inspections}");
    }

    #[test]
    fn contention_ends_when_the_budget_is_full_again() {
        let start = Instant::now();
        let mut pacing = Pacing::new(start);
        attack(&mut pacing, start, Duration::from_secs(5), MILLI);
        let end = pacing.contention_end().unwrap();
        assert!(end > start + Duration::from_secs(10));
        assert!(!pacing.end_contention(start + Duration::from_secs(10)));
        assert!(pacing.end_contention(end + MILLI) && !pacing.end_contention(end + MILLI * 2));
        assert_eq!(pacing.contention_end(), None);
        assert_eq!(pacing.next_inspection(end + MILLI * 3), end + MILLI * 3 + DEBOUNCE);
    }
}
