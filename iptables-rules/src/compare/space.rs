//! The space of all packets of one family and direction: its dimensions, and conditions of rules as sets in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::diagram::{Diagram, Set, TooLarge};
use crate::config::Group;
use crate::names::LOOPBACK_INTERFACE;
use crate::restore::RestoreFamily;
use crate::ruleset::{Match, Protocol};
use crate::trace::{Chains, ConntrackState, ConntrackStates, Predicate};

/// Disjoint inclusive ranges in ascending order.
pub(super) type Ranges = Vec<(u128, u128)>;

/// Uid and gid of a packet without a socket.
pub(super) const NO_OWNER: u128 = 1 << 32;
pub(super) const TCP: u128 = 6;
pub(super) const UDP: u128 = 17;

/// A property of a packet before the first rule. The order is that of the variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// Conntrack state: 0 new, 1 related, 2 established, 3 invalid.
    State,
    /// Interface: index of the named ones; all beyond are the others.
    Interface,
    /// Transport protocol, by number.
    Transport,
    /// User of the socket; values above 32 bits: no socket.
    Uid,
    /// Group of the socket, likewise.
    Gid,
    /// Destination port.
    DestinationPort,
    /// Source port.
    SourcePort,
    /// Packet mark.
    Mark,
    /// Mark of the connection.
    ConnectionMark,
    /// Destination address.
    Destination,
    /// Source address.
    Source,
}

/// Conntrack states by their value in [`Dimension::State`].
pub(super) const STATES: [ConntrackState; 4] =
    [ConntrackState::New, ConntrackState::Related, ConntrackState::Established, ConntrackState::Invalid];

impl Dimension {
    pub(super) const ALL: [Self; 11] = [
        Self::State,
        Self::Interface,
        Self::Transport,
        Self::Uid,
        Self::Gid,
        Self::DestinationPort,
        Self::SourcePort,
        Self::Mark,
        Self::ConnectionMark,
        Self::Destination,
        Self::Source,
    ];

    /// Returns the number of bits.
    pub(super) const fn width(self, family: RestoreFamily) -> u16 {
        match (self, family) {
            (Self::State, _) => 2,
            (Self::Interface, _) => 10,
            (Self::Transport, _) => 8,
            (Self::Uid | Self::Gid, _) => 33,
            (Self::DestinationPort | Self::SourcePort, _) => 16,
            (Self::Mark | Self::ConnectionMark, _) | (Self::Destination | Self::Source, RestoreFamily::V4) => 32,
            (Self::Destination | Self::Source, RestoreFamily::V6) => 128,
        }
    }

    /// Returns the largest value.
    pub(super) const fn last(self, family: RestoreFamily) -> u128 {
        u128::MAX >> (128 - self.width(family))
    }
}

/// Interfaces and groups that conditions name, of both rule sets and families.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// `lo` first.
    pub(super) interfaces: Vec<String>,
    /// Groups by name, which the packet does not tell.
    pub(super) groups: Vec<String>,
}

impl Names {
    pub(super) fn of<'a>(chains: impl Iterator<Item = &'a Chains>) -> Self {
        let (mut interfaces, mut groups) = (BTreeSet::new(), BTreeSet::new());
        let rules = chains.flat_map(|chains| &chains.chains).flat_map(|chain| &chain.rules);
        for mut condition in rules.flat_map(|rule| &rule.conditions) {
            while let Predicate::Not(inner) = condition {
                condition = inner;
            }
            match condition {
                Predicate::Planned(Match::InInterface(name) | Match::OutInterface(name)) => {
                    interfaces.insert(name.as_str().to_owned());
                }
                Predicate::Planned(Match::Gid { group: group @ Group::Name(_), .. }) => {
                    groups.insert(group.to_string());
                }
                _ => {}
            }
        }
        interfaces.remove(LOOPBACK_INTERFACE);
        let interfaces = std::iter::once(LOOPBACK_INTERFACE.to_owned()).chain(interfaces).collect();
        Self { interfaces, groups: groups.into_iter().collect() }
    }
}

