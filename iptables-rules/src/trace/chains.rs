//! Chains of one address family in the form that the tracer evaluates, whatever their origin.

use std::collections::HashSet;
use std::fmt;

use super::packet::Hook;
use super::predicate::Predicate;
use crate::ruleset::{LocalDelivery, RuleReason};

/// All chains that apply to packets of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains {
    /// Base chains, in the order of their priorities.
    pub bases: Vec<Base>,
    /// All chains.
    pub chains: Vec<Chain>,
    /// Mark that routing delivers locally.
    pub local_delivery: Option<LocalDelivery>,
}

/// A chain that is attached to a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The hook.
    pub hook: Hook,
    /// Priority among the base chains of the hook; lower runs first. Connection tracking has -200.
    pub priority: i32,
    /// Whether it translates addresses, which applies to the first packet of a connection only.
    pub nat: bool,
    /// Index of the chain in [`Chains::chains`].
    pub chain: usize,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name of the table; with its family, unless it is a table of iptables: `nat`, `inet weir`.
    pub table: String,
    /// Name of the chain.
    pub name: String,
    /// Rules of the family, in order.
    pub rules: Vec<Rule>,
    /// Whether the policy is accept. Only foreign chains drop.
    pub accepts: bool,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, all of which must hold.
    pub conditions: Vec<Predicate>,
    /// Effects of a match, in order.
    pub effects: Vec<Effect>,
    /// The rule in the syntax of its backend.
    pub text: String,
    /// Reason for the rule, if known.
    pub reason: Option<RuleReason>,
}

/// An effect of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Continue in another chain of the table, then return.
    Jump(String),
    /// Continue in another chain of the table.
    Goto(String),
    /// Leave the chain.
    Return,
    /// Leave the table.
    Accept,
    /// Drop.
    Drop,
    /// Redirect to a local port by NAT.
    Redirect(u16),
    /// Hand over to the transparent socket on a local port.
    Tproxy(u16),
    /// Set the packet mark.
    SetMark(u32),
    /// Copy the packet mark to the connection.
    SaveMark,
    /// Copy the mark of the connection to the packet.
    RestoreMark,
    /// Put the connection into a conntrack zone.
    Zone(u16),
    /// Effect that is unknown to the tracer, as text.
    Unknown(String),
}

impl Chains {
    /// Returns the index of a chain, which is added if it is missing.
    pub fn chain_index(&mut self, table: &str, name: &str) -> usize {
        let known = self.chains.iter().position(|chain| chain.table == table && chain.name == name);
        known.unwrap_or_else(|| self.push_chain(table, name))
    }

    /// Adds an empty chain, and returns its index.
    pub fn push_chain(&mut self, table: &str, name: &str) -> usize {
        self.chains.push(Chain { table: table.to_owned(), name: name.to_owned(), rules: Vec::new(), accepts: true });
        self.chains.len() - 1
    }

    /// Adds a base chain, after those of the same priority.
    pub fn add_base(&mut self, base: Base) {
        let at = self.bases.partition_point(|other| other.priority <= base.priority);
        self.bases.insert(at, base);
    }

    /// Adds other chains. The first local delivery counts.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        let offset = self.chains.len();
        self.chains.extend(other.chains);
        for base in other.bases {
            self.add_base(Base { chain: base.chain + offset, ..base });
        }
        self.local_delivery = self.local_delivery.or(other.local_delivery);
        self
    }

    /// Sets the local delivery: the first one whose mark a rule sets.
    #[must_use]
    pub fn with_local_delivery(mut self, deliveries: &[LocalDelivery]) -> Self {
        let effects = self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.effects);
        let marks: HashSet<u32> =
            effects.filter_map(|effect| if let Effect::SetMark(mark) = effect { Some(*mark) } else { None }).collect();
        self.local_delivery = deliveries.iter().copied().find(|delivery| marks.contains(&delivery.mark));
        self
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "jump to {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Redirect(port) => write!(f, "redirect to port {port}"),
            Self::Tproxy(port) => write!(f, "tproxy to port {port}"),
            Self::SetMark(mark) => write!(f, "set mark {mark}"),
            Self::SaveMark => f.write_str("save mark to connection"),
            Self::RestoreMark => f.write_str("restore mark from connection"),
            Self::Zone(zone) => write!(f, "set conntrack zone {zone}"),
            Self::Unknown(what) => write!(f, "unknown action: {what}"),
        }
    }
}
