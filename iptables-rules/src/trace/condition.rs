//! Conditions of rules, and whether they hold for a packet.

use std::net::IpAddr;

use super::{Owner, State, Transport};
use crate::config::Group;
use crate::names::LOOPBACK_INTERFACE;
use crate::ruleset::{Match, Protocol};

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// One that plans use.
    Planned(Match),
    /// The inverse of another one.
    Not(Box<Condition>),
    /// Destination is in one of these ranges, both ends included, in ascending order.
    DestinationIn(Vec<(IpAddr, IpAddr)>),
    /// Connection tracking is in one of these states.
    States(States),
    /// The packet comes from a socket with an owner: what nf_tables wants before it compares one.
    HasOwner,
    /// Transport protocol by its number.
    Transport(u8),
    /// Something that is not understood, in words.
    Unknown(String),
}

/// A choice of conntrack states, one bit each: 1 invalid, 2 established, 4 related, 8 new (`NF_CT_STATE_BIT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct States(pub u32);

/// What conditions can see of a packet at one point of its way.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    pub(super) in_interface: Option<&'a str>,
    pub(super) out_interface: Option<&'a str>,
    pub(super) owner: Option<Owner>,
    pub(super) transport: Transport,
    pub(super) source: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination: IpAddr,
    pub(super) destination_port: u16,
    pub(super) mark: u32,
    /// `None` before connection tracking, and for packets that belong nowhere.
    pub(super) connection_mark: Option<u32>,
    /// `None` before connection tracking.
    pub(super) state: Option<State>,
}

impl View<'_> {
    /// Whether a condition holds; `None` where nobody can tell.
    pub(super) fn meets(&self, condition: &Condition) -> Option<bool> {
        Some(match condition {
            Condition::Planned(planned) => return self.meets_planned(planned),
            Condition::Not(inner) => return self.meets(inner).map(|holds| !holds),
            Condition::DestinationIn(ranges) => {
                let at = ranges.partition_point(|(first, _)| *first <= self.destination);
                at.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| self.destination <= *last)
            }
            Condition::States(States(bits)) => self.state.is_some_and(|state| bits & bit(state) != 0),
            Condition::HasOwner => self.owner.is_some(),
            Condition::Transport(number) => number_of(self.transport) == *number,
            Condition::Unknown(_) => return None,
        })
    }

    fn meets_planned(&self, condition: &Match) -> Option<bool> {
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
            Match::StateInvalid => self.state == Some(State::Invalid),
            Match::StateRelatedEstablished => matches!(self.state, Some(State::Related | State::Established)),
            Match::Mark { mark, negated } => (self.mark == *mark) != *negated,
            Match::ConnMark(mark) => self.connection_mark == Some(*mark),
        })
    }

    /// Why a condition does not hold, in words.
    pub(super) fn objection(&self, condition: &Condition) -> String {
        match condition {
            Condition::Planned(planned) => self.objection_to(planned),
            Condition::Not(inner) => match &**inner {
                Condition::Planned(planned) => self.objection_to(&inverted(planned)),
                other => format!("the inverse of {other:?} does not hold"),
            },
            Condition::DestinationIn(ranges) => {
                format!("{} is not among the {} listed ranges", self.destination, ranges.len())
            }
            Condition::States(_) => self.its_state(),
            Condition::HasOwner => "no socket of the pod sent it".to_owned(),
            Condition::Transport(_) => format!("it is {}", self.transport),
            Condition::Unknown(what) => format!("\"{what}\" is not understood"),
        }
    }

    fn objection_to(&self, condition: &Match) -> String {
        let interface = |name: Option<&str>| name.map_or_else(|| "no interface".to_owned(), str::to_owned);
        match condition {
            Match::Protocol(_) => format!("it is {}", self.transport),
            Match::InInterface(_) | Match::InLoopback => format!("it came in by {}", interface(self.in_interface)),
            Match::OutInterface(_) | Match::OutLoopback => format!("it goes out by {}", interface(self.out_interface)),
            Match::Source { net, negated: false } => format!("it comes from {}, not {net}", self.source),
            Match::Source { net, negated: true } => format!("it comes from {}, which is in {net}", self.source),
            Match::Destination { net, negated: false } => format!("it goes to {}, not {net}", self.destination),
            Match::Destination { net, negated: true } => format!("it goes to {}, which is in {net}", self.destination),
            Match::DestinationPorts { .. } => format!("it goes to port {}", self.destination_port),
            Match::SourcePort(_) => format!("it comes from port {}", self.source_port),
            Match::Uid { .. } => self.owner.map_or_else(no_owner, |owner| format!("its user is {}", owner.uid)),
            Match::Gid { .. } => self.owner.map_or_else(no_owner, |owner| format!("its group is {}", owner.gid)),
            Match::StateInvalid | Match::StateRelatedEstablished => self.its_state(),
            Match::Mark { .. } => format!("its mark is {}", self.mark),
            Match::ConnMark(_) => match self.connection_mark {
                Some(mark) => format!("the mark of its connection is {mark}"),
                None => "it has no connection".to_owned(),
            },
        }
    }

    fn its_state(&self) -> String {
        match self.state {
            Some(state) => format!("its state is {state}"),
            None => "connection tracking has not seen it yet".to_owned(),
        }
    }
}

fn no_owner() -> String {
    "no socket of the pod sent it".to_owned()
}

fn inverted(condition: &Match) -> Match {
    match condition.clone() {
        Match::Source { net, negated } => Match::Source { net, negated: !negated },
        Match::Destination { net, negated } => Match::Destination { net, negated: !negated },
        other => other, // in words the others are the same either way
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

const fn bit(state: State) -> u32 {
    match state {
        State::Invalid => 1,
        State::Established => 2,
        State::Related => 4,
        State::New => 8,
    }
}
