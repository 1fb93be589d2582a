//! The rules in the shape in which nf_tables holds them: tables, chains, sets, rules made of tests and one effect.
//!
//! Lowering writes such a value, encoding turns it into messages, reading back decodes the kernel's answer into the same type.
//! So "the kernel holds what was planned" is `==`, and what a person reads (`Display`, in nft's own syntax) is what was sent.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Name of a chain, a set or an interface; borrowed where the name is a constant.
pub type Name = Cow<'static, str>;

/// Everything that nf_tables holds for us in one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// The tables: one `inet` table, or one per family on kernels without NAT in `inet` tables.
    pub tables: Vec<TableDef>,
}

/// One table called [`super::TABLE`].
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
    /// Its name.
    pub name: Name,
    /// What it holds.
    pub elements: Elements,
}

/// Elements of a set, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// IPv4 ranges, both ends included, neither overlapping nor adjacent.
    V4(Vec<(Ipv4Addr, Ipv4Addr)>),
    /// IPv6 ranges, both ends included, neither overlapping nor adjacent.
    V6(Vec<(Ipv6Addr, Ipv6Addr)>),
    /// Ports.
    Ports(Vec<u16>),
    /// Something we never write, in words.
    Other(String),
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainDef {
    /// Its name, unique in the table.
    pub name: Name,
    /// Where packets enter it, for base chains.
    pub hook: Option<Hook>,
    /// Its rules, in the order in which packets meet them.
    pub rules: Vec<RuleDef>,
}

/// Where packets enter a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// `nat`, `filter` or `route`.
    pub kind: Name,
    /// Hook number (`NF_INET_*`, linux/netfilter.h).
    pub number: u32,
    /// Priority among the chains of a hook; lower runs first.
    pub priority: i32,
    /// Whether packets that reach the end of the chain go on. Always so in chains of ours.
    pub accepts: bool,
}

/// A rule: tests that must all hold, then effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleDef {
    /// Tests first, effects last.
    pub exprs: Vec<Expr>,
}

/// Part of a rule. Each is a fixed short sequence of kernel expressions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// A condition; where it does not hold, the rule ends.
    Test {
        /// The condition.
        test: Test,
        /// Whether it is inverted.
        negated: bool,
    },
    /// Go on in another chain, then come back.
    Jump(Name),
    /// Go on in another chain. We never write it.
    Goto(Name),
    /// Leave the chain.
    Return,
    /// Leave the base chain; the packet goes on.
    Accept,
    /// Drop the packet.
    Drop,
    /// NAT to a local port.
    Redirect(u16),
    /// Assign the packet to the transparent socket on a local port; without such a socket the rule ends here.
    Tproxy {
        /// Family of the packets; `None` is both, in an `inet` table.
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
    /// Something we never write: the names of its kernel expressions.
    Other(String),
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Test {
    /// Family of the packet.
    Family(IpFamily),
    /// Index of the interface it came in by.
    InIndex(u32),
    /// Index of the interface it goes out by.
    OutIndex(u32),
    /// Name of the interface it came in by.
    InName(Name),
    /// Name of the interface it goes out by.
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
    /// State of the connection is one of these bits: 1 invalid, 2 established, 4 related, 8 new, 64 untracked
    /// (`NF_CT_STATE_BIT`, linux/netfilter/nf_conntrack_common.h).
    ConnectionState(u32),
    /// Packet mark.
    Mark(u32),
    /// Connection mark.
    ConnectionMark(u32),
    /// User of the sending socket, in numbers of the namespace's own user namespace. Does not hold for packets without a socket,
    /// neither straight nor inverted.
    Uid(u32),
    /// Group of the sending socket; see [`Test::Uid`].
    Gid(u32),
}

impl Program {
    /// With chains and sets in the order that every program has: base chains as packets meet them, then the others by name.
    /// The kernel lists them by age.
    pub(super) fn in_order(mut self) -> Self {
        for table in &mut self.tables {
            table.sets.sort_by(|a, b| a.name.cmp(&b.name));
            let place = |chain: &ChainDef| {
                let hook = chain.hook.as_ref();
                (hook.is_none(), hook.map(|hook| (hook.priority, hook.number)))
            };
            table.chains.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.name.cmp(&b.name)));
        }
        self
    }
}

impl TableFamily {
    /// All families in which a table of ours may be found.
    pub(super) const ALL: [Self; 3] = [Self::Inet, Self::Ip, Self::Ip6];

    /// Name in nft.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

impl Test {
    /// Place among the tests of a rule: cheap and selective first, and what a test relies on before it. nft puts the conditions that
    /// an address or a port implies directly before it, so text that leaves them out loads as the same rule.
    pub(super) const fn rank(&self) -> u8 {
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
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::V4(ranges) => ranges.len(),
            Self::V6(ranges) => ranges.len(),
            Self::Ports(ports) => ports.len(),
            Self::Other(_) => 0,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Test> for Expr {
    fn from(test: Test) -> Self {
        Self::Test { test, negated: false }
    }
}
