//! The annotation `weir.dev/capture`: a finished [`CaptureConfig`] as compact JSON, written by the webhook and read by the plugin.
//!
//! `{"v":1}` is the default configuration; every value that differs from its default is a field.
//!
//! Webhook and plugin are upgraded at different times, so a reader may meet fields of a newer writer. The name of a field tells what the
//! reader does about it, now and in every later version:
//! * `?name` is optional: a reader that does not know it ignores it. For hints, without which nothing less is captured.
//! * any other name is mandatory: a reader that does not know it rejects the value, as it would not capture what the writer asked for. The
//!   error says that the reader is older ([`SettingError::is_newer_writer`]); the pod waits until the node is upgraded.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::CaptureConfig;
use crate::annotations::SettingError;
use crate::config::{
    CidrSelection, DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups, PortSelection,
};
use crate::limits;
use crate::names::annotation;

/// Longest value that is read, in bytes.
pub const CAPTURE_MAX_BYTES: usize = limits::MAX_VALUE_BYTES;

/// First character of the name of an optional field.
const OPTIONAL: char = '?';

/// How many errors are reported: a value may have thousands of unknown fields.
const MAX_ERRORS: usize = 2 * FIELDS.len();

/// Version of the format; raised when an old reader would misunderstand a new value.
const VERSION: u64 = 1;

impl CaptureConfig {
    /// Formats the configuration as value of `weir.dev/capture`: compact JSON with a version, without defaults.
    ///
    /// Readers accept at most [`CAPTURE_MAX_BYTES`], so a writer should reject a longer value at once.
    pub fn to_capture_annotation(&self) -> String {
        let default = Self::default();
        let mut object = Map::new();
        object.insert("v".to_owned(), VERSION.into());
        for field in FIELDS {
            let value = (field.write)(self);
            if value != (field.write)(&default) {
                object.insert(field.name.to_owned(), value);
            }
        }
        Value::Object(object).to_string()
    }

