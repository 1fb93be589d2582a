//! Summarizes what a configuration captures and what it does not, with the setting behind each.

use std::fmt::Display;

use iptables_rules::CaptureConfig;
use iptables_rules::config::{CidrSelection, DnsCapture, InterceptionMode, Ipv6Policy, OwnerGroups, PortSelection};
use iptables_rules::names::{annotation, port, variable};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) captured: Vec<SummaryItem>,
    /// Traffic that bypasses the proxy, or is dropped.
    pub(crate) excluded: Vec<SummaryItem>,
}

/// One kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SummaryItem {
    /// The traffic, and where it goes.
    pub(crate) what: String,
    /// The annotation or variable that decides; `None` if none does.
    pub(crate) setting: Option<&'static str>,
    /// Whether the setting has its default.
    pub(crate) default: bool,
}

/// Limit of list items.
const MAX_ITEMS: usize = 8;

impl Summary {
    /// Summarizes a configuration.
    pub(crate) fn of(config: &CaptureConfig) -> Self {
        let mut summary = Self { captured: Vec::new(), excluded: Vec::new() };
        if config.mode == InterceptionMode::None {
            summary.exclude(
                "all traffic: the proxy runs, but nothing is redirected to it",
                annotation::INTERCEPTION_MODE,
                false,
            );
            return summary;
        }
        summary.inbound(config);
        summary.outbound(config);
        summary.dns(config);
        summary.places(config);
        summary
    }

    /// Names the annotation that a pod has for rerouted interfaces.
    pub(crate) fn with_reroute_annotation(mut self, name: &'static str) -> Self {
        for item in self.captured.iter_mut().chain(&mut self.excluded) {
            if item.setting == Some(annotation::REROUTE_VIRTUAL_INTERFACES) {
                item.setting = Some(name);
            }
        }
        self
    }

    fn capture(&mut self, what: impl Into<String>, setting: &'static str, default: bool) {
        self.captured.push(SummaryItem { what: what.into(), setting: Some(setting), default });
    }

    fn exclude(&mut self, what: impl Into<String>, setting: &'static str, default: bool) {
        self.excluded.push(SummaryItem { what: what.into(), setting: Some(setting), default });
    }

    fn always_excluded(&mut self, what: String) {
        self.excluded.push(SummaryItem { what, setting: None, default: true });
    }

    fn inbound(&mut self, config: &CaptureConfig) {
        let how = match config.mode {
            InterceptionMode::Tproxy => format!("delivered to port {} with the client's address", config.inbound_port),
            _ => format!("redirected to port {}", config.inbound_port),
        };
        match &config.inbound_ports {
            PortSelection::All => {
                self.capture(format!("inbound TCP to every port: {how}"), annotation::INCLUDE_INBOUND_PORTS, true);
                let always = [port::STATUS, port::HEALTH, port::METRICS];
                let (fixed, asked): (Vec<u16>, Vec<u16>) =
                    config.inbound_ports_exclude.iter().partition(|port| always.contains(port));
                if !asked.is_empty() {
                    self.exclude(format!("inbound TCP to {}", ports(&asked)), annotation::EXCLUDE_INBOUND_PORTS, false);
                }
                if !fixed.is_empty() {
                    self.always_excluded(format!("inbound TCP to {}, which are the proxy's own", ports(&fixed)));
                }
            }
            PortSelection::Only(only) if only.is_empty() => {
                self.exclude("all inbound traffic", annotation::INCLUDE_INBOUND_PORTS, false);
            }
            PortSelection::Only(only) => {
                self.capture(
                    format!("inbound TCP to {}: {how}", ports(only)),
                    annotation::INCLUDE_INBOUND_PORTS,
                    false,
                );
                self.exclude("inbound TCP to every other port", annotation::INCLUDE_INBOUND_PORTS, false);
            }
        }
        if config.mode != InterceptionMode::Tproxy && config.inbound_ports != PortSelection::Only(Vec::new()) {
            self.always_excluded(format!("inbound TCP to port {}, the mesh's tunnel", config.tunnel_port));
        }
    }

