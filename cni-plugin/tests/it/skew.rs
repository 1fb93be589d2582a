//! Webhook, plugin and agent of this version beside those of 0.1.0, as they meet during an upgrade and after a rollback.
//!
//! Building a release takes too long for every test, so what 0.1.0 writes is recorded here as text, and what it reads as names of fields
//! with their types. It refuses a field of `weir.dev/capture` that it does not know, and ignores one of a message.

use iptables_rules::CaptureConfig;
use iptables_rules::config::{
    CidrSelection, DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups, PortSelection,
};
use serde_json::{Value, json};
use weir_protocol::agent::{CallOutcome, CallReport, PodAnswer, PodQuery};
use weir_protocol::entry::PluginEntry;

use crate::call::{CAPABILITY, Call, STATUS, conf};

/// `weir.dev/capture` as the webhook of 0.1.0 writes [`every_field`].
const CAPTURE: &str = r#"{"v":1,"mode":"TPROXY","ipv6":"leave","proxyPort":1,"inboundPort":2,"tunnelPort":3,"proxyUids":[4,5],"proxyGids":[6],"inboundPorts":[],"inboundPortsExclude":[7],"outboundCidrs":["10.0.0.0/8"],"outboundCidrsExclude":["fd00::/8"],"outboundPorts":[8],"outboundPortsExclude":[],"excludeInterfaces":["net1"],"rerouteInterfaces":["tap0"],"ownerGroups":{"only":[9,"java"]},"dns":["10.96.0.10"],"dropInvalid":true,"loopback":"127.0.0.0/8","tproxyMark":10,"tproxyRouteTable":11}"#;
/// Messages of the plugin of 0.1.0 to the agent: a query, and a report.
const QUERY: &str = r#"{"v":1,"uid":"1-2-3","namespace":"shop","name":"web-1"}"#;
const REPORT: &str = r#"{"v":1,"verb":"ADD","outcome":"passed","code":11,"namespace":"shop","name":"web-1","uid":"1-2-3","container":"c0ffee","netns":"/run/netns/a","us":{"decide":1,"agent":2,"kernel":3,"total":6}}"#;
/// Answers of the agent of 0.1.0.
const ANSWERS: [&str; 4] = [
    r#"{"decision":"skip","reason":"r"}"#,
    r#"{"decision":"capture","capture":"{\"v\":1}"}"#,
    r#"{"decision":"refuse","findings":["f"]}"#,
    r#"{"decision":"unknown","reason":"r"}"#,
];
/// Keys of its own that the plugin of 0.1.0 accepts in its entry, beside those of the specification.
const ENTRY_KEYS: [&str; 7] = [
    "exclude_namespaces",
    "plugin_log_level",
    "backend",
    "agent_socket",
    "agent_timeout_ms",
    "visibility",
    "standalone",
];

/// Every field, none with its default. A new one does not compile here: it is written only where every node can read it (see
/// `capture_annotation.rs`), or its name starts with `?`.
fn every_field() -> CaptureConfig {
    CaptureConfig {
        mode: InterceptionMode::Tproxy,
        ipv6: Ipv6Policy::Leave,
        proxy_port: 1,
        inbound_port: 2,
        tunnel_port: 3,
        proxy_uids: vec![4, 5],
        proxy_gids: vec![6],
        inbound_ports: PortSelection::Only(vec![]),
        inbound_ports_exclude: vec![7],
        outbound_cidrs: CidrSelection::Only(vec!["10.0.0.0/8".parse().unwrap()]),
        outbound_cidrs_exclude: vec!["fd00::/8".parse().unwrap()],
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
    }
}

#[test]
fn old_webhook_and_new_plugin_agree() {
    assert_eq!(CaptureConfig::from_capture_annotation(CAPTURE), Ok(every_field()));
    // By the binary: the first error is about the namespace, which comes after the annotations.
    let supported = CAPTURE.replace(r#","java""#, "");
    let conf = conf("1.0.0", &[STATUS, ("weir.dev/capture", &supported)]);
    Call::new("ADD").conf(&conf).run().assert_error(8, &["weir-no-such-namespace"]);
}

#[test]
fn new_webhook_and_old_plugin_agree() {
    let written: Value = serde_json::from_str(&every_field().to_capture_annotation()).unwrap();
    let mandatory: serde_json::Map<String, Value> =
        written.as_object().unwrap().clone().into_iter().filter(|(name, _)| !name.starts_with('?')).collect();
    assert_eq!(Value::Object(mandatory), serde_json::from_str::<Value>(CAPTURE).unwrap());
    // The other forms that a field may have.
    let other = CaptureConfig {
        inbound_ports: PortSelection::All,
        outbound_cidrs: CidrSelection::All,
        owner_groups: OwnerGroups::AllBut(vec![Group::Id(1)]),
        dns: DnsCapture::All,
        ..CaptureConfig::default()
    };
    assert_eq!(other.to_capture_annotation(), r#"{"v":1,"ownerGroups":{"allBut":[1]},"dns":"all"}"#);
    assert_eq!(CaptureConfig::default().to_capture_annotation(), r#"{"v":1}"#);
}

#[test]
fn old_plugin_and_new_agent_agree() {
    let query: PodQuery = serde_json::from_str(QUERY).unwrap();
    assert_eq!((query.v, query.uid.as_str(), query.name.as_str()), (1, "1-2-3", "web-1"));
    let report: CallReport = serde_json::from_str(REPORT).unwrap();
    assert_eq!((report.outcome, report.code, report.netns.as_str()), (CallOutcome::Skipped, Some(11), "/run/netns/a"));
    let answers = [
        PodAnswer::Skip { reason: "r".to_owned() },
        PodAnswer::Capture { capture: r#"{"v":1}"#.to_owned() },
        PodAnswer::Refuse { findings: vec!["f".to_owned()] },
        PodAnswer::Unknown { reason: "r".to_owned() },
    ];
    for (answer, text) in answers.iter().zip(ANSWERS) {
        assert_eq!(serde_json::to_string(answer).unwrap(), text);
        assert_eq!(&serde_json::from_str::<PodAnswer>(text).unwrap(), answer);
    }
}

#[test]
fn new_plugin_and_old_agent_agree() {
    let query = PodQuery { v: 1, uid: "1-2-3".to_owned(), namespace: "shop".to_owned(), name: "web-1".to_owned() };
    assert_eq!(serde_json::to_string(&query).unwrap(), QUERY);
    let report: CallReport = serde_json::from_str(REPORT).unwrap();
    let (written, recorded) = (serde_json::to_value(&report).unwrap(), serde_json::from_str::<Value>(REPORT).unwrap());
    for (field, value) in recorded.as_object().unwrap() {
        assert_eq!(&written[field], value, "{field}");
    }
}

#[test]
fn new_entry_is_accepted_by_the_old_plugin() {
    let entry = PluginEntry { agent_timeout: std::time::Duration::from_secs(1), ..PluginEntry::default() }.to_map();
    let own = entry.keys().filter(|key| !["type", "capabilities"].contains(&key.as_str()));
    let unknown: Vec<_> = own.filter(|key| !ENTRY_KEYS.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(entry["capabilities"], json!({ CAPABILITY: true }));
}
