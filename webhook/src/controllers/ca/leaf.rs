//! When a replica needs another leaf, that is, a serving certificate.

use std::time::{Duration, SystemTime};

use super::authority::{Ca, CaCert};
use crate::certs::Validity;

/// Share of a leaf's lifetime after which it is renewed. Jitter takes off up to a tenth, so that replicas that were started together do
/// not renew together.
const RENEW_AFTER: f64 = 2.0 / 3.0;
const JITTER: f64 = 0.1;

/// The leaf that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its issuer.
    pub ca: CaCert,
    /// When it is valid.
    pub validity: Validity,
    /// When to renew it.
    pub renew_at: SystemTime,
}

/// Next step for the leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafAction {
    /// Serve the current one.
    Keep,
    /// Issue another one by the current CA.
    Issue,
    /// Serve the current one, because the current CA is not valid by this clock.
    Unavailable(CaNotValid),
}

/// Reason for which the current CA cannot sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaNotValid {
    /// It is not valid yet.
    NotYetValid,
    /// It has expired.
    Expired,
}

impl std::fmt::Display for CaNotValid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotYetValid => "CA is not valid yet by this node's clock",
            Self::Expired => "CA has expired by this node's clock",
        })
    }
}

impl Leaf {
    /// Describes a leaf issued at `issued`; `jitter` is between 0 and 1.
    pub fn new(ca: CaCert, validity: Validity, issued: SystemTime, jitter: f64) -> Self {
        let life = validity.not_after.duration_since(issued).unwrap_or_default();
        let renew_at = issued + life.mul_f64(RENEW_AFTER - JITTER * jitter.clamp(0.0, 1.0));
        Self { ca, validity, renew_at }
    }
}

/// Decides at `now`, by this replica's clock, which may have jumped since the last time.
pub fn decide(leaf: Option<&Leaf>, current: &Ca, life: Duration, now: SystemTime) -> LeafAction {
    let ca = current.cert().validity();
    if now >= ca.not_after {
        return LeafAction::Unavailable(CaNotValid::Expired);
    }
    if now < ca.not_before {
        return LeafAction::Unavailable(CaNotValid::NotYetValid);
    }
    let Some(leaf) = leaf else { return LeafAction::Issue };
    let due = now >= leaf.renew_at && Validity::starting(now, life).within(ca).not_after > leaf.validity.not_after;
    if leaf.ca != *current.cert() || !leaf.validity.contains(now) || due { LeafAction::Issue } else { LeafAction::Keep }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn leaf(ca: &Ca, now: SystemTime) -> Leaf {
        let validity = Validity::starting(now, 24 * HOUR).within(ca.cert().validity());
        Leaf::new(ca.cert().clone(), validity, now, 0.0)
    }

    fn at(leaf: &Leaf, ca: &Ca, now: SystemTime) -> LeafAction {
        decide(Some(leaf), ca, 24 * HOUR, now)
    }

    #[test]
    fn leaf_is_renewed_after_two_thirds() {
        let now = SystemTime::now();
        let ca = Ca::generate(now, 1000 * HOUR).unwrap();
        let first = leaf(&ca, now);
        assert_eq!(decide(None, &ca, 24 * HOUR, now), LeafAction::Issue);
        assert_eq!(at(&first, &ca, now + 15 * HOUR), LeafAction::Keep);
        assert_eq!(at(&first, &ca, now + 16 * HOUR), LeafAction::Issue);
        let jittered = Leaf::new(ca.cert().clone(), first.validity, now, 1.0);
        assert!(jittered.renew_at < first.renew_at && jittered.renew_at > now + 13 * HOUR);
    }

    #[test]
    fn clock_jumps_in_either_direction_are_followed() {
        let now = SystemTime::now();
        let ca = Ca::generate(now, 1000 * HOUR).unwrap();
        let first = leaf(&ca, now);
        assert_eq!(at(&first, &ca, now + 500 * HOUR), LeafAction::Issue);
        let later = leaf(&ca, now + 500 * HOUR);
        assert_eq!(at(&later, &ca, now), LeafAction::Issue, "a leaf from the future is not valid");
        assert_eq!(at(&first, &ca, now - 2 * HOUR), LeafAction::Unavailable(CaNotValid::NotYetValid));
        assert_eq!(at(&first, &ca, now + 1001 * HOUR), LeafAction::Unavailable(CaNotValid::Expired));
    }

    #[test]
    fn new_ca_is_used_at_once_if_it_is_valid() {
        let now = SystemTime::now();
        let (old, new) = (Ca::generate(now, 1000 * HOUR).unwrap(), Ca::generate(now, 1000 * HOUR).unwrap());
        assert_eq!(at(&leaf(&old, now), &new, now), LeafAction::Issue);
        let future = Ca::generate(now + 48 * HOUR, 1000 * HOUR).unwrap();
        assert_eq!(at(&leaf(&old, now), &future, now), LeafAction::Unavailable(CaNotValid::NotYetValid));
    }

    #[test]
    fn leaf_is_kept_at_the_end_of_the_ca() {
        let now = SystemTime::now();
        let ca = Ca::generate(now, 10 * HOUR).unwrap();
        let last = leaf(&ca, now);
        assert_eq!(at(&last, &ca, now + 9 * HOUR), LeafAction::Keep, "another one would not be valid for longer");
    }
}
