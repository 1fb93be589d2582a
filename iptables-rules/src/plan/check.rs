//! Rejects settings whose rules the kernel would refuse, which would break the pod, or which exceed the [limits](crate::limits).

use std::borrow::Cow;
use std::net::Ipv4Addr;

use crate::CaptureConfig;
use crate::config::{CidrSelection, DnsCapture, Group, InterceptionMode, OwnerGroups, PortSelection};
use crate::limits::{
    MAX_CIDRS, MAX_DNS_SERVERS, MAX_EXCLUDED_GROUPS, MAX_INCLUDED_GROUPS, MAX_INTERFACES, MAX_PORTS, MAX_PROXY_IDS,
    MAX_RULES,
};
use crate::names::{self, annotation, variable};

/// Routing tables of the kernel: unspecified, default, main, local (`linux/rtnetlink.h`).
const RESERVED_ROUTE_TABLES: [u32; 4] = [0, 253, 254, 255];

/// Prefix length of the network of loopback addresses (RFC 1122, 3.2.1.3).
const LOOPBACK_PREFIX: u8 = 8;

/// The id that means "none" in system calls (`chown(2)`); the owner match rejects it.
const NO_ID: u32 = u32::MAX;

/// Error returned for a setting that is valid, but not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct UnsupportedSetting {
    /// Name of the setting, as the user knows it.
    pub setting: &'static str,
    /// Reason for which it is not supported.
    pub reason: Cow<'static, str>,
}

/// Returns an error for every unsupported setting.
pub(super) fn check(config: &CaptureConfig) -> Result<(), Vec<UnsupportedSetting>> {
    let (groups_variable, named) = match &config.owner_groups {
        OwnerGroups::Only(groups) => (variable::OWNER_GROUPS, groups),
        OwnerGroups::AllBut(groups) => (variable::OWNER_GROUPS_EXCLUDE, groups),
    };
    let loopback = config.loopback;
    let no_id = |ids: &[u32]| ids.contains(&NO_ID);
    let mut findings = vec![
        (config.proxy_port == 0, "proxy port", "port 0 is not valid"),
        (config.inbound_port == 0, "inbound capture port", "port 0 is not valid"),
        (
            config.proxy_uids.is_empty() && config.proxy_gids.is_empty(),
            "proxy uid and gid",
            "at least one is required: without it the proxy's own traffic loops",
        ),
        (
            loopback.prefix_len() < LOOPBACK_PREFIX || loopback.addr().octets()[0] != Ipv4Addr::LOCALHOST.octets()[0],
            variable::LOOPBACK_CIDR,
            "must be within 127.0.0.0/8",
        ),
        (no_id(&config.proxy_uids), "proxy uid", "4294967295 is not a valid uid"),
        (no_id(&config.proxy_gids), "proxy gid", "4294967295 is not a valid gid"),
        (named.contains(&Group::Id(NO_ID)), groups_variable, "4294967295 is not a valid gid"),
    ];
    if config.mode == InterceptionMode::Tproxy {
        findings.extend([
            (config.tproxy_mark == 0, "TPROXY mark", "mark 0 matches every packet"),
            (
                config.tproxy_mark == names::TPROXY_OUTBOUND_MARK,
                "TPROXY mark",
                "mark 1338 is reserved for packets from the proxy to its own pod",
            ),
            (
                RESERVED_ROUTE_TABLES.contains(&config.tproxy_route_table),
                "TPROXY route table",
                "tables 0, 253, 254 and 255 are reserved by the kernel",
            ),
        ]);
    }
    let refused = findings.into_iter().filter(|(bad, ..)| *bad);
    let refused = refused.map(|(_, setting, reason)| UnsupportedSetting { setting, reason: reason.into() });
    let refused: Vec<_> = refused.chain(exceeded(config)).collect();
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

/// Returns an error for every list of a configuration that is longer than its limit. Where there are none, also checks the number of rules.
fn exceeded(config: &CaptureConfig) -> Vec<UnsupportedSetting> {
    let exceeded = |setting, what, count, limit| UnsupportedSetting {
        setting,
        reason: format!("lists {count} {what}; at most {limit} are allowed").into(),
    };
    let lists = lists(config).into_iter().filter(|(.., count, limit)| count > limit);
    let mut found: Vec<_> = lists.map(|(setting, what, count, limit)| exceeded(setting, what, count, limit)).collect();
    let rules = max_rule_count(config);
    if found.is_empty() && rules > MAX_RULES {
        found.push(exceeded("capture configuration", "rules", rules, MAX_RULES));
    }
    found
}

/// Returns all lists: setting, elements, length and limit.
fn lists(config: &CaptureConfig) -> [(&'static str, &'static str, usize, usize); 12] {
    let (groups, groups_variable, groups_limit) = match &config.owner_groups {
        OwnerGroups::Only(groups) => (groups, variable::OWNER_GROUPS, MAX_INCLUDED_GROUPS),
        OwnerGroups::AllBut(groups) => (groups, variable::OWNER_GROUPS_EXCLUDE, MAX_EXCLUDED_GROUPS),
    };
    [
        ("proxy uid", "users", config.proxy_uids.len(), MAX_PROXY_IDS),
        ("proxy gid", "groups", config.proxy_gids.len(), MAX_PROXY_IDS),
        (annotation::INCLUDE_INBOUND_PORTS, "ports", included_ports(config), MAX_PORTS),
        (annotation::EXCLUDE_INBOUND_PORTS, "ports", config.inbound_ports_exclude.len(), MAX_PORTS),
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, "CIDRs", included_cidrs(config), MAX_CIDRS),
        (annotation::EXCLUDE_OUTBOUND_IP_RANGES, "CIDRs", config.outbound_cidrs_exclude.len(), MAX_CIDRS),
        (annotation::INCLUDE_OUTBOUND_PORTS, "ports", config.outbound_ports.len(), MAX_PORTS),
        (annotation::EXCLUDE_OUTBOUND_PORTS, "ports", config.outbound_ports_exclude.len(), MAX_PORTS),
        (annotation::EXCLUDE_INTERFACES, "interfaces", config.exclude_interfaces.len(), MAX_INTERFACES),
        (annotation::REROUTE_VIRTUAL_INTERFACES, "interfaces", config.reroute_interfaces.len(), MAX_INTERFACES),
        (groups_variable, "groups", groups.len(), groups_limit),
        (variable::DNS_CAPTURE, "DNS servers", dns_servers(config), MAX_DNS_SERVERS),
    ]
}

