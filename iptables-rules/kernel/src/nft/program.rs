//! The rules as nf_tables stores them: tables, chains, sets, and rules that consist of tests and effects.
//!
//! Lowering creates such a value, encoding turns it into messages, and reading back decodes the kernel's answer into the same type. So
//! plan and kernel are compared with `==`, and `Display` shows in nft's syntax what was sent.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Name of our tables.
pub const TABLE: &str = "weir";

/// Name of a chain, a set or an interface; borrowed where the name is a constant.
pub type Name = Cow<'static, str>;

/// Our tables in one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// The tables: one `inet` table, or one per family on kernels without NAT in `inet` tables.
    pub tables: Vec<TableDef>,
}

/// One table called [`TABLE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDef {
    /// Family of the table.
    pub family: TableFamily,
    /// `NFT_TABLE_F_*` of linux/netfilter/nf_tables.h; 0 in every table of ours. A dormant table (1) would catch nothing.
    pub flags: u32,
    /// Named sets.
    pub sets: Vec<SetDef>,
    /// Chains, base chains first.
    pub chains: Vec<ChainDef>,
}

/// Family of a table (`NFPROTO_*`, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableFamily {
    /// Both families in one table.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetDef {
    /// Name of the set.
    pub name: Name,
    /// Elements of the set.
    pub elements: Elements,
}

/// Elements of a set, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// Inclusive IPv4 ranges, neither overlapping nor adjacent.
    V4(Vec<(Ipv4Addr, Ipv4Addr)>),
    /// Inclusive IPv6 ranges, neither overlapping nor adjacent.
    V6(Vec<(Ipv6Addr, Ipv6Addr)>),
    /// Ports.
    Ports(Vec<u16>),
    /// Elements that we never write, as text.
    Other(String),
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainDef {
    /// Name of the chain, unique in its table.
    pub name: Name,
    /// Hook of a base chain.
    pub hook: Option<Hook>,
    /// Rules, in order of evaluation.
    pub rules: Vec<RuleDef>,
}

/// Type, hook, priority and policy of a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// `nat`, `filter` or `route`.
    pub kind: Name,
    /// Hook number (`NF_INET_*`, linux/netfilter.h).
    pub number: u32,
    /// Priority among the chains of a hook; lower runs first.
    pub priority: i32,
    /// Whether the policy is accept, as in all our chains.
    pub accepts: bool,
}

/// A rule: tests, all of which must hold, then effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleDef {
    /// Tests first, effects last.
    pub exprs: Vec<Expr>,
}

/// Part of a rule; a fixed short sequence of kernel expressions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Ends the rule if the condition does not hold.
    Test {
        /// The condition.
        test: Test,
        /// Whether it is inverted.
        negated: bool,
    },
    /// Continue in another chain, then return.
    Jump(Name),
    /// Continue in another chain. We never write it.
    Goto(Name),
    /// Leave the chain.
    Return,
    /// Leave the base chain.
    Accept,
    /// Drop the packet.
    Drop,
    /// Redirect to a local port by NAT.
    Redirect(u16),
    /// Assign the packet to the transparent socket on a local port; without such a socket the rule ends here.
    Tproxy {
        /// Family of the packets; `None` means both, in an `inet` table.
        family: Option<IpFamily>,
        /// Port of the socket.
        port: u16,
    },
    /// Set the packet mark.
    SetMark(u32),
    /// Copy the packet mark to the connection.
    SaveMark,
    /// Copy the connection mark to the packet.
    RestoreMark,
    /// Put the connection into a conntrack zone.
    SetZone(u16),
    /// Anything that we never write, by the name of its kernel expression.
    Other(String),
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Test {
    /// Family of the packet.
    Family(IpFamily),
    /// Index of the input interface.
    InIndex(u32),
    /// Index of the output interface.
    OutIndex(u32),
    /// Name of the input interface.
    InName(Name),
    /// Name of the output interface.
    OutName(Name),
    /// Source network; only after [`Test::Family`] in an `inet` table.
    Source(IpNet),
    /// Destination network; only after [`Test::Family`] in an `inet` table.
    Destination(IpNet),
    /// Destination address is in a set; only after [`Test::Family`] in an `inet` table.
    DestinationIn(IpFamily, Name),
    /// Transport protocol (`IPPROTO_*`).
    Protocol(u8),
    /// Source port; only after [`Test::Protocol`].
    SourcePort(u16),
    /// Destination port; only after [`Test::Protocol`].
    DestinationPort(u16),
    /// Destination port is in a set; only after [`Test::Protocol`].
    DestinationPortIn(Name),
    /// Conntrack state is one of these bits: 1 invalid, 2 established, 4 related, 8 new, 64 untracked
    /// (`NF_CT_STATE_BIT`, linux/netfilter/nf_conntrack_common.h).
    ConnectionState(u32),
    /// Packet mark.
    Mark(u32),
    /// Connection mark.
    ConnectionMark(u32),
    /// User of the sending socket, as seen in the user namespace of the network namespace. Never holds for packets without a socket, not
    /// even negated.
    Uid(u32),
    /// Group of the sending socket; see [`Test::Uid`].
    Gid(u32),
}

impl Program {
    /// Sorts chains and sets: base chains in order of evaluation, then the others by name. The kernel lists them by age.
    pub(super) fn sorted(mut self) -> Self {
        for table in &mut self.tables {
            table.sets.sort_by(|a, b| a.name.cmp(&b.name));
            let order = |chain: &ChainDef| {
                let hook = chain.hook.as_ref();
                (hook.is_none(), hook.map(|hook| (hook.priority, hook.number)))
            };
            table.chains.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name)));
        }
        self
    }
}

impl TableFamily {
    /// All families that can contain a table of ours.
    pub(super) const ALL: [Self; 3] = [Self::Inet, Self::Ip, Self::Ip6];

    /// Returns the name in nft.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

impl Test {
    /// Returns the position among the tests of a rule: cheap and selective tests first, prerequisites before the tests that need them.
    /// nft adds implied tests directly before an address or a port, so text without them loads as the same rule.
    pub(super) const fn order(&self) -> u8 {
        match self {
            Self::InIndex(_) | Self::OutIndex(_) | Self::InName(_) | Self::OutName(_) => 0,
            Self::Family(_) => 1,
            Self::Source(_) => 2,
            Self::Destination(_) | Self::DestinationIn(..) => 3,
            Self::Protocol(_) => 4,
            Self::SourcePort(_) => 5,
            Self::DestinationPort(_) | Self::DestinationPortIn(_) => 6,
            Self::ConnectionState(_) => 7,
            Self::Mark(_) => 8,
            Self::ConnectionMark(_) => 9,
            Self::Uid(_) => 10,
            Self::Gid(_) => 11,
        }
    }
}

impl Elements {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::V4(ranges) => ranges.len(),
            Self::V6(ranges) => ranges.len(),
            Self::Ports(ports) => ports.len(),
            Self::Other(_) => 0,
        }
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Test> for Expr {
    fn from(test: Test) -> Self {
        Self::Test { test, negated: false }
    }
}
