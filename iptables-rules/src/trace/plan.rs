//! Chains of a planned rule set, as iptables would have them.

use std::net::IpAddr;

use super::chains::{Base, Chains, Effect, Rule};
use super::packet::Hook;
use super::predicate::Predicate;
use crate::RuleSet;
use crate::names::chain;
use crate::restore;
use crate::ruleset::{Action, Families, Table};

impl Chains {
    /// Converts a rule set to the chains of the family of the address `packet`.
    pub fn from_rule_set(rules: &RuleSet, packet: IpAddr) -> Self {
        let mut chains = Self { local_delivery: rules.routing.local_delivery, ..Self::default() };
        if packet.is_ipv6() && rules.families == Families::V4 {
            chains.local_delivery = None;
            return chains;
        }
        for table in Table::ALL {
            for rule in rules.rules.iter().filter(|rule| rule.table == table && rule.family.applies_to(packet)) {
                chains.chain_index(table.name(), rule.chain);
                if let Action::Jump(target) = rule.action {
                    chains.chain_index(table.name(), target);
                }
            }
        }
        for index in 0..chains.chains.len() {
            let Some(chain) = chains.chains.get(index) else { continue };
            let Some(table) = Table::ALL.into_iter().find(|table| table.name() == chain.table) else { continue };
            let ordered = rules.chain_rules(table, &chain.name, packet);
            let ordered: Vec<Rule> = ordered
                .into_iter()
                .map(|rule| Rule {
                    conditions: rule.matches.iter().cloned().map(Predicate::Planned).collect(),
                    effects: effects(rule.action),
                    text: restore::rule_spec(rule),
                    reason: Some(rule.reason),
                })
                .collect();
            let hook = hook(&chain.name);
            if let Some(chain) = chains.chains.get_mut(index) {
                chain.rules = ordered;
            }
            if let Some(hook) = hook {
                chains.add_base(Base { hook, priority: priority(table), nat: table == Table::Nat, chain: index });
            }
        }
        chains
    }
}

/// Returns the hook of a built-in chain.
pub(super) fn hook(chain: &str) -> Option<Hook> {
    match chain {
        chain::PREROUTING => Some(Hook::Prerouting),
        chain::BUILTIN_OUTPUT => Some(Hook::Output),
        _ => None,
    }
}

/// `NF_IP_PRI_*`, linux/netfilter_ipv4.h.
pub(super) const fn priority(table: Table) -> i32 {
    match table {
        Table::Raw => -300,
        Table::Mangle => -150,
        Table::Nat => -100,
    }
}

pub(super) fn effects(action: Action) -> Vec<Effect> {
    vec![match action {
        Action::Jump(chain) => Effect::Jump(chain.to_owned()),
        Action::Return => Effect::Return,
        Action::Accept => Effect::Accept,
        Action::Drop => Effect::Drop,
        Action::Redirect(port) => Effect::Redirect(port),
        Action::Tproxy { port, mark } => return vec![Effect::SetMark(mark), Effect::Tproxy(port), Effect::Accept],
        Action::SetMark(mark) => Effect::SetMark(mark),
        Action::SaveMark => Effect::SaveMark,
        Action::RestoreMark => Effect::RestoreMark,
        Action::Zone(zone) => Effect::Zone(zone),
    }]
}