    /// Parses and validates a value of `weir.dev/capture`.
    ///
    /// # Errors
    /// Returns one error for each invalid field, up to a limit.
    pub fn from_capture_annotation(value: &str) -> Result<Self, Vec<SettingError>> {
        let error = |value: &str, reason: String| SettingError::annotation(annotation::CAPTURE, value, reason);
        limits::check_bytes(value).map_err(|reason| vec![error(value, reason)])?;
        let entries: Entries = serde_json::from_str(value)
            .map_err(|fault| vec![error(value, format!("is not a JSON object: {fault}"))])?;
        match entries.0.iter().find(|(name, _)| name == "v").map(|(_, version)| version) {
            Some(version) if version == &json!(VERSION) => {}
            Some(version) => {
                let found = crate::text::truncate(&version.to_string());
                let reason = format!("has version {found}; only version {VERSION} is supported");
                let is_newer = version.as_u64().is_some_and(|version| version > VERSION);
                return Err(vec![if is_newer {
                    SettingError::newer_writer(value, reason)
                } else {
                    error(value, reason)
                }]);
            }
            None => return Err(vec![error(value, "has no version 'v'".to_owned())]),
        }
        let mut config = Self::default();
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for (name, field_value) in &entries.0 {
            let field = FIELDS.iter().find(|field| field.name == name);
            let read = match field {
                _ if !seen.insert(name) => Err("is given twice".to_owned()),
                Some(field) => (field.read)(&mut config, field_value),
                None if name == "v" || name.starts_with(OPTIONAL) => Ok(()),
                None => {
                    let name = crate::text::truncate(name);
                    let reason = format!("field '{name}': is unknown");
                    errors.push(SettingError::newer_writer(&field_value.to_string(), reason));
                    Ok(())
                }
            };
            if let Err(fault) = read {
                let name = crate::text::truncate(name);
                errors.push(error(&field_value.to_string(), format!("field '{name}': {fault}")));
            }
            if errors.len() == MAX_ERRORS {
                break;
            }
        }
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

/// One field of the annotation.
struct Field {
    name: &'static str,
    write: fn(&CaptureConfig) -> Value,
    read: fn(&mut CaptureConfig, &Value) -> Result<(), String>,
}

/// Builds a [`Field`] from functions that write and read its value.
macro_rules! field {
    ($name:literal, $field:ident, $write:expr, $read:expr) => {
        Field {
            name: $name,
            write: |config| $write(&config.$field),
            read: |config, value| $read(value).map(|read| config.$field = read),
        }
    };
}

const FIELDS: &[Field] = &[
    field!("mode", mode, |mode: &InterceptionMode| json!(mode.name()), |value| {
        word(value, InterceptionMode::parse)
    }),
    field!("ipv6", ipv6, |policy: &Ipv6Policy| write_ipv6(*policy), |value| word(value, parse_ipv6)),
    // Optional: a reader that does not know it captures IPv6, as this one does until it knows the addresses.
    field!("?ipv6Auto", ipv6, |policy: &Ipv6Policy| json!(*policy == Ipv6Policy::Auto), |value: &Value| match value {
        Value::Bool(true) => Ok(Ipv6Policy::Auto),
        _ => Err("must be true".to_owned()),
    }),
    field!("proxyPort", proxy_port, |port: &u16| json!(port), number),
    field!("inboundPort", inbound_port, |port: &u16| json!(port), number),
    field!("tunnelPort", tunnel_port, |port: &u16| json!(port), number),
    field!("proxyUids", proxy_uids, |ids: &Vec<u32>| json!(ids), |value| list(value, USERS, number)),
    field!("proxyGids", proxy_gids, |ids: &Vec<u32>| json!(ids), |value| list(value, PROXY_GROUPS, number)),
    field!("inboundPorts", inbound_ports, write_ports, read_ports),
    field!("inboundPortsExclude", inbound_ports_exclude, |ports: &Vec<u16>| json!(ports), |value| list(
        value, PORTS, number
    )),
    field!("outboundCidrs", outbound_cidrs, write_cidrs, read_cidrs),
    field!("outboundCidrsExclude", outbound_cidrs_exclude, |nets: &Vec<IpNet>| json!(nets), |value| list(
        value, CIDRS, net
    )),
    field!("outboundPorts", outbound_ports, |ports: &Vec<u16>| json!(ports), |value| list(value, PORTS, number)),
    field!("outboundPortsExclude", outbound_ports_exclude, |ports: &Vec<u16>| json!(ports), |value| list(
        value, PORTS, number
    )),
    field!("excludeInterfaces", exclude_interfaces, write_interfaces, |value| list(value, INTERFACES, interface)),
    field!("rerouteInterfaces", reroute_interfaces, write_interfaces, |value| list(value, INTERFACES, interface)),
    field!("ownerGroups", owner_groups, write_owner_groups, read_owner_groups),
    field!("dns", dns, write_dns, read_dns),
    field!("dropInvalid", drop_invalid, |on: &bool| json!(on), |value: &Value| {
        value.as_bool().ok_or_else(|| "must be true or false".to_owned())
    }),
    field!("loopback", loopback, |net: &Ipv4Net| json!(net), read_loopback),
    field!("tproxyMark", tproxy_mark, |mark: &u32| json!(mark), number),
    field!("tproxyRouteTable", tproxy_route_table, |table: &u32| json!(table), number),
];

fn write_ipv6(policy: Ipv6Policy) -> Value {
    json!(if policy.is_captured() { Ipv6Policy::Capture } else { Ipv6Policy::Leave }.name())
}

fn parse_ipv6(text: &str) -> Result<Ipv6Policy, &'static str> {
    match Ipv6Policy::parse(text) {
        Ok(policy) if policy != Ipv6Policy::Auto => Ok(policy),
        _ => Err("must be 'capture' or 'leave'"),
    }
}

fn word<T>(value: &Value, parse: fn(&str) -> Result<T, &'static str>) -> Result<T, String> {
    parse(value.as_str().unwrap_or_default()).map_err(str::to_owned)
}

fn write_ports(selection: &PortSelection) -> Value {
    match selection {
        PortSelection::All => json!("*"),
        PortSelection::Only(ports) => json!(ports),
    }
}

fn read_ports(value: &Value) -> Result<PortSelection, String> {
    if value == "*" { Ok(PortSelection::All) } else { list(value, PORTS, number).map(PortSelection::Only) }
}

fn write_cidrs(selection: &CidrSelection) -> Value {
    match selection {
        CidrSelection::All => json!("*"),
        CidrSelection::Only(nets) => json!(nets),
    }
}

fn read_cidrs(value: &Value) -> Result<CidrSelection, String> {
    if value == "*" { Ok(CidrSelection::All) } else { list(value, CIDRS, net).map(CidrSelection::Only) }
}

#[expect(clippy::ptr_arg, reason = "a field of the configuration, as the table hands it over")]
fn write_interfaces(names: &Vec<InterfaceName>) -> Value {
    json!(names.iter().map(InterfaceName::as_str).collect::<Vec<_>>())
}

fn write_owner_groups(groups: &OwnerGroups) -> Value {
    let write = |groups: &Vec<Group>| -> Value {
        let each = |group: &Group| match group {
            Group::Id(id) => json!(id),
            Group::Name(name) => json!(name.as_str()),
        };
        groups.iter().map(each).collect()
    };
    match groups {
        OwnerGroups::AllBut(groups) => json!({ "allBut": write(groups) }),
        OwnerGroups::Only(groups) => json!({ "only": write(groups) }),
    }
}

fn read_owner_groups(value: &Value) -> Result<OwnerGroups, String> {
    let group = |value: &Value| match value {
        Value::String(name) => Group::parse(name).map_err(|reason| quoted(value, reason)),
        id => number(id).map(Group::Id),
    };
    let mut entries = value.as_object().into_iter().flatten();
    match (entries.next(), entries.next()) {
        (Some((kind, groups)), None) if kind == "allBut" => {
            list(groups, EXCLUDED_GROUPS, group).map(OwnerGroups::AllBut)
        }
        (Some((kind, groups)), None) if kind == "only" => list(groups, INCLUDED_GROUPS, group).map(OwnerGroups::Only),
        _ => Err("must be {\"allBut\":[...]} or {\"only\":[...]}".to_owned()),
    }
}

fn write_dns(dns: &DnsCapture) -> Value {
    match dns {
        DnsCapture::Off => json!("off"),
        DnsCapture::All => json!("all"),
        DnsCapture::Servers(servers) => json!(servers),
    }
}

fn read_dns(value: &Value) -> Result<DnsCapture, String> {
    match value.as_str() {
        Some("off") => Ok(DnsCapture::Off),
        Some("all") => Ok(DnsCapture::All),
        Some(_) => Err("must be 'off', 'all' or a list of servers".to_owned()),
        None => list(value, DNS_SERVERS, address).map(DnsCapture::Servers),
    }
}

fn read_loopback(value: &Value) -> Result<Ipv4Net, String> {
    match net(value)? {
        IpNet::V4(net) => Ok(net),
        IpNet::V6(_) => Err(quoted(value, "is not an IPv4 network")),
    }
}

fn number<T: TryFrom<u64>>(value: &Value) -> Result<T, String> {
    value
        .as_u64()
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| quoted(value, &format!("is not a number from 0 to {}", largest::<T>())))
}