    fn outbound(&mut self, config: &CaptureConfig) {
        let how = format!("redirected to port {}", config.proxy_port);
        match &config.outbound_cidrs {
            CidrSelection::All => {
                self.capture(
                    format!("outbound TCP to every address: {how}"),
                    annotation::INCLUDE_OUTBOUND_IP_RANGES,
                    true,
                );
            }
            CidrSelection::Only(nets) if nets.is_empty() => {
                self.exclude("outbound TCP to every address", annotation::INCLUDE_OUTBOUND_IP_RANGES, false);
            }
            CidrSelection::Only(nets) => {
                self.capture(
                    format!("outbound TCP to {}: {how}", items(nets)),
                    annotation::INCLUDE_OUTBOUND_IP_RANGES,
                    false,
                );
                self.exclude("outbound TCP to every other address", annotation::INCLUDE_OUTBOUND_IP_RANGES, false);
            }
        }
        if !config.outbound_ports.is_empty() {
            let what = format!("outbound TCP to {}, whatever the address: {how}", ports(&config.outbound_ports));
            self.capture(what, annotation::INCLUDE_OUTBOUND_PORTS, false);
        }
        if !config.outbound_cidrs_exclude.is_empty() {
            let what = format!("outbound TCP to {}", items(&config.outbound_cidrs_exclude));
            self.exclude(what, annotation::EXCLUDE_OUTBOUND_IP_RANGES, false);
        }
        if !config.outbound_ports_exclude.is_empty() {
            let what = format!("outbound TCP and UDP to {}", ports(&config.outbound_ports_exclude));
            self.exclude(what, annotation::EXCLUDE_OUTBOUND_PORTS, config.outbound_ports_exclude == [port::STATUS]);
        }
        self.owner_groups(&config.owner_groups);
        self.always_excluded(format!(
            "outbound traffic of the proxy itself (users {}; groups {})",
            items(&config.proxy_uids),
            items(&config.proxy_gids)
        ));
        self.exclude(
            format!("traffic of the application to its own pod, and to {} and ::1", config.loopback),
            variable::LOOPBACK_CIDR,
            config.loopback == CaptureConfig::default().loopback,
        );
    }

    fn owner_groups(&mut self, groups: &OwnerGroups) {
        match groups {
            OwnerGroups::AllBut(groups) if groups.is_empty() => {}
            OwnerGroups::AllBut(groups) => {
                self.exclude(
                    format!("outbound traffic of groups {}", items(groups)),
                    variable::OWNER_GROUPS_EXCLUDE,
                    false,
                );
            }
            OwnerGroups::Only(groups) if groups.is_empty() => {
                self.exclude("outbound traffic of every group", variable::OWNER_GROUPS, false);
            }
            OwnerGroups::Only(groups) => {
                self.exclude(
                    format!("outbound traffic of groups other than {}", items(groups)),
                    variable::OWNER_GROUPS,
                    false,
                );
            }
        }
    }

    fn dns(&mut self, config: &CaptureConfig) {
        let how = format!("redirected to port {}, where the agent answers", port::DNS);
        match &config.dns {
            DnsCapture::All => self.capture(
                format!("DNS requests of the application (TCP and UDP to port 53): {how}"),
                variable::DNS_CAPTURE,
                false,
            ),
            DnsCapture::Servers(servers) if !servers.is_empty() => {
                self.capture(format!("DNS requests to {}: {how}", items(servers)), variable::DNS_CAPTURE, false);
            }
            DnsCapture::Off | DnsCapture::Servers(_) => self.exclude("UDP, DNS included", variable::DNS_CAPTURE, true),
        }
    }

    fn places(&mut self, config: &CaptureConfig) {
        match config.ipv6 {
            Ipv6Policy::Capture => {}
            Ipv6Policy::Leave => self.exclude("all IPv6 traffic", annotation::IPV6, false),
            Ipv6Policy::Auto => self.exclude(
                "all IPv6 traffic, if the pod has IPv4 and IPv6 addresses: the proxy accepts IPv4 only",
                variable::DUAL_STACK,
                true,
            ),
        }
        if !config.exclude_interfaces.is_empty() {
            let what = format!("traffic over {}, in both directions", items(&config.exclude_interfaces));
            self.exclude(what, annotation::EXCLUDE_INTERFACES, false);
        }
        if !config.reroute_interfaces.is_empty() {
            let what = format!("traffic from {}: treated like outbound traffic", items(&config.reroute_interfaces));
            self.capture(what, annotation::REROUTE_VIRTUAL_INTERFACES, false);
        }
        if config.drop_invalid {
            self.exclude("packets in conntrack state INVALID: dropped", variable::INVALID_DROP, false);
        }
    }
}

fn ports(ports: &[u16]) -> String {
    format!("{} {}", if ports.len() == 1 { "port" } else { "ports" }, items(ports))
}

/// Joins the first items, and counts the rest.
fn items<T: Display>(items: &[T]) -> String {
    let mut words: Vec<String> = items.iter().take(MAX_ITEMS).map(ToString::to_string).collect();
    if items.len() > MAX_ITEMS {
        words.push(format!("and {} more", items.len() - MAX_ITEMS));
    }
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
