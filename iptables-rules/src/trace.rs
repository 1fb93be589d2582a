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
mod packet;
mod plan;
mod predicate;
mod reasons;
mod result;
#[cfg(test)]
mod tests;
mod walk;

pub use self::chains::{Base, Chain, Chains, Effect, Rule};
pub use self::packet::{ConntrackState, Hook, Owner, Packet, PacketOrigin, Transport};
pub use self::predicate::{ConntrackStates, Predicate};
pub use self::result::{Disposition, RuleResult, RuleVisit, TableVisit, Trace};
pub(crate) use self::walk::{CONNTRACK, MAX_JUMP_DEPTH};

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
