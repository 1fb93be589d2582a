//! Summarizes the rules in a network namespace by tracing a packet on either side of every boundary that they have.
//!
//! ```text
//! rules ─▶ ports and addresses that conditions name ─▶ classes that no rule tells apart ─▶ one packet each ─▶ tracer ─▶ equal fates joined
//! ```
//!
//! The tracer is the one that explains a single packet, so both always agree, whoever wrote the rules.

mod classes;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iptables_rules::names::LOOPBACK_INTERFACE;
use iptables_rules::ruleset::RuleReason;
use iptables_rules::trace::{Chains, ConntrackState, Disposition, Owner, Packet, PacketOrigin, Transport};
use weir_kernel::netns_state::Ownership;

use super::packet::PodIdentity;
use super::sentences::deciding_reason;
use super::summary::{Summary, SummaryItem};
use classes::{Classes, address_classes, join_addresses, join_ports, port_classes};

/// Addresses of the documentation (RFC 5737, RFC 3849), and a pod's where the namespace has none.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
const POD: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2))];
/// A user that no proxy runs as.
const APPLICATION: u32 = 65_000;
const CLIENT_PORT: u16 = 40_000;
const DNS_PORT: u16 = 53;
/// A UDP port without a meaning.
const UDP_PORT: u16 = 40_053;
const EXTERNAL_INTERFACE: &str = "eth0";

/// Fate of a class of packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fate {
    /// `None` if nothing captures or drops the packet.
    what: Option<String>,
    reason: Option<&'static str>,
    setting: Option<&'static str>,
    is_captured: bool,
}

/// Tells from the name of a table whether its rules are foreign.
pub(super) type IsForeign = fn(&str) -> bool;

/// Returns which tables of a namespace are foreign.
pub(super) fn foreign_tables(ownership: Ownership) -> IsForeign {
    match ownership {
        Ownership::Foreign => |_| true,
        Ownership::Mixed => |table| !table.ends_with(" weir"),
        _ => |_| false,
    }
}

/// Summarizes the rules for IPv4 and IPv6 packets.
pub(super) fn summarize(families: &[Chains; 2], pod: &PodIdentity, is_foreign: IsForeign) -> Summary {
    if families.iter().all(|chains| chains.bases.is_empty()) {
        let what = "all traffic: there are no capture rules".to_owned();
        return Summary { captured: Vec::new(), excluded: vec![SummaryItem { what, setting: None, default: false }] };
    }
    // By traffic and fate: the families in which it is so.
    let mut found: Vec<(String, Fate, Vec<&str>)> = Vec::new();
    for (chains, (family, index)) in families.iter().zip([("IPv4", 0), ("IPv6", 1)]) {
        let address = pod.addresses.iter().find(|address| address.is_ipv4() == (index == 0)).unwrap_or(&POD[index]);
        let prober = Prober { chains, pod, address: *address, outside: OUTSIDE[index], is_foreign };
        for (what, fate) in prober.all() {
            match found.iter_mut().find(|(known, of, _)| *known == what && *of == fate) {
                Some((_, _, families)) => families.push(family),
                None => found.push((what, fate, vec![family])),
            }
        }
    }
    let mut summary = Summary { captured: Vec::new(), excluded: Vec::new() };
    for (traffic, fate, families) in found {
        let family = if let [only] = families[..] { format!(" ({only})") } else { String::new() };
        let how = fate.what.map(|what| format!(": {what}")).unwrap_or_default();
        let reason = fate.reason.map(|reason| format!(", {reason}")).unwrap_or_default();
        let item =
            SummaryItem { what: format!("{traffic}{family}{how}{reason}"), setting: fate.setting, default: false };
        if fate.is_captured { summary.captured.push(item) } else { summary.excluded.push(item) }
    }
    summary
}

/// Traces the packets of one family.
struct Prober<'a> {
    chains: &'a Chains,
    pod: &'a PodIdentity,
    address: IpAddr,
    outside: IpAddr,
    is_foreign: IsForeign,
}

