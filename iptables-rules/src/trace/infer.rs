//! Why a rule is there, told from its chain and its shape: rules of a kernel do not carry their reasons.
//!
//! Chains of the mesh have fixed names and their rules few shapes, so this holds for rules of Istio's own programs too. Two shapes can
//! mean two things: a group of its own that is left alone looks like one of the proxy, and an interface that is left alone like one that
//! is rerouted without captured destinations. Other rules of the chain decide, and where they do not, the more frequent meaning counts.

use super::chains::{Chain, Chains, Effect, Rule};
use super::condition::Condition;
use super::plan::hook;
use crate::names::{LOOPBACK_INTERFACE, chain};
use crate::ruleset::{Match, Reason, Table};

impl Chains {
    /// Adds the reasons of rules in chains of the mesh, and of those that lead there.
    #[must_use]
    pub fn with_reasons(mut self) -> Self {
        for chain in &mut self.chains {
            let (table, name) = place(chain);
            let reasons: Vec<_> = (0..chain.rules.len()).map(|at| reason(table, name, &chain.rules, at)).collect();
            for (rule, reason) in chain.rules.iter_mut().zip(reasons) {
                rule.reason = reason;
            }
        }
        self
    }
}

/// Table and name as iptables has them: in a table of nf_tables the name tells both.
fn place(chain: &Chain) -> (Table, &'static str) {
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

/// What a rule looks at, and what it does.
struct Shape<'a> {
    rule: &'a Rule,
    /// Chain of the mesh that it leads to.
    target: Option<&'static str>,
}

impl<'a> Shape<'a> {
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

    /// Conditions, each with whether it is inverted.
    fn conditions(&self) -> impl Iterator<Item = (&'a Match, bool)> {
        self.rule.conditions.iter().filter_map(|condition| match condition {
            Condition::Planned(
                planned @ (Match::Uid { negated, .. } | Match::Gid { negated, .. } | Match::Source { negated, .. }),
            ) => Some((planned, *negated)),
            Condition::Planned(planned) => Some((planned, false)),
            Condition::Not(inner) => match &**inner {
                Condition::Planned(planned) => Some((planned, true)),
                _ => None,
            },
            _ => None,
        })
    }

    fn has(&self, wanted: fn(&Match) -> bool) -> bool {
        self.conditions().any(|(condition, _)| wanted(condition))
    }

    fn ports(&self) -> bool {
        self.has(|condition| matches!(condition, Match::DestinationPorts { .. }))
    }

    fn destination(&self) -> bool {
        self.has(|condition| matches!(condition, Match::Destination { .. }))
            || self.rule.conditions.iter().any(|condition| matches!(condition, Condition::DestinationIn(_)))
    }

    /// Name of the interface it looks at; `lo` where it is the loopback one.
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

fn reason(table: Table, name: &str, rules: &[Rule], at: usize) -> Option<Reason> {
    let shape = Shape::of(rules.get(at)?);
    Some(match (name, table) {
        (chain::PREROUTING | chain::BUILTIN_OUTPUT, _) => return built_in(table, &shape, rules),
        (chain::REDIRECT | chain::IN_REDIRECT, _) => Reason::Redirect,
        (chain::TPROXY | chain::DIVERT, _) => Reason::Tproxy,
        (chain::DROP, _) => Reason::DropInvalid,
        (chain::OUTPUT_DNS, _) | (chain::INBOUND, Table::Raw) => Reason::Dns,
        (chain::INBOUND, _) => match (shape.returns(), shape.ports()) {
            (true, true) if table == Table::Nat && at == 0 => Reason::Tunnel,
            (true, true) => Reason::ExcludedInboundPort,
            (true, false) => Reason::Tproxy,
            (false, true) => Reason::InboundPort,
            (false, false) => Reason::Inbound,
        },
        (chain::OUTPUT, _) => return output(&shape, rules),
        _ => return None,
    })
}

fn built_in(table: Table, shape: &Shape<'_>, rules: &[Rule]) -> Option<Reason> {
    Some(match shape.target {
        Some(chain::DROP) => Reason::DropInvalid,
        Some(chain::REDIRECT) => Reason::ReroutedInterface,
        Some(_) if table == Table::Raw => Reason::Dns,
        Some(_) => Reason::Hook,
        None if shape.rule.effects == [Effect::Drop] => return None,
        None if shape.returns() && !shape.has(|condition| matches!(condition, Match::Mark { .. })) => {
            let interface = shape.interface()?;
            let rerouted = rules
                .iter()
                .map(Shape::of)
                .any(|other| other.target == Some(chain::REDIRECT) && other.interface() == Some(interface));
            if rerouted { Reason::ReroutedInterface } else { Reason::ExcludedInterface }
        }
        None if table == Table::Mangle => Reason::Tproxy,
        None => return None,
    })
}

fn output(shape: &Shape<'_>, rules: &[Rule]) -> Option<Reason> {
    let destination = shape.destination();
    let source = shape.has(|condition| matches!(condition, Match::Source { .. }));
    let by_lo = shape.has(|condition| matches!(condition, Match::OutLoopback));
    let to_loopback =
        shape.has(|condition| matches!(condition, Match::Destination { net, .. } if net.addr().is_loopback()));
    Some(match (shape.target, shape.owner()) {
        (Some(chain::OUTPUT_DNS), _) => Reason::Dns,
        (Some(chain::IN_REDIRECT), _) => Reason::ProxyToSelf,
        (Some(chain::REDIRECT), _) if shape.ports() => Reason::OutboundPort,
        (Some(chain::REDIRECT), _) if destination => Reason::OutboundCidr,
        (Some(chain::REDIRECT), _) => Reason::Outbound,
        (None, _) if !shape.returns() => return None,
        (None, _) if source => Reason::Passthrough,
        (None, Some(_)) if by_lo => Reason::AppLoopback,
        (None, Some((owner, false))) => {
            let of_proxy = rules.iter().map(Shape::of).any(|other| {
                other.target == Some(chain::IN_REDIRECT) && other.owner().is_some_and(|(same, _)| same == owner)
            });
            if of_proxy { Reason::ProxyTraffic } else { Reason::OwnerGroup }
        }
        (None, None) if shape.ports() => Reason::ExcludedOutboundPort,
        (None, None) if to_loopback => Reason::LoopbackDestination,
        (None, None) if destination => Reason::ExcludedOutboundCidr,
        (None, _) => Reason::OwnerGroup,
        (Some(_), _) => return None,
    })
}
