//! Limits of one pod's capture configuration, checked before anything is built from it.
//!
//! Whoever may create a pod writes these values, and they are read as root on its node. So each list has a limit, and the number of rules
//! is at most linear in the length of the lists: a product of two lists is never planned (see `plan/outbound.rs`). The limits are far above
//! what pods use, and low enough that the largest accepted pod is planned within a few milliseconds.

use crate::CaptureConfig;
use crate::config::{CidrSelection, DnsCapture, OwnerGroups, PortSelection};
use crate::names::{annotation, variable};

/// Bytes of one annotation or variable: half of what Kubernetes allows for all annotations of an object together
/// (`TotalAnnotationSizeLimitB`, 256 KiB, k8s.io/apimachinery).
pub const MAX_VALUE_BYTES: usize = 128 * 1024;

/// Interfaces of one list. Multus attaches a few to a pod.
pub const MAX_INTERFACES: usize = 64;

/// Users, and groups, that the proxy runs as. Istio uses one of each.
pub const MAX_PROXY_IDS: usize = 64;

/// Groups in [`OwnerGroups::Only`]: Istio's limit (`ValidateOwnerGroups`), as they all become conditions of one rule.
pub const MAX_INCLUDED_GROUPS: usize = 64;

/// Groups in [`OwnerGroups::AllBut`], one rule each. Istio has no limit.
pub const MAX_EXCLUDED_GROUPS: usize = 1_000;

/// Ports of one list. A Service of Kubernetes has at most a few hundred.
pub const MAX_PORTS: usize = 1_000;

/// Networks of one list. Published lists of a cloud's address ranges have up to some 5,000 of each family.
pub const MAX_CIDRS: usize = 10_000;

/// DNS servers. `resolv.conf` has at most three.
pub const MAX_DNS_SERVERS: usize = 64;

/// Rules in all, both families together.
pub const MAX_RULES: usize = 20_000;

/// A list that is longer than its limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {}", self.reason())]
pub struct LimitExceeded {
    /// Annotation, variable or other setting that the list comes from.
    pub setting: &'static str,
    /// What is counted.
    pub what: &'static str,
    /// Number of elements.
    pub count: usize,
    /// The limit.
    pub limit: usize,
}

impl LimitExceeded {
    /// Returns the fault, as the predicate of a sentence whose subject is the setting.
    pub fn reason(&self) -> String {
        format!("lists {} {}; at most {} are allowed", self.count, self.what, self.limit)
    }
}

/// Returns every list of a configuration that is longer than its limit. Where there are none, also checks the number of rules.
pub fn exceeded(config: &CaptureConfig) -> Vec<LimitExceeded> {
    let mut exceeded: Vec<_> = lists(config)
        .into_iter()
        .filter(|(.., count, limit)| count > limit)
        .map(|(setting, what, count, limit)| LimitExceeded { setting, what, count, limit })
        .collect();
    let rules = max_rule_count(config);
    if exceeded.is_empty() && rules > MAX_RULES {
        exceeded.push(LimitExceeded {
            setting: "capture configuration",
            what: "rules",
            count: rules,
            limit: MAX_RULES,
        });
    }
    exceeded
}

/// Checks the length of a list before its elements are parsed.
///
/// # Errors
/// Returns the fault, as the predicate of a sentence whose subject is the list.
pub(crate) fn check_count(count: usize, limit: usize, what: &str) -> Result<(), String> {
    if count > limit { Err(format!("lists {count} {what}; at most {limit} are allowed")) } else { Ok(()) }
}

/// Checks the length of a value before it is parsed.
///
/// # Errors
/// Returns the fault, as the predicate of a sentence whose subject is the value.
pub(crate) fn check_bytes(value: &str) -> Result<(), String> {
    let length = value.len();
    if length > MAX_VALUE_BYTES {
        Err(format!("is {length} bytes long; the limit is {MAX_VALUE_BYTES}"))
    } else {
        Ok(())
    }
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
    /// Rules that do not depend on a list, and those of [`crate::plan::MAX_PRODUCT`].
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
