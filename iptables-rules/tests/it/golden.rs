//! Snapshots of the rule texts of typical pods.

use iptables_rules::config::{
    CidrSelection, DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups, PortSelection,
};
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, plan};

/// Formats the rules of both families and the routing.
#[expect(clippy::unwrap_used, reason = "helper of tests")]
fn rules_and_routing(config: &CaptureConfig) -> String {
    let rules = plan(config).unwrap();
    let v4 = restore_text(&rules, RestoreFamily::V4);
    let v6 = restore_text(&rules, RestoreFamily::V6);
    format!("# iptables-restore\n{v4}# ip6tables-restore\n{v6}# {:?}\n", rules.routing)
}

fn ipv4() -> CaptureConfig {
    CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() }
}

#[expect(clippy::unwrap_used, reason = "helper of tests")]
fn interface(name: &str) -> Vec<InterfaceName> {
    vec![InterfaceName::new(name).unwrap()]
}

#[test]
fn default_ipv4() {
    insta::assert_snapshot!(rules_and_routing(&ipv4()));
}

#[test]
fn default_both_families() {
    insta::assert_snapshot!(rules_and_routing(&CaptureConfig::default()));
}

#[test]
fn tproxy_ipv4() {
    insta::assert_snapshot!(rules_and_routing(&CaptureConfig { mode: InterceptionMode::Tproxy, ..ipv4() }));
}

#[test]
fn dns_ipv4() {
    insta::assert_snapshot!(rules_and_routing(&CaptureConfig { dns: DnsCapture::All, ..ipv4() }));
}

#[test]
fn excludes_both_families() {
    insta::assert_snapshot!(rules_and_routing(&CaptureConfig {
        inbound_ports_exclude: vec![3306, 15020, 15021, 15090],
        outbound_ports_exclude: vec![5432, 9092],
        outbound_cidrs_exclude: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        exclude_interfaces: interface("net1"),
        ..CaptureConfig::default()
    }));
}

#[test]
fn includes_ipv4() {
    insta::assert_snapshot!(rules_and_routing(&CaptureConfig {
        inbound_ports: PortSelection::Only(vec![8080, 8443]),
        outbound_cidrs: CidrSelection::Only(vec!["10.96.0.0/12".parse().unwrap(), "172.16.0.0/12".parse().unwrap()]),
        outbound_ports: vec![9200],
        reroute_interfaces: interface("tap0"),
        ..ipv4()
    }));
}

#[test]
fn tproxy_and_dns_servers_of_both_families() {
    insta::assert_snapshot!(rules_and_routing(&CaptureConfig {
        mode: InterceptionMode::Tproxy,
        dns: DnsCapture::Servers(vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()]),
        proxy_uids: vec![1337, 1338],
        exclude_interfaces: interface("net1"),
        drop_invalid: true,
        ..CaptureConfig::default()
    }));
}

#[test]
fn all_dns_of_both_families_and_a_server_of_one() {
    let all = CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() };
    let one = CaptureConfig { dns: DnsCapture::Servers(vec!["fd00::53".parse().unwrap()]), ..CaptureConfig::default() };
    insta::assert_snapshot!(format!("{}\n{}", rules_and_routing(&all), rules_and_routing(&one)));
}

#[test]
fn owner_groups() {
    let groups = || vec![Group::Id(202), Group::parse("java").unwrap()];
    let but = CaptureConfig { owner_groups: OwnerGroups::AllBut(groups()), ..ipv4() };
    let only = CaptureConfig { owner_groups: OwnerGroups::Only(groups()), ..ipv4() };
    let none = CaptureConfig { owner_groups: OwnerGroups::Only(vec![]), ..ipv4() };
    let lines = |config| {
        let text = rules_and_routing(&config);
        let from = text.find("-A ISTIO_OUTPUT -m owner --gid-owner 1337").unwrap();
        text[from..].lines().take(4).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!([but, only, none].map(lines).join("\n\n"));
}
