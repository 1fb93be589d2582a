//! Istio's own test data: configurations and annotations with the rules that Istio generates for them, byte for byte.
//!
//! The data is not part of this repository. Without it the tests are skipped, and fail in CI.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use iptables_rules::annotations::ProxySpec;
use iptables_rules::compare::{Equivalence, compare_chains};
use iptables_rules::config::{
    CidrSelection, DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups, PortSelection,
};
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::trace::Chains;
use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::{Map, Value};

fn data() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/rules");
    if path.is_dir() {
        return Some(path);
    }
    weir_lab::skip_or_fail(format_args!("no conformance data at {}", path.display()));
    None
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Splits at commas, without empty elements, as Istio does.
fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|element| !element.is_empty())
}

fn numbers<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> Vec<T> {
    split(text).map(|element| element.parse().unwrap()).collect()
}

fn interfaces(text: &str) -> Vec<InterfaceName> {
    split(text).map(|name| InterfaceName::new(name).unwrap()).collect()
}

fn groups(text: &str) -> Vec<Group> {
    split(text).map(|group| Group::parse(group).unwrap()).collect()
}

/// Converts a configuration of Istio's rule generator. Every key must be known.
fn config(settings: &Map<String, Value>) -> CaptureConfig {
    let mut config = CaptureConfig {
        inbound_ports: PortSelection::Only(vec![]),
        inbound_ports_exclude: vec![],
        outbound_cidrs: CidrSelection::Only(vec![]),
        outbound_ports_exclude: vec![],
        ipv6: Ipv6Policy::Leave,
        ..CaptureConfig::default()
    };
    let on = |key: &str| settings.get(key) == Some(&Value::Bool(true));
    let (mut servers, mut include_groups, mut exclude_groups) = (vec![], "*", vec![]);
    for (key, value) in settings {
        let text = value.as_str().unwrap_or_default();
        match key.as_str() {
            "ProxyPort" => config.proxy_port = text.parse().unwrap(),
            "InboundCapturePort" => config.inbound_port = text.parse().unwrap(),
            "InboundTunnelPort" => config.tunnel_port = text.parse().unwrap(),
            "ProxyUID" => config.proxy_uids = numbers(text),
            "ProxyGID" => config.proxy_gids = numbers(text),
            "InboundTProxyMark" => config.tproxy_mark = text.parse().unwrap(),
            "InboundTProxyRouteTable" => config.tproxy_route_table = text.parse().unwrap(),
            "OwnerGroupsInclude" => include_groups = text,
            "OwnerGroupsExclude" => exclude_groups = groups(text),
            "HostIPv4LoopbackCidr" => config.loopback = text.parse().unwrap(),
            "InboundInterceptionMode" => {
                config.mode = match text {
                    "TPROXY" => InterceptionMode::Tproxy,
                    "REDIRECT" => InterceptionMode::Redirect,
                    other => panic!("mode {other}"),
                };
            }
            "InboundPortsInclude" if text == "*" => config.inbound_ports = PortSelection::All,
            "InboundPortsInclude" => config.inbound_ports = PortSelection::Only(numbers(text)),
            "InboundPortsExclude" => config.inbound_ports_exclude = numbers(text),
            "OutboundPortsInclude" => config.outbound_ports = numbers(text),
            "OutboundPortsExclude" => config.outbound_ports_exclude = numbers(text),
            "OutboundIPRangesInclude" if text == "*" => config.outbound_cidrs = CidrSelection::All,
            "OutboundIPRangesInclude" => config.outbound_cidrs = CidrSelection::Only(numbers(text)),
            "OutboundIPRangesExclude" => config.outbound_cidrs_exclude = numbers(text),
            "ExcludeInterfaces" => config.exclude_interfaces = interfaces(text),
            "RerouteVirtualInterfaces" => config.reroute_interfaces = interfaces(text),
            "EnableIPv6" if on(key) => config.ipv6 = Ipv6Policy::Capture,
            "DNSServersV4" | "DNSServersV6" => {
                servers.extend(
                    value.as_array().unwrap().iter().map(|server| server.as_str().unwrap().parse::<IpAddr>().unwrap()),
                );
            }
            "EnableIPv6" | "RedirectDNS" | "CaptureAllDNS" | "DryRun" | "DropInvalid" => {}
            other => panic!("unknown key {other}"),
        }
    }
    config.drop_invalid = on("DropInvalid");
    config.dns = match (on("RedirectDNS"), on("CaptureAllDNS")) {
        (false, _) => DnsCapture::Off,
        (true, true) => DnsCapture::All,
        (true, false) => DnsCapture::Servers(servers),
    };
    config.owner_groups = match include_groups {
        "*" => OwnerGroups::AllBut(exclude_groups),
        some => OwnerGroups::Only(groups(some)),
    };
    config
}

