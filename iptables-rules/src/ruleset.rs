//! The rules of one pod as data, independent of any backend.
//!
//! A [`RuleSet`] is a list of rules in *program order*: the order in which Istio's own program would issue them, with its appends and
//! its inserts. [`RuleSet::chain_rules`] gives the order in which the kernel walks them. Backends lower it, the CLI prints it,
//! tests compare it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Group, InterfaceName};

/// The rules of a network namespace, complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// Rules in program order.
    pub rules: Vec<Rule>,
    /// Families that are programmed. Rules of another family are not in [`rules`](Self::rules).
    pub families: Families,
    /// What has to hold besides the rules.
    pub routing: Routing,
}

/// Address families of a rule set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only; IPv6 packets meet no rule.
    V4,
    /// IPv4 and IPv6.
    #[default]
    V4AndV6,
}

/// Addresses, routes and routing rules that the rules rely on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// Addresses that `lo` must carry: `::6/128`, the source of inbound connections from the proxy to an IPv6 application.
    pub lo_addresses: Vec<IpNet>,
    /// TPROXY: packets with this mark are delivered locally, through this routing table.
    pub local_delivery: Option<LocalDelivery>,
}

/// `ip rule add fwmark MARK lookup TABLE` with `ip route add local default dev lo table TABLE`, for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalDelivery {
    /// Packet mark.
    pub mark: u32,
    /// Routing table.
    pub table: u32,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Table it belongs to.
    pub table: Table,
    /// Chain it belongs to: a built-in name or one of [`crate::names::chain`].
    pub chain: &'static str,
    /// Where in the chain it goes.
    pub position: Position,
    /// Families whose packets it sees.
    pub family: Family,
    /// Conditions, all of which must hold, in the order in which iptables prints them.
    pub matches: Vec<Match>,
    /// What happens then.
    pub action: Action,
    /// Why the rule is there, for people: names the setting or annotation that asked for it.
    pub reason: Reason,
}

/// Why a rule exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Excluded interface.
    ExcludedInterface,
    /// Rerouted virtual interface.
    ReroutedInterface,
    /// Invalid packets are dropped.
    DropInvalid,
    /// The HBONE tunnel port is never captured.
    Tunnel,
    /// A chain that ends in the proxy.
    Redirect,
    /// Hook into a built-in chain.
    Hook,
    /// Excluded inbound port.
    ExcludedInboundPort,
    /// Captured inbound port.
    InboundPort,
    /// All other inbound traffic.
    Inbound,
    /// Excluded outbound port.
    ExcludedOutboundPort,
    /// Inbound passthrough of the proxy to the application, from 127.0.0.6 or ::6.
    Passthrough,
    /// The proxy calls the pod itself.
    ProxyToSelf,
    /// The application talks to itself over loopback.
    AppLoopback,
    /// Traffic of the proxy itself.
    ProxyTraffic,
    /// Owner group filter.
    OwnerGroup,
    /// DNS capture.
    Dns,
    /// Loopback destination.
    LoopbackDestination,
    /// Excluded outbound CIDR.
    ExcludedOutboundCidr,
    /// Captured outbound port.
    OutboundPort,
    /// Captured outbound CIDR.
    OutboundCidr,
    /// All other outbound traffic.
    Outbound,
    /// Machinery of TPROXY mode.
    Tproxy,
}

/// iptables table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Packet marks, priority -150.
    Mangle,
    /// Address translation, priority -100; sees the first packet of a connection.
    Nat,
    /// Before connection tracking, priority -300.
    Raw,
}

impl Table {
    /// All tables, in alphabetical order.
    pub const ALL: [Self; 3] = [Self::Mangle, Self::Nat, Self::Raw];

    /// Name in iptables. The order of the variants is alphabetical, as in the restore text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Raw => "raw",
        }
    }
}

/// Where a rule goes in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Position {
    /// At the end (`-A`).
    Append,
    /// Before the rule that has this number now, counted from 1 (`-I CHAIN n`).
    Insert(usize),
}

