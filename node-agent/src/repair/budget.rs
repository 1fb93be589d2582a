//! How many pods may be deleted or labelled in a while: a circuit breaker. Where every pod of an owner is broken, what is broken is not the
//! pod, and deleting all of them makes an outage of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Actions on pods of one owner within the window.
    pub per_owner: usize,
    /// Actions on pods of this node within the window.
    pub per_node: usize,
    /// The window.
    pub window: Duration,
}

/// What is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The owner's part.
    Owner,
    /// The node's.
    Node,
}

/// What was done lately.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    spent: VecDeque<(Instant, String)>,
}

impl Budget {
    /// With nothing spent.
    pub fn new(limits: Limits) -> Self {
        Self { limits, spent: VecDeque::new() }
    }

    /// Takes one action on a pod of that owner, if there is one left.
    ///
    /// # Errors
    /// What is used up.
    pub fn spend(&mut self, owner: &str, now: Instant) -> Result<(), Exhausted> {
        while self.spent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= self.limits.window) {
            self.spent.pop_front();
        }
        if self.spent.iter().filter(|(_, of)| of == owner).count() >= self.limits.per_owner {
            return Err(Exhausted::Owner);
        }
        if self.spent.len() >= self.limits.per_node {
            return Err(Exhausted::Node);
        }
        self.spent.push_back((now, owner.to_owned()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_for_an_owner_before_it_opens_for_the_node_and_closes_with_time() {
        let limits = Limits { per_owner: 2, per_node: 3, window: Duration::from_mins(10) };
        let mut budget = Budget::new(limits);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(budget.spend("a", at(0)), Ok(()));
        assert_eq!(budget.spend("a", at(100)), Ok(()));
        for number in 0..200 {
            assert_eq!(budget.spend("a", at(100 + number)), Err(Exhausted::Owner));
        }
        assert_eq!(budget.spend("b", at(300)), Ok(()));
        assert_eq!(budget.spend("c", at(301)), Err(Exhausted::Node));
        assert_eq!(budget.spend("a", at(600)), Ok(()), "the first is forgotten");
        assert_eq!(budget.spend("a", at(601)), Err(Exhausted::Owner));
    }
}
