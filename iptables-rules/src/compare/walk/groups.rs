//! Groups of neighbouring rules that are evaluated as one, so that a list of thousands of networks is one condition.

use super::Walk;
use crate::trace::{Chain, Effect, MAX_JUMP_DEPTH, Predicate, Rule};

impl<'a> Walk<'a, '_> {
    /// Returns the number of rules at the start that have the same effects, so that it does not matter which of them a packet matches.
    pub(super) fn group_length(&mut self, chain: &'a Chain, rules: &'a [Rule]) -> usize {
        let Some((first, rest)) = rules.split_first() else { return 0 };
        let is_safe = match first.effects.as_slice() {
            [Effect::Return | Effect::Accept | Effect::Drop | Effect::Redirect(_)] => true,
            [Effect::Jump(name) | Effect::Goto(name)] => {
                let target = self.targets.get(&(chain.table.as_str(), name.as_str())).copied();
                target.is_none_or(|target| self.keeps_packets(target, 0))
            }
            _ => false,
        };
        let same = |rule: &&Rule| rule.effects == first.effects && !is_unknown(rule);
        if is_safe && !is_unknown(first) { 1 + rest.iter().take_while(same).count() } else { 1 }
    }

    /// Returns whether packets that return from a chain are unchanged, so that a second visit has no effect.
    fn keeps_packets(&mut self, index: usize, depth: usize) -> bool {
        if let Some(known) = self.keeps.get(&index) {
            return *known;
        }
        let chains = self.chains;
        let Some(chain) = chains.chains.get(index).filter(|_| depth < MAX_JUMP_DEPTH) else { return false };
        // Loops are not kept.
        self.keeps.insert(index, false);
        let keeps = chain.rules.iter().all(|rule| match rule.effects.as_slice() {
            [Effect::Jump(name) | Effect::Goto(name)] => {
                let target = self.targets.get(&(chain.table.as_str(), name.as_str())).copied();
                target.is_none_or(|target| self.keeps_packets(target, depth + 1))
            }
            [Effect::Return | Effect::Unknown(_)] | [] => true,
            [.., last] => matches!(last, Effect::Accept | Effect::Drop | Effect::Redirect(_)),
        });
        self.keeps.insert(index, keeps);
        keeps
    }
}

fn is_unknown(rule: &Rule) -> bool {
    rule.conditions.iter().any(|condition| {
        let mut condition = condition;
        while let Predicate::Not(inner) = condition {
            condition = inner;
        }
        matches!(condition, Predicate::Unknown(_))
    })
}
