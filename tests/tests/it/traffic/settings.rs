//! Every setting, with connections that it captures and others that it does not, for every backend.

use ipnet::IpNet;
use iptables_rules::CaptureConfig;
use iptables_rules::config::{CidrSelection, Group, InterfaceName, Ipv6Policy, OwnerGroups, PortSelection};
use weir_lab::User;
use weir_tests::privileged;

use super::backend::Backend;
use super::world::Outcome::{Direct, Inbound, Outbound};
use super::world::{APP_USER, Case, Ip, Outcome, Side, World};

const APP: Side = Side::Pod(APP_USER);

/// Checks the cases of both families with every backend.
fn check(config: &CaptureConfig, cases: impl Fn(Ip) -> Vec<Case>) {
    if !privileged() {
        return;
    }
    for backend in Backend::all() {
        let world = World::new();
        backend.install(&world.pod, config);
        let cases: Vec<Case> = Ip::BOTH.into_iter().flat_map(&cases).collect();
        world.check(&format!("{backend:?}"), &cases);
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn interface(name: &str) -> InterfaceName {
    InterfaceName::new(name).unwrap()
}

fn app_to(what: &'static str, ip: std::net::IpAddr, port: u16, outcome: Outcome) -> Case {
    Case::new(what, APP, (ip, port), outcome)
}

fn into_pod(what: &'static str, ip: Ip, port: u16, outcome: Outcome) -> Case {
    Case::new(what, Side::Peer, (ip.pod(), port), outcome)
}

#[test]
fn excluded_ports_are_not_captured() {
    let config = CaptureConfig {
        inbound_ports_exclude: vec![8090, 15020, 15021, 15090],
        outbound_ports_exclude: vec![9200, 15020],
        ..CaptureConfig::default()
    };
    check(&config, |ip| {
        vec![
            into_pod("excluded inbound port", ip, 8090, Direct),
            into_pod("other inbound port", ip, 8080, Inbound),
            app_to("excluded outbound port", ip.peer(), 9200, Direct),
            app_to("the status port of others", ip.peer(), 15020, Direct),
            app_to("other outbound port", ip.peer(), 9000, Outbound),
            app_to("the health port of others", ip.peer(), 15021, Outbound),
        ]
    });
}

#[test]
fn only_listed_inbound_ports_are_captured() {
    let config = CaptureConfig {
        inbound_ports: PortSelection::Only(vec![8080, 8081]),
        inbound_ports_exclude: Vec::new(),
        ..CaptureConfig::default()
    };
    check(&config, |ip| {
        vec![
            into_pod("listed", ip, 8080, Inbound),
            into_pod("listed too", ip, 8081, Inbound),
            into_pod("not listed", ip, 8090, Direct),
            into_pod("the outbound port is not listed either", ip, 15001, Direct),
            app_to("outbound is not concerned", ip.peer(), 9000, Outbound),
        ]
    });
}

#[test]
fn empty_list_of_inbound_ports_captures_nothing() {
    let config = CaptureConfig { inbound_ports: PortSelection::Only(Vec::new()), ..CaptureConfig::default() };
    check(&config, |ip| vec![into_pod("inbound", ip, 8080, Direct), app_to("outbound", ip.peer(), 9000, Outbound)]);
}

#[test]
fn excluded_networks_are_not_captured() {
    let config =
        CaptureConfig { outbound_cidrs_exclude: nets(&["192.0.2.0/24", "2001:db8::/48"]), ..CaptureConfig::default() };
    check(&config, |ip| {
        vec![
            app_to("excluded", ip.service(), 9000, Direct),
            app_to("not excluded", ip.other_service(), 9000, Outbound),
            into_pod("inbound is not concerned", ip, 8080, Inbound),
        ]
    });
}

/// Long enough for every backend to use sets; the service is in the last network.
#[test]
fn long_list_of_excluded_networks_is_not_captured() {
    let mut texts: Vec<String> = (0..200).map(|n| format!("100.64.{n}.0/28")).collect();
    texts.extend((0..200).map(|n| format!("2001:db8:ff{n:02x}::/64")));
    let mut excluded: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
    excluded.extend(nets(&["192.0.2.1/32", "2001:db8::1/128"]));
    let config = CaptureConfig { outbound_cidrs_exclude: excluded, ..CaptureConfig::default() };
    check(&config, |ip| {
        vec![app_to("excluded", ip.service(), 9000, Direct), app_to("not excluded", ip.other_service(), 9000, Outbound)]
    });
}

#[test]
fn only_listed_networks_are_captured() {
    let config = CaptureConfig {
        outbound_cidrs: CidrSelection::Only(nets(&["192.0.2.0/24", "2001:db8::/48"])),
        ..CaptureConfig::default()
    };
    check(&config, |ip| {
        vec![
            app_to("listed", ip.service(), 9000, Outbound),
            app_to("not listed", ip.other_service(), 9000, Direct),
            Case::new("the proxy itself", Side::Pod(User::PROXY), (ip.service(), 9000), Direct),
        ]
    });
}

#[test]
fn excluded_network_overrides_a_listed_one() {
    let config = CaptureConfig {
        outbound_cidrs: CidrSelection::Only(nets(&["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"])),
        outbound_cidrs_exclude: nets(&["192.0.2.1/32", "2001:db8::/64"]),
        ..CaptureConfig::default()
    };
    check(&config, |ip| {
        vec![
            app_to("excluded from a listed one", ip.service(), 9000, Direct),
            app_to("listed", ip.other_service(), 9000, Outbound),
        ]
    });
}

#[test]
fn empty_list_of_networks_captures_nothing() {
    let config = CaptureConfig { outbound_cidrs: CidrSelection::Only(Vec::new()), ..CaptureConfig::default() };
    check(&config, |ip| vec![app_to("outbound", ip.peer(), 9000, Direct), into_pod("inbound", ip, 8080, Inbound)]);
}

#[test]
fn included_outbound_ports_are_captured_for_every_network() {
    let config = CaptureConfig {
        outbound_cidrs: CidrSelection::Only(nets(&["198.51.100.0/24", "2001:db8:1::/48"])),
        outbound_cidrs_exclude: nets(&["10.77.0.0/24", "fd77::/64"]),
        outbound_ports: vec![9200],
        ..CaptureConfig::default()
    };
    check(&config, |ip| {
        vec![
            app_to("port included, network not listed", ip.service(), 9200, Outbound),
            app_to("port not included, network not listed", ip.service(), 9000, Direct),
            app_to("port not included, network listed", ip.other_service(), 9000, Outbound),
            app_to("port included, network excluded", ip.peer(), 9200, Direct),
        ]
    });
}

#[test]
fn excluded_interfaces_are_not_captured() {
    let config = CaptureConfig { exclude_interfaces: vec![interface("net1")], ..CaptureConfig::default() };
    check(&config, |ip| {
        vec![
            Case::new("in by the excluded one", Side::Peer, (ip.pod_net1(), 8080), Direct),
            app_to("out by the excluded one", ip.peer_net1(), 9000, Direct),
            into_pod("in by another", ip, 8080, Inbound),
            app_to("out by another", ip.peer(), 9000, Outbound),
        ]
    });
}

#[test]
fn traffic_of_a_rerouted_interface_is_outbound() {
    let config = CaptureConfig {
        reroute_interfaces: vec![interface("tap0")],
        outbound_cidrs: CidrSelection::Only(nets(&["192.0.2.0/24", "2001:db8::/48"])),
        ..CaptureConfig::default()
    };
    check(&config, |ip| {
        vec![
            Case::new("guest calls a listed network", Side::Guest, (ip.service(), 9000), Outbound),
            Case::new("guest calls the pod", Side::Guest, (ip.pod_tap0(), 8080), Direct),
            into_pod("peer calls the app", ip, 8080, Inbound),
        ]
    });
}

#[test]
fn rerouted_interface_is_fully_captured_by_default() {
    let config = CaptureConfig { reroute_interfaces: vec![interface("tap0")], ..CaptureConfig::default() };
    check(&config, |ip| {
        vec![
            Case::new("guest calls out", Side::Guest, (ip.service(), 9000), Outbound),
            into_pod("peer calls the app", ip, 8080, Inbound),
        ]
    });
}

#[test]
fn additional_users_and_groups_are_the_proxy() {
    let config =
        CaptureConfig { proxy_uids: vec![1337, 4242], proxy_gids: vec![1337, 4343], ..CaptureConfig::default() };
    let another_user = Side::Pod(User { uid: 4242, gid: 2000 });
    let another_group = Side::Pod(User { uid: 2000, gid: 4343 });
    check(&config, |ip| {
        vec![
            Case::new("proxy", Side::Pod(User::PROXY), (ip.peer(), 9000), Direct),
            Case::new("second user", another_user, (ip.peer(), 9000), Direct),
            Case::new("second group", another_group, (ip.peer(), 9000), Direct),
            app_to("anybody else", ip.peer(), 9000, Outbound),
        ]
    });
}

#[test]
fn proxy_can_have_another_user() {
    let config = CaptureConfig { proxy_uids: vec![4242], proxy_gids: vec![4242], ..CaptureConfig::default() };
    check(&config, |ip| {
        vec![
            Case::new("the proxy", Side::Pod(User::with_id(4242)), (ip.peer(), 9000), Direct),
            Case::new("the usual one", Side::Pod(User::PROXY), (ip.peer(), 9000), Outbound),
        ]
    });
}

#[test]
fn proxy_can_have_other_ports() {
    // Ports of the proxy that have listeners.
    let config = CaptureConfig { proxy_port: 15090, tunnel_port: 8090, ..CaptureConfig::default() };
    check(&config, |ip| {
        vec![into_pod("tunnel", ip, 8090, Direct), into_pod("the usual tunnel port", ip, 15008, Inbound)]
    });
    if !privileged() {
        return;
    }
    for backend in Backend::all() {
        let world = World::new();
        backend.install(&world.pod, &config);
        for ip in Ip::BOTH {
            let case = app_to("outbound", ip.peer(), 9000, Outbound);
            let error = world.try_case(&case).unwrap_err();
            assert!(error.contains("arrived on port 15090"), "{backend:?}: {error}");
        }
    }
}

#[test]
fn excluded_groups_are_not_captured() {
    let config = CaptureConfig { owner_groups: OwnerGroups::AllBut(vec![Group::Id(3000)]), ..CaptureConfig::default() };
    check(&config, |ip| {
        vec![
            Case::new("excluded group", Side::Pod(User { uid: 2000, gid: 3000 }), (ip.peer(), 9000), Direct),
            app_to("other group", ip.peer(), 9000, Outbound),
        ]
    });
}

#[test]
fn only_listed_groups_are_captured() {
    let config = CaptureConfig {
        owner_groups: OwnerGroups::Only(vec![Group::Id(3000), Group::Id(3001)]),
        ..CaptureConfig::default()
    };
    check(&config, |ip| {
        vec![
            Case::new("listed group", Side::Pod(User { uid: 2000, gid: 3000 }), (ip.peer(), 9000), Outbound),
            Case::new("listed group", Side::Pod(User { uid: 2000, gid: 3001 }), (ip.peer(), 9000), Outbound),
            app_to("other group", ip.peer(), 9000, Direct),
        ]
    });
}

#[test]
fn ipv6_is_not_captured_if_disabled() {
    let config = CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() };
    check(&config, |ip| {
        let captured = ip == Ip::V4;
        vec![
            app_to("out", ip.peer(), 9000, if captured { Outbound } else { Direct }),
            into_pod("in", ip, 8080, if captured { Inbound } else { Direct }),
        ]
    });
}
