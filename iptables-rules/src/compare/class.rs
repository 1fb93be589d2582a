//! Classes of packets: a set of values for each dimension.

mod text;
mod witness;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::diagram::Set;
use super::space::{Dimension, NO_OWNER, Names, Ranges, STATES, Space, normalized, number};
use super::walk::Direction;
use crate::restore::RestoreFamily;
use crate::trace::{ConntrackState, Packet, PacketOrigin, Transport};

/// Packets with values in given ranges, all treated alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketClass {
    /// Direction.
    pub direction: Direction,
    /// Family of the addresses.
    pub family: RestoreFamily,
    /// A packet of the class.
    pub witness: Packet,
    /// Ranges of the dimensions that are restricted.
    ranges: BTreeMap<Dimension, Ranges>,
    names: Arc<Names>,
}

/// Returns disjoint classes whose union is a set of packets, and whether there are more than the limit. Impossible packets are left out.
pub(super) fn classes_of(
    set: Set,
    space: &Space<'_>,
    names: &Arc<Names>,
    direction: Direction,
    marks_differ: bool,
    limit: usize,
) -> (Vec<PacketClass>, bool) {
    let mut classes = Classes { space, names, direction, marks_differ, limit, found: Vec::new(), is_truncated: false };
    classes.descend(set, &Dimension::ALL, &mut BTreeMap::new());
    (classes.found, classes.is_truncated)
}

struct Classes<'a, 'b> {
    space: &'a Space<'b>,
    names: &'a Arc<Names>,
    direction: Direction,
    /// Whether the mark of the packets is not that of their connection.
    marks_differ: bool,
    limit: usize,
    found: Vec<PacketClass>,
    /// Whether there are more classes than the limit.
    is_truncated: bool,
}

impl Classes<'_, '_> {
    fn descend(&mut self, set: Set, dimensions: &[Dimension], ranges: &mut BTreeMap<Dimension, Ranges>) {
        if set == Set::EMPTY || self.is_truncated {
            return;
        }
        let Some((&dimension, rest)) = dimensions.split_first() else { return self.emit(ranges) };
        for (subset, values) in self.split(set, dimension) {
            let last = dimension.last(self.space.family);
            let is_restricted = values != [(0, last)];
            if is_restricted {
                ranges.insert(dimension, values);
            }
            self.descend(subset, rest, ranges);
            ranges.remove(&dimension);
        }
    }

    /// Splits a set by the values of its first dimension; values with the same rest are together.
    fn split(&self, set: Set, dimension: Dimension) -> Vec<(Set, Ranges)> {
        let offset = self.space.offset(dimension);
        let end = offset + dimension.width(self.space.family);
        let mut found: Vec<(u128, u128, Set)> = Vec::new();
        let mut stack = vec![(set, offset, 0_u128)];
        while let Some((set, variable, base)) = stack.pop() {
            if set == Set::EMPTY {
                continue;
            }
            if self.space.diagram.variable(set) >= end {
                let last = base | if variable == end { 0 } else { u128::MAX >> (128 - (end - variable)) };
                found.push((base, last, set));
                continue;
            }
            let (low, high) = self.space.diagram.branches(set, variable);
            stack.push((high, variable + 1, base | (1 << (end - variable - 1))));
            stack.push((low, variable + 1, base));
        }
        let mut by_rest: Vec<(Set, Ranges)> = Vec::new();
        let mut index = std::collections::HashMap::new();
        for (first, last, rest) in found {
            let at = *index.entry(rest).or_insert_with(|| {
                by_rest.push((rest, Vec::new()));
                by_rest.len() - 1
            });
            by_rest[at].1.push((first, last));
        }
        by_rest.into_iter().map(|(rest, ranges)| (rest, normalized(ranges.into_iter()))).collect()
    }

    fn emit(&mut self, ranges: &BTreeMap<Dimension, Ranges>) {
        let Some(ranges) = feasible(ranges, self.space.family, self.marks_differ) else { return };
        if self.found.len() >= self.limit {
            self.is_truncated = true;
            return;
        }
        let (direction, family) = (self.direction, self.space.family);
        let witness = witness::choose(&ranges, direction, family, self.names, self.marks_differ);
        self.found.push(PacketClass { direction, family, witness, ranges, names: Arc::clone(self.names) });
    }
}

