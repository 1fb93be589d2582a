//! Limits how many pods are deleted or labeled within a window: a circuit breaker. When all pods of an owner are broken, the cause is not the
//! pod, and deleting them all would be an outage.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Limits of the fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepairLimits {
    /// Most actions on pods of one owner within the window.
    pub per_owner: usize,
    /// Most actions on pods of this node within the window.
    pub per_node: usize,
    /// Length of the window.
    pub window: Duration,
}

/// The limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExhaustedBudget {
    /// That of the owner.
    Owner,
    /// That of the node.
    Node,
}

/// Actions within the window.
#[derive(Debug)]
pub struct Budget {
    limits: RepairLimits,
    spent: VecDeque<(Instant, String)>,
}

impl Budget {
    /// Creates a budget without actions.
    pub fn new(limits: RepairLimits) -> Self {
        Self { limits, spent: VecDeque::new() }
    }

    /// Records an action on a pod of an owner, unless a limit is reached.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn spend(&mut self, owner: &str, now: Instant) -> Result<(), ExhaustedBudget> {
        while self.spent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= self.limits.window) {
            self.spent.pop_front();
        }
        if self.spent.iter().filter(|(_, of)| of == owner).count() >= self.limits.per_owner {
            return Err(ExhaustedBudget::Owner);
        }
        if self.spent.len() >= self.limits.per_node {
            return Err(ExhaustedBudget::Node);
        }
        self.spent.push_back((now, owner.to_owned()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_per_owner_per_node_and_per_window() {
        let limits = RepairLimits { per_owner: 2, per_node: 3, window: Duration::from_mins(10) };
        let mut budget = Budget::new(limits);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(budget.spend("a", at(0)), Ok(()));
        assert_eq!(budget.spend("a", at(100)), Ok(()));
        for number in 0..200 {
            assert_eq!(budget.spend("a", at(100 + number)), Err(ExhaustedBudget::Owner));
        }
        assert_eq!(budget.spend("b", at(300)), Ok(()));
        assert_eq!(budget.spend("c", at(301)), Err(ExhaustedBudget::Node));
        assert_eq!(budget.spend("a", at(600)), Ok(()), "the first is forgotten");
        assert_eq!(budget.spend("a", at(601)), Err(ExhaustedBudget::Owner));
    }
}
