//! Chains of nf_tables as the kernel has them.

use std::net::IpAddr;

use crate::nft::{Elements, Expr, IpFamily, Program, RuleDef, TABLE, TableDef, TableFamily, Test};
use iptables_rules::config::{Group, InterfaceName};
use iptables_rules::names::LOOPBACK_INTERFACE;
use iptables_rules::ruleset::{Match, Protocol};
use iptables_rules::trace::{Base, Chains, Condition, Effect, Hook, Rule, States};

/// `NFT_TABLE_F_DORMANT`: chains of such a table are not entered.
const DORMANT: u32 = 1;

/// Returns the chains of `program` as a packet of the address family of `packet` meets them.
pub fn chains(program: &Program, packet: IpAddr) -> Chains {
    let family = if packet.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 };
    let mut chains = Chains::default();
    let seen = program.tables.iter().filter(|table| match table.family {
        TableFamily::Inet => true,
        TableFamily::Ip => family == IpFamily::V4,
        TableFamily::Ip6 => family == IpFamily::V6,
    });
    for table in seen {
        let name = format!("{} {TABLE}", table.family.name());
        for chain in &table.chains {
            let place = chains.add(&name, &chain.name);
            let rules = chain.rules.iter().filter_map(|rule| rule_for(table, rule, family)).collect();
            if let Some(held) = chains.chains.get_mut(place) {
                held.rules = rules;
                held.accepts = chain.hook.as_ref().is_none_or(|hook| hook.accepts);
            }
            let Some(point) = chain.hook.as_ref().filter(|_| table.flags & DORMANT == 0) else { continue };
            let hook = match point.number {
                0 => Hook::Prerouting,
                3 => Hook::Output,
                _ => continue,
            };
            chains.enter(Base { hook, priority: point.priority, nat: point.kind == "nat", chain: place });
        }
    }
    chains.with_reasons()
}

/// A rule as packets of a family meet it; `None` where they never can.
fn rule_for(table: &TableDef, rule: &RuleDef, family: IpFamily) -> Option<Rule> {
    let (mut conditions, mut effects) = (Vec::new(), Vec::new());
    for expr in &rule.exprs {
        match expr {
            Expr::Test { test: Test::Family(other), negated } => {
                if (*other == family) == *negated {
                    return None;
                }
            }
            // What a rule does ends its conditions; nothing we write tests after that.
            Expr::Test { test, .. } if !effects.is_empty() => effects.push(Effect::Unknown(format!("{test:?}"))),
            Expr::Test { test, negated } => conditions.extend(condition(table, test, *negated)),
            Expr::Jump(chain) => effects.push(Effect::Jump(chain.to_string())),
            Expr::Goto(chain) => effects.push(Effect::Goto(chain.to_string())),
            Expr::Return => effects.push(Effect::Return),
            Expr::Accept => effects.push(Effect::Accept),
            Expr::Drop => effects.push(Effect::Drop),
            Expr::Redirect(port) => effects.push(Effect::Redirect(*port)),
            Expr::Tproxy { family: only, port } => {
                if only.is_some_and(|only| only != family) {
                    return None;
                }
                effects.push(Effect::Tproxy(*port));
            }
            Expr::SetMark(mark) => effects.push(Effect::SetMark(*mark)),
            Expr::SaveMark => effects.push(Effect::SaveMark),
            Expr::RestoreMark => effects.push(Effect::RestoreMark),
            Expr::SetZone(zone) => effects.push(Effect::Zone(*zone)),
            // Counters and the like may stand anywhere; what cannot be read may also be a condition.
            Expr::Other(what) if what == "counter" || what == "log" => {}
            Expr::Other(what) => conditions.push(Condition::Unknown(what.clone())),
        }
    }
    Some(Rule { conditions, effects, text: rule.to_string(), reason: None })
}

fn condition(table: &TableDef, test: &Test, negated: bool) -> Vec<Condition> {
    let planned = |condition: Match| vec![invert(Condition::Planned(condition), negated)];
    let unknown = || vec![Condition::Unknown(format!("{test:?}"))];
    // The owner is compared only where there is one, straight or inverted.
    let owner = |condition: Match| vec![Condition::HasOwner, invert(Condition::Planned(condition), negated)];
    match test {
        Test::Family(_) => Vec::new(),
        Test::InIndex(1) => planned(Match::InLoopback),
        Test::OutIndex(1) => planned(Match::OutLoopback),
        Test::InName(name) if name == LOOPBACK_INTERFACE => planned(Match::InLoopback),
        Test::OutName(name) if name == LOOPBACK_INTERFACE => planned(Match::OutLoopback),
        Test::InName(name) => InterfaceName::new(name).map_or_else(|_| unknown(), |n| planned(Match::InInterface(n))),
        Test::OutName(name) => InterfaceName::new(name).map_or_else(|_| unknown(), |n| planned(Match::OutInterface(n))),
        Test::InIndex(_) | Test::OutIndex(_) => unknown(),
        Test::Source(net) => vec![Condition::Planned(Match::Source { net: *net, negated })],
        Test::Destination(net) => vec![Condition::Planned(Match::Destination { net: *net, negated })],
        Test::DestinationIn(_, set) | Test::DestinationPortIn(set) => {
            let elements = table.sets.iter().find(|held| held.name == *set).map(|held| &held.elements);
            match elements.and_then(listed) {
                Some(condition) => vec![invert(condition, negated)],
                None => unknown(),
            }
        }
        Test::Protocol(6) => planned(Match::Protocol(Protocol::Tcp)),
        Test::Protocol(17) => planned(Match::Protocol(Protocol::Udp)),
        Test::Protocol(number) => vec![invert(Condition::Transport(*number), negated)],
        Test::SourcePort(port) => planned(Match::SourcePort(*port)),
        Test::DestinationPort(port) => {
            vec![Condition::Planned(Match::DestinationPorts { ports: vec![*port], negated })]
        }
        Test::ConnectionState(1) => planned(Match::StateInvalid),
        Test::ConnectionState(6) => planned(Match::StateRelatedEstablished),
        Test::ConnectionState(bits) => vec![invert(Condition::States(States(*bits)), negated)],
        Test::Mark(mark) => vec![Condition::Planned(Match::Mark { mark: *mark, negated })],
        Test::ConnectionMark(mark) => planned(Match::ConnMark(*mark)),
        Test::Uid(id) => owner(Match::Uid { id: *id, negated: false }),
        Test::Gid(id) => owner(Match::Gid { group: Group::Id(*id), negated: false }),
    }
}

fn listed(elements: &Elements) -> Option<Condition> {
    Some(match elements {
        Elements::V4(ranges) => {
            Condition::DestinationIn(ranges.iter().map(|&(a, b)| (IpAddr::V4(a), IpAddr::V4(b))).collect())
        }
        Elements::V6(ranges) => {
            Condition::DestinationIn(ranges.iter().map(|&(a, b)| (IpAddr::V6(a), IpAddr::V6(b))).collect())
        }
        Elements::Ports(ports) => Condition::Planned(Match::DestinationPorts { ports: ports.clone(), negated: false }),
        Elements::Other(_) => return None,
    })
}

fn invert(condition: Condition, negated: bool) -> Condition {
    if negated { Condition::Not(Box::new(condition)) } else { condition }
}

#[cfg(test)]
mod tests;
