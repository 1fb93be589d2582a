//! Infers why a rule exists from its chain and its shape, as the kernel does not store reasons.
//!
//! Chains of the mesh have fixed names and rules of few shapes, so this works for rules of Istio's own programs, too. Two shapes are
//! ambiguous: a group that is not captured looks like a group of the proxy, and an excluded interface like one that is rerouted without
//! captured destinations. There the other rules of the chain decide, or else the more frequent meaning.

use std::collections::HashSet;

use super::chains::{Chain, Chains, Effect, Rule};
use super::plan::hook;
use super::predicate::Predicate;
use crate::names::{LOOPBACK_INTERFACE, chain};
use crate::ruleset::{Match, RuleReason, Table};

impl Chains {
    /// Sets the reasons of rules in chains of the mesh, and of rules that jump to them.
    #[must_use]
    pub fn infer_reasons(mut self) -> Self {
        for chain in &mut self.chains {
            let (table, name) = table_and_chain(chain);
            let facts = ChainFacts::of(&chain.rules);
            let reasons: Vec<_> =
                chain.rules.iter().enumerate().map(|(at, rule)| reason(table, name, &facts, (at, rule))).collect();
            for (rule, reason) in chain.rules.iter_mut().zip(reasons) {
                rule.reason = reason;
            }
        }
        self
    }
}

/// Returns table and name of a chain as in iptables; in nf_tables the name of the chain contains both.
fn table_and_chain(chain: &Chain) -> (Table, &'static str) {
    let known = |name: &str| {
        let all = [chain::PREROUTING, chain::BUILTIN_OUTPUT].into_iter().chain(chain::ALL);
        all.into_iter().find(|known| *known == name || (hook(known).is_some() && known.to_ascii_lowercase() == name))
    };
    for table in Table::ALL {
        if chain.table == table.name() {
            return (table, known(&chain.name).unwrap_or_default());
        }
        if let Some(name) = chain.name.strip_prefix(table.name()).and_then(|rest| rest.strip_prefix('-')) {
            return (table, known(name).unwrap_or_default());
        }
    }
    (Table::Nat, known(&chain.name).unwrap_or_default())
}

/// Conditions and action of a rule.
struct RuleShape<'a> {
    rule: &'a Rule,
    /// Chain of the mesh that the rule jumps to.
    target: Option<&'static str>,
}

impl<'a> RuleShape<'a> {
    fn of(rule: &'a Rule) -> Self {
        let target = rule.effects.iter().find_map(|effect| match effect {
            Effect::Jump(name) => chain::ALL.into_iter().find(|known| name.rsplit('-').next() == Some(*known)),
            _ => None,
        });
        Self { rule, target }
    }

    fn returns(&self) -> bool {
        self.rule.effects == [Effect::Return]
    }

    /// Returns the conditions, each with whether it is inverted.
    fn conditions(&self) -> impl Iterator<Item = (&'a Match, bool)> {
        self.rule.conditions.iter().filter_map(|condition| match condition {
            Predicate::Planned(
                planned @ (Match::Uid { negated, .. } | Match::Gid { negated, .. } | Match::Source { negated, .. }),
            ) => Some((planned, *negated)),
            Predicate::Planned(planned) => Some((planned, false)),
            Predicate::Not(inner) => match &**inner {
                Predicate::Planned(planned) => Some((planned, true)),
                _ => None,
            },
            _ => None,
        })
    }

    fn has(&self, wanted: fn(&Match) -> bool) -> bool {
        self.conditions().any(|(condition, _)| wanted(condition))
    }

    fn matches_ports(&self) -> bool {
        self.has(|condition| matches!(condition, Match::DestinationPorts { .. }))
    }

    fn matches_destination(&self) -> bool {
        self.has(|condition| matches!(condition, Match::Destination { .. }))
            || self.rule.conditions.iter().any(|condition| matches!(condition, Predicate::DestinationIn(_)))
    }

    /// Returns the interface that the rule matches.
    fn interface(&self) -> Option<&'a str> {
        self.conditions().find_map(|(condition, _)| match condition {
            Match::InInterface(name) | Match::OutInterface(name) => Some(name.as_str()),
            Match::InLoopback | Match::OutLoopback => Some(LOOPBACK_INTERFACE),
            _ => None,
        })
    }

    fn owner(&self) -> Option<(&'a Match, bool)> {
        self.conditions().find(|(condition, _)| matches!(condition, Match::Uid { .. } | Match::Gid { .. }))
    }
}

