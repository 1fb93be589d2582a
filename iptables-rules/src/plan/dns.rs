//! Redirects DNS requests of the application to the Istio agent. Requests of the proxy and the agent go to the DNS server.
//!
//! Both connections can have the same addresses and ports, so conntrack zones keep them apart: [`DNS_ZONE_UPSTREAM`] between proxy and
//! server, [`DNS_ZONE_APPLICATION`] between application and agent.

use ipnet::IpNet;

use super::builder::{RuleBuilder, family_of, from, host, tcp, to, to_port, udp};
use crate::config::DnsCapture;
use crate::names::{DNS_ZONE_APPLICATION, DNS_ZONE_UPSTREAM, chain, port};
use crate::ruleset::{Action, Match, Position, RuleReason, Table};

impl RuleBuilder<'_> {
    pub(super) fn dns(&mut self) {
        let into_chain = Action::Jump(chain::OUTPUT_DNS);
        self.append(Table::Raw, chain::BUILTIN_OUTPUT, [], into_chain, RuleReason::Dns);
        let servers = self.servers();
        let families =
            self.families_of(|own| servers.iter().any(|server| server.is_none_or(|net| family_of(net) == own)));
        for &family in &families {
            self.push(Table::Nat, chain::OUTPUT, Position::Append, family, vec![], into_chain, RuleReason::Dns);
        }
        for protocol in [tcp(), udp()] {
            for &server in &servers {
                let matches = [protocol.clone(), to_port(port::DNS_REQUEST)].into_iter().chain(server.map(to));
                self.dns_rule(server, Table::Nat, chain::OUTPUT_DNS, matches, Action::Redirect(port::DNS));
            }
        }
        for owner in self.proxy_owners() {
            let request = [udp(), to_port(port::DNS_REQUEST), owner.clone()];
            let answer = [udp(), Match::SourcePort(port::DNS), owner];
            self.append(Table::Raw, chain::OUTPUT_DNS, request, Action::Zone(DNS_ZONE_UPSTREAM), RuleReason::Dns);
            self.append(Table::Raw, chain::OUTPUT_DNS, answer, Action::Zone(DNS_ZONE_APPLICATION), RuleReason::Dns);
        }
        let jump = Action::Jump(chain::INBOUND);
        for &family in &families {
            self.push(Table::Raw, chain::PREROUTING, Position::Append, family, vec![], jump, RuleReason::Dns);
        }
        for &server in &servers {
            let request = [udp(), to_port(port::DNS_REQUEST)].into_iter().chain(server.map(to));
            self.dns_rule(server, Table::Raw, chain::OUTPUT_DNS, request, Action::Zone(DNS_ZONE_APPLICATION));
            let answer = [udp(), Match::SourcePort(port::DNS_REQUEST)].into_iter().chain(server.map(from));
            self.dns_rule(server, Table::Raw, chain::INBOUND, answer, Action::Zone(DNS_ZONE_UPSTREAM));
        }
    }

    fn dns_rule(
        &mut self,
        server: Option<IpNet>,
        table: Table,
        chain: &'static str,
        matches: impl Iterator<Item = Match>,
        action: Action,
    ) {
        let matches: Vec<_> = matches.collect();
        match server {
            None => self.append(table, chain, matches, action, RuleReason::Dns),
            Some(net) => self.push_for(net, table, (chain, Position::Append), matches, action, RuleReason::Dns),
        }
    }

    /// Returns the servers whose requests are captured, IPv4 first; a single `None` means all servers.
    fn servers(&self) -> Vec<Option<IpNet>> {
        match &self.config.dns {
            DnsCapture::Off => Vec::new(),
            DnsCapture::All => vec![None],
            DnsCapture::Servers(servers) => {
                let v4 = servers.iter().filter(|server| server.is_ipv4());
                let v6 = servers.iter().filter(|server| server.is_ipv6());
                v4.chain(v6).map(|&server| Some(host(server))).collect()
            }
        }
    }
}
