//! The traced packet.

use std::fmt;
use std::net::IpAddr;

/// A packet before the first rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Origin of the packet.
    pub origin: PacketOrigin,
    /// Transport protocol.
    pub transport: Transport,
    /// Source address.
    pub source: IpAddr,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Destination port; 0 where the protocol has none.
    pub destination_port: u16,
    /// Initial mark, for example from `SO_MARK` (socket(7)).
    pub mark: u32,
    /// Mark of its connection.
    pub connection_mark: u32,
    /// Conntrack state.
    pub state: ConntrackState,
}

/// Origin of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PacketOrigin {
    /// From outside the pod.
    Received {
        /// Input interface.
        interface: String,
    },
    /// From a socket of the pod.
    Sent {
        /// Output interface by the routing decision before any rule; `lo` for the pod's own addresses.
        interface: String,
        /// Owner of the socket; `None` for packets that the kernel sends.
        owner: Option<Owner>,
    },
}

/// User and group of a socket, as seen in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Transport protocol of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Another one, by its number (`IPPROTO_*`).
    Other(u8),
}

/// Conntrack state of a packet (`enum ip_conntrack_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConntrackState {
    /// First packet of a connection.
    New,
    /// Packet of a known connection.
    Established,
    /// First packet of a connection that another connection expects.
    Related,
    /// Packet that belongs to no connection.
    Invalid,
}

/// Netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Received packets, also over `lo`.
    Prerouting,
    /// Packets that the pod sends.
    Output,
}

impl Hook {
    /// Returns the name of the built-in chain.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Output => "OUTPUT",
        }
    }
}

impl fmt::Display for ConntrackState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}
