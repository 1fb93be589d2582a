//! Decides whether connections have the fate that an assertion demands, for all of them at once.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use super::class::{PacketClass, classes_of};
use super::diagram::{Set, TooLarge};
use super::fate::{Fate, FateAction};
use super::space::{Dimension, NO_OWNER, Names, Ranges, Space, normalized, number};
use super::walk::{self, Direction, Fates};
use super::{MAX_CLASSES, TOO_LARGE, certain};
use crate::RuleSet;
use crate::restore::RestoreFamily;
use crate::trace::Chains;

/// Networks that never are the other side of a connection that leaves or enters the pod.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

/// A demand on connections between the pod and others: on their first packets, without a mark, over any interface but `lo`.
///
/// Packets that the kernel itself sends have no user and no group; no assertion is about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// Outbound: from sockets of the pod. Inbound: from outside.
    pub direction: Direction,
    /// Families of the addresses.
    pub families: Vec<RestoreFamily>,
    /// Transport protocols, by number (`IPPROTO_*`); empty for all.
    pub protocols: Vec<u8>,
    /// Addresses of the other side.
    pub peers: Selection<IpNet>,
    /// Destination ports.
    pub ports: Selection<RangeInclusive<u16>>,
    /// Users of the sending socket, for outbound connections.
    pub uids: Selection<RangeInclusive<u32>>,
    /// Groups of the sending socket, for outbound connections.
    pub gids: Selection<RangeInclusive<u32>>,
    /// The fate.
    pub must: Must,
    /// How many of the connections must have it.
    pub quantifier: Quantifier,
}

/// Values that are selected: those of `only`, or all if that is empty, but not those of `except`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection<T> {
    /// Selected values; empty for all.
    pub only: Vec<T>,
    /// Values that are not selected.
    pub except: Vec<T>,
}

impl<T> Default for Selection<T> {
    fn default() -> Self {
        Self { only: Vec::new(), except: Vec::new() }
    }
}

/// Fate that an assertion demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Must {
    /// The proxy or the agent gets the connection.
    BeCaptured,
    /// The connection passes unchanged.
    Bypass,
    /// The packet is dropped.
    BeDropped,
}

/// How many connections must have the fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantifier {
    /// All.
    Every,
    /// At least one.
    Some,
}

/// Result of an assertion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssertionOutcome {
    /// Proved for all connections.
    Holds,
    /// Some connections are known to have another fate.
    Violated(Violations),
    /// No connection is known to have another fate, but some reach rules that cannot be evaluated; the places of these, or the limit that
    /// was exceeded.
    Unknown(Vec<String>),
}

/// Connections with another fate than the demanded one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violations {
    /// By fate; at least one.
    pub fates: Vec<Violation>,
    /// Places of rules that cannot be evaluated: connections that reach them may violate the assertion as well.
    pub unknown: Vec<String>,
}

/// Connections with one wrong fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Their fate.
    pub fate: Fate,
    /// The packets, as disjoint classes with a witness each; at least one. Ranges that the assertion's packets have in common (no marks, not
    /// over `lo`, no loopback addresses) are left out.
    pub classes: Vec<PacketClass>,
    /// Whether there are more classes than those that are listed.
    pub is_truncated: bool,
}

/// Decides one assertion about planned rules.
pub fn assert(rules: &RuleSet, assertion: &Assertion) -> AssertionOutcome {
    let chains = RestoreFamily::ALL.map(|family| Chains::from_rule_set(rules, family.any_address()));
    let mut outcomes = assert_chains(&chains, std::slice::from_ref(assertion));
    outcomes.pop().unwrap_or(AssertionOutcome::Holds)
}