/// Initial or constant value of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Value {
    /// Mark of the packet before the first rule.
    Mark,
    /// Mark of its connection before the first rule.
    ConnectionMark,
    /// A number.
    Number(u32),
}

/// Interface that a condition sees at one point of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeenInterface {
    None,
    Initial,
    Loopback,
}

/// Point of the path: fields that are the same for all packets at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) input: SeenInterface,
    pub(super) output: SeenInterface,
    /// Whether the owner is visible.
    pub(super) has_owner: bool,
    /// Whether connection tracking has seen the packet.
    pub(super) tracked: bool,
}

/// Fields of a packet that rules have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Changed {
    pub(super) mark: Value,
    pub(super) connection_mark: Value,
    /// Port to which the connection is redirected.
    pub(super) redirected: Option<u16>,
    /// Whether the destination is the loopback address.
    pub(super) to_loopback: bool,
    /// Port of the transparent socket.
    pub(super) assigned: Option<u16>,
    pub(super) zone: Option<u16>,
}

/// Sets of packets of one family.
#[derive(Debug)]
pub(super) struct Space<'a> {
    pub(super) family: RestoreFamily,
    pub(super) names: &'a Names,
    pub(super) diagram: Diagram,
}

impl<'a> Space<'a> {
    /// # Errors
    /// The conditions name more interfaces or groups than the space has room for.
    pub(super) fn new(family: RestoreFamily, names: &'a Names) -> Result<Self, TooLarge> {
        let fits = (names.interfaces.len() as u128) < Dimension::Interface.last(family) && names.groups.len() < 4096;
        if fits { Ok(Self { family, names, diagram: Diagram::new() }) } else { Err(TooLarge) }
    }

    /// Returns the first variable of a dimension.
    pub(super) fn offset(&self, dimension: Dimension) -> u16 {
        let before = Dimension::ALL.into_iter().take_while(|other| *other != dimension);
        before.map(|other| other.width(self.family)).sum()
    }

    /// Returns the first variable of the groups that are known by name.
    pub(super) fn groups_offset(&self) -> u16 {
        self.offset(Dimension::Source) + Dimension::Source.width(self.family)
    }

    /// Returns the packets whose value is in one of these ranges.
    pub(super) fn ranges(&mut self, dimension: Dimension, ranges: &[(u128, u128)]) -> Result<Set, TooLarge> {
        let (offset, width) = (self.offset(dimension), dimension.width(self.family));
        build(&mut self.diagram, (offset, width), 0, 0, ranges)
    }

    pub(super) fn value(&mut self, dimension: Dimension, value: u128) -> Result<Set, TooLarge> {
        self.ranges(dimension, &[(value, value)])
    }

    /// Returns the packets for which a condition holds; `None` if it cannot be evaluated.
    pub(super) fn condition(
        &mut self,
        condition: &Predicate,
        stage: Stage,
        changed: &Changed,
    ) -> Result<Option<Set>, TooLarge> {
        Ok(Some(match condition {
            Predicate::Planned(planned) => self.planned(planned, stage, changed)?,
            Predicate::Not(inner) => match self.condition(inner, stage, changed)? {
                Some(set) => self.diagram.complement(set)?,
                None => return Ok(None),
            },
            Predicate::DestinationIn(ranges) => {
                let all = ranges.iter().filter(|(first, _)| first.is_ipv4() == self.is_v4());
                self.destination(&normalized(all.map(|(first, last)| (number(*first), number(*last)))), changed)?
            }
            Predicate::States(states) => self.states(*states, stage)?,
            Predicate::HasOwner if stage.has_owner => self.ranges(Dimension::Uid, &[(0, NO_OWNER - 1)])?,
            Predicate::HasOwner => Set::EMPTY,
            Predicate::Transport(number) => self.value(Dimension::Transport, u128::from(*number))?,
            Predicate::Unknown(_) => return Ok(None),
        }))
    }

