//! The list of settings that a pod can make, each with its default, its parser and its meaning.

use std::collections::HashSet;
use std::hash::Hash;

use ipnet::IpNet;

use super::Source;
use crate::CaptureConfig;
use crate::config::{DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, MAX_INCLUDED_GROUPS, OwnerGroups};
use crate::names::{annotation, port, variable};
use crate::text::shorten;
use crate::{cidrs, ports};

/// One setting of a pod.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Whether it is an annotation or a variable.
    pub source: Source,
    /// Its name.
    pub name: &'static str,
    /// The value that means the same as leaving it out.
    pub default: &'static str,
    /// What it does, in one line.
    pub doc: &'static str,
    /// Puts a value into a configuration; the faults of the value, as half sentences, otherwise.
    pub(super) read: fn(&mut CaptureConfig, &str) -> Result<(), Vec<String>>,
}

impl Setting {
    /// The setting of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// Puts a value into a configuration.
    ///
    /// # Errors
    /// The faults of the value, as half sentences.
    pub fn read(&self, config: &mut CaptureConfig, value: &str) -> Result<(), Vec<String>> {
        (self.read)(config, value)
    }
}

/// Inbound ports of the proxy and the agent themselves; they are excluded whatever the user excludes.
const OWN_INBOUND_PORTS: [u16; 3] = [port::STATUS, port::HEALTH, port::METRICS];

