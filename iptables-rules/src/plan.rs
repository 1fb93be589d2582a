//! The only place that knows the capture logic: [`CaptureConfig`] in, [`RuleSet`] out.
//!
//! The order of the rules is the order in which Istio's own program issues them, so that the text of a plan can be compared with
//! Istio's line by line. Where that order decides about packets, a comment says so.

use ipnet::IpNet;

use crate::config::{self, DnsCapture, InterceptionMode, InterfaceName, Ipv6Policy, PortSelection};
use crate::names::{self, address, chain};
use crate::ruleset::{
    Action, Families, Family, LocalDelivery, Match, Position, Protocol, Reason, Routing, Rule, Table,
};
use crate::{CaptureConfig, RuleSet};

mod check;
mod dns;
mod inbound;
mod outbound;
mod tproxy;

/// A setting that is understood but not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct Unsupported {
    /// Name of the setting, as the user knows it.
    pub setting: &'static str,
    /// Why not.
    pub reason: &'static str,
}

/// Plans the rules for a pod.
///
/// A plan does not depend on a backend. Names of groups are the one thing that only some can carry out: iptables looks them up in the
/// group file it sees, the nf_tables backend has none to look at and refuses them.
///
/// # Errors
/// Every setting that cannot be carried out, by name; nothing is ever left out silently.
pub fn plan(config: &CaptureConfig) -> Result<RuleSet, Vec<Unsupported>> {
    check::check(config)?;
    let families = match config.ipv6 {
        Ipv6Policy::Capture => Families::V4AndV6,
        Ipv6Policy::Leave => Families::V4,
    };
    if config.mode == InterceptionMode::None {
        return Ok(RuleSet { families, ..RuleSet::default() });
    }
    let mut program = Program::new(config, families);
    program.leave_excluded_interfaces();
    program.leave_rerouted_interfaces();
    program.drop_invalid();
    program.redirect_chains();
    program.inbound();
    program.outbound();
    if config.mode == InterceptionMode::Tproxy {
        program.tproxy_marks();
    }
    Ok(RuleSet { rules: program.rules, families, routing: routing(config) })
}

fn routing(config: &CaptureConfig) -> Routing {
    let lo_addresses = match config.ipv6 {
        Ipv6Policy::Capture => vec![host(address::PASSTHROUGH_V6)],
        Ipv6Policy::Leave => Vec::new(),
    };
    // Without captured inbound traffic no packet carries the mark.
    let local_delivery = (config.mode == InterceptionMode::Tproxy && captures_inbound(config))
        .then_some(LocalDelivery { mark: config.tproxy_mark, table: config.tproxy_route_table });
    Routing { lo_addresses, local_delivery }
}

fn captures_inbound(config: &CaptureConfig) -> bool {
    config.inbound_ports != PortSelection::Only(Vec::new())
}

/// The rules so far, with what the steps ask again and again.
struct Program<'a> {
    config: &'a CaptureConfig,
    rules: Vec<Rule>,
    /// IPv4 first, then IPv6 if it is captured.
    own: Vec<OwnAddresses>,
    /// Whether DNS requests are captured, that is, whether there is a server whose requests are.
    dns: bool,
}

/// Addresses of one family that mean "this pod".
#[derive(Debug, Clone, Copy)]
struct OwnAddresses {
    family: Family,
    loopback: IpNet,
    passthrough: IpNet,
}

