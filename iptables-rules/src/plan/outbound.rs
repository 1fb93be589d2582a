//! Sends connections from the pod to the outbound port of the proxy, except the proxy's own and excluded ones.

use ipnet::IpNet;

use super::MAX_PRODUCT;
use super::builder::{
    RuleBuilder, family_of, from, in_interface, inverted, not_to, not_to_ports, tcp, to, to_port, udp,
};
use crate::config::{CidrSelection, OwnerGroups};
use crate::names::{chain, port};
use crate::ruleset::{Action, Family, Match, Position, RuleReason, Table};

impl RuleBuilder<'_> {
    /// Adds all rules for outbound traffic. The first match wins, so the order of the steps is the precedence of the settings.
    pub(super) fn outbound(&mut self) {
        self.append(Table::Nat, chain::BUILTIN_OUTPUT, [], Action::Jump(chain::OUTPUT), RuleReason::Hook);
        let config = self.config;
        for &port in &config.outbound_ports_exclude {
            for protocol in [tcp(), udp()] {
                self.output([protocol, to_port(port)], Action::Return, RuleReason::ExcludedOutboundPort);
            }
        }
        self.append_each(
            Table::Nat,
            chain::OUTPUT,
            |own| [Match::OutLoopback, from(own.passthrough)],
            Action::Return,
            RuleReason::Passthrough,
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
            RuleReason::LoopbackDestination,
        );
        self.excluded_cidrs();
        for &port in &config.outbound_ports {
            self.output([tcp(), to_port(port)], Action::Jump(chain::REDIRECT), RuleReason::OutboundPort);
        }
        self.included_cidrs();
    }

    fn output(&mut self, matches: impl Into<Vec<Match>>, action: Action, reason: RuleReason) {
        self.append(Table::Nat, chain::OUTPUT, matches, action, reason);
    }

    /// Adds the three rules for one user or group of the proxy.
    fn proxy_owner(&mut self, owner: &Match) {
        let tunnel = self.config.tunnel_port;
        // The proxy calls the pod by its address: this is inbound traffic, except tunnel and DNS.
        let ports = match owner {
            Match::Uid { .. } if self.dns && tunnel != port::DNS_REQUEST => not_to_ports([port::DNS_REQUEST, tunnel]),
            _ => not_to_ports([tunnel]),
        };
        self.append_each(
            Table::Nat,
            chain::OUTPUT,
            |own| [Match::OutLoopback, not_to(own.loopback), tcp(), ports.clone(), owner.clone()],
            Action::Jump(chain::IN_REDIRECT),
            RuleReason::ProxyToSelf,
        );
        // The application calls itself: not captured, unless the configuration includes loopback addresses.
        if !self.captures_loopback {
            let mut matches = vec![Match::OutLoopback];
            if self.dns {
                matches.extend([tcp(), not_to_ports([port::DNS_REQUEST])]);
            }
            matches.push(inverted(owner));
            self.output(matches, Action::Return, RuleReason::AppLoopback);
        }
        self.output([owner.clone()], Action::Return, RuleReason::ProxyTraffic);
    }

    fn owner_groups(&mut self) {
        let config = self.config;
        match &config.owner_groups {
            OwnerGroups::AllBut(groups) => {
                for group in groups {
                    let owner = Match::Gid { group: group.clone(), negated: false };
                    self.output([owner], Action::Return, RuleReason::OwnerGroup);
                }
            }
            OwnerGroups::Only(groups) => {
                let others: Vec<_> =
                    groups.iter().map(|group| Match::Gid { group: group.clone(), negated: true }).collect();
                self.output(others, Action::Return, RuleReason::OwnerGroup);
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
                RuleReason::ExcludedOutboundCidr,
            );
        }
    }

    /// Captures the included destinations, and the same destinations of packets from rerouted interfaces. Rules for the latter are
    /// inserted at the top, so they precede the rule that exempts the interface, and the last network comes first.
    fn included_cidrs(&mut self) {
        let config = self.config;
        let capture = Action::Jump(chain::REDIRECT);
        match &config.outbound_cidrs {
            CidrSelection::All => {
                self.output([], capture, RuleReason::Outbound);
                self.reroute(Family::Any, capture);
            }
            CidrSelection::Only(nets) => {
                let has_product = has_product(config.reroute_interfaces.len(), nets.len());
                for &net in by_family(nets) {
                    if has_product {
                        for name in &config.reroute_interfaces {
                            let matches = [in_interface(name), to(net)];
                            let position = (chain::PREROUTING, Position::Insert(1));
                            self.push_for(net, Table::Nat, position, matches, capture, RuleReason::ReroutedInterface);
                        }
                    }
                    let position = (chain::OUTPUT, Position::Append);
                    self.push_for(net, Table::Nat, position, [to(net)], capture, RuleReason::OutboundCidr);
                }
                if !has_product {
                    self.reroute_chain(nets);
                }
            }
        }
    }

    /// Captures networks from rerouted interfaces by a chain of its own, with the same effect as a rule for each pair.
    fn reroute_chain(&mut self, nets: &[IpNet]) {
        for family in self.families_of(|family| nets.iter().any(|&net| family_of(net) == family)) {
            self.reroute(family, Action::Jump(chain::REROUTE));
        }
        for &net in by_family(nets) {
            let position = (chain::REROUTE, Position::Append);
            let capture = Action::Jump(chain::REDIRECT);
            self.push_for(net, Table::Nat, position, [to(net)], capture, RuleReason::ReroutedInterface);
        }
    }

    fn reroute(&mut self, family: Family, action: Action) {
        for name in &self.config.reroute_interfaces {
            let matches = vec![in_interface(name)];
            let position = Position::Insert(1);
            self.push(Table::Nat, chain::PREROUTING, position, family, matches, action, RuleReason::ReroutedInterface);
        }
    }
}

/// Returns whether networks of rerouted interfaces get a rule for each pair, as in Istio. Only where these are few: whoever may create a
/// pod writes both lists.
const fn has_product(interfaces: usize, nets: usize) -> bool {
    let pairs = interfaces.saturating_mul(nets);
    pairs <= MAX_PRODUCT || pairs <= interfaces.saturating_add(nets)
}

/// Returns IPv4 networks first, then IPv6 ones.
fn by_family(nets: &[IpNet]) -> impl Iterator<Item = &IpNet> {
    nets.iter().filter(|net| net.addr().is_ipv4()).chain(nets.iter().filter(|net| net.addr().is_ipv6()))
}
