//! Rules in the shape in which a packet of one family meets them, wherever they come from.

use std::fmt;

use super::Hook;
use super::condition::Condition;
use crate::ruleset::{LocalDelivery, Reason};

/// All rules that a packet of one family can meet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains {
    /// Where packets enter, in the order of priorities.
    pub bases: Vec<Base>,
    /// Every chain.
    pub chains: Vec<Chain>,
    /// The mark that routing delivers locally, if there is one.
    pub local_delivery: Option<LocalDelivery>,
}

/// A chain that packets enter from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// At which hook.
    pub hook: Hook,
    /// Priority among the chains of the hook; lower runs first. Connection tracking is at -200.
    pub priority: i32,
    /// Whether it translates addresses, and so sees the first packet of a connection only.
    pub nat: bool,
    /// Place of the chain in [`Chains::chains`].
    pub chain: usize,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name of its table, with the family where it is not one of iptables: `nat`, `inet weir`.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its rules in order, of one family.
    pub rules: Vec<Rule>,
    /// Whether packets that reach its end go on. Only chains of others drop.
    pub accepts: bool,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What has to hold.
    pub conditions: Vec<Condition>,
    /// What happens then, in order.
    pub effects: Vec<Effect>,
    /// The rule as its backend writes it.
    pub text: String,
    /// Why it is there, where that is known.
    pub reason: Option<Reason>,
}

/// One thing that a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Go on in another chain of the table, then come back.
    Jump(String),
    /// Go on in another chain of the table.
    Goto(String),
    /// Leave the chain.
    Return,
    /// Leave the table.
    Accept,
    /// Drop.
    Drop,
    /// NAT to a local port.
    Redirect(u16),
    /// To the transparent socket on a local port.
    Tproxy(u16),
    /// Set the packet mark.
    SetMark(u32),
    /// Copy the packet mark to the connection.
    SaveMark,
    /// Copy the mark of the connection to the packet.
    RestoreMark,
    /// Put the connection into a conntrack zone.
    Zone(u16),
    /// Something that is not understood, in words.
    Unknown(String),
}

impl Chains {
    /// Adds an empty chain, and gives its place.
    pub fn add(&mut self, table: &str, name: &str) -> usize {
        let known = self.chains.iter().position(|chain| chain.table == table && chain.name == name);
        known.unwrap_or_else(|| {
            self.chains.push(Chain {
                table: table.to_owned(),
                name: name.to_owned(),
                rules: Vec::new(),
                accepts: true,
            });
            self.chains.len() - 1
        })
    }

    /// Adds an entry. Where priorities are equal, the one that came first stays first.
    pub fn enter(&mut self, base: Base) {
        self.bases.push(base);
        self.bases.sort_by_key(|base| base.priority);
    }

    /// Adds what other chains hold. Local delivery is that of the first that has one.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        let offset = self.chains.len();
        self.chains.extend(other.chains);
        for base in other.bases {
            self.enter(Base { chain: base.chain + offset, ..base });
        }
        self.local_delivery = self.local_delivery.or(other.local_delivery);
        self
    }

    /// Sets which mark is delivered locally: of those that are, one that a rule sets, as a packet can get no other.
    #[must_use]
    pub fn deliver(mut self, deliveries: &[LocalDelivery]) -> Self {
        let sets = |mark| {
            let mut effects = self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.effects);
            effects.any(|effect| *effect == Effect::SetMark(mark))
        };
        self.local_delivery = deliveries.iter().copied().find(|delivery| sets(delivery.mark));
        self
    }

    /// A chain of the table that `from` is in.
    pub(super) fn target(&self, from: usize, name: &str) -> Option<usize> {
        let table = &self.chains.get(from)?.table;
        self.chains.iter().position(|chain| chain.table == *table && chain.name == name)
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "go on in {chain}"),
            Self::Goto(chain) => write!(f, "go on in {chain}, for good"),
            Self::Return => f.write_str("leave the chain"),
            Self::Accept => f.write_str("leave the table"),
            Self::Drop => f.write_str("drop"),
            Self::Redirect(port) => write!(f, "redirect to port {port}"),
            Self::Tproxy(port) => write!(f, "hand to the socket on port {port}"),
            Self::SetMark(mark) => write!(f, "set mark {mark}"),
            Self::SaveMark => f.write_str("save the mark with the connection"),
            Self::RestoreMark => f.write_str("restore the mark of the connection"),
            Self::Zone(zone) => write!(f, "put into conntrack zone {zone}"),
            Self::Unknown(what) => write!(f, "do something that is not understood: {what}"),
        }
    }
}