impl<'a> Program<'a> {
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
        reason: Reason,
    ) {
        self.push(table, chain, Position::Append, Family::Any, matches.into(), action, reason);
    }

    fn insert(
        &mut self,
        table: Table,
        (chain, at): (&'static str, usize),
        matches: impl Into<Vec<Match>>,
        action: Action,
        reason: Reason,
    ) {
        self.push(table, chain, Position::Insert(at), Family::Any, matches.into(), action, reason);
    }

    /// One rule for each captured family, with its own addresses.
    fn append_each<M: Into<Vec<Match>>>(
        &mut self,
        table: Table,
        chain: &'static str,
        matches: impl Fn(OwnAddresses) -> M,
        action: Action,
        reason: Reason,
    ) {
        for own in self.own.clone() {
            self.push(table, chain, Position::Append, own.family, matches(own).into(), action, reason);
        }
    }

    /// A rule about an address; left out where the family of the address is not captured, as no packet could meet it.
    fn push_for(
        &mut self,
        net: IpNet,
        table: Table,
        (chain, position): (&'static str, Position),
        matches: impl Into<Vec<Match>>,
        action: Action,
        reason: Reason,
    ) {
        let family = family_of(net);
        if self.captures(family) {
            self.push(table, chain, position, family, matches.into(), action, reason);
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of a rule; the callers above spare the steps most of them"
    )]
    fn push(
        &mut self,
        table: Table,
        chain: &'static str,
        position: Position,
        family: Family,
        matches: Vec<Match>,
        action: Action,
        reason: Reason,
    ) {
        self.rules.push(Rule { table, chain, position, family, matches, action, reason });
    }

    fn captures(&self, family: Family) -> bool {
        self.own.iter().any(|own| own.family == family)
    }

    /// Owner conditions that tell traffic of the proxy: users first, then groups.
    fn proxy_owners(&self) -> Vec<Match> {
        let users = self.config.proxy_uids.iter().map(|&id| Match::Uid { id, negated: false });
        let groups =
            self.config.proxy_gids.iter().map(|&id| Match::Gid { group: config::Group::Id(id), negated: false });
        users.chain(groups).collect()
    }

    fn leave_excluded_interfaces(&mut self) {
        let tables: &[Table] = match self.config.mode {
            InterceptionMode::Tproxy => &[Table::Nat, Table::Mangle],
            _ => &[Table::Nat],
        };
        for name in &self.config.exclude_interfaces {
            for &table in tables {
                self.append(table, chain::PREROUTING, [arrives_by(name)], Action::Return, Reason::ExcludedInterface);
                self.append(table, chain::BUILTIN_OUTPUT, [leaves_by(name)], Action::Return, Reason::ExcludedInterface);
            }
        }
    }

    fn leave_rerouted_interfaces(&mut self) {
        for name in &self.config.reroute_interfaces {
            self.insert(
                Table::Nat,
                (chain::PREROUTING, 1),
                [arrives_by(name)],
                Action::Return,
                Reason::ReroutedInterface,
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
            Reason::DropInvalid,
        );
        self.append(Table::Mangle, chain::DROP, [], Action::Drop, Reason::DropInvalid);
    }

    fn redirect_chains(&mut self) {
        self.append(
            Table::Nat,
            chain::INBOUND,
            [tcp(), to_port(self.config.tunnel_port)],
            Action::Return,
            Reason::Tunnel,
        );
        let outbound = Action::Redirect(self.config.proxy_port);
        self.append(Table::Nat, chain::REDIRECT, [tcp()], outbound, Reason::Redirect);
        let inbound = Action::Redirect(self.config.inbound_port);
        self.append(Table::Nat, chain::IN_REDIRECT, [tcp()], inbound, Reason::Redirect);
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

fn arrives_by(name: &InterfaceName) -> Match {
    if name.as_str() == names::LOOPBACK_INTERFACE { Match::InLoopback } else { Match::InInterface(name.clone()) }
}

fn leaves_by(name: &InterfaceName) -> Match {
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
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::config::{CidrSelection, Group, OwnerGroups};

    fn refused(config: &CaptureConfig) -> String {
        plan(config).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn names_everything_it_refuses_at_once() {
        let config = CaptureConfig {
            mode: InterceptionMode::Tproxy,
            proxy_port: 0,
            inbound_port: 0,
            proxy_uids: vec![],
            proxy_gids: vec![],
            loopback: "126.0.0.0/7".parse().unwrap(),
            owner_groups: OwnerGroups::Only((0..65).map(Group::Id).collect()),
            tproxy_mark: 1338,
            tproxy_route_table: 254,
            ..CaptureConfig::default()
        };
        insta::assert_snapshot!(refused(&config), @r"
        proxy port: no connection can be sent to port 0
        inbound capture port: no connection can be sent to port 0
        proxy uid and gid: with neither, traffic of the proxy would be sent back to the proxy for ever
        ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: is not within 127.0.0.0/8
        ISTIO_OUTBOUND_OWNER_GROUPS: names more than 64 groups
        TPROXY mark: 1338 marks packets from the proxy to the pod itself
        TPROXY route table: 0, 253, 254 and 255 are the kernel's own
        ");
        let config = CaptureConfig {
            mode: InterceptionMode::Tproxy,
            proxy_uids: vec![u32::MAX],
            proxy_gids: vec![u32::MAX],
            owner_groups: OwnerGroups::AllBut(vec![Group::Id(u32::MAX)]),
            tproxy_mark: 0,
            ..CaptureConfig::default()
        };
        insta::assert_snapshot!(refused(&config), @r"
        proxy uid: 4294967295 is no user
        proxy gid: 4294967295 is no group
        ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE: 4294967295 is no group
        TPROXY mark: 0 is the mark of every other packet
        ");
    }

    #[test]
    fn what_only_tproxy_uses_is_not_asked_for_without_it() {
        let config = CaptureConfig { tproxy_mark: 0, tproxy_route_table: 0, ..CaptureConfig::default() };
        assert!(plan(&config).is_ok());
    }

    #[test]
    fn mode_none_plans_nothing() {
        let config = CaptureConfig { mode: InterceptionMode::None, drop_invalid: true, ..CaptureConfig::default() };
        let rules = plan(&config).unwrap();
        assert!(rules.is_empty());
        assert_eq!(rules.routing, Routing::default());
    }

    #[test]
    fn routing_follows_mode_and_families() {
        let routing = |mode, ipv6, inbound_ports| {
            plan(&CaptureConfig { mode, ipv6, inbound_ports, ..CaptureConfig::default() }).unwrap().routing
        };
        let none = PortSelection::Only(vec![]);
        let redirect = routing(InterceptionMode::Redirect, Ipv6Policy::Capture, PortSelection::All);
        assert_eq!(redirect, Routing { lo_addresses: vec!["::6/128".parse().unwrap()], local_delivery: None });
        let tproxy = routing(InterceptionMode::Tproxy, Ipv6Policy::Leave, PortSelection::All);
        let local_delivery = Some(LocalDelivery { mark: 1337, table: 133 });
        assert_eq!(tproxy, Routing { lo_addresses: vec![], local_delivery });
        assert_eq!(routing(InterceptionMode::Tproxy, Ipv6Policy::Leave, none), Routing::default());
    }

    #[test]
    fn captured_networks_of_a_rerouted_interface_precede_its_exemption() {
        let config = CaptureConfig {
            outbound_cidrs: CidrSelection::Only(vec![
                "10.96.0.0/12".parse().unwrap(),
                "172.16.0.0/12".parse().unwrap(),
            ]),
            reroute_interfaces: vec![InterfaceName::new("tap0").unwrap()],
            ..CaptureConfig::default()
        };
        let rules = plan(&config).unwrap();
        let order = |packet| {
            let chain = rules.chain_rules(Table::Nat, chain::PREROUTING, packet).into_iter();
            chain.map(|rule| format!("{:?} {:?}", rule.matches.last().unwrap(), rule.action)).collect::<Vec<_>>()
        };
        let exemption = r#"InInterface(InterfaceName("tap0")) Return"#;
        let hook = r#"Protocol(Tcp) Jump("ISTIO_INBOUND")"#;
        let net = |net| format!(r#"Destination {{ net: {net}, negated: false }} Jump("ISTIO_REDIRECT")"#);
        let v4 = [net("172.16.0.0/12"), net("10.96.0.0/12"), exemption.to_owned(), hook.to_owned()];
        assert_eq!(order(Ipv4Addr::UNSPECIFIED.into()), v4);
        assert_eq!(order(Ipv6Addr::UNSPECIFIED.into()), [exemption, hook]);
    }

    proptest! {
        #[test]
        fn what_is_planned_hangs_together(config in crate::arbitrary::config()) {
            let rules = plan(&config).unwrap();
            for rule in &rules.rules {
                if let Action::Jump(target) = rule.action {
                    let filled = rules.rules.iter().any(|other| other.table == rule.table && other.chain == target);
                    prop_assert!(filled, "a jump leads to {target}, which has no rule");
                }
                let about = rule.matches.iter().filter_map(|condition| match condition {
                    Match::Source { net, .. } | Match::Destination { net, .. } => Some(family_of(*net)),
                    _ => None,
                });
                for family in about {
                    prop_assert_eq!(rule.family, family, "an address stands in a rule of its own family");
                }
                prop_assert!(rules.families == Families::V4AndV6 || rule.family != Family::V6);
            }
        }
    }
}
