//! The result of a trace.

use super::chains::Effect;
use super::packet::Hook;
use crate::ruleset::RuleReason;

/// The path of a packet through the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Visited tables, in order.
    pub tables: Vec<TableVisit>,
    /// Final fate of the packet.
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
    /// Reason for which its rules do not apply; `None` if they do.
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
    /// Reason for the rule, if known.
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

/// Final fate of a packet.
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
