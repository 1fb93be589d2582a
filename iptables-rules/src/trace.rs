//! Traces one packet through the rules, rule by rule, without a kernel.
//!
//! ```text
//! RuleSet ────────────────────── plan.rs ─────────────┐
//! nf_tables (weir-kernel) ───────────────────┬ infer.rs ┼─▶ Chains ──walk.rs──▶ Trace: visited tables and rules, disposition
//! iptables-save ─────── iptables_save.rs ────┘(reasons) ┘            (predicate.rs)
//! ```
//!
//! The order is netfilter's (priorities: include/uapi/linux/netfilter_ipv4.h): `raw`, connection tracking, `mangle`, `nat`. A packet
//! that the pod sends passes OUTPUT, and PREROUTING if it comes back over `lo`; a received packet passes PREROUTING only. Details that
//! matter for a mesh:
//!
//! * `nat` applies to the first packet of a connection only. For a packet that comes back over `lo`, OUTPUT has decided already, even
//!   if no rule matched there (`nf_nat_inet_fn`, net/netfilter/nf_nat_core.c).
//! * In OUTPUT, `-o` is the interface of the first routing decision, even after a mark has changed the route.
//! * REDIRECT in OUTPUT sends to the loopback address (nf_nat_redirect.c), so the packet leaves by `lo`.
//! * A conntrack zone is set on untracked packets only; the first one counts. A packet that comes back over `lo` is tracked.
//! * The owner of a packet is known in OUTPUT only.

mod chains;
mod infer;
mod iptables_save;
mod plan;
mod predicate;
mod reasons;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;
use std::net::IpAddr;

pub use self::chains::{Base, Chain, Chains, Effect, Rule};
pub use self::predicate::{ConntrackStates, Predicate};
use crate::ruleset::RuleReason;

/// A packet before the first rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
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

/// Where a packet comes from.
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

/// The path of a packet through the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Visited tables, in order.
    pub tables: Vec<TableVisit>,
    /// What happens to the packet in the end.
    pub disposition: Disposition,
    /// Place of the rule that decided, as indexes of a table and of a visit in it; `None` where none did.
    pub decided_by: Option<(usize, usize)>,
    /// Mark of the packet at the end.
    pub mark: u32,
    /// Mark of its connection at the end.
    pub connection_mark: u32,
    /// Conntrack zone of its connection.
    pub zone: u16,
    /// Rules that may match, but cannot be evaluated. If there are any, the rest of the trace is a guess.
    pub uncertain_rules: Vec<String>,
}

/// A table that the packet visits at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableVisit {
    /// The hook.
    pub hook: Hook,
    /// Name of the table; with its family, unless it is a table of iptables.
    pub table: String,
    /// Why its rules do not apply; `None` if they do.
    pub skip_reason: Option<&'static str>,
    /// Evaluated rules, in order.
    pub rules: Vec<RuleVisit>,
}

/// A rule that is evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleVisit {
    /// Name of the chain.
    pub chain: String,
    /// Number of the rule among those of its chain and family, from 1.
    pub number: usize,
    /// Number of jumps from the base chain.
    pub depth: usize,
    /// The rule in the syntax of its backend.
    pub rule: String,
    /// Why the rule exists, if known.
    pub reason: Option<RuleReason>,
    /// Result of the rule.
    pub result: RuleResult,
}

/// Result of a rule for a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleResult {
    /// A condition does not hold, with the reason.
    NoMatch(String),
    /// A condition cannot be evaluated.
    Unknown(String),
    /// The rule matches and has these effects, in order.
    Match(Vec<Effect>),
}

/// What happens to a packet in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// Redirected to a local port by NAT; `SO_ORIGINAL_DST` gives the original destination.
    Redirected {
        /// The port.
        port: u16,
    },
    /// Handed over to the transparent socket on a local port, addresses unchanged.
    Tproxied {
        /// The port.
        port: u16,
        /// Destination port after NAT, if a rule redirects the packet as well: the socket stays the same, and sees this port.
        redirected: Option<u16>,
    },
    /// Dropped.
    Dropped,
    /// Passes unchanged.
    Passes {
        /// Output interface of a sent packet; `lo` also where a mark delivers it locally. `None` for received packets.
        interface: Option<String>,
    },
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

impl Chains {
    /// Traces a packet through these chains, which must be those of its family.
    pub fn trace(&self, packet: &Packet) -> Trace {
        walk::walk(self, packet)
    }
}

impl crate::RuleSet {
    /// Traces a packet through the planned rules, assuming that the proxy listens on its ports.
    pub fn trace(&self, packet: &Packet) -> Trace {
        Chains::from_rule_set(self, packet.destination).trace(packet)
    }
}