/// Formats the log of Istio's stub executor: a save of each family, the restore texts, and a save of each family that has rules.
fn log(config: &CaptureConfig) -> String {
    let rules = plan(config).unwrap();
    let mut log = String::from("iptables-save\nip6tables-save\n");
    log += &restore_text(&rules, RestoreFamily::V4);
    log += &restore_text(&rules, RestoreFamily::V6);
    log += "iptables-save\n";
    if config.ipv6 == Ipv6Policy::Capture {
        log += "ip6tables-save\n";
    }
    log
}

/// Reports the cases that differ, so that one run shows all of them.
fn report(different: &[String], cases: usize) {
    assert!(cases > 0, "no cases");
    assert!(different.is_empty(), "{} of {cases} differ:\n{}", different.len(), different.join("\n"));
}

fn compare(name: &str, got: &str, golden: &Path) -> Option<String> {
    let want = fs::read_to_string(golden).unwrap();
    (got.trim_end() != want.trim_end()).then(|| format!("--- {name}: want\n{want}\n--- {name}: got\n{got}"))
}

#[test]
fn rules_equal_those_of_the_rule_generator() {
    let Some(data) = data() else { return };
    let base = json(&data.join("base.json"))["base_config"].as_object().unwrap().clone();
    let cases = json(&data.join("iptables.json"));
    let cases = cases.as_array().unwrap();
    let different: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            let mut settings = base.clone();
            settings.remove("description");
            settings.extend(case["config"].as_object().unwrap().clone());
            let config = config(&settings);
            let effective = match &config.dns {
                DnsCapture::Off => false,
                DnsCapture::All => true,
                DnsCapture::Servers(servers) => !servers.is_empty(),
            };
            assert_eq!(case["dns"]["effective"], effective, "the mapping of {} is wrong", case["name"]);
            compare(case["name"].as_str().unwrap(), &log(&config), &data.join(case["golden"].as_str().unwrap()))
        })
        .collect();
    report(&different, cases.len());
}

/// Splits Istio's text into the chains of IPv4 and IPv6: the second family starts where a table comes again.
fn chains_of_text(text: &str, rules: &RuleSet) -> [Chains; 2] {
    let mut seen = Vec::new();
    let mut texts = [String::new(), String::new()];
    for line in text.lines() {
        if let Some(table) = line.strip_prefix('*') {
            seen.push(table);
        }
        let comes_again = seen.iter().enumerate().any(|(at, table)| seen[..at].contains(table));
        texts[usize::from(comes_again)].extend([line, "\n"]);
    }
    // The text says nothing about routing.
    let routing = |chains: Chains| Chains { local_delivery: rules.routing.local_delivery, ..chains };
    texts.map(|text| routing(Chains::from_iptables_save(&text)))
}

#[test]
fn rules_treat_packets_as_istios_texts_do() {
    let Some(data) = data() else { return };
    let base = json(&data.join("base.json"))["base_config"].as_object().unwrap().clone();
    let cases = json(&data.join("iptables.json"));
    let mut different = 0;
    for case in cases.as_array().unwrap() {
        let mut settings = base.clone();
        settings.remove("description");
        settings.extend(case["config"].as_object().unwrap().clone());
        let rules = plan(&config(&settings)).unwrap();
        let text = fs::read_to_string(data.join(case["golden"].as_str().unwrap())).unwrap();
        let planned = RestoreFamily::ALL.map(|family| Chains::from_rule_set(&rules, family.any_address()));
        let istios = chains_of_text(&text, &rules);
        let compared = compare_chains(&istios, &planned, &RestoreFamily::ALL);
        assert_eq!(compared, Equivalence::Equal, "{}", case["name"]);
        // Another rule makes a difference, unless an excluded network hides it.
        if let Some((without, _)) = text.rsplit_once("-j ISTIO_REDIRECT\n") {
            let fewer = chains_of_text(&format!("{without}-j RETURN\nCOMMIT\n"), &rules);
            let compared = compare_chains(&fewer, &planned, &RestoreFamily::ALL);
            different += usize::from(matches!(compared, Equivalence::Different(_)));
        }
    }
    assert!(different > 5, "only {different} changed texts differ");
}

#[test]
fn rules_of_annotations_equal_istios() {
    let Some(data) = data() else { return };
    let cases = json(&data.join("annotations.json"));
    let cases = cases.as_array().unwrap();
    let strings = |value: &Value| -> BTreeMap<String, String> {
        let entries = value.as_object().unwrap().iter();
        entries.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
    };
    let id = |value: &Value| value.as_u64().map(|id| u32::try_from(id).unwrap());
    let different: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            let proxy = ProxySpec {
                uid: id(&case["run_as_user"]),
                gid: id(&case["run_as_group"]),
                env: strings(&case["proxy_env"]),
                is_known: true,
            };
            let config = CaptureConfig::from_annotations(&strings(&case["annotations"]), &proxy).unwrap();
            // The expected texts contain IPv4 only.
            let got = restore_text(&plan(&config).unwrap(), RestoreFamily::V4);
            compare(case["name"].as_str().unwrap(), &got, &data.join(case["golden"].as_str().unwrap()))
        })
        .collect();
    report(&different, cases.len());
}
