//! Builder that the steps of a plan add their rules to.

use ipnet::IpNet;

use crate::CaptureConfig;
use crate::config::{CidrSelection, DnsCapture, Group, InterfaceName, PortSelection};
use crate::names::{LOOPBACK_INTERFACE, address};
use crate::ruleset::{Action, Families, Family, Match, Position, Protocol, Rule, RuleReason, Table};

/// Builds the rules of a plan step by step.
pub(super) struct RuleBuilder<'a> {
    pub(super) config: &'a CaptureConfig,
    pub(super) rules: Vec<Rule>,
    /// For each captured family, IPv4 first.
    pub(super) own: Vec<OwnAddresses>,
    /// Whether DNS requests to any server are captured.
    pub(super) dns: bool,
    /// Whether an included network starts at a loopback address. A network of one family counts for both.
    pub(super) captures_loopback: bool,
}

/// Addresses of one family that mean "this pod".
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnAddresses {
    pub(super) family: Family,
    pub(super) loopback: IpNet,
    pub(super) passthrough: IpNet,
}

impl<'a> RuleBuilder<'a> {
    pub(super) fn new(config: &'a CaptureConfig, families: Families) -> Self {
        let mut own = vec![OwnAddresses {
            family: Family::V4,
            loopback: config.loopback.into(),
            passthrough: host(address::PASSTHROUGH_V4),
        }];
        if families == Families::V4AndV6 {
            own.push(OwnAddresses {
                family: Family::V6,
                loopback: host(std::net::Ipv6Addr::LOCALHOST),
                passthrough: host(address::PASSTHROUGH_V6),
            });
        }
        let dns = match &config.dns {
            DnsCapture::Off => false,
            DnsCapture::All => true,
            DnsCapture::Servers(servers) => !servers.is_empty(),
        };
        let captures_loopback = match &config.outbound_cidrs {
            CidrSelection::All => false,
            CidrSelection::Only(nets) => nets.iter().any(|net| net.addr().is_loopback()),
        };
        Self { config, rules: Vec::new(), own, dns, captures_loopback }
    }

    pub(super) fn append(
        &mut self,
        table: Table,
        chain: &'static str,
        matches: impl Into<Vec<Match>>,
        action: Action,
        reason: RuleReason,
    ) {
        self.push(table, chain, Position::Append, Family::Any, matches.into(), action, reason);
    }

    pub(super) fn insert(
        &mut self,
        table: Table,
        (chain, at): (&'static str, usize),
        matches: impl Into<Vec<Match>>,
        action: Action,
        reason: RuleReason,
    ) {
        self.push(table, chain, Position::Insert(at), Family::Any, matches.into(), action, reason);
    }

    /// Appends one rule for each captured family, with its own addresses.
    pub(super) fn append_each<M: Into<Vec<Match>>>(
        &mut self,
        table: Table,
        chain: &'static str,
        matches: impl Fn(OwnAddresses) -> M,
        action: Action,
        reason: RuleReason,
    ) {
        for own in self.own.clone() {
            self.push(table, chain, Position::Append, own.family, matches(own).into(), action, reason);
        }
    }

    /// Adds a rule about a network, unless the family of the network is not captured.
    pub(super) fn push_for(
        &mut self,
        net: IpNet,
        table: Table,
        (chain, position): (&'static str, Position),
        matches: impl Into<Vec<Match>>,
        action: Action,
        reason: RuleReason,
    ) {
        let family = family_of(net);
        if self.captures(family) {
            self.push(table, chain, position, family, matches.into(), action, reason);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a rule; the methods above default most of them")]
    pub(super) fn push(
        &mut self,
        table: Table,
        chain: &'static str,
        position: Position,
        family: Family,
        matches: Vec<Match>,
        action: Action,
        reason: RuleReason,
    ) {
        self.rules.push(Rule { table, chain, position, family, matches, action, reason });
    }

    pub(super) fn captures(&self, family: Family) -> bool {
        self.own.iter().any(|own| own.family == family)
    }

    /// Returns the captured families for which `wanted` holds; [`Family::Any`] where it holds for all of them.
    pub(super) fn families_of(&self, wanted: impl Fn(Family) -> bool) -> Vec<Family> {
        let families: Vec<_> = self.own.iter().map(|own| own.family).filter(|&family| wanted(family)).collect();
        if families.len() == self.own.len() { vec![Family::Any] } else { families }
    }

    /// Returns the conditions that identify traffic of the proxy: users first, then groups.
    pub(super) fn proxy_owners(&self) -> Vec<Match> {
        let users = self.config.proxy_uids.iter().map(|&id| Match::Uid { id, negated: false });
        let groups = self.config.proxy_gids.iter().map(|&id| Match::Gid { group: Group::Id(id), negated: false });
        users.chain(groups).collect()
    }
}

pub(super) fn host(address: impl Into<std::net::IpAddr>) -> IpNet {
    IpNet::from(address.into())
}

pub(super) fn family_of(net: IpNet) -> Family {
    match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

pub(super) const fn tcp() -> Match {
    Match::Protocol(Protocol::Tcp)
}

pub(super) const fn udp() -> Match {
    Match::Protocol(Protocol::Udp)
}

pub(super) fn to_port(port: u16) -> Match {
    Match::DestinationPorts { ports: vec![port], negated: false }
}

pub(super) fn not_to_ports(ports: impl Into<Vec<u16>>) -> Match {
    Match::DestinationPorts { ports: ports.into(), negated: true }
}

pub(super) const fn to(net: IpNet) -> Match {
    Match::Destination { net, negated: false }
}

pub(super) const fn not_to(net: IpNet) -> Match {
    Match::Destination { net, negated: true }
}

pub(super) const fn from(net: IpNet) -> Match {
    Match::Source { net, negated: false }
}

pub(super) fn in_interface(name: &InterfaceName) -> Match {
    if name.as_str() == LOOPBACK_INTERFACE { Match::InLoopback } else { Match::InInterface(name.clone()) }
}

pub(super) fn out_interface(name: &InterfaceName) -> Match {
    if name.as_str() == LOOPBACK_INTERFACE { Match::OutLoopback } else { Match::OutInterface(name.clone()) }
}

pub(super) fn inverted(owner: &Match) -> Match {
    match owner {
        Match::Uid { id, negated } => Match::Uid { id: *id, negated: !negated },
        Match::Gid { group, negated } => Match::Gid { group: group.clone(), negated: !negated },
        other => other.clone(),
    }
}

pub(super) fn captures_inbound(config: &CaptureConfig) -> bool {
    config.inbound_ports != PortSelection::Only(Vec::new())
}
