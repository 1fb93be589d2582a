//! The rules of one pod as data, independent of a backend.
//!
//! A [`RuleSet`] is a list of rules in *program order*: the order in which Istio's own program would issue them, with its appends and
//! inserts. [`RuleSet::chain_rules`] gives the order in which the kernel evaluates them.

use std::collections::VecDeque;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Group, InterfaceName};

/// All rules of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// Rules in program order.
    pub rules: Vec<Rule>,
    /// Families that have rules.
    pub families: Families,
    /// Addresses and routes that the rules rely on.
    pub routing: Routing,
}

/// Address families of a rule set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv4 and IPv6.
    #[default]
    V4AndV6,
}

/// Addresses, routes and routing rules that the rules rely on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// Addresses of `lo`: `::6/128`, the source of inbound IPv6 connections from the proxy to the application.
    pub lo_addresses: Vec<IpNet>,
    /// Local delivery of marked packets, in TPROXY mode.
    pub local_delivery: Option<LocalDelivery>,
}

/// Local delivery of marked packets: `ip rule add fwmark MARK lookup TABLE` and `ip route add local default dev lo table TABLE`.
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
    /// Table of the chain.
    pub table: Table,
    /// A built-in chain or one of [`crate::names::chain`].
    pub chain: &'static str,
    /// Position in the chain.
    pub position: Position,
    /// Families of the packets that it applies to.
    pub family: Family,
    /// Conditions, all of which must hold, in the order in which iptables prints them.
    pub matches: Vec<Match>,
    /// Action on packets that match.
    pub action: Action,
    /// Reason for the rule.
    pub reason: RuleReason,
}

/// Reason for a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleReason {
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
    /// Inbound connection from the proxy to the application, from 127.0.0.6 or ::6.
    Passthrough,
    /// The proxy calls its own pod.
    ProxyToSelf,
    /// The application calls its own pod.
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
    /// Marks and hand-over of TPROXY mode.
    Tproxy,
}

/// iptables table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Packet marks, priority -150.
    Mangle,
    /// Address translation of the first packet of a connection, priority -100.
    Nat,
    /// Before connection tracking, priority -300.
    Raw,
}

impl Table {
    /// All tables, in alphabetical order, as in the restore text.
    pub const ALL: [Self; 3] = [Self::Mangle, Self::Nat, Self::Raw];

    /// Returns the name in iptables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Raw => "raw",
        }
    }
}

/// Position of a rule in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Position {
    /// At the end (`-A`).
    Append,
    /// Before the rule that has this number at that time, counted from 1 (`-I CHAIN n`).
    Insert(usize),
}

/// Families of the packets that a rule applies to.
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
    /// Input interface. `lo` is [`Match::InLoopback`].
    InInterface(InterfaceName),
    /// Output interface. `lo` is [`Match::OutLoopback`].
    OutInterface(InterfaceName),
    /// Input interface is `lo`.
    InLoopback,
    /// Output interface is `lo`.
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
    /// Destination port is one of these, or none of these; requires [`Match::Protocol`].
    DestinationPorts {
        /// At least one port.
        ports: Vec<u16>,
        /// Whether the condition is inverted.
        negated: bool,
    },
    /// Source port; requires [`Match::Protocol`].
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
    /// Conntrack state is INVALID.
    StateInvalid,
    /// Conntrack state is RELATED or ESTABLISHED.
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

/// Action on a packet for which all conditions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Continue in another chain of the same table, then return.
    Jump(&'static str),
    /// Leave this chain.
    Return,
    /// Leave the table.
    Accept,
    /// Drop.
    Drop,
    /// Redirect to a local port; `SO_ORIGINAL_DST` gives the original destination.
    Redirect(u16),
    /// Hand over to the transparent socket on a local port, addresses unchanged, and set the mark.
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
    /// Returns whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Returns the rules of one chain in the order in which the kernel evaluates them, for the family of the address `packet`. There
    /// is no common order of both families: inserts count the rules of their own family, so one may precede a rule for both families
    /// in one family and follow it in the other.
    pub fn chain_rules(&self, table: Table, chain: &str, packet: IpAddr) -> Vec<&Rule> {
        // Plans insert near the top only, which is cheap in a deque, however long it is.
        let mut ordered: VecDeque<&Rule> = VecDeque::new();
        let in_chain = self.rules.iter().filter(|rule| rule.table == table && rule.chain == chain);
        for rule in in_chain.filter(|rule| rule.family.applies_to(packet)) {
            match rule.position {
                Position::Append => ordered.push_back(rule),
                Position::Insert(at) => ordered.insert(at.saturating_sub(1).min(ordered.len()), rule),
            }
        }
        ordered.into()
    }
}

impl Family {
    /// Returns whether a rule for this family applies to packets to or from `address`.
    pub const fn applies_to(self, address: IpAddr) -> bool {
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
            reason: RuleReason::Hook,
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
    fn inserts_count_the_rules_of_their_family() {
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