impl Prober<'_> {
    fn all(&self) -> Vec<(String, Fate)> {
        let mut found = self.inbound();
        found.extend(self.outbound());
        let dns = self.sent(Transport::Udp, self.outside, DNS_PORT, self.application());
        found.push(("DNS requests (UDP port 53)".to_owned(), self.fate(&dns)));
        let udp = self.sent(Transport::Udp, self.outside, UDP_PORT, self.application());
        found.push(("other UDP".to_owned(), self.fate(&udp)));
        let own = self.sent(Transport::Tcp, self.outside, 443, self.pod.proxy);
        found.push(("outbound TCP of the proxy itself".to_owned(), self.fate(&own)));
        let local = self.sent(Transport::Tcp, self.address, 8080, self.application());
        found.push(("TCP of the application to its own pod".to_owned(), self.fate(&local)));
        found
    }

    /// Inbound TCP, by port.
    fn inbound(&self) -> Vec<(String, Fate)> {
        let mut by_fate: BTreeMap<Fate, Classes<u16>> = BTreeMap::new();
        for class in port_classes(self.chains) {
            let packet = Packet {
                origin: PacketOrigin::Received { interface: EXTERNAL_INTERFACE.to_owned() },
                source: self.outside,
                destination: self.address,
                ..self.sent(Transport::Tcp, self.outside, class.0, self.application())
            };
            by_fate.entry(self.fate(&packet)).or_default().push(class);
        }
        by_fate.into_iter().map(|(fate, ports)| (format!("inbound TCP to {}", join_ports(&ports)), fate)).collect()
    }

    /// Outbound TCP of the application, by address and port.
    fn outbound(&self) -> Vec<(String, Fate)> {
        let ports = port_classes(self.chains);
        // Addresses with the same fate for every port.
        let mut by_fates: BTreeMap<Vec<Fate>, Classes<IpAddr>> = BTreeMap::new();
        for class in address_classes(self.chains, self.address) {
            let fates =
                ports.iter().map(|port| self.fate(&self.sent(Transport::Tcp, class.0, port.0, self.application())));
            by_fates.entry(fates.collect()).or_default().push(class);
        }
        let rest = by_fates.values().max_by_key(|classes| classes::size(classes)).cloned().unwrap_or_default();
        let mut found = Vec::new();
        for (fates, addresses) in &by_fates {
            let place = match (by_fates.len(), *addresses == rest) {
                (1, _) => "every address".to_owned(),
                (_, true) => "every other address".to_owned(),
                (_, false) => join_addresses(addresses),
            };
            let mut by_fate: BTreeMap<&Fate, Classes<u16>> = BTreeMap::new();
            for (fate, port) in fates.iter().zip(&ports) {
                by_fate.entry(fate).or_default().push(*port);
            }
            let is_one = by_fate.len() == 1;
            found.extend(by_fate.into_iter().map(|(fate, ports)| {
                let ports = if is_one { String::new() } else { format!(", {}", join_ports(&ports)) };
                (format!("outbound TCP to {place}{ports}"), fate.clone())
            }));
        }
        found
    }

    fn application(&self) -> Owner {
        let id = (APPLICATION..=u32::MAX).find(|id| !self.pod.proxy_ids.contains(id)).unwrap_or(APPLICATION);
        Owner { uid: id, gid: id }
    }

    fn sent(&self, transport: Transport, destination: IpAddr, destination_port: u16, owner: Owner) -> Packet {
        let is_local = destination == self.address || destination.is_loopback();
        let interface = if is_local { LOOPBACK_INTERFACE } else { EXTERNAL_INTERFACE };
        Packet {
            origin: PacketOrigin::Sent { interface: interface.to_owned(), owner: Some(owner) },
            transport,
            source: self.address,
            source_port: CLIENT_PORT,
            destination,
            destination_port,
            mark: 0,
            connection_mark: 0,
            state: ConntrackState::New,
        }
    }

    fn fate(&self, packet: &Packet) -> Fate {
        let trace = self.chains.trace(packet);
        let reason = deciding_reason(&trace);
        let deciding = trace.decided_by.and_then(|(table, _)| trace.tables.get(table));
        let is_foreign = deciding.is_some_and(|table| (self.is_foreign)(&table.table));
        let foreign = if is_foreign { " by foreign rules" } else { "" };
        let (what, is_captured) = match trace.disposition {
            Disposition::Redirected { port } => (Some(format!("redirected to port {port}{foreign}")), true),
            Disposition::Tproxied { port, .. } => (Some(format!("delivered to port {port}{foreign}")), true),
            Disposition::Dropped => (Some(format!("dropped{foreign}")), false),
            Disposition::Passes { .. } => (None, false),
        };
        let what = match (what, trace.uncertain_rules.is_empty()) {
            (what, true) => what,
            (what, false) => Some(what.unwrap_or_default() + " (not certain: --to traces a packet)"),
        };
        Fate {
            what,
            reason: reason.filter(|_| !is_captured).map(RuleReason::description),
            setting: reason.and_then(RuleReason::setting),
            is_captured,
        }
    }
}

#[cfg(test)]
mod tests {
    use iptables_rules::config::{CidrSelection, PortSelection};
    use iptables_rules::{CaptureConfig, plan};

    use super::*;

    fn of(config: &CaptureConfig) -> [String; 2] {
        let rules = plan(config).unwrap();
        let families = OUTSIDE.map(|address| Chains::from_rule_set(&rules, address));
        let Summary { captured, excluded } =
            summarize(&families, &PodIdentity::of(config), foreign_tables(Ownership::OursInIptables));
        [captured, excluded].map(|items| items.iter().map(|item| item.what.clone() + "\n").collect())
    }

    #[test]
    fn every_boundary_of_the_rules_is_probed() {
        let [captured, excluded] = of(&CaptureConfig {
            inbound_ports: PortSelection::Only(vec![80, 8080]),
            outbound_cidrs: CidrSelection::Only(vec!["10.0.0.0/8".parse().unwrap()]),
            outbound_ports_exclude: vec![3306],
            ..CaptureConfig::default()
        });
        assert!(captured.contains("inbound TCP to ports 80, 8080: redirected to port 15006"), "{captured}");
        assert!(
            captured.contains("outbound TCP to 10.0.0.0/8, ports 1-3305, 3307-65535 (IPv4): redirected to port 15001"),
            "{captured}"
        );
        assert!(excluded.contains("inbound TCP to ports 1-79, 81-8079, 8081-15007, 15009-65535"), "{excluded}");
        assert!(excluded.contains("outbound TCP to every other address"), "{excluded}");
        assert!(excluded.contains("outbound TCP of the proxy itself"), "{excluded}");
        let [captured, _] = of(&CaptureConfig::default());
        assert!(
            captured.contains("outbound TCP to every address, ports 1-15019, 15021-65535: redirected to port 15001\n"),
            "{captured}"
        );
    }

    #[test]
    fn namespace_without_rules_is_said_to_have_none() {
        let families = [Chains::default(), Chains::default()];
        let summary =
            summarize(&families, &PodIdentity::of(&CaptureConfig::default()), foreign_tables(Ownership::None));
        assert!(summary.captured.is_empty());
        assert_eq!(summary.excluded[0].what, "all traffic: there are no capture rules");
    }
}