/// Decides assertions about chains of IPv4 and of IPv6, in this order. The outcomes are in the order of the assertions.
pub fn assert_chains(chains: &[Chains; 2], assertions: &[Assertion]) -> Vec<AssertionOutcome> {
    let names = Arc::new(Names::of(chains.iter()));
    let mut findings: Vec<Findings> = assertions.iter().map(|_| Findings::default()).collect();
    for (chains, family) in chains.iter().zip(RestoreFamily::ALL) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let concerned =
                |assertion: &Assertion| assertion.direction == direction && assertion.families.contains(&family);
            let mut concerned: Vec<_> =
                assertions.iter().zip(&mut findings).filter(|(assertion, _)| concerned(assertion)).collect();
            if !concerned.is_empty() && decide(chains, family, direction, &names, &mut concerned).is_err() {
                for (_, findings) in concerned {
                    findings.unknown.push(TOO_LARGE.to_owned());
                }
            }
        }
    }
    assertions.iter().zip(findings).map(|(assertion, findings)| findings.outcome(assertion.quantifier)).collect()
}

fn decide(
    chains: &Chains,
    family: RestoreFamily,
    direction: Direction,
    names: &Arc<Names>,
    concerned: &mut [(&Assertion, &mut Findings)],
) -> Result<(), TooLarge> {
    let mut space = Space::new(family, names)?;
    let fates = walk::walk(chains, &mut space, direction)?;
    for (assertion, findings) in concerned {
        let packets = assertion.packets(&mut space)?;
        findings.collect(assertion, &fates, packets, &mut space, names)?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Findings {
    violations: BTreeMap<Fate, Violation>,
    unknown: Vec<String>,
    /// Whether a connection is known to have the demanded fate.
    has_example: bool,
}

impl Findings {
    fn collect(
        &mut self,
        assertion: &Assertion,
        fates: &Fates,
        packets: Set,
        space: &mut Space<'_>,
        names: &Arc<Names>,
    ) -> Result<(), TooLarge> {
        for (place, set) in &fates.unknown {
            if space.diagram.and(*set, packets)? != Set::EMPTY {
                self.unknown.push(place.clone());
            }
        }
        for (fate, set) in &fates.known {
            let set = space.diagram.and(*set, packets)?;
            let (certain, uncertain) = certain(set, space)?;
            if assertion.must.allows(fate) {
                self.has_example |= certain != Set::EMPTY;
                continue;
            }
            if uncertain != Set::EMPTY {
                let groups = names.groups.iter();
                self.unknown.extend(groups.map(|name| format!("--gid-owner {name}: a name, not a group id")));
            }
            let (classes, is_truncated) = classes_of(certain, space, names, assertion.direction, false, MAX_CLASSES);
            if classes.is_empty() {
                continue;
            }
            let premises = premises(space, assertion.direction);
            let classes = classes.into_iter().map(|class| class.without(&premises));
            let violation = self.violations.entry(*fate).or_insert_with(|| Violation {
                fate: *fate,
                classes: Vec::new(),
                is_truncated: false,
            });
            violation.classes.extend(classes);
            violation.is_truncated |= is_truncated;
        }
        Ok(())
    }

    fn outcome(mut self, quantifier: Quantifier) -> AssertionOutcome {
        self.unknown.sort();
        self.unknown.dedup();
        let Self { violations, unknown, has_example } = self;
        match (quantifier, violations.is_empty(), unknown.is_empty()) {
            (Quantifier::Some, ..) if has_example => AssertionOutcome::Holds,
            // Those that are not understood may be the example.
            (Quantifier::Some, _, false) | (Quantifier::Every, true, false) => AssertionOutcome::Unknown(unknown),
            (_, true, true) => AssertionOutcome::Holds,
            (_, false, _) => {
                AssertionOutcome::Violated(Violations { fates: violations.into_values().collect(), unknown })
            }
        }
    }
}

impl Must {
    /// Returns whether a fate is the demanded one.
    pub const fn allows(self, fate: &Fate) -> bool {
        match self {
            Self::BeCaptured => fate.is_captured(),
            Self::Bypass => matches!(fate.action, FateAction::Passes { .. }),
            Self::BeDropped => matches!(fate.action, FateAction::Dropped),
        }
    }
}

impl Assertion {
    /// Returns the packets that the assertion is about.
    fn packets(&self, space: &mut Space<'_>) -> Result<Set, TooLarge> {
        let mut packets = Set::ALL;
        let mut conditions = premises(space, self.direction);
        conditions.push((Dimension::State, vec![(0, 1)]));
        if !self.protocols.is_empty() {
            let numbers = self.protocols.iter().map(|number| (u128::from(*number), u128::from(*number)));
            conditions.push((Dimension::Transport, normalized(numbers)));
        }
        for (dimension, ranges) in conditions {
            let set = space.ranges(dimension, &ranges)?;
            packets = space.diagram.and(packets, set)?;
        }
        let peer = if self.direction == Direction::Outbound { Dimension::Destination } else { Dimension::Source };
        let [only, except] = [&self.peers.only, &self.peers.except].map(|nets| of_family(nets, space.is_v4()));
        packets = select(packets, space, peer, (!self.peers.only.is_empty()).then_some(only), except)?;
        let number = |range: &RangeInclusive<u16>| (u128::from(*range.start()), u128::from(*range.end()));
        packets = self.ports.apply(packets, space, Dimension::DestinationPort, number)?;
        if self.direction == Direction::Outbound {
            let number = |range: &RangeInclusive<u32>| (u128::from(*range.start()), u128::from(*range.end()));
            packets = self.uids.apply(packets, space, Dimension::Uid, number)?;
            packets = self.gids.apply(packets, space, Dimension::Gid, number)?;
        }
        Ok(packets)
    }
}

fn of_family(nets: &[IpNet], is_v4: bool) -> Vec<(u128, u128)> {
    let same = nets.iter().filter(|net| net.addr().is_ipv4() == is_v4);
    same.map(|net| (number(net.network()), number(net.broadcast()))).collect()
}

/// Returns what all connections of a direction have in common: no marks, not over `lo`, no loopback addresses of the other side, and a
/// socket where the pod opens them.
fn premises(space: &Space<'_>, direction: Direction) -> Vec<(Dimension, Ranges)> {
    let loopback: Vec<IpNet> = LOOPBACK.iter().filter_map(|net| net.parse().ok()).collect();
    let mut addresses = Ranges::new();
    let mut start = 0;
    for (first, last) in of_family(&loopback, space.is_v4()) {
        addresses.extend(first.checked_sub(1).filter(|end| *end >= start).map(|end| (start, end)));
        start = last + 1;
    }
    addresses.push((start, Dimension::Destination.last(space.family)));
    let mut premises = vec![
        (Dimension::Interface, vec![(1, Dimension::Interface.last(space.family))]),
        (Dimension::Mark, vec![(0, 0)]),
        (Dimension::ConnectionMark, vec![(0, 0)]),
        (Dimension::Destination, addresses.clone()),
    ];
    match direction {
        Direction::Inbound => premises.push((Dimension::Source, addresses)),
        Direction::Outbound => {
            premises.extend([Dimension::Uid, Dimension::Gid].map(|owner| (owner, vec![(0, NO_OWNER - 1)])));
        }
    }
    premises
}

impl<T> Selection<T> {
    fn apply(
        &self,
        set: Set,
        space: &mut Space<'_>,
        dimension: Dimension,
        range: impl Fn(&T) -> (u128, u128),
    ) -> Result<Set, TooLarge> {
        let only = (!self.only.is_empty()).then(|| self.only.iter().map(&range).collect());
        select(set, space, dimension, only, self.except.iter().map(&range).collect())
    }
}

fn select(
    set: Set,
    space: &mut Space<'_>,
    dimension: Dimension,
    only: Option<Vec<(u128, u128)>>,
    except: Vec<(u128, u128)>,
) -> Result<Set, TooLarge> {
    let excluded = space.ranges(dimension, &normalized(except.into_iter()))?;
    let set = space.diagram.minus(set, excluded)?;
    let Some(only) = only else { return Ok(set) };
    let included = space.ranges(dimension, &normalized(only.into_iter()))?;
    space.diagram.and(set, included)
}

#[cfg(test)]
mod tests;
