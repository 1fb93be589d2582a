//! Connections from the pod: to the outbound port of the proxy, but for the proxy's own and those the user excluded.

use ipnet::IpNet;

use super::{Program, arrives_by, from, inverted, not_to, not_to_ports, tcp, to, to_port, udp};
use crate::config::{CidrSelection, OwnerGroups};
use crate::names::{chain, port};
use crate::ruleset::{Action, Match, Position, Reason, Table};

impl Program<'_> {
    /// Everything about outbound traffic. First match wins, so the order of the steps is the precedence of the settings.
    pub(super) fn outbound(&mut self) {
        self.append(Table::Nat, chain::BUILTIN_OUTPUT, [], Action::Jump(chain::OUTPUT), Reason::Hook);
        let config = self.config;
        for &port in &config.outbound_ports_exclude {
            for protocol in [tcp(), udp()] {
                self.output([protocol, to_port(port)], Action::Return, Reason::ExcludedOutboundPort);
            }
        }
        self.append_each(
            Table::Nat,
            chain::OUTPUT,
            |own| [Match::OutLoopback, from(own.passthrough)],
            Action::Return,
            Reason::Passthrough,
        );
        for owner in self.proxy_owners() {
            self.proxy_owner(&owner);
        }
        self.owner_groups();
        if self.dns {
            self.dns();
        }
        self.append_each(
            Table::Nat,
            chain::OUTPUT,
            |own| [to(own.loopback)],
            Action::Return,
            Reason::LoopbackDestination,
        );
        self.excluded_cidrs();
        for &port in &config.outbound_ports {
            self.output([tcp(), to_port(port)], Action::Jump(chain::REDIRECT), Reason::OutboundPort);
        }
        self.included_cidrs();
    }

    fn output(&mut self, matches: impl Into<Vec<Match>>, action: Action, reason: Reason) {
        self.append(Table::Nat, chain::OUTPUT, matches, action, reason);
    }

    /// The three rules that each user and each group of the proxy has.
    fn proxy_owner(&mut self, owner: &Match) {
        let tunnel = self.config.tunnel_port;
        // The proxy calls the pod by its address: this is inbound traffic, except through the tunnel and except DNS.
        let ports = match owner {
            Match::Uid { .. } if self.dns && tunnel != port::DNS_REQUEST => not_to_ports([port::DNS_REQUEST, tunnel]),
            _ => not_to_ports([tunnel]),
        };
        self.append_each(
            Table::Nat,
            chain::OUTPUT,
            |own| [Match::OutLoopback, not_to(own.loopback), tcp(), ports.clone(), owner.clone()],
            Action::Jump(chain::IN_REDIRECT),
            Reason::ProxyToSelf,
        );
        // The application calls itself: not captured, unless the user asked for loopback addresses to be.
        if !self.captures_loopback() {
            let mut matches = vec![Match::OutLoopback];
            if self.dns {
                matches.extend([tcp(), not_to_ports([port::DNS_REQUEST])]);
            }
            matches.push(inverted(owner));
            self.output(matches, Action::Return, Reason::AppLoopback);
        }
        self.output([owner.clone()], Action::Return, Reason::ProxyTraffic);
    }

    /// Whether a network that is to be captured starts at a loopback address. One of either family counts for both.
    fn captures_loopback(&self) -> bool {
        match &self.config.outbound_cidrs {
            CidrSelection::All => false,
            CidrSelection::Only(nets) => nets.iter().any(|net| net.addr().is_loopback()),
        }
    }

    fn owner_groups(&mut self) {
        let config = self.config;
        match &config.owner_groups {
            OwnerGroups::AllBut(groups) => {
                for group in groups {
                    let owner = Match::Gid { group: group.clone(), negated: false };
                    self.output([owner], Action::Return, Reason::OwnerGroup);
                }
            }
            OwnerGroups::Only(groups) => {
                let others: Vec<_> =
                    groups.iter().map(|group| Match::Gid { group: group.clone(), negated: true }).collect();
                self.output(others, Action::Return, Reason::OwnerGroup);
            }
        }
    }

    fn excluded_cidrs(&mut self) {
        let config = self.config;
        for &net in by_family(&config.outbound_cidrs_exclude) {
            self.push_for(
                net,
                Table::Nat,
                (chain::OUTPUT, Position::Append),
                [to(net)],
                Action::Return,
                Reason::ExcludedOutboundCidr,
            );
        }
    }

    /// Captured destinations. For a rerouted interface the same destinations are captured where its packets come in; inserted at the
    /// top, these rules precede the one that leaves the interface alone, the last network first.
    fn included_cidrs(&mut self) {
        let config = self.config;
        let capture = Action::Jump(chain::REDIRECT);
        match &config.outbound_cidrs {
            CidrSelection::All => {
                self.output([], capture, Reason::Outbound);
                for name in &config.reroute_interfaces {
                    self.insert(
                        Table::Nat,
                        (chain::PREROUTING, 1),
                        [arrives_by(name)],
                        capture,
                        Reason::ReroutedInterface,
                    );
                }
            }
            CidrSelection::Only(nets) => {
                for &net in by_family(nets) {
                    for name in &config.reroute_interfaces {
                        self.push_for(
                            net,
                            Table::Nat,
                            (chain::PREROUTING, Position::Insert(1)),
                            [arrives_by(name), to(net)],
                            capture,
                            Reason::ReroutedInterface,
                        );
                    }
                    let place = (chain::OUTPUT, Position::Append);
                    self.push_for(net, Table::Nat, place, [to(net)], capture, Reason::OutboundCidr);
                }
            }
        }
    }
}

/// IPv4 networks first, then IPv6, each in the order given.
fn by_family(nets: &[IpNet]) -> impl Iterator<Item = &IpNet> {
    nets.iter().filter(|net| net.addr().is_ipv4()).chain(nets.iter().filter(|net| net.addr().is_ipv6()))
}
