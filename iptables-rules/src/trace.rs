//! What becomes of one packet: the way it takes through the rules, rule by rule, and how it ends. No kernel is asked.
//!
//! ```text
//! RuleSet ────────────────────── plan.rs ─────────────┐
//! Program (read from nf_tables) ─ nft.rs ───┬ infer.rs ┼─▶ Chains ──walk.rs──▶ Trace: stages with their steps, fate
//! text of iptables-save ──────── saved.rs ──┘(reasons) ┘             (condition.rs)
//! ```
//!
//! The walk is netfilter's (include/uapi/linux/netfilter_ipv4.h gives the priorities): `raw`, then connection tracking, `mangle`, `nat`,
//! first in OUTPUT for a packet that the pod sends, then in PREROUTING if it comes back by `lo`, or in PREROUTING alone for one that
//! arrives. What is easily overlooked, and each of it decides about packets of a mesh:
//!
//! * `nat` sees the first packet of a connection only, and a packet that comes back by `lo` has been through it in OUTPUT: whatever
//!   was found there, nothing included, is final (`nf_nat_inet_fn`, net/netfilter/nf_nat_core.c).
//! * `-o` is the interface of the first routing decision throughout OUTPUT, also behind a mark that changed the route.
//! * REDIRECT in OUTPUT sends to the loopback address (nf_nat_redirect.c), so the packet leaves by `lo`.
//! * A zone is set on packets that connection tracking has not seen; the first one counts, and one that comes back by `lo` has been seen.
//! * The owner of a packet is known in OUTPUT only.

mod chains;
mod condition;
mod infer;
mod plan;
mod saved;
#[cfg(test)]
mod tests;
mod walk;
mod words;

use std::fmt;
use std::net::IpAddr;

pub use self::chains::{Base, Chain, Chains, Effect, Rule};
pub use self::condition::{Condition, States};
use crate::ruleset::Reason;

/// A packet before it meets the first rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub entry: Entry,
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
    /// Mark it has already, for example from `SO_MARK` (socket(7)).
    pub mark: u32,
    /// Mark of its connection.
    pub connection_mark: u32,
    /// What connection tracking makes of it.
    pub state: State,
}

/// Where a packet comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// From outside, by this interface.
    Arrives {
        /// Name of the interface.
        interface: String,
    },
    /// From a socket of the pod.
    Sent {
        /// Name of the interface by which it would leave, as routing decides before any rule; `lo` for the pod's own addresses.
        interface: String,
        /// Who owns the socket; `None` for packets of the kernel itself.
        owner: Option<Owner>,
    },
}

/// User and group of a socket, in numbers of the pod.
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

/// What connection tracking makes of a packet (`enum ip_conntrack_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// First packet of a connection.
    New,
    /// Packet of a known connection.
    Established,
    /// First packet of a connection that another one announced.
    Related,
    /// Belongs nowhere.
    Invalid,
}

/// Hook of netfilter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Packets that come in, by `lo` too.
    Prerouting,
    /// Packets that the pod sends.
    Output,
}

impl Hook {
    /// Name of the built-in chain.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Output => "OUTPUT",
        }
    }
}

/// The way of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What it passed, in order.
    pub stages: Vec<Stage>,
    /// How it ended.
    pub fate: Fate,
    /// Place of the rule that decided, as indexes of a stage and of a step in it; `None` where none did.
    pub decided_by: Option<(usize, usize)>,
    /// Mark of the packet at the end.
    pub mark: u32,
    /// Mark of its connection at the end.
    pub connection_mark: u32,
    /// Conntrack zone of its connection.
    pub zone: u16,
    /// Rules that are not understood and might have matched, in words. Where there is one, the rest of the trace is a guess.
    pub doubts: Vec<String>,
}

/// A table at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The hook.
    pub hook: Hook,
    /// Name of the table, with its family where it is not one of iptables.
    pub table: String,
    /// Why its rules were not looked at; `None` where they were.
    pub skipped: Option<&'static str>,
    /// The rules that were looked at, in order.
    pub steps: Vec<Step>,
}

/// A rule that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Name of the chain.
    pub chain: String,
    /// Number of the rule in its chain as the packet's family sees it, from 1.
    pub number: usize,
    /// How many jumps deep the chain is; 0 for the base chain.
    pub depth: usize,
    /// The rule as its backend writes it.
    pub rule: String,
    /// Why the rule is there, where that is known.
    pub reason: Option<Reason>,
    /// What it did.
    pub verdict: Verdict,
}

/// What a rule did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A condition did not hold, in words.
    NoMatch(String),
    /// A condition is not understood, so nobody can tell.
    Unknown(String),
    /// It matched, and did this, in order.
    Match(Vec<Effect>),
}

/// How a packet ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// NAT to a local port; the listener can ask for the original destination.
    Redirected {
        /// The port.
        port: u16,
    },
    /// Handed to the transparent socket on a local port, with both addresses as they were.
    Tproxied {
        /// The port.
        port: u16,
        /// The port that NAT made of the destination's afterwards, where a rule asked for that too: the socket stays, and sees this
        /// port.
        redirected: Option<u16>,
    },
    /// Dropped.
    Dropped,
    /// Goes where it was going.
    Passes {
        /// By which interface, for packets of the pod; `lo` also where a mark delivers it to the pod. `None` for arriving ones.
        interface: Option<String>,
    },
}

impl fmt::Display for State {
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
    /// The way of a packet through these chains, which have to be those of its family.
    pub fn trace(&self, packet: &Packet) -> Trace {
        walk::walk(self, packet)
    }
}

impl crate::RuleSet {
    /// The way of a packet through the planned rules, listeners of the proxy taken for granted.
    pub fn trace(&self, packet: &Packet) -> Trace {
        Chains::planned(self, packet.destination).trace(packet)
    }
}
