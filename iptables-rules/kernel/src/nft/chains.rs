//! Converts rules that were read from nf_tables to [`Chains`] for the tracer.

use std::net::IpAddr;

use super::program::{Elements, Expr, IpFamily, Program, RuleDef, TABLE, TableDef, TableFamily, Test};
use iptables_rules::config::{Group, InterfaceName};
use iptables_rules::names::LOOPBACK_INTERFACE;
use iptables_rules::ruleset::{Match, Protocol};
use iptables_rules::trace::{Base, Chains, ConntrackStates, Effect, Hook, Predicate, Rule};

/// `NFT_TABLE_F_DORMANT`: the kernel does not evaluate chains of such a table.
const DORMANT: u32 = 1;
/// Elements of sets that are copied into conditions, all in all: in the namespace of somebody else, every rule may look up a large set.
const MAX_COPIED_ELEMENTS: usize = 1 << 20;

/// Returns the chains of `program` as a packet of the address family of `packet` meets them.
pub fn chains(program: &Program, packet: IpAddr) -> Chains {
    let family = if packet.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 };
    let mut chains = Chains::default();
    let mut left = MAX_COPIED_ELEMENTS;
    let seen = program.tables.iter().filter(|table| match table.family {
        TableFamily::Inet => true,
        TableFamily::Ip => family == IpFamily::V4,
        TableFamily::Ip6 => family == IpFamily::V6,
    });
    for table in seen {
        let name = format!("{} {TABLE}", table.family.name());
        for chain in &table.chains {
            let index = chains.push_chain(&name, &chain.name);
            let rules = chain.rules.iter().filter_map(|rule| rule_for(table, rule, family, &mut left)).collect();
            if let Some(found) = chains.chains.get_mut(index) {
                found.rules = rules;
                found.accepts = chain.hook.as_ref().is_none_or(|hook| hook.accepts);
            }
            let Some(point) = chain.hook.as_ref().filter(|_| table.flags & DORMANT == 0) else { continue };
            let hook = match point.number {
                0 => Hook::Prerouting,
                3 => Hook::Output,
                _ => continue,
            };
            chains.add_base(Base { hook, priority: point.priority, nat: point.kind == "nat", chain: index });
        }
    }
    chains.infer_reasons()
}

/// Converts a rule for packets of one family; `None` if it cannot match them.
fn rule_for(table: &TableDef, rule: &RuleDef, family: IpFamily, left: &mut usize) -> Option<Rule> {
    let (mut conditions, mut effects) = (Vec::new(), Vec::new());
    for expr in &rule.exprs {
        match expr {
            Expr::Test { test: Test::Family(other), negated } => {
                if (*other == family) == *negated {
                    return None;
                }
            }
            // Effects end the conditions; we never write a test after an effect.
            Expr::Test { test, .. } if !effects.is_empty() => effects.push(Effect::Unknown(format!("{test:?}"))),
            Expr::Test { test, negated } => conditions.extend(condition(table, test, *negated, left)),
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
            // Counters and logs are no conditions; anything else that is unknown may be one.
            Expr::Other(what) if what == "counter" || what == "log" => {}
            Expr::Other(what) => conditions.push(Predicate::Unknown(what.clone())),
        }
    }
    Some(Rule { conditions, effects, text: rule.to_string(), reason: None })
}

/// Converts a test; `left` is how many elements of sets may still be copied.
fn condition(table: &TableDef, test: &Test, negated: bool, left: &mut usize) -> Vec<Predicate> {
    let planned = |condition: Match| vec![invert(Predicate::Planned(condition), negated)];
    let unknown = || vec![Predicate::Unknown(format!("{test:?}"))];
    // Owners are compared only if there is one, even if the test is negated.
    let owner = |condition: Match| vec![Predicate::HasOwner, invert(Predicate::Planned(condition), negated)];
    match test {
        Test::Family(_) => Vec::new(),
        Test::InIndex(1) => planned(Match::InLoopback),
        Test::OutIndex(1) => planned(Match::OutLoopback),
        Test::InName(name) if name == LOOPBACK_INTERFACE => planned(Match::InLoopback),
        Test::OutName(name) if name == LOOPBACK_INTERFACE => planned(Match::OutLoopback),
        Test::InName(name) => InterfaceName::new(name).map_or_else(|_| unknown(), |n| planned(Match::InInterface(n))),
        Test::OutName(name) => InterfaceName::new(name).map_or_else(|_| unknown(), |n| planned(Match::OutInterface(n))),
        Test::InIndex(_) | Test::OutIndex(_) => unknown(),
        Test::Source(net) => vec![Predicate::Planned(Match::Source { net: *net, negated })],
        Test::Destination(net) => vec![Predicate::Planned(Match::Destination { net: *net, negated })],
        Test::DestinationIn(_, set) | Test::DestinationPortIn(set) => {
            let elements = table.sets.iter().find(|set_def| set_def.name == *set).map(|set_def| &set_def.elements);
            match elements.and_then(|elements| listed(elements, left)) {
                Some(condition) => vec![invert(condition, negated)],
                None => unknown(),
            }
        }
        Test::Protocol(6) => planned(Match::Protocol(Protocol::Tcp)),
        Test::Protocol(17) => planned(Match::Protocol(Protocol::Udp)),
        Test::Protocol(number) => vec![invert(Predicate::Transport(*number), negated)],
        Test::SourcePort(port) => planned(Match::SourcePort(*port)),
        Test::DestinationPort(port) => {
            vec![Predicate::Planned(Match::DestinationPorts { ports: vec![*port], negated })]
        }
        Test::ConnectionState(1) => planned(Match::StateInvalid),
        Test::ConnectionState(6) => planned(Match::StateRelatedEstablished),
        Test::ConnectionState(bits) => vec![invert(Predicate::States(ConntrackStates(*bits)), negated)],
        Test::Mark(mark) => vec![Predicate::Planned(Match::Mark { mark: *mark, negated })],
        Test::ConnectionMark(mark) => planned(Match::ConnMark(*mark)),
        Test::Uid(id) => owner(Match::Uid { id: *id, negated: false }),
        Test::Gid(id) => owner(Match::Gid { group: Group::Id(*id), negated: false }),
    }
}

fn listed(elements: &Elements, left: &mut usize) -> Option<Predicate> {
    let length = match elements {
        Elements::V4(ranges) => ranges.len(),
        Elements::V6(ranges) => ranges.len(),
        Elements::Ports(ports) => ports.len(),
        Elements::Other(_) => 0,
    };
    *left = left.checked_sub(length)?;
    Some(match elements {
        Elements::V4(ranges) => {
            Predicate::DestinationIn(ranges.iter().map(|&(a, b)| (IpAddr::V4(a), IpAddr::V4(b))).collect())
        }
        Elements::V6(ranges) => {
            Predicate::DestinationIn(ranges.iter().map(|&(a, b)| (IpAddr::V6(a), IpAddr::V6(b))).collect())
        }
        Elements::Ports(ports) => Predicate::Planned(Match::DestinationPorts { ports: ports.clone(), negated: false }),
        Elements::Other(_) => return None,
    })
}

fn invert(condition: Predicate, negated: bool) -> Predicate {
    if negated { Predicate::Not(Box::new(condition)) } else { condition }
}

#[cfg(test)]
mod tests;
