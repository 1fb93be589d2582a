//! Plans the rules for a [`CaptureConfig`]. This is the only place that knows the capture logic.
//!
//! Rules are in the order in which Istio's own program issues them, so that the text of a plan can be compared with Istio's line by
//! line. Where that order affects packets, a comment says so.

use ipnet::IpNet;

use crate::config::{self, DnsCapture, InterceptionMode, InterfaceName, Ipv6Policy, PortSelection};
use crate::names::{self, address, chain};
use crate::ruleset::{
    Action, Families, Family, LocalDelivery, Match, Position, Protocol, Routing, Rule, RuleReason, Table,
};
use crate::{CaptureConfig, RuleSet};

mod check;
mod dns;
mod inbound;
mod outbound;
mod tproxy;

pub use check::UnsupportedSetting;

/// Plans the rules for a pod.
///
/// A plan does not depend on the backend, except for names of groups: iptables resolves them in the group file that it sees, the
/// nf_tables backend rejects them.
///
/// # Errors
/// Returns every unsupported setting; no setting is ever ignored silently.
pub fn plan(config: &CaptureConfig) -> Result<RuleSet, Vec<UnsupportedSetting>> {
    check::check(config)?;
    let families = match config.ipv6 {
        Ipv6Policy::Capture => Families::V4AndV6,
        Ipv6Policy::Leave => Families::V4,
    };
    if config.mode == InterceptionMode::None {
        return Ok(RuleSet { families, ..RuleSet::default() });
    }
    let mut builder = RuleBuilder::new(config, families);
    builder.exclude_interfaces();
    builder.exempt_rerouted_interfaces();
    builder.drop_invalid();
    builder.redirect_chains();
    builder.inbound();
    builder.outbound();
    if config.mode == InterceptionMode::Tproxy {
        builder.tproxy_marks();
    }
    Ok(RuleSet { rules: builder.rules, families, routing: routing(config) })
}

fn routing(config: &CaptureConfig) -> Routing {
    let lo_addresses = match config.ipv6 {
        Ipv6Policy::Capture => vec![host(address::PASSTHROUGH_V6)],
        Ipv6Policy::Leave => Vec::new(),
    };
    // Only captured inbound packets get the mark.
    let local_delivery = (config.mode == InterceptionMode::Tproxy && captures_inbound(config))
        .then_some(LocalDelivery { mark: config.tproxy_mark, table: config.tproxy_route_table });
    Routing { lo_addresses, local_delivery }
}

fn captures_inbound(config: &CaptureConfig) -> bool {
    config.inbound_ports != PortSelection::Only(Vec::new())
}

/// Builds the rules of a plan step by step.
struct RuleBuilder<'a> {
    config: &'a CaptureConfig,
    rules: Vec<Rule>,
    /// For each captured family, IPv4 first.
    own: Vec<OwnAddresses>,
    /// Whether DNS requests to any server are captured.
    dns: bool,
}

/// Addresses of one family that mean "this pod".
#[derive(Debug, Clone, Copy)]
struct OwnAddresses {
    family: Family,
    loopback: IpNet,
    passthrough: IpNet,
}

impl<'a> RuleBuilder<'a> {
    fn new(config: &'a CaptureConfig, families: Families) -> Self {
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
        Self { config, rules: Vec::new(), own, dns }
    }

    fn append(
        &mut self,
        table: Table,
        chain: &'static str,
        matches: impl Into<Vec<Match>>,
        action: Action,
        reason: RuleReason,
    ) {
        self.push(table, chain, Position::Append, Family::Any, matches.into(), action, reason);
    }

    fn insert(
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
    fn append_each<M: Into<Vec<Match>>>(
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
    fn push_for(
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
    fn push(
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

    fn captures(&self, family: Family) -> bool {
        self.own.iter().any(|own| own.family == family)
    }

    /// Returns the conditions that identify traffic of the proxy: users first, then groups.
    fn proxy_owners(&self) -> Vec<Match> {
        let users = self.config.proxy_uids.iter().map(|&id| Match::Uid { id, negated: false });
        let groups =
            self.config.proxy_gids.iter().map(|&id| Match::Gid { group: config::Group::Id(id), negated: false });
        users.chain(groups).collect()
    }

    fn exclude_interfaces(&mut self) {
        let tables: &[Table] = match self.config.mode {
            InterceptionMode::Tproxy => &[Table::Nat, Table::Mangle],
            _ => &[Table::Nat],
        };
        for name in &self.config.exclude_interfaces {
            for &table in tables {
                self.append(
                    table,
                    chain::PREROUTING,
                    [in_interface(name)],
                    Action::Return,
                    RuleReason::ExcludedInterface,
                );
                self.append(
                    table,
                    chain::BUILTIN_OUTPUT,
                    [out_interface(name)],
                    Action::Return,
                    RuleReason::ExcludedInterface,
                );
            }
        }
    }

    fn exempt_rerouted_interfaces(&mut self) {
        for name in &self.config.reroute_interfaces {
            self.insert(
                Table::Nat,
                (chain::PREROUTING, 1),
                [in_interface(name)],
                Action::Return,
                RuleReason::ReroutedInterface,
            );
        }
    }

    fn drop_invalid(&mut self) {
        if !self.config.drop_invalid {
            return;
        }
        self.append(
            Table::Mangle,
            chain::PREROUTING,
            [Match::StateInvalid],
            Action::Jump(chain::DROP),
            RuleReason::DropInvalid,
        );
        self.append(Table::Mangle, chain::DROP, [], Action::Drop, RuleReason::DropInvalid);
    }

    fn redirect_chains(&mut self) {
        self.append(
            Table::Nat,
            chain::INBOUND,
            [tcp(), to_port(self.config.tunnel_port)],
            Action::Return,
            RuleReason::Tunnel,
        );
        let outbound = Action::Redirect(self.config.proxy_port);
        self.append(Table::Nat, chain::REDIRECT, [tcp()], outbound, RuleReason::Redirect);
        let inbound = Action::Redirect(self.config.inbound_port);
        self.append(Table::Nat, chain::IN_REDIRECT, [tcp()], inbound, RuleReason::Redirect);
    }
}

fn host(address: impl Into<std::net::IpAddr>) -> IpNet {
    IpNet::from(address.into())
}

fn family_of(net: IpNet) -> Family {
    match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

const fn tcp() -> Match {
    Match::Protocol(Protocol::Tcp)
}

const fn udp() -> Match {
    Match::Protocol(Protocol::Udp)
}

fn to_port(port: u16) -> Match {
    Match::DestinationPorts { ports: vec![port], negated: false }
}

fn not_to_ports(ports: impl Into<Vec<u16>>) -> Match {
    Match::DestinationPorts { ports: ports.into(), negated: true }
}

const fn to(net: IpNet) -> Match {
    Match::Destination { net, negated: false }
}

const fn not_to(net: IpNet) -> Match {
    Match::Destination { net, negated: true }
}

const fn from(net: IpNet) -> Match {
    Match::Source { net, negated: false }
}

fn in_interface(name: &InterfaceName) -> Match {
    if name.as_str() == names::LOOPBACK_INTERFACE { Match::InLoopback } else { Match::InInterface(name.clone()) }
}

fn out_interface(name: &InterfaceName) -> Match {
    if name.as_str() == names::LOOPBACK_INTERFACE { Match::OutLoopback } else { Match::OutInterface(name.clone()) }
}

fn inverted(owner: &Match) -> Match {
    match owner {
        Match::Uid { id, negated } => Match::Uid { id: *id, negated: !negated },
        Match::Gid { group, negated } => Match::Gid { group: group.clone(), negated: !negated },
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