/// Everything that is read from a pod.
pub const SETTINGS: &[Setting] = &[
    Setting {
        source: Source::Annotation,
        name: annotation::INTERCEPTION_MODE,
        default: "REDIRECT",
        doc: "How inbound traffic reaches the proxy: REDIRECT, TPROXY, or NONE to capture nothing at all",
        read: |config, value| {
            config.mode = match value {
                "REDIRECT" => InterceptionMode::Redirect,
                "TPROXY" => InterceptionMode::Tproxy,
                "NONE" => InterceptionMode::None,
                _ => return fault("is none of REDIRECT, TPROXY, NONE"),
            };
            Ok(())
        },
    },
    Setting {
        source: Source::Annotation,
        name: annotation::IPV6,
        default: "capture",
        doc: "What to do with IPv6 traffic: capture it like IPv4, or leave it alone",
        read: |config, value| {
            config.ipv6 = match value {
                "capture" => Ipv6Policy::Capture,
                "leave" => Ipv6Policy::Leave,
                _ => return fault("is neither 'capture' nor 'leave'"),
            };
            Ok(())
        },
    },
    Setting {
        source: Source::Annotation,
        name: annotation::INCLUDE_OUTBOUND_IP_RANGES,
        default: "*",
        doc: "Destinations whose outbound TCP traffic is captured: '*' or CIDRs; empty captures none",
        read: |config, value| cidrs::parse_selection(value).map(|nets| config.outbound_cidrs = nets),
    },
    Setting {
        source: Source::Annotation,
        name: annotation::EXCLUDE_OUTBOUND_IP_RANGES,
        default: "",
        doc: "Destinations whose outbound traffic is not captured: CIDRs; they win over included ones and over included ports",
        read: |config, value| cidrs::parse(value).map(|nets| config.outbound_cidrs_exclude = nets),
    },
    Setting {
        source: Source::Annotation,
        name: annotation::INCLUDE_INBOUND_PORTS,
        default: "*",
        doc: "Inbound TCP ports that are captured: '*' or ports; empty captures none",
        read: |config, value| ports::parse_selection(value).map(|ports| config.inbound_ports = ports),
    },
    Setting {
        source: Source::Annotation,
        name: annotation::EXCLUDE_INBOUND_PORTS,
        default: "15020",
        doc: "Inbound TCP ports that are not captured, where all others are; 15020, 15021 and 15090 are always added",
        read: |config, value| {
            let mut ports = ports::parse(value)?;
            ports.extend(OWN_INBOUND_PORTS);
            config.inbound_ports_exclude = ports::without_repeats(ports);
            Ok(())
        },
    },
    Setting {
        source: Source::Annotation,
        name: annotation::INCLUDE_OUTBOUND_PORTS,
        default: "",
        doc: "Outbound TCP ports that are captured whatever the destination, unless that is excluded",
        read: |config, value| ports::parse(value).map(|ports| config.outbound_ports = ports),
    },
    Setting {
        source: Source::Annotation,
        name: annotation::EXCLUDE_OUTBOUND_PORTS,
        default: "15020",
        doc: "Outbound ports, TCP and UDP, that are not captured",
        read: |config, value| ports::parse(value).map(|ports| config.outbound_ports_exclude = ports),
    },
    Setting {
        source: Source::Annotation,
        name: annotation::EXCLUDE_INTERFACES,
        default: "",
        doc: "Interfaces that are left alone in both directions",
        read: |config, value| interfaces(value).map(|names| config.exclude_interfaces = names),
    },
    Setting {
        source: Source::Annotation,
        name: annotation::REROUTE_VIRTUAL_INTERFACES,
        default: "",
        doc: "Interfaces of virtual machines: what comes in by them is captured as outbound traffic",
        read: |config, value| interfaces(value).map(|names| config.reroute_interfaces = names),
    },
    Setting {
        source: Source::Annotation,
        name: annotation::KUBEVIRT_INTERFACES,
        default: "",
        doc: "Deprecated name of istio.io/reroute-virtual-interfaces; not read where that one is there",
        read: |config, value| interfaces(value).map(|names| config.reroute_interfaces = names),
    },
    Setting {
        source: Source::Variable,
        name: variable::DNS_CAPTURE,
        default: "false",
        doc: "Whether DNS requests of the application, to whatever server, are answered by the Istio agent",
        read: |config, value| boolean(value).map(|on| config.dns = if on { DnsCapture::All } else { DnsCapture::Off }),
    },
    Setting {
        source: Source::Variable,
        name: variable::INVALID_DROP,
        default: "false",
        doc: "Whether packets that connection tracking calls invalid are dropped",
        read: |config, value| boolean(value).map(|on| config.drop_invalid = on),
    },
    Setting {
        source: Source::Variable,
        name: variable::DUAL_STACK,
        default: "true",
        doc: "Checked only: IPv6 is captured anyway, and weir.dev/ipv6 is what leaves it alone",
        read: |_, value| boolean(value).map(|_| ()),
    },
    Setting {
        source: Source::Variable,
        name: variable::OWNER_GROUPS,
        default: "*",
        doc: "Groups of the application whose outbound traffic is captured: '*', or at most 64 ids or names; empty captures none",
        read: |config, value| {
            if value.trim() == "*" {
                config.owner_groups = OwnerGroups::default();
                return Ok(());
            }
            let groups = groups(value)?;
            if groups.len() > MAX_INCLUDED_GROUPS {
                return fault(&format!("names {} groups, at most {MAX_INCLUDED_GROUPS} are possible", groups.len()));
            }
            config.owner_groups = OwnerGroups::Only(groups);
            Ok(())
        },
    },
    Setting {
        source: Source::Variable,
        name: variable::OWNER_GROUPS_EXCLUDE,
        default: "",
        doc: "Groups of the application whose outbound traffic is not captured, where all others are: ids or names",
        // What it means depends on the setting before it; the caller puts the two together.
        read: |_, value| groups(value).map(|_| ()),
    },
    Setting {
        source: Source::Variable,
        name: variable::LOOPBACK_CIDR,
        default: "127.0.0.1/32",
        doc: "IPv4 addresses that count as the pod itself, within 127.0.0.0/8",
        read: |config, value| match cidrs::parse_one(value).map_err(|fault| vec![fault])? {
            IpNet::V4(net) if net.prefix_len() >= 8 && net.addr().is_loopback() => {
                config.loopback = net.trunc();
                Ok(())
            }
            _ => fault("is not within 127.0.0.0/8"),
        },
    },
];

/// Groups as the variables spell them: ids or names with commas.
pub(super) fn groups(text: &str) -> Result<Vec<Group>, Vec<String>> {
    list(text, Group::parse)
}

fn interfaces(text: &str) -> Result<Vec<InterfaceName>, Vec<String>> {
    list(text, InterfaceName::new)
}

/// Elements with commas; spaces around them and empty ones do not count, repeats count once.
fn list<T: Clone + Eq + Hash>(text: &str, parse: fn(&str) -> Result<T, &'static str>) -> Result<Vec<T>, Vec<String>> {
    let (mut values, mut faults, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        match parse(element) {
            Ok(value) => values.extend(seen.insert(value.clone()).then_some(value)),
            Err(reason) => faults.push(format!("'{}' {reason}", shorten(element))),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(faults) }
}

/// The words of Go's `strconv.ParseBool`, which everything that writes these variables uses. Empty is unset, hence false.
fn boolean(text: &str) -> Result<bool, Vec<String>> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => fault("is neither true nor false"),
    }
}

fn fault<T>(reason: &str) -> Result<T, Vec<String>> {
    Err(vec![reason.to_owned()])
}