    fn planned(&mut self, condition: &Match, stage: Stage, changed: &Changed) -> Result<Set, TooLarge> {
        let (set, negated) = match condition {
            Match::Protocol(Protocol::Tcp) => (self.value(Dimension::Transport, TCP)?, false),
            Match::Protocol(Protocol::Udp) => (self.value(Dimension::Transport, UDP)?, false),
            Match::InInterface(name) => (self.interface(stage.input, name.as_str())?, false),
            Match::OutInterface(name) => (self.interface(stage.output, name.as_str())?, false),
            Match::InLoopback => (self.interface(stage.input, LOOPBACK_INTERFACE)?, false),
            Match::OutLoopback => (self.interface(stage.output, LOOPBACK_INTERFACE)?, false),
            Match::Source { net, negated } => {
                let ranges = self.network(*net);
                (self.ranges(Dimension::Source, &ranges)?, *negated)
            }
            Match::Destination { net, negated } => {
                let ranges = self.network(*net);
                (self.destination(&ranges, changed)?, *negated)
            }
            Match::DestinationPorts { ports, negated } => return self.destination_ports(ports, *negated, changed),
            Match::SourcePort(port) => {
                let port = self.value(Dimension::SourcePort, u128::from(*port))?;
                let with_ports = self.with_ports()?;
                (self.diagram.and(with_ports, port)?, false)
            }
            Match::Uid { id, negated } => (self.owner(Dimension::Uid, *id, stage)?, *negated),
            Match::Gid { group: Group::Id(id), negated } => (self.owner(Dimension::Gid, *id, stage)?, *negated),
            Match::Gid { group: name @ Group::Name(_), negated } => (self.group(&name.to_string(), stage)?, *negated),
            Match::StateInvalid => (self.states(ConntrackStates(1), stage)?, false),
            Match::StateRelatedEstablished => (self.states(ConntrackStates(6), stage)?, false),
            Match::Mark { mark, negated } => (self.is(changed.mark, *mark)?, *negated),
            Match::ConnMark(mark) => {
                let connected = self.connected(stage)?;
                let equal = self.is(changed.connection_mark, *mark)?;
                (self.diagram.and(connected, equal)?, false)
            }
        };
        if negated { self.diagram.complement(set) } else { Ok(set) }
    }

    fn interface(&mut self, seen: SeenInterface, name: &str) -> Result<Set, TooLarge> {
        match seen {
            SeenInterface::None => Ok(Set::EMPTY),
            SeenInterface::Loopback => Ok(if name == LOOPBACK_INTERFACE { Set::ALL } else { Set::EMPTY }),
            SeenInterface::Initial => match self.names.interfaces.iter().position(|known| known == name) {
                Some(index) => self.value(Dimension::Interface, index as u128),
                None => Ok(Set::EMPTY),
            },
        }
    }

    fn owner(&mut self, dimension: Dimension, id: u32, stage: Stage) -> Result<Set, TooLarge> {
        if stage.has_owner { self.value(dimension, u128::from(id)) } else { Ok(Set::EMPTY) }
    }

    /// Returns the packets of a group that is known by name: those for which a variable of its own is 1.
    fn group(&mut self, name: &str, stage: Stage) -> Result<Set, TooLarge> {
        let Some(index) = self.names.groups.iter().position(|known| known == name).filter(|_| stage.has_owner) else {
            return Ok(Set::EMPTY);
        };
        let variable = self.groups_offset() + u16::try_from(index).map_err(|_| TooLarge)?;
        let member = self.diagram.node(variable, Set::EMPTY, Set::ALL)?;
        let owned = self.ranges(Dimension::Gid, &[(0, NO_OWNER - 1)])?;
        self.diagram.and(owned, member)
    }

    fn network(&self, net: IpNet) -> Ranges {
        let same = net.addr().is_ipv4() == self.is_v4();
        if same { vec![(number(net.network()), number(net.broadcast()))] } else { Vec::new() }
    }

