//! Conditions of rules, and their evaluation for a packet.

use std::net::IpAddr;

use super::packet::{ConntrackState, Owner, Transport};
use crate::config::Group;
use crate::names::LOOPBACK_INTERFACE;
use crate::ruleset::{Match, Protocol};

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Predicate {
    /// Condition that plans use.
    Planned(Match),
    /// Inverse of a condition.
    Not(Box<Predicate>),
    /// Destination is in one of these inclusive ranges, which are in ascending order.
    DestinationIn(Vec<(IpAddr, IpAddr)>),
    /// Conntrack state is one of these.
    States(ConntrackStates),
    /// The packet has an owner; nf_tables compares owners only then.
    HasOwner,
    /// Transport protocol, by number.
    Transport(u8),
    /// Condition that cannot be evaluated, as text.
    Unknown(String),
}

/// Set of conntrack states, one bit each: 1 invalid, 2 established, 4 related, 8 new (`NF_CT_STATE_BIT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConntrackStates(pub u32);

impl ConntrackStates {
    /// Returns whether a state is one of these.
    pub const fn contains(self, state: ConntrackState) -> bool {
        let bit = match state {
            ConntrackState::Invalid => 1,
            ConntrackState::Established => 2,
            ConntrackState::Related => 4,
            ConntrackState::New => 8,
        };
        self.0 & bit != 0
    }
}

/// State of a packet at one point of its path.
#[derive(Debug, Clone)]
pub(super) struct PacketView<'a> {
    pub(super) in_interface: Option<&'a str>,
    pub(super) out_interface: Option<&'a str>,
    pub(super) owner: Option<Owner>,
    pub(super) transport: Transport,
    pub(super) source: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination: IpAddr,
    pub(super) destination_port: u16,
    pub(super) mark: u32,
    /// `None` before connection tracking, and for packets that belong to no connection.
    pub(super) connection_mark: Option<u32>,
    /// `None` before connection tracking.
    pub(super) state: Option<ConntrackState>,
}

impl PacketView<'_> {
    /// Returns whether a condition holds; `None` if it cannot be evaluated.
    pub(super) fn holds(&self, condition: &Predicate) -> Option<bool> {
        Some(match condition {
            Predicate::Planned(planned) => return self.planned_holds(planned),
            Predicate::Not(inner) => return self.holds(inner).map(|holds| !holds),
            Predicate::DestinationIn(ranges) => {
                let at = ranges.partition_point(|(first, _)| *first <= self.destination);
                at.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| self.destination <= *last)
            }
            Predicate::States(states) => self.state.is_some_and(|state| states.contains(state)),
            Predicate::HasOwner => self.owner.is_some(),
            Predicate::Transport(number) => number_of(self.transport) == *number,
            Predicate::Unknown(_) => return None,
        })
    }

    fn planned_holds(&self, condition: &Match) -> Option<bool> {
        Some(match condition {
            Match::Protocol(Protocol::Tcp) => self.transport == Transport::Tcp,
            Match::Protocol(Protocol::Udp) => self.transport == Transport::Udp,
            Match::InInterface(name) => self.in_interface == Some(name.as_str()),
            Match::OutInterface(name) => self.out_interface == Some(name.as_str()),
            Match::InLoopback => self.in_interface == Some(LOOPBACK_INTERFACE),
            Match::OutLoopback => self.out_interface == Some(LOOPBACK_INTERFACE),
            Match::Source { net, negated } => net.contains(&self.source) != *negated,
            Match::Destination { net, negated } => net.contains(&self.destination) != *negated,
            Match::DestinationPorts { ports, negated } => {
                has_ports(self.transport) && ports.contains(&self.destination_port) != *negated
            }
            Match::SourcePort(port) => has_ports(self.transport) && self.source_port == *port,
            Match::Uid { id, negated } => self.owner.is_some_and(|owner| owner.uid == *id) != *negated,
            Match::Gid { group: Group::Id(id), negated } => {
                self.owner.is_some_and(|owner| owner.gid == *id) != *negated
            }
            Match::Gid { group: Group::Name(_), negated } => return self.owner.is_none().then_some(*negated),
            Match::StateInvalid => self.state == Some(ConntrackState::Invalid),
            Match::StateRelatedEstablished => {
                matches!(self.state, Some(ConntrackState::Related | ConntrackState::Established))
            }
            Match::Mark { mark, negated } => (self.mark == *mark) != *negated,
            Match::ConnMark(mark) => self.connection_mark == Some(*mark),
        })
    }

    /// Says why a condition does not hold.
    pub(super) fn mismatch(&self, condition: &Predicate) -> String {
        match condition {
            Predicate::Planned(planned) => self.planned_mismatch(planned),
            Predicate::Not(inner) => match &**inner {
                Predicate::Planned(planned) => self.planned_mismatch(&inverted(planned)),
                other => format!("inverse of {other:?} does not hold"),
            },
            Predicate::DestinationIn(ranges) => {
                format!("destination {} is in none of {} ranges", self.destination, ranges.len())
            }
            Predicate::States(_) => self.state_text(),
            Predicate::HasOwner => no_owner(),
            Predicate::Transport(_) => format!("protocol is {}", self.transport),
            Predicate::Unknown(what) => format!("cannot evaluate \"{what}\""),
        }
    }

    fn planned_mismatch(&self, condition: &Match) -> String {
        let interface = |name: Option<&str>| name.map_or_else(|| "none".to_owned(), str::to_owned);
        match condition {
            Match::Protocol(_) => format!("protocol is {}", self.transport),
            Match::InInterface(_) | Match::InLoopback => format!("input interface is {}", interface(self.in_interface)),
            Match::OutInterface(_) | Match::OutLoopback => {
                format!("output interface is {}", interface(self.out_interface))
            }
            Match::Source { net, negated: false } => format!("source {} is not in {net}", self.source),
            Match::Source { net, negated: true } => format!("source {} is in {net}", self.source),
            Match::Destination { net, negated: false } => format!("destination {} is not in {net}", self.destination),
            Match::Destination { net, negated: true } => format!("destination {} is in {net}", self.destination),
            Match::DestinationPorts { .. } => format!("destination port is {}", self.destination_port),
            Match::SourcePort(_) => format!("source port is {}", self.source_port),
            Match::Uid { .. } => self.owner.map_or_else(no_owner, |owner| format!("uid is {}", owner.uid)),
            Match::Gid { .. } => self.owner.map_or_else(no_owner, |owner| format!("gid is {}", owner.gid)),
            Match::StateInvalid | Match::StateRelatedEstablished => self.state_text(),
            Match::Mark { .. } => format!("mark is {}", self.mark),
            Match::ConnMark(_) => match self.connection_mark {
                Some(mark) => format!("connection mark is {mark}"),
                None => "no connection".to_owned(),
            },
        }
    }

    fn state_text(&self) -> String {
        match self.state {
            Some(state) => format!("conntrack state is {state}"),
            None => "not tracked yet".to_owned(),
        }
    }
}

fn no_owner() -> String {
    "no owner: the kernel sent it, or it was received".to_owned()
}

fn inverted(condition: &Match) -> Match {
    match condition.clone() {
        Match::Source { net, negated } => Match::Source { net, negated: !negated },
        Match::Destination { net, negated } => Match::Destination { net, negated: !negated },
        other => other, // the text of others does not depend on negation
    }
}

const fn has_ports(transport: Transport) -> bool {
    matches!(transport, Transport::Tcp | Transport::Udp)
}

const fn number_of(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Other(number) => number,
    }
}
