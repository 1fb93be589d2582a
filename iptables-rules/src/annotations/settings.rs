//! The settings of a pod: annotations and environment variables, each with its default, parser and meaning.

use std::collections::HashSet;
use std::hash::Hash;

use ipnet::IpNet;

use super::error::SettingSource;
use crate::CaptureConfig;
use crate::config::{DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups};
use crate::limits::{self, MAX_EXCLUDED_GROUPS, MAX_INCLUDED_GROUPS, MAX_INTERFACES};
use crate::names::{annotation, port, variable};
use crate::text::{parse_bool, truncate};
use crate::{cidrs, ports};

/// One setting of a pod.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Origin of the setting.
    pub source: SettingSource,
    /// Key of the annotation, or name of the variable.
    pub name: &'static str,
    /// The value that has the same effect as leaving the setting out.
    pub default: &'static str,
    /// One line for reference pages.
    pub doc: &'static str,
    /// See [`Setting::parse_into`].
    parse: fn(&mut CaptureConfig, &str) -> Result<(), Vec<String>>,
}

impl Setting {
    /// Finds a setting by its name.
    pub fn find(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// Parses a value and stores it in a configuration.
    ///
    /// # Errors
    /// Returns the faults of the value.
    pub fn parse_into(&self, config: &mut CaptureConfig, value: &str) -> Result<(), Vec<String>> {
        limits::check_bytes(value).map_err(|fault| vec![fault])?;
        (self.parse)(config, value)
    }
}

/// Inbound ports of the proxy and the Istio agent, which are always excluded.
const OWN_INBOUND_PORTS: [u16; 3] = [port::STATUS, port::HEALTH, port::METRICS];

/// All settings that are read from a pod.
pub const SETTINGS: &[Setting] = &[
    Setting {
        source: SettingSource::Annotation,
        name: annotation::INTERCEPTION_MODE,
        default: "REDIRECT",
        doc: "How inbound traffic reaches the proxy: REDIRECT, TPROXY, or NONE to capture nothing",
        parse: |config, value| one(InterceptionMode::parse(value)).map(|mode| config.mode = mode),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::IPV6,
        default: "auto",
        doc: "Whether IPv6 traffic is captured like IPv4 traffic (capture), not (leave), or where the proxy accepts it (auto)",
        parse: |config, value| one(Ipv6Policy::parse(value)).map(|policy| config.ipv6 = policy),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::INCLUDE_OUTBOUND_IP_RANGES,
        default: "*",
        doc: "Destinations whose outbound TCP traffic is captured: '*' or CIDRs; empty captures none",
        parse: |config, value| cidrs::parse_selection(value).map(|nets| config.outbound_cidrs = nets),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::EXCLUDE_OUTBOUND_IP_RANGES,
        default: "",
        doc: "Destinations whose outbound traffic is not captured: CIDRs; they win over included ones and over included ports",
        parse: |config, value| cidrs::parse(value).map(|nets| config.outbound_cidrs_exclude = nets),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::INCLUDE_INBOUND_PORTS,
        default: "*",
        doc: "Inbound TCP ports that are captured: '*' or ports; empty captures none",
        parse: |config, value| ports::parse_selection(value).map(|ports| config.inbound_ports = ports),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::EXCLUDE_INBOUND_PORTS,
        default: "15020",
        doc: "Inbound TCP ports that are not captured, where all others are; 15020, 15021 and 15090 are always added",
        parse: |config, value| {
            let mut ports = ports::parse(value)?;
            ports.extend(OWN_INBOUND_PORTS);
            config.inbound_ports_exclude = ports::without_repeats(ports);
            Ok(())
        },
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::INCLUDE_OUTBOUND_PORTS,
        default: "",
        doc: "Outbound TCP ports that are captured for every destination that is not excluded",
        parse: |config, value| ports::parse(value).map(|ports| config.outbound_ports = ports),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::EXCLUDE_OUTBOUND_PORTS,
        default: "15020",
        doc: "Outbound ports, TCP and UDP, that are not captured",
        parse: |config, value| ports::parse(value).map(|ports| config.outbound_ports_exclude = ports),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::EXCLUDE_INTERFACES,
        default: "",
        doc: "Interfaces whose traffic is not captured, in both directions",
        parse: |config, value| interfaces(value).map(|names| config.exclude_interfaces = names),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::REROUTE_VIRTUAL_INTERFACES,
        default: "",
        doc: "Interfaces of virtual machines; their inbound traffic is captured as outbound traffic",
        parse: |config, value| interfaces(value).map(|names| config.reroute_interfaces = names),
    },
    Setting {
        source: SettingSource::Annotation,
        name: annotation::KUBEVIRT_INTERFACES,
        default: "",
        doc: "Deprecated name of istio.io/reroute-virtual-interfaces; ignored where that one is set",
        parse: |config, value| interfaces(value).map(|names| config.reroute_interfaces = names),
    },
    Setting {
        source: SettingSource::Variable,
        name: variable::DNS_CAPTURE,
        default: "false",
        doc: "Whether the Istio agent answers all DNS requests of the application",
        parse: |config, value| boolean(value).map(|on| config.dns = if on { DnsCapture::All } else { DnsCapture::Off }),
    },
    Setting {
        source: SettingSource::Variable,
        name: variable::INVALID_DROP,
        default: "false",
        doc: "Whether packets in the conntrack state INVALID are dropped",
        parse: |config, value| boolean(value).map(|on| config.drop_invalid = on),
    },
    Setting {
        source: SettingSource::Variable,
        name: variable::DUAL_STACK,
        default: "false",
        doc: "Whether the proxy accepts IPv6 in a pod with addresses of both families; decides weir.dev/ipv6 where that is auto",
        parse: |config, value| {
            boolean(value).map(|on| {
                if on && config.ipv6 == Ipv6Policy::Auto {
                    config.ipv6 = Ipv6Policy::Capture;
                }
            })
        },
    },
    Setting {
        source: SettingSource::Variable,
        name: variable::OWNER_GROUPS,
        default: "*",
        doc: "Groups of the application whose outbound traffic is captured: '*', or at most 64 ids or names; empty captures none",
        parse: |config, value| {
            if value.trim() == "*" {
                config.owner_groups = OwnerGroups::default();
                return Ok(());
            }
            groups(value, MAX_INCLUDED_GROUPS).map(|groups| config.owner_groups = OwnerGroups::Only(groups))
        },
    },
    Setting {
        source: SettingSource::Variable,
        name: variable::OWNER_GROUPS_EXCLUDE,
        default: "",
        doc: "Groups of the application whose outbound traffic is not captured, where all others are: ids or names",
        // Depends on the setting before it; `combine_owner_groups` applies it.
        parse: |_, value| excluded_groups(value).map(|_| ()),
    },
    Setting {
        source: SettingSource::Variable,
        name: variable::LOOPBACK_CIDR,
        default: "127.0.0.1/32",
        doc: "IPv4 addresses that count as the pod itself, within 127.0.0.0/8",
        parse: |config, value| match cidrs::parse_one(value).map_err(|fault| vec![fault])? {
            IpNet::V4(net) if net.prefix_len() >= 8 && net.addr().is_loopback() => {
                config.loopback = net.trunc();
                Ok(())
            }
            _ => fault("must be within 127.0.0.0/8"),
        },
    },
];

/// Parses the groups of [`variable::OWNER_GROUPS_EXCLUDE`].
pub(super) fn excluded_groups(text: &str) -> Result<Vec<Group>, Vec<String>> {
    groups(text, MAX_EXCLUDED_GROUPS)
}

/// Parses groups as the variables spell them: ids or names, separated by commas.
fn groups(text: &str, limit: usize) -> Result<Vec<Group>, Vec<String>> {
    list(text, (limit, "groups"), Group::parse)
}

fn interfaces(text: &str) -> Result<Vec<InterfaceName>, Vec<String>> {
    list(text, (MAX_INTERFACES, "interfaces"), InterfaceName::new)
}

/// Parses elements separated by commas, up to a limit. Spaces, empty elements and repeats are dropped.
fn list<T: Clone + Eq + Hash>(
    text: &str,
    (limit, what): (usize, &str),
    parse: fn(&str) -> Result<T, &'static str>,
) -> Result<Vec<T>, Vec<String>> {
    let elements = || text.split(',').map(str::trim).filter(|element| !element.is_empty());
    limits::check_count(elements().count(), limit, what).map_err(|fault| vec![fault])?;
    let (mut values, mut faults, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for element in elements() {
        match parse(element) {
            Ok(value) => values.extend(seen.insert(value.clone()).then_some(value)),
            Err(reason) => faults.push(format!("'{}' {reason}", truncate(element))),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(faults) }
}

/// Parses a boolean; empty is unset, hence false.
fn boolean(text: &str) -> Result<bool, Vec<String>> {
    if text.is_empty() {
        return Ok(false);
    }
    parse_bool(text).ok_or_else(|| vec!["must be true or false".to_owned()])
}

fn fault<T>(reason: &str) -> Result<T, Vec<String>> {
    Err(vec![reason.to_owned()])
}

/// A result with one fault as one with a list of faults.
fn one<T>(result: Result<T, &str>) -> Result<T, Vec<String>> {
    result.or_else(fault)
}