/// Families whose packets a rule sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Every family of the rule set.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// Transport protocol.
    Protocol(Protocol),
    /// Interface it came in by.
    InInterface(InterfaceName),
    /// Interface it goes out by. `lo` is [`Match::OutLoopback`].
    OutInterface(InterfaceName),
    /// Came in by `lo`.
    InLoopback,
    /// Goes out by `lo`.
    OutLoopback,
    /// Source address within a network, or not.
    Source {
        /// The network.
        net: IpNet,
        /// Whether the condition is inverted.
        negated: bool,
    },
    /// Destination address within a network, or not.
    Destination {
        /// The network.
        net: IpNet,
        /// Whether the condition is inverted.
        negated: bool,
    },
    /// Destination port is one of these, or none of these; needs [`Match::Protocol`].
    DestinationPorts {
        /// One port or more.
        ports: Vec<u16>,
        /// Whether the condition is inverted.
        negated: bool,
    },
    /// Source port; needs [`Match::Protocol`].
    SourcePort(u16),
    /// User of the sending socket.
    Uid {
        /// User id, as seen in the pod.
        id: u32,
        /// Whether the condition is inverted.
        negated: bool,
    },
    /// Group of the sending socket.
    Gid {
        /// Group id or name, as seen in the pod.
        group: Group,
        /// Whether the condition is inverted.
        negated: bool,
    },
    /// Connection tracking calls the packet invalid.
    StateInvalid,
    /// Connection tracking knows the connection (`RELATED,ESTABLISHED`).
    StateRelatedEstablished,
    /// Packet mark.
    Mark {
        /// The mark.
        mark: u32,
        /// Whether the condition is inverted.
        negated: bool,
    },
    /// Mark of the connection.
    ConnMark(u32),
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What happens to a packet that meets all conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Go on in another chain of the same table, then come back.
    Jump(&'static str),
    /// Leave this chain.
    Return,
    /// Leave the table.
    Accept,
    /// Drop.
    Drop,
    /// To a local port; the original destination stays readable through `SO_ORIGINAL_DST`.
    Redirect(u16),
    /// To the socket on a local port, addresses kept; sets the mark.
    Tproxy {
        /// Port of the proxy.
        port: u16,
        /// Mark to set.
        mark: u32,
    },
    /// Set the packet mark.
    SetMark(u32),
    /// Copy the packet mark to the connection.
    SaveMark,
    /// Copy the mark of the connection to the packet.
    RestoreMark,
    /// Put the connection into a conntrack zone.
    Zone(u16),
}

impl RuleSet {
    /// Whether there is nothing to program.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Rules of one chain in the order in which a packet meets them, inserts resolved; of the family of `packet`, which is any address
    /// of it. There is no such order for both families together: an insert that counts the rules of one family may have to stand
    /// before a rule for both there, and behind it for the other.
    pub fn chain_rules(&self, table: Table, chain: &str, packet: IpAddr) -> Vec<&Rule> {
        let mut ordered: Vec<&Rule> = Vec::new();
        let in_chain = self.rules.iter().filter(|rule| rule.table == table && rule.chain == chain);
        for rule in in_chain.filter(|rule| rule.family.sees(packet)) {
            match rule.position {
                Position::Append => ordered.push(rule),
                Position::Insert(at) => ordered.insert(at.saturating_sub(1).min(ordered.len()), rule),
            }
        }
        ordered
    }
}

impl Family {
    /// Whether a rule for this family sees packets to or from `address`.
    pub const fn sees(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn rule(position: Position, family: Family, port: u16) -> Rule {
        Rule {
            table: Table::Nat,
            chain: "PREROUTING",
            position,
            family,
            matches: vec![Match::SourcePort(port)],
            action: Action::Return,
            reason: Reason::Hook,
        }
    }

    fn order(rules: &[Rule], packet: IpAddr) -> Vec<u16> {
        let set = RuleSet { rules: rules.to_vec(), ..RuleSet::default() };
        set.chain_rules(Table::Nat, "PREROUTING", packet)
            .iter()
            .map(|rule| if let [Match::SourcePort(port)] = rule.matches[..] { port } else { 0 })
            .collect()
    }

    #[test]
    fn inserts_count_the_rules_that_a_family_sees() {
        let rules = [
            rule(Position::Append, Family::Any, 9),
            rule(Position::Insert(1), Family::Any, 1),
            rule(Position::Insert(2), Family::V4, 24),
            rule(Position::Insert(2), Family::V6, 26),
            rule(Position::Insert(3), Family::Any, 3),
            rule(Position::Insert(99), Family::V6, 99),
        ];
        assert_eq!(order(&rules, Ipv4Addr::LOCALHOST.into()), [1, 24, 3, 9]);
        assert_eq!(order(&rules, Ipv6Addr::LOCALHOST.into()), [1, 26, 3, 9, 99]);
    }
}
