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
fn automatic_ipv6_is_an_optional_field() {
    let config = CaptureConfig { ipv6: Ipv6Policy::Auto, ..CaptureConfig::default() };
    assert_eq!(config.to_capture_annotation(), r#"{"v":1,"?ipv6Auto":true}"#, "earlier versions capture IPv6");
    assert_eq!(CaptureConfig::from_capture_annotation(r#"{"v":1,"?ipv6Auto":true}"#), Ok(config));
    assert!(faults(r#"{"v":1,"?ipv6Auto":1}"#).contains("must be true"));
    assert!(faults(r#"{"v":1,"ipv6":"auto"}"#).contains("must be 'capture' or 'leave'"));
}

#[test]
fn non_default_values_are_fields() {
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
fn names_every_invalid_field() {
    let value = r#"{"v":1,"mode":"tproxy","ipv6":true,"proxyPort":65536,"inboundPort":-1,"tunnelPort":"15008","proxyUids":[1,4294967296,1.0,"7"],
        "inboundPorts":"all","outboundCidrs":["10.0.0.0/8","10.0.0.1"],"excludeInterfaces":["-j"],"ownerGroups":{"only":[1],"allBut":[]},
        "dns":["resolver"],"dropInvalid":"yes","loopback":"::1/128","mirror":1,"dns":"off"}"#;
    insta::assert_snapshot!(faults(value), @r#"
    invalid value '"tproxy"' for annotation 'weir.dev/capture': field 'mode': must be one of REDIRECT, TPROXY, NONE
    invalid value 'true' for annotation 'weir.dev/capture': field 'ipv6': must be 'capture' or 'leave'
    invalid value '65536' for annotation 'weir.dev/capture': field 'proxyPort': 65536 is not a number from 0 to 65535
    invalid value '-1' for annotation 'weir.dev/capture': field 'inboundPort': -1 is not a number from 0 to 65535
    invalid value '"15008"' for annotation 'weir.dev/capture': field 'tunnelPort': "15008" is not a number from 0 to 65535
    invalid value '[1,4294967296,1.0,"7"]' for annotation 'weir.dev/capture': field 'proxyUids': element 1: 4294967296 is not a number from 0 to 4294967295, element 2: 1.0 is not a number from 0 to 4294967295, element 3: "7" is not a number from 0 to 4294967295
    invalid value '"all"' for annotation 'weir.dev/capture': field 'inboundPorts': must be a list
    invalid value '["10.0.0.0/8","10.0.0.1"]' for annotation 'weir.dev/capture': field 'outboundCidrs': element 1: '10.0.0.1' has no prefix length (a single address is ADDRESS/32 or ADDRESS/128)
    invalid value '["-j"]' for annotation 'weir.dev/capture': field 'excludeInterfaces': element 0: "-j" must start with a letter
    invalid value '{"only":[1],"allBut":[]}' for annotation 'weir.dev/capture': field 'ownerGroups': must be {"allBut":[...]} or {"only":[...]}
    invalid value '["resolver"]' for annotation 'weir.dev/capture': field 'dns': element 0: "resolver" is not an IP address
    invalid value '"yes"' for annotation 'weir.dev/capture': field 'dropInvalid': must be true or false
    invalid value '"::1/128"' for annotation 'weir.dev/capture': field 'loopback': "::1/128" is not an IPv4 network
    invalid value '1' for annotation 'weir.dev/capture': field 'mirror': is unknown; the plugin on this node is older than the webhook that wrote this annotation; upgrade the node agent
    invalid value '"off"' for annotation 'weir.dev/capture': field 'dns': is given twice
    "#);
}

#[test]
fn rejects_other_json() {
    insta::assert_snapshot!(["", "[]", "{", "null", "{}", r#"{"v":2,"mode":"SPLICE"}"#, r#"{"v":"1"}"#].map(faults).join("\n"), @r#"
    invalid value '' for annotation 'weir.dev/capture': is not a JSON object: EOF while parsing a value at line 1 column 0
    invalid value '[]' for annotation 'weir.dev/capture': is not a JSON object: invalid type: sequence, expected an object at line 1 column 0
    invalid value '{' for annotation 'weir.dev/capture': is not a JSON object: EOF while parsing an object at line 1 column 1
    invalid value 'null' for annotation 'weir.dev/capture': is not a JSON object: invalid type: null, expected an object at line 1 column 4
    invalid value '{}' for annotation 'weir.dev/capture': has no version 'v'
    invalid value '{"v":2,"mode":"SPLICE"}' for annotation 'weir.dev/capture': has version 2; only version 1 is supported; the plugin on this node is older than the webhook that wrote this annotation; upgrade the node agent
    invalid value '{"v":"1"}' for annotation 'weir.dev/capture': has version "1"; only version 1 is supported
    "#);
}

#[test]
fn rejects_too_long_value_without_parsing_it() {
    let value = format!(r#"{{"v":1,"outboundPorts":[{}1]}}"#, "1,".repeat(CAPTURE_MAX_BYTES));
    insta::assert_snapshot!(faults(&value), @r#"
    invalid value '{"v":1,"outboundPorts":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,...' for annotation 'weir.dev/capture': is 262171 bytes long; the limit is 131072
    "#);
}

#[test]
fn unknown_optional_fields_are_ignored() {
    let read = CaptureConfig::from_capture_annotation(r#"{"v":1,"?mirror":{"to":[1]},"?":null,"dropInvalid":true}"#);
    assert_eq!(read, Ok(CaptureConfig { drop_invalid: true, ..CaptureConfig::default() }));
    assert!(faults(r#"{"v":1,"?mirror":1,"?mirror":2}"#).contains("field '?mirror': is given twice"));
}

#[test]
fn unknown_mandatory_fields_tell_that_the_reader_is_older() {
    for value in [r#"{"v":1,"mirror":1}"#, r#"{"v":2}"#] {
        let errors = CaptureConfig::from_capture_annotation(value).unwrap_err();
        assert!(errors.iter().all(SettingError::is_newer_writer), "{errors:?}");
        assert!(errors[0].to_string().ends_with("upgrade the node agent"), "{}", errors[0]);
    }
    for value in [r#"{"v":1,"mode":"x"}"#, r#"{"v":0}"#, r#"{"v":"2"}"#, "{}"] {
        let errors = CaptureConfig::from_capture_annotation(value).unwrap_err();
        assert!(!errors.iter().any(SettingError::is_newer_writer), "{errors:?}");
    }
}

#[test]
fn number_of_errors_is_limited() {
    let fields: Map<String, Value> = (0..5000).map(|number| (format!("x{number}"), json!(0))).collect();
    let text = Value::Object(fields).to_string().replacen('{', "{\"v\":1,", 1);
    let errors = CaptureConfig::from_capture_annotation(&text).unwrap_err();
    assert_eq!(errors.len(), MAX_ERRORS);
}

proptest! {
    #[test]
    fn reads_back_what_it_writes(config in crate::arbitrary::config()) {
        prop_assert_eq!(CaptureConfig::from_capture_annotation(&config.to_capture_annotation()), Ok(config));
    }

    #[test]
    fn never_panics(text in any::<String>(), fields in "[a-z0-9:\"{}\\[\\],*/.-]{0,60}") {
        let _ = CaptureConfig::from_capture_annotation(&text);
        let _ = CaptureConfig::from_capture_annotation(&format!("{{\"v\":1,{fields}}}"));
    }
}