/// Returns the largest value of an unsigned type.
const fn largest<T>() -> u64 {
    u64::MAX >> (64 - 8 * size_of::<T>())
}

fn net(value: &Value) -> Result<IpNet, String> {
    match value.as_str() {
        Some(text) => crate::cidrs::parse_one(text),
        None => Err(quoted(value, "is not a network")),
    }
}

fn address(value: &Value) -> Result<IpAddr, String> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| quoted(value, "is not an IP address"))
}

fn interface(value: &Value) -> Result<InterfaceName, String> {
    InterfaceName::new(value.as_str().unwrap_or_default()).map_err(|reason| quoted(value, reason))
}

/// Limit of a list, and what it lists.
type ListLimit = (usize, &'static str);

const USERS: ListLimit = (limits::MAX_PROXY_IDS, "users");
const PROXY_GROUPS: ListLimit = (limits::MAX_PROXY_IDS, "groups");
const PORTS: ListLimit = (limits::MAX_PORTS, "ports");
const CIDRS: ListLimit = (limits::MAX_CIDRS, "CIDRs");
const INTERFACES: ListLimit = (limits::MAX_INTERFACES, "interfaces");
const INCLUDED_GROUPS: ListLimit = (limits::MAX_INCLUDED_GROUPS, "groups");
const EXCLUDED_GROUPS: ListLimit = (limits::MAX_EXCLUDED_GROUPS, "groups");
const DNS_SERVERS: ListLimit = (limits::MAX_DNS_SERVERS, "DNS servers");

/// Reads every element of a list, up to a limit, or returns all faults with their positions.
fn list<T>(
    value: &Value,
    (limit, what): ListLimit,
    read: impl Fn(&Value) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let elements = value.as_array().ok_or_else(|| "must be a list".to_owned())?;
    limits::check_count(elements.len(), limit, what)?;
    let (mut values, mut faults) = (Vec::with_capacity(elements.len()), Vec::new());
    for (index, element) in elements.iter().enumerate() {
        match read(element) {
            Ok(value) => values.push(value),
            Err(fault) => faults.push(format!("element {index}: {fault}")),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(crate::annotations::join_faults(&faults)) }
}

/// Returns a value as JSON, for an error.
fn shown(value: &Value) -> String {
    crate::text::truncate(&value.to_string())
}

fn quoted(value: &Value, reason: &str) -> String {
    format!("{} {reason}", shown(value))
}

/// Fields of a JSON object in order; a map would hide a repeated field.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests;
