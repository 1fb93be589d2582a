//! The annotation `weir.dev/capture`: a finished [`CaptureConfig`] as compact JSON, written by the webhook, read by the plugin.
//!
//! `{"v":1}` is the default configuration; what differs from it stands there by name. A reader refuses what it does not know: the writer
//! may be newer and mean more than the reader would do.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::CaptureConfig;
use crate::annotations::AnnotationError;
use crate::config::{
    CidrSelection, DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups, PortSelection,
};
use crate::names::annotation;

/// Longest value that is read: half of what Kubernetes allows for all annotations of an object together.
pub const CAPTURE_MAX_BYTES: usize = 128 * 1024;

/// How many findings are told: a value may hold thousands of unknown fields.
const MAX_ERRORS: usize = 2 * FIELDS.len();

/// Version of the format. It changes where an old reader would misunderstand a new value.
const VERSION: u64 = 1;

impl CaptureConfig {
    /// The value of `weir.dev/capture`: compact JSON with a version, defaults left out.
    ///
    /// A reader takes at most [`CAPTURE_MAX_BYTES`]; who writes it should refuse a longer one at once.
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

    /// Reads `weir.dev/capture`, validating every field.
    ///
    /// # Errors
    /// Everything that is wrong with it, up to twice as many findings as there are fields.
    pub fn from_capture_annotation(value: &str) -> Result<Self, Vec<AnnotationError>> {
        let error = |value: &str, reason: String| AnnotationError::annotation(annotation::CAPTURE, value, reason);
        if value.len() > CAPTURE_MAX_BYTES {
            let reason = format!("is {} bytes long, at most {CAPTURE_MAX_BYTES} are read", value.len());
            return Err(vec![error(value, reason)]);
        }
        let entries: Entries = serde_json::from_str(value)
            .map_err(|fault| vec![error(value, format!("is not a JSON object: {fault}"))])?;
        match entries.0.iter().find(|(name, _)| name == "v").map(|(_, version)| version) {
            Some(version) if version == &json!(VERSION) => {}
            Some(version) => {
                let reason = format!("has version {version}, and only version {VERSION} is known");
                return Err(vec![error(value, reason)]);
            }
            None => return Err(vec![error(value, "has no version 'v'".to_owned())]),
        }
        let mut config = Self::default();
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for (name, field_value) in &entries.0 {
            let field = FIELDS.iter().find(|field| field.name == name);
            let read = match field {
                _ if !seen.insert(name) => Err("is there twice".to_owned()),
                Some(field) => (field.read)(&mut config, field_value),
                None if name == "v" => Ok(()),
                None => Err("is not known".to_owned()),
            };
            if let Err(fault) = read {
                let name = crate::text::shorten(name);
                errors.push(error(&field_value.to_string(), format!("field '{name}': {fault}")));
                if errors.len() == MAX_ERRORS {
                    break;
                }
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

/// Field of a plain type.
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
    field!("mode", mode, |mode: &InterceptionMode| write_mode(*mode), read_mode),
    field!("ipv6", ipv6, |policy: &Ipv6Policy| write_ipv6(*policy), read_ipv6),
    field!("proxyPort", proxy_port, |port: &u16| json!(port), number),
    field!("inboundPort", inbound_port, |port: &u16| json!(port), number),
    field!("tunnelPort", tunnel_port, |port: &u16| json!(port), number),
    field!("proxyUids", proxy_uids, |ids: &Vec<u32>| json!(ids), |value| list(value, number)),
    field!("proxyGids", proxy_gids, |ids: &Vec<u32>| json!(ids), |value| list(value, number)),
    field!("inboundPorts", inbound_ports, write_ports, read_ports),
    field!("inboundPortsExclude", inbound_ports_exclude, |ports: &Vec<u16>| json!(ports), |value| list(value, number)),
    field!("outboundCidrs", outbound_cidrs, write_cidrs, read_cidrs),
    field!("outboundCidrsExclude", outbound_cidrs_exclude, |nets: &Vec<IpNet>| json!(nets), |value| list(value, net)),
    field!("outboundPorts", outbound_ports, |ports: &Vec<u16>| json!(ports), |value| list(value, number)),
    field!("outboundPortsExclude", outbound_ports_exclude, |ports: &Vec<u16>| json!(ports), |value| list(
        value, number
    )),
    field!("excludeInterfaces", exclude_interfaces, write_interfaces, |value| list(value, interface)),
    field!("rerouteInterfaces", reroute_interfaces, write_interfaces, |value| list(value, interface)),
    field!("ownerGroups", owner_groups, write_owner_groups, read_owner_groups),
    field!("dns", dns, write_dns, read_dns),
    field!("dropInvalid", drop_invalid, |on: &bool| json!(on), |value: &Value| {
        value.as_bool().ok_or_else(|| "is neither true nor false".to_owned())
    }),
    field!("loopback", loopback, |net: &Ipv4Net| json!(net), read_loopback),
    field!("tproxyMark", tproxy_mark, |mark: &u32| json!(mark), number),
    field!("tproxyRouteTable", tproxy_route_table, |table: &u32| json!(table), number),
];

fn write_mode(mode: InterceptionMode) -> Value {
    json!(match mode {
        InterceptionMode::Redirect => "REDIRECT",
        InterceptionMode::Tproxy => "TPROXY",
        InterceptionMode::None => "NONE",
    })
}

fn read_mode(value: &Value) -> Result<InterceptionMode, String> {
    match value.as_str() {
        Some("REDIRECT") => Ok(InterceptionMode::Redirect),
        Some("TPROXY") => Ok(InterceptionMode::Tproxy),
        Some("NONE") => Ok(InterceptionMode::None),
        _ => Err("is none of REDIRECT, TPROXY, NONE".to_owned()),
    }
}

fn write_ipv6(policy: Ipv6Policy) -> Value {
    json!(match policy {
        Ipv6Policy::Capture => "capture",
        Ipv6Policy::Leave => "leave",
    })
}

fn read_ipv6(value: &Value) -> Result<Ipv6Policy, String> {
    match value.as_str() {
        Some("capture") => Ok(Ipv6Policy::Capture),
        Some("leave") => Ok(Ipv6Policy::Leave),
        _ => Err("is neither 'capture' nor 'leave'".to_owned()),
    }
}

fn write_ports(selection: &PortSelection) -> Value {
    match selection {
        PortSelection::All => json!("*"),
        PortSelection::Only(ports) => json!(ports),
    }
}

fn read_ports(value: &Value) -> Result<PortSelection, String> {
    if value == "*" { Ok(PortSelection::All) } else { list(value, number).map(PortSelection::Only) }
}

fn write_cidrs(selection: &CidrSelection) -> Value {
    match selection {
        CidrSelection::All => json!("*"),
        CidrSelection::Only(nets) => json!(nets),
    }
}

fn read_cidrs(value: &Value) -> Result<CidrSelection, String> {
    if value == "*" { Ok(CidrSelection::All) } else { list(value, net).map(CidrSelection::Only) }
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
        (Some((kind, groups)), None) if kind == "allBut" => list(groups, group).map(OwnerGroups::AllBut),
        (Some((kind, groups)), None) if kind == "only" => list(groups, group).map(OwnerGroups::Only),
        _ => Err("is neither {\"allBut\":[...]} nor {\"only\":[...]}".to_owned()),
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
        Some(_) => Err("is neither 'off' nor 'all' nor a list of servers".to_owned()),
        None => list(value, address).map(DnsCapture::Servers),
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

/// Largest value of an unsigned type.
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

/// Every element of a list, or all faults and where they are.
fn list<T>(value: &Value, read: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, String> {
    let elements = value.as_array().ok_or_else(|| "is not a list".to_owned())?;
    let (mut values, mut faults) = (Vec::with_capacity(elements.len()), Vec::new());
    for (index, element) in elements.iter().enumerate() {
        match read(element) {
            Ok(value) => values.push(value),
            Err(fault) => faults.push(format!("element {index}: {fault}")),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(crate::annotations::in_one_line(&faults)) }
}

fn quoted(value: &Value, reason: &str) -> String {
    format!("{} {reason}", crate::text::shorten(&value.to_string()))
}

/// Fields of a JSON object as written; a map would hide a repeated one.
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn faults(value: &str) -> String {
        let errors = CaptureConfig::from_capture_annotation(value).unwrap_err();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_default_is_a_version_and_nothing_else() {
        assert_eq!(CaptureConfig::default().to_capture_annotation(), r#"{"v":1}"#);
        assert_eq!(CaptureConfig::from_capture_annotation(" {\"v\" : 1} "), Ok(CaptureConfig::default()));
    }

    #[test]
    fn what_differs_from_the_default_stands_by_name() {
        let net = |text: &str| text.parse().unwrap();
        let config = CaptureConfig {
            mode: InterceptionMode::Tproxy,
            ipv6: Ipv6Policy::Leave,
            proxy_port: 1,
            inbound_port: 2,
            tunnel_port: 3,
            proxy_uids: vec![4, 5],
            proxy_gids: vec![6],
            inbound_ports: PortSelection::Only(vec![]),
            inbound_ports_exclude: vec![7],
            outbound_cidrs: CidrSelection::Only(vec![net("10.0.0.0/8")]),
            outbound_cidrs_exclude: vec![net("fd00::/8")],
            outbound_ports: vec![8],
            outbound_ports_exclude: vec![],
            exclude_interfaces: vec![InterfaceName::new("net1").unwrap()],
            reroute_interfaces: vec![InterfaceName::new("tap0").unwrap()],
            owner_groups: OwnerGroups::Only(vec![Group::Id(9), Group::parse("java").unwrap()]),
            dns: DnsCapture::Servers(vec!["10.96.0.10".parse().unwrap()]),
            drop_invalid: true,
            loopback: "127.0.0.0/8".parse().unwrap(),
            tproxy_mark: 10,
            tproxy_route_table: 11,
        };
        let text = config.to_capture_annotation();
        insta::assert_snapshot!(text.replace(",\"", ",\n\""), @r#"
        {"v":1,
        "mode":"TPROXY",
        "ipv6":"leave",
        "proxyPort":1,
        "inboundPort":2,
        "tunnelPort":3,
        "proxyUids":[4,5],
        "proxyGids":[6],
        "inboundPorts":[],
        "inboundPortsExclude":[7],
        "outboundCidrs":["10.0.0.0/8"],
        "outboundCidrsExclude":["fd00::/8"],
        "outboundPorts":[8],
        "outboundPortsExclude":[],
        "excludeInterfaces":["net1"],
        "rerouteInterfaces":["tap0"],
        "ownerGroups":{"only":[9,
        "java"]},
        "dns":["10.96.0.10"],
        "dropInvalid":true,
        "loopback":"127.0.0.0/8",
        "tproxyMark":10,
        "tproxyRouteTable":11}
        "#);
        assert_eq!(CaptureConfig::from_capture_annotation(&text), Ok(config));
    }

    #[test]
    fn names_every_bad_field_at_once() {
        let value = r#"{"v":1,"mode":"tproxy","ipv6":true,"proxyPort":65536,"inboundPort":-1,"tunnelPort":"15008","proxyUids":[1,4294967296,1.0,"7"],
            "inboundPorts":"all","outboundCidrs":["10.0.0.0/8","10.0.0.1"],"excludeInterfaces":["-j"],"ownerGroups":{"only":[1],"allBut":[]},
            "dns":["resolver"],"dropInvalid":"yes","loopback":"::1/128","mirror":1,"dns":"off"}"#;
        insta::assert_snapshot!(faults(value), @r#"
        invalid value '"tproxy"' for annotation 'weir.dev/capture': field 'mode': is none of REDIRECT, TPROXY, NONE
        invalid value 'true' for annotation 'weir.dev/capture': field 'ipv6': is neither 'capture' nor 'leave'
        invalid value '65536' for annotation 'weir.dev/capture': field 'proxyPort': 65536 is not a number from 0 to 65535
        invalid value '-1' for annotation 'weir.dev/capture': field 'inboundPort': -1 is not a number from 0 to 65535
        invalid value '"15008"' for annotation 'weir.dev/capture': field 'tunnelPort': "15008" is not a number from 0 to 65535
        invalid value '[1,4294967296,1.0,"7"]' for annotation 'weir.dev/capture': field 'proxyUids': element 1: 4294967296 is not a number from 0 to 4294967295, element 2: 1.0 is not a number from 0 to 4294967295, element 3: "7" is not a number from 0 to 4294967295
        invalid value '"all"' for annotation 'weir.dev/capture': field 'inboundPorts': is not a list
        invalid value '["10.0.0.0/8","10.0.0.1"]' for annotation 'weir.dev/capture': field 'outboundCidrs': element 1: '10.0.0.1' has no prefix length (a single address is ADDRESS/32 or ADDRESS/128)
        invalid value '["-j"]' for annotation 'weir.dev/capture': field 'excludeInterfaces': element 0: "-j" does not start with a letter
        invalid value '{"only":[1],"allBut":[]}' for annotation 'weir.dev/capture': field 'ownerGroups': is neither {"allBut":[...]} nor {"only":[...]}
        invalid value '["resolver"]' for annotation 'weir.dev/capture': field 'dns': element 0: "resolver" is not an IP address
        invalid value '"yes"' for annotation 'weir.dev/capture': field 'dropInvalid': is neither true nor false
        invalid value '"::1/128"' for annotation 'weir.dev/capture': field 'loopback': "::1/128" is not an IPv4 network
        invalid value '1' for annotation 'weir.dev/capture': field 'mirror': is not known
        invalid value '"off"' for annotation 'weir.dev/capture': field 'dns': is there twice
        "#);
    }

    #[test]
    fn refuses_what_is_no_capture_annotation() {
        insta::assert_snapshot!(["", "[]", "{", "null", "{}", r#"{"v":2,"mode":"SPLICE"}"#, r#"{"v":"1"}"#].map(faults).join("\n"), @r#"
        invalid value '' for annotation 'weir.dev/capture': is not a JSON object: EOF while parsing a value at line 1 column 0
        invalid value '[]' for annotation 'weir.dev/capture': is not a JSON object: invalid type: sequence, expected an object at line 1 column 0
        invalid value '{' for annotation 'weir.dev/capture': is not a JSON object: EOF while parsing an object at line 1 column 1
        invalid value 'null' for annotation 'weir.dev/capture': is not a JSON object: invalid type: null, expected an object at line 1 column 4
        invalid value '{}' for annotation 'weir.dev/capture': has no version 'v'
        invalid value '{"v":2,"mode":"SPLICE"}' for annotation 'weir.dev/capture': has version 2, and only version 1 is known
        invalid value '{"v":"1"}' for annotation 'weir.dev/capture': has version "1", and only version 1 is known
        "#);
    }

    #[test]
    fn refuses_a_value_that_is_too_long_without_reading_it() {
        let value = format!(r#"{{"v":1,"outboundPorts":[{}1]}}"#, "1,".repeat(CAPTURE_MAX_BYTES));
        insta::assert_snapshot!(faults(&value), @r#"
        invalid value '{"v":1,"outboundPorts":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,...' for annotation 'weir.dev/capture': is 262171 bytes long, at most 131072 are read
        "#);
    }

    #[test]
    fn tells_a_bounded_number_of_findings() {
        let fields: Map<String, Value> = (0..5000).map(|number| (format!("x{number}"), json!(0))).collect();
        let text = Value::Object(fields).to_string().replacen('{', "{\"v\":1,", 1);
        let errors = CaptureConfig::from_capture_annotation(&text).unwrap_err();
        assert_eq!(errors.len(), MAX_ERRORS);
    }

    proptest! {
        #[test]
        fn reading_gives_back_what_was_written(config in crate::arbitrary::config()) {
            prop_assert_eq!(CaptureConfig::from_capture_annotation(&config.to_capture_annotation()), Ok(config));
        }

        #[test]
        fn never_panics(text in any::<String>(), fields in "[a-z0-9:\"{}\\[\\],*/.-]{0,60}") {
            let _ = CaptureConfig::from_capture_annotation(&text);
            let _ = CaptureConfig::from_capture_annotation(&format!("{{\"v\":1,{fields}}}"));
        }
    }
}