    fn destination(&mut self, ranges: &[(u128, u128)], changed: &Changed) -> Result<Set, TooLarge> {
        if !changed.to_loopback {
            return self.ranges(Dimension::Destination, ranges);
        }
        let loopback = number(if self.is_v4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        let holds = ranges.iter().any(|(first, last)| (*first..=*last).contains(&loopback));
        Ok(if holds { Set::ALL } else { Set::EMPTY })
    }

    fn destination_ports(&mut self, ports: &[u16], negated: bool, changed: &Changed) -> Result<Set, TooLarge> {
        let listed = match changed.redirected {
            Some(port) if ports.contains(&port) => Set::ALL,
            Some(_) => Set::EMPTY,
            None => {
                let ranges = normalized(ports.iter().map(|port| (u128::from(*port), u128::from(*port))));
                self.ranges(Dimension::DestinationPort, &ranges)?
            }
        };
        let with_ports = self.with_ports()?;
        if negated { self.diagram.minus(with_ports, listed) } else { self.diagram.and(with_ports, listed) }
    }

    /// Returns the packets of protocols with ports.
    pub(super) fn with_ports(&mut self) -> Result<Set, TooLarge> {
        self.ranges(Dimension::Transport, &[(TCP, TCP), (UDP, UDP)])
    }

    fn states(&mut self, states: ConntrackStates, stage: Stage) -> Result<Set, TooLarge> {
        if !stage.tracked {
            return Ok(Set::EMPTY);
        }
        let indices = (0..).zip(STATES).filter(|(_, state)| states.contains(*state));
        let ranges = normalized(indices.map(|(index, _)| (index, index)));
        self.ranges(Dimension::State, &ranges)
    }

    /// Returns the packets that belong to a connection, as far as connection tracking knows at this point.
    pub(super) fn connected(&mut self, stage: Stage) -> Result<Set, TooLarge> {
        self.states(ConntrackStates(2 | 4 | 8), stage)
    }

    /// Returns the packets for which a mark has this number.
    pub(super) fn is(&mut self, value: Value, wanted: u32) -> Result<Set, TooLarge> {
        match value {
            Value::Number(number) => Ok(if number == wanted { Set::ALL } else { Set::EMPTY }),
            Value::Mark => self.value(Dimension::Mark, u128::from(wanted)),
            Value::ConnectionMark => self.value(Dimension::ConnectionMark, u128::from(wanted)),
        }
    }

    pub(super) const fn is_v4(&self) -> bool {
        matches!(self.family, RestoreFamily::V4)
    }
}

/// Builds a set from ranges, from bit `bit` of the dimension down; `base` has the bits above.
fn build(
    diagram: &mut Diagram,
    (offset, width): (u16, u16),
    bit: u16,
    base: u128,
    ranges: &[(u128, u128)],
) -> Result<Set, TooLarge> {
    let last = base | if bit == width { 0 } else { u128::MAX >> (128 - (width - bit)) };
    match ranges {
        [] => return Ok(Set::EMPTY),
        [(first, end)] if *first <= base && *end >= last => return Ok(Set::ALL),
        _ => {}
    }
    let middle = base | (1 << (width - bit - 1));
    let low = &ranges[..ranges.partition_point(|(first, _)| *first < middle)];
    let high = &ranges[ranges.partition_point(|(_, end)| *end < middle)..];
    let low = build(diagram, (offset, width), bit + 1, base, low)?;
    let high = build(diagram, (offset, width), bit + 1, middle, high)?;
    diagram.node(offset + bit, low, high)
}

/// Sorts ranges and joins those that touch.
pub(super) fn normalized(ranges: impl Iterator<Item = (u128, u128)>) -> Ranges {
    let mut sorted: Ranges = ranges.collect();
    sorted.sort_unstable();
    let mut joined: Ranges = Vec::new();
    for (first, last) in sorted {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