/// Leaves out packets that do not exist: new connections have mark 0, and owners are a user and a group. `None` if no packet is left.
fn feasible(
    ranges: &BTreeMap<Dimension, Ranges>,
    family: RestoreFamily,
    marks_differ: bool,
) -> Option<BTreeMap<Dimension, Ranges>> {
    let mut ranges = ranges.clone();
    let of = |ranges: &BTreeMap<Dimension, Ranges>, dimension: Dimension| {
        ranges.get(&dimension).cloned().unwrap_or_else(|| vec![(0, dimension.last(family))])
    };
    let has = |ranges: &Ranges, value: u128| ranges.iter().any(|(first, last)| (*first..=*last).contains(&value));
    let (mark, connection_mark) = (of(&ranges, Dimension::Mark), of(&ranges, Dimension::ConnectionMark));
    let no_new = !has(&connection_mark, 0) || (marks_differ && mark == [(0, 0)]);
    if no_new {
        let states = of(&ranges, Dimension::State).into_iter().flat_map(|(first, last)| first..=last);
        let states = normalized(states.filter(|index| !is_new(*index)).map(|index| (index, index)));
        if states.is_empty() {
            return None;
        }
        ranges.insert(Dimension::State, states);
    }
    if marks_differ && mark == connection_mark && matches!(mark[..], [(first, last)] if first == last) {
        return None;
    }
    let owners = [Dimension::Uid, Dimension::Gid].map(|dimension| of(&ranges, dimension));
    let owned = owners.iter().all(|ids| ids.iter().any(|(first, _)| *first < NO_OWNER));
    let unowned = owners.iter().all(|ids| ids.iter().any(|(_, last)| *last >= NO_OWNER));
    (owned || unowned).then_some(ranges)
}

fn is_new(index: u128) -> bool {
    usize::try_from(index).is_ok_and(|index| STATES.get(index) == Some(&ConntrackState::New))
}

impl PacketClass {
    /// Returns whether a packet is in the class.
    pub fn contains(&self, packet: &Packet) -> bool {
        let family = if packet.destination.is_ipv4() { RestoreFamily::V4 } else { RestoreFamily::V6 };
        (self.family, self.direction) == (family, direction_of(packet))
            && self.ranges.iter().all(|(dimension, ranges)| {
                let value = value_of(packet, *dimension, &self.names);
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&value))
            })
    }

    /// Leaves out the ranges of dimensions that are just these.
    pub(super) fn without(mut self, premises: &[(Dimension, Ranges)]) -> Self {
        self.ranges
            .retain(|dimension, ranges| !premises.iter().any(|(other, same)| other == dimension && same == ranges));
        self
    }

    /// Returns whether the class holds whatever the addresses are.
    fn has_any_address(&self) -> bool {
        !self.ranges.contains_key(&Dimension::Source) && !self.ranges.contains_key(&Dimension::Destination)
    }
}

pub(super) const fn direction_of(packet: &Packet) -> Direction {
    match packet.origin {
        PacketOrigin::Received { .. } => Direction::Inbound,
        PacketOrigin::Sent { .. } => Direction::Outbound,
    }
}

/// Returns the value of a packet in a dimension.
pub(super) fn value_of(packet: &Packet, dimension: Dimension, names: &Names) -> u128 {
    let (PacketOrigin::Received { interface } | PacketOrigin::Sent { interface, .. }) = &packet.origin;
    let owner = match &packet.origin {
        PacketOrigin::Sent { owner, .. } => *owner,
        PacketOrigin::Received { .. } => None,
    };
    let index = |position: Option<usize>, other: usize| position.unwrap_or(other) as u128;
    match dimension {
        Dimension::State => index(STATES.iter().position(|state| *state == packet.state), 0),
        Dimension::Interface => {
            index(names.interfaces.iter().position(|name| name == interface), names.interfaces.len())
        }
        Dimension::Transport => match packet.transport {
            Transport::Tcp => super::space::TCP,
            Transport::Udp => super::space::UDP,
            Transport::Other(number) => number.into(),
        },
        Dimension::Uid => owner.map_or(NO_OWNER, |owner| owner.uid.into()),
        Dimension::Gid => owner.map_or(NO_OWNER, |owner| owner.gid.into()),
        Dimension::DestinationPort => packet.destination_port.into(),
        Dimension::SourcePort => packet.source_port.into(),
        Dimension::Mark => packet.mark.into(),
        Dimension::ConnectionMark => packet.connection_mark.into(),
        Dimension::Destination => number(packet.destination),
        Dimension::Source => number(packet.source),
    }
}