fn included_ports(config: &CaptureConfig) -> usize {
    match &config.inbound_ports {
        PortSelection::All => 0,
        PortSelection::Only(ports) => ports.len(),
    }
}

fn included_cidrs(config: &CaptureConfig) -> usize {
    match &config.outbound_cidrs {
        CidrSelection::All => 0,
        CidrSelection::Only(nets) => nets.len(),
    }
}

fn dns_servers(config: &CaptureConfig) -> usize {
    match &config.dns {
        DnsCapture::Off | DnsCapture::All => 0,
        DnsCapture::Servers(servers) => servers.len(),
    }
}

/// Returns an upper bound of the number of rules that are planned: a constant for the rules of every pod, and a few for each element.
pub fn max_rule_count(config: &CaptureConfig) -> usize {
    /// Rules that do not depend on a list, and those of [`super::MAX_PRODUCT`].
    const FIXED: usize = 64;
    let (OwnerGroups::AllBut(groups) | OwnerGroups::Only(groups)) = &config.owner_groups;
    let per_element = [
        (config.exclude_interfaces.len(), 4), // two directions, in nat and mangle
        (config.reroute_interfaces.len(), 2), // exemption and capture
        (config.proxy_uids.len() + config.proxy_gids.len(), 8), // to itself and marks in both families, two zones of DNS
        (included_ports(config), 2),                            // TPROXY: known connections and new ones
        (config.inbound_ports_exclude.len(), 1),
        (config.outbound_ports.len(), 1),
        (config.outbound_ports_exclude.len(), 2), // TCP and UDP
        (included_cidrs(config), if config.reroute_interfaces.is_empty() { 1 } else { 2 }),
        (config.outbound_cidrs_exclude.len(), 1),
        (groups.len(), 1),
        (dns_servers(config), 4), // TCP and UDP, two zones
    ];
    per_element.into_iter().fold(FIXED, |sum, (count, rules)| sum.saturating_add(count.saturating_mul(rules)))
}
