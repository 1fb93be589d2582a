//! Chooses a packet of a class, with usual values where the class has them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::space::{Dimension, NO_OWNER, Names, Ranges, STATES, TCP, UDP, number};
use super::super::walk::Direction;
use crate::names::LOOPBACK_INTERFACE;
use crate::restore::RestoreFamily;
use crate::trace::{ConntrackState, Owner, Packet, PacketOrigin, Transport};

/// Addresses of the documentation (RFC 5737, RFC 3849) for peers, and usual ones for pods.
const PEERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
const PODS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2))];
const APPLICATION: u128 = 1000;
const SERVER_PORT: u128 = 8080;
const CLIENT_PORT: u128 = 40_000;

struct Choice<'a> {
    ranges: &'a BTreeMap<Dimension, Ranges>,
}

impl Choice<'_> {
    /// Returns the preferred value if it is in the class, else the smallest one that `is_allowed`.
    fn value(&self, dimension: Dimension, preferred: u128, is_allowed: impl Fn(u128) -> bool) -> u128 {
        let Some(ranges) = self.ranges.get(&dimension) else { return preferred };
        let allowed = |value: &u128| is_allowed(*value);
        let has = ranges.iter().any(|(first, last)| (*first..=*last).contains(&preferred));
        let firsts = ranges.iter().flat_map(|&(first, last)| [first, first.saturating_add(1).min(last)]);
        Some(preferred).filter(|_| has).into_iter().chain(firsts).find(allowed).unwrap_or(preferred)
    }

    fn number<T: TryFrom<u128> + Default>(&self, dimension: Dimension, preferred: u128) -> T {
        T::try_from(self.value(dimension, preferred, |_| true)).unwrap_or_default()
    }

    fn address(&self, dimension: Dimension, preferred: [IpAddr; 2], family: RestoreFamily) -> IpAddr {
        let preferred = preferred[usize::from(family == RestoreFamily::V6)];
        let value = self.value(dimension, number(preferred), |_| true);
        match family {
            RestoreFamily::V4 => u32::try_from(value).map_or(preferred, |bits| Ipv4Addr::from_bits(bits).into()),
            RestoreFamily::V6 => Ipv6Addr::from_bits(value).into(),
        }
    }

    fn owner(&self) -> Option<Owner> {
        let owned = |id: u128| id < NO_OWNER;
        let ids = [Dimension::Uid, Dimension::Gid].map(|dimension| self.value(dimension, APPLICATION, owned));
        let has_owner = [Dimension::Uid, Dimension::Gid].iter().zip(ids).all(|(dimension, id)| {
            self.ranges
                .get(dimension)
                .is_none_or(|ranges| ranges.iter().any(|(first, last)| (*first..=*last).contains(&id)))
        });
        let [uid, gid] = ids.map(|id| u32::try_from(id).unwrap_or_default());
        has_owner.then_some(Owner { uid, gid })
    }

    fn interface(&self, names: &Names) -> String {
        let others = names.interfaces.len() as u128;
        let index = self.value(Dimension::Interface, others, |_| true);
        let known = usize::try_from(index).ok().and_then(|index| names.interfaces.get(index));
        known.cloned().unwrap_or_else(|| {
            let mut candidates = (0..=names.interfaces.len()).map(|number| format!("eth{number}"));
            candidates.find(|name| !names.interfaces.contains(name)).unwrap_or_default()
        })
    }

    fn state(&self) -> ConntrackState {
        let index = self.value(Dimension::State, 0, |_| true);
        usize::try_from(index).ok().and_then(|index| STATES.get(index)).copied().unwrap_or(ConntrackState::New)
    }
}

/// Chooses a packet.
pub(super) fn choose(
    ranges: &BTreeMap<Dimension, Ranges>,
    direction: Direction,
    family: RestoreFamily,
    names: &Names,
    marks_differ: bool,
) -> Packet {
    let choice = Choice { ranges };
    let interface = choice.interface(names);
    let (origin, peers) = match direction {
        Direction::Inbound => (PacketOrigin::Received { interface }, (PEERS, PODS)),
        Direction::Outbound => {
            let to = if interface == LOOPBACK_INTERFACE { PODS } else { PEERS };
            (PacketOrigin::Sent { interface, owner: choice.owner() }, (PODS, to))
        }
    };
    let transport = match choice.value(Dimension::Transport, TCP, |_| true) {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        other => Transport::Other(u8::try_from(other).unwrap_or_default()),
    };
    let state = choice.state();
    let connection_mark: u32 = choice.number(Dimension::ConnectionMark, 0);
    let is_other = |mark: u128| !marks_differ || mark != u128::from(connection_mark);
    let preferred = u128::from(!is_other(0));
    let mark = choice.value(Dimension::Mark, preferred, is_other);
    Packet {
        origin,
        transport,
        source: choice.address(Dimension::Source, peers.0, family),
        source_port: choice.number(Dimension::SourcePort, CLIENT_PORT),
        destination: choice.address(Dimension::Destination, peers.1, family),
        destination_port: choice.number(Dimension::DestinationPort, SERVER_PORT),
        mark: u32::try_from(mark).unwrap_or_default(),
        connection_mark,
        state,
    }
}