/// Facts that the rules of a chain show about each other.
struct ChainFacts<'a> {
    /// Interfaces whose packets are captured.
    rerouted: HashSet<&'a str>,
    /// Owners whose packets to their own pod are inbound traffic.
    proxy_owners: HashSet<&'a Match>,
}

impl<'a> ChainFacts<'a> {
    fn of(rules: &'a [Rule]) -> Self {
        let mut facts = Self { rerouted: HashSet::new(), proxy_owners: HashSet::new() };
        for shape in rules.iter().map(RuleShape::of) {
            match shape.target {
                Some(chain::REDIRECT | chain::REROUTE) => facts.rerouted.extend(shape.interface()),
                Some(chain::IN_REDIRECT) => facts.proxy_owners.extend(shape.owner().map(|(owner, _)| owner)),
                _ => {}
            }
        }
        facts
    }
}

fn reason(table: Table, name: &str, facts: &ChainFacts<'_>, (at, rule): (usize, &Rule)) -> Option<RuleReason> {
    let shape = RuleShape::of(rule);
    Some(match (name, table) {
        (chain::PREROUTING | chain::BUILTIN_OUTPUT, _) => return built_in(table, &shape, facts),
        (chain::REDIRECT | chain::IN_REDIRECT, _) => RuleReason::Redirect,
        (chain::TPROXY | chain::DIVERT, _) => RuleReason::Tproxy,
        (chain::DROP, _) => RuleReason::DropInvalid,
        (chain::REROUTE, _) => RuleReason::ReroutedInterface,
        (chain::OUTPUT_DNS, _) | (chain::INBOUND, Table::Raw) => RuleReason::Dns,
        (chain::INBOUND, _) => match (shape.returns(), shape.matches_ports()) {
            (true, true) if table == Table::Nat && at == 0 => RuleReason::Tunnel,
            (true, true) => RuleReason::ExcludedInboundPort,
            (true, false) => RuleReason::Tproxy,
            (false, true) => RuleReason::InboundPort,
            (false, false) => RuleReason::Inbound,
        },
        (chain::OUTPUT, _) => return output(&shape, facts),
        _ => return None,
    })
}

fn built_in(table: Table, shape: &RuleShape<'_>, facts: &ChainFacts<'_>) -> Option<RuleReason> {
    Some(match shape.target {
        Some(chain::DROP) => RuleReason::DropInvalid,
        Some(chain::REDIRECT | chain::REROUTE) => RuleReason::ReroutedInterface,
        Some(_) if table == Table::Raw => RuleReason::Dns,
        Some(_) => RuleReason::Hook,
        None if shape.rule.effects == [Effect::Drop] => return None,
        None if shape.returns() && !shape.has(|condition| matches!(condition, Match::Mark { .. })) => {
            let interface = shape.interface()?;
            if facts.rerouted.contains(interface) {
                RuleReason::ReroutedInterface
            } else {
                RuleReason::ExcludedInterface
            }
        }
        None if table == Table::Mangle => RuleReason::Tproxy,
        None => return None,
    })
}

fn output(shape: &RuleShape<'_>, facts: &ChainFacts<'_>) -> Option<RuleReason> {
    let destination = shape.matches_destination();
    let source = shape.has(|condition| matches!(condition, Match::Source { .. }));
    let by_lo = shape.has(|condition| matches!(condition, Match::OutLoopback));
    let to_loopback =
        shape.has(|condition| matches!(condition, Match::Destination { net, .. } if net.addr().is_loopback()));
    Some(match (shape.target, shape.owner()) {
        (Some(chain::OUTPUT_DNS), _) => RuleReason::Dns,
        (Some(chain::IN_REDIRECT), _) => RuleReason::ProxyToSelf,
        (Some(chain::REDIRECT), _) if shape.matches_ports() => RuleReason::OutboundPort,
        (Some(chain::REDIRECT), _) if destination => RuleReason::OutboundCidr,
        (Some(chain::REDIRECT), _) => RuleReason::Outbound,
        (None, _) if !shape.returns() => return None,
        (None, _) if source => RuleReason::Passthrough,
        (None, Some(_)) if by_lo => RuleReason::AppLoopback,
        (None, Some((owner, false))) => {
            if facts.proxy_owners.contains(owner) {
                RuleReason::ProxyTraffic
            } else {
                RuleReason::OwnerGroup
            }
        }
        (None, None) if shape.matches_ports() => RuleReason::ExcludedOutboundPort,
        (None, None) if to_loopback => RuleReason::LoopbackDestination,
        (None, None) if destination => RuleReason::ExcludedOutboundCidr,
        (None, _) => RuleReason::OwnerGroup,
        (Some(_), _) => return None,
    })
}
