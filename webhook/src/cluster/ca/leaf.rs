//! When a replica needs another leaf.

use std::time::{Duration, SystemTime};

use super::authority::{Ca, CaCert};
use crate::server::certs::Validity;

/// Of the life of a leaf, before it is renewed: two thirds. The jitter takes up to a tenth off, so that replicas that were started
/// together do not go on renewing together.
const RENEW: f64 = 2.0 / 3.0;
const JITTER: f64 = 0.1;

/// The leaf that is served, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Who has signed it.
    pub ca: CaCert,
    /// Its time.
    pub validity: Validity,
    /// When to make another one.
    pub renew_at: SystemTime,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafStep {
    /// The leaf that there is.
    Keep,
    /// Another one, signed by the current CA.
    Issue,
    /// The current CA is not valid by this clock: what there is has to do.
    Impossible(Why),
}

/// Why the current CA cannot sign now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its time has not come.
    NotYet,
    /// Its time is over.
    Expired,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotYet => "the CA is not valid yet by this clock",
            Self::Expired => "the CA has expired by this clock",
        })
    }
}

impl Leaf {
    /// What is known of a leaf that was made at `made`; `jitter` is between 0 and 1.
    pub fn new(ca: CaCert, validity: Validity, made: SystemTime, jitter: f64) -> Self {
        let life = validity.not_after.duration_since(made).unwrap_or_default();
        let renew_at = made + life.mul_f64(RENEW - JITTER * jitter.clamp(0.0, 1.0));
        Self { ca, validity, renew_at }
    }
}

/// Decides at `now`, by this replica's own clock, whatever that has done since the last time.
pub fn decide(leaf: Option<&Leaf>, current: &Ca, life: Duration, now: SystemTime) -> LeafStep {
    let ca = current.cert().validity();
    if now >= ca.not_after {
        return LeafStep::Impossible(Why::Expired);
    }
    if now < ca.not_before {
        return LeafStep::Impossible(Why::NotYet);
    }
    let Some(leaf) = leaf else { return LeafStep::Issue };
    let due = now >= leaf.renew_at && Validity::starting(now, life).within(ca).not_after > leaf.validity.not_after;
    if leaf.ca != *current.cert() || !leaf.validity.contains(now) || due { LeafStep::Issue } else { LeafStep::Keep }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn leaf(ca: &Ca, now: SystemTime) -> Leaf {
        let validity = Validity::starting(now, 24 * HOUR).within(ca.cert().validity());
        Leaf::new(ca.cert().clone(), validity, now, 0.0)
    }

    fn at(leaf: &Leaf, ca: &Ca, now: SystemTime) -> LeafStep {
        decide(Some(leaf), ca, 24 * HOUR, now)
    }

    #[test]
    fn renews_at_two_thirds_and_never_later() {
        let now = SystemTime::now();
        let ca = Ca::make(now, 1000 * HOUR).unwrap();
        let first = leaf(&ca, now);
        assert_eq!(decide(None, &ca, 24 * HOUR, now), LeafStep::Issue);
        assert_eq!(at(&first, &ca, now + 15 * HOUR), LeafStep::Keep);
        assert_eq!(at(&first, &ca, now + 16 * HOUR), LeafStep::Issue);
        let jittered = Leaf::new(ca.cert().clone(), first.validity, now, 1.0);
        assert!(jittered.renew_at < first.renew_at && jittered.renew_at > now + 13 * HOUR);
    }

    #[test]
    fn follows_clocks_that_jump_in_either_direction() {
        let now = SystemTime::now();
        let ca = Ca::make(now, 1000 * HOUR).unwrap();
        let first = leaf(&ca, now);
        assert_eq!(at(&first, &ca, now + 500 * HOUR), LeafStep::Issue);
        let later = leaf(&ca, now + 500 * HOUR);
        assert_eq!(at(&later, &ca, now), LeafStep::Issue, "one from the future is not valid");
        assert_eq!(at(&first, &ca, now - 2 * HOUR), LeafStep::Impossible(Why::NotYet));
        assert_eq!(at(&first, &ca, now + 1001 * HOUR), LeafStep::Impossible(Why::Expired));
    }

    #[test]
    fn follows_the_current_ca_at_once_but_not_into_the_future() {
        let now = SystemTime::now();
        let (old, new) = (Ca::make(now, 1000 * HOUR).unwrap(), Ca::make(now, 1000 * HOUR).unwrap());
        assert_eq!(at(&leaf(&old, now), &new, now), LeafStep::Issue);
        let future = Ca::make(now + 48 * HOUR, 1000 * HOUR).unwrap();
        assert_eq!(at(&leaf(&old, now), &future, now), LeafStep::Impossible(Why::NotYet));
    }

    #[test]
    fn does_not_renew_for_ever_at_the_end_of_a_ca() {
        let now = SystemTime::now();
        let ca = Ca::make(now, 10 * HOUR).unwrap();
        let last = leaf(&ca, now);
        assert_eq!(at(&last, &ca, now + 9 * HOUR), LeafStep::Keep, "another one would not last longer");
    }
}
