use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::builder::{family_of, in_interface};
use super::*;
use crate::config::Ipv6Policy;
use crate::config::{CidrSelection, Group, InterfaceName, OwnerGroups, PortSelection};
use crate::ruleset::{Family, Position, Rule};

fn problems(config: &CaptureConfig) -> String {
    plan(config).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn names_every_unsupported_setting() {
    let config = CaptureConfig {
        mode: InterceptionMode::Tproxy,
        proxy_port: 0,
        inbound_port: 0,
        proxy_uids: vec![],
        proxy_gids: vec![],
        loopback: "126.0.0.0/7".parse().unwrap(),
        owner_groups: OwnerGroups::Only((0..65).map(Group::Id).collect()),
        tproxy_mark: 1338,
        tproxy_route_table: 254,
        ..CaptureConfig::default()
    };
    insta::assert_snapshot!(problems(&config), @r"
    proxy port: port 0 is not valid
    inbound capture port: port 0 is not valid
    proxy uid and gid: at least one is required: without it the proxy's own traffic loops
    ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: must be within 127.0.0.0/8
    TPROXY mark: mark 1338 is reserved for packets from the proxy to its own pod
    TPROXY route table: tables 0, 253, 254 and 255 are reserved by the kernel
    ISTIO_OUTBOUND_OWNER_GROUPS: lists 65 groups; at most 64 are allowed
    ");
    let config = CaptureConfig {
        mode: InterceptionMode::Tproxy,
        proxy_uids: vec![u32::MAX],
        proxy_gids: vec![u32::MAX],
        owner_groups: OwnerGroups::AllBut(vec![Group::Id(u32::MAX)]),
        tproxy_mark: 0,
        ..CaptureConfig::default()
    };
    insta::assert_snapshot!(problems(&config), @r"
    proxy uid: 4294967295 is not a valid uid
    proxy gid: 4294967295 is not a valid gid
    ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE: 4294967295 is not a valid gid
    TPROXY mark: mark 0 matches every packet
    ");
}

#[test]
fn tproxy_settings_are_not_checked_in_other_modes() {
    let config = CaptureConfig { tproxy_mark: 0, tproxy_route_table: 0, ..CaptureConfig::default() };
    assert!(plan(&config).is_ok());
}

#[test]
fn mode_none_plans_no_rules() {
    let config = CaptureConfig { mode: InterceptionMode::None, drop_invalid: true, ..CaptureConfig::default() };
    let rules = plan(&config).unwrap();
    assert!(rules.is_empty());
    assert_eq!(rules.routing, Routing::default());
}

#[test]
fn routing_follows_mode_and_families() {
    let routing = |mode, ipv6, inbound_ports| {
        plan(&CaptureConfig { mode, ipv6, inbound_ports, ..CaptureConfig::default() }).unwrap().routing
    };
    let none = PortSelection::Only(vec![]);
    let redirect = routing(InterceptionMode::Redirect, Ipv6Policy::Capture, PortSelection::All);
    assert_eq!(redirect, Routing { lo_addresses: vec!["::6/128".parse().unwrap()], local_delivery: None });
    let tproxy = routing(InterceptionMode::Tproxy, Ipv6Policy::Leave, PortSelection::All);
    let local_delivery = Some(LocalDelivery { mark: 1337, table: 133 });
    assert_eq!(tproxy, Routing { lo_addresses: vec![], local_delivery });
    assert_eq!(routing(InterceptionMode::Tproxy, Ipv6Policy::Leave, none), Routing::default());
}

#[test]
fn captured_networks_precede_exemption_of_rerouted_interface() {
    let config = CaptureConfig {
        outbound_cidrs: CidrSelection::Only(vec!["10.96.0.0/12".parse().unwrap(), "172.16.0.0/12".parse().unwrap()]),
        reroute_interfaces: vec![InterfaceName::new("tap0").unwrap()],
        ..CaptureConfig::default()
    };
    let rules = plan(&config).unwrap();
    let order = |packet| {
        let chain = rules.chain_rules(Table::Nat, chain::PREROUTING, packet).into_iter();
        chain.map(|rule| format!("{:?} {:?}", rule.matches.last().unwrap(), rule.action)).collect::<Vec<_>>()
    };
    let exemption = r#"InInterface(InterfaceName("tap0")) Return"#;
    let hook = r#"Protocol(Tcp) Jump("ISTIO_INBOUND")"#;
    let net = |net| format!(r#"Destination {{ net: {net}, negated: false }} Jump("ISTIO_REDIRECT")"#);
    let v4 = [net("172.16.0.0/12"), net("10.96.0.0/12"), exemption.to_owned(), hook.to_owned()];
    assert_eq!(order(Ipv4Addr::UNSPECIFIED.into()), v4);
    assert_eq!(order(Ipv6Addr::UNSPECIFIED.into()), [exemption, hook]);
}

/// Returns the rules with a rule for each pair of rerouted interface and network, as Istio plans them, instead of the chain.
fn with_product(rules: &RuleSet, config: &CaptureConfig) -> RuleSet {
    let mut product = rules.clone();
    product.rules.retain(|rule| rule.chain != chain::REROUTE && rule.action != Action::Jump(chain::REROUTE));
    let CidrSelection::Only(nets) = &config.outbound_cidrs else { return product };
    for net in nets.iter().filter(|net| net.addr().is_ipv4() || rules.families == Families::V4AndV6) {
        for name in &config.reroute_interfaces {
            product.rules.push(Rule {
                table: Table::Nat,
                chain: chain::PREROUTING,
                position: Position::Insert(1),
                family: family_of(*net),
                matches: vec![in_interface(name), Match::Destination { net: *net, negated: false }],
                action: Action::Jump(chain::REDIRECT),
                reason: RuleReason::ReroutedInterface,
            });
        }
    }
    product
}

proptest! {
    #[test]
    fn reroute_chain_is_equivalent_to_the_product(
        config in crate::arbitrary::config(),
        nets in proptest::collection::vec(crate::arbitrary::net(), 5..12),
        names in proptest::collection::vec("[a-c][0-2]|lo", 4..7),
        packets in proptest::collection::vec(crate::arbitrary::packet(), 20),
    ) {
        let config = CaptureConfig {
            mode: if config.mode == InterceptionMode::None { InterceptionMode::Redirect } else { config.mode },
            outbound_cidrs: CidrSelection::Only(nets),
            reroute_interfaces: names.iter().map(|name| InterfaceName::new(name).unwrap()).collect(),
            ..config
        };
        let rules = plan(&config).unwrap();
        let product = with_product(&rules, &config);
        let has_chain = rules.rules.iter().any(|rule| rule.chain == chain::REROUTE);
        prop_assert!(has_chain || product.rules.len() == rules.rules.len());
        for packet in packets.iter().map(|packet| packet.towards(&config)) {
            let (a, b) = (rules.trace(&packet), product.trace(&packet));
            let result = |trace: crate::trace::Trace| {
                (trace.disposition, trace.mark, trace.connection_mark, trace.zone, trace.uncertain_rules)
            };
            prop_assert_eq!(result(a), result(b), "{:?}", packet);
        }
    }

    #[test]
    fn no_more_rules_than_counted_before(config in crate::arbitrary::config()) {
        prop_assert!(plan(&config).unwrap().rules.len() <= super::max_rule_count(&config));
    }

    #[test]
    fn jumps_have_targets_and_addresses_fit_the_family(config in crate::arbitrary::config()) {
        let rules = plan(&config).unwrap();
        for rule in &rules.rules {
            if let Action::Jump(target) = rule.action {
                let has_rules = rules.rules.iter().any(|other| other.table == rule.table && other.chain == target);
                prop_assert!(has_rules, "jump to {target}, which has no rules");
            }
            let about = rule.matches.iter().filter_map(|condition| match condition {
                Match::Source { net, .. } | Match::Destination { net, .. } => Some(family_of(*net)),
                _ => None,
            });
            for family in about {
                prop_assert_eq!(rule.family, family, "family of the rule and of its address");
            }
            prop_assert!(rules.families == Families::V4AndV6 || rule.family != Family::V6);
        }
    }
}
