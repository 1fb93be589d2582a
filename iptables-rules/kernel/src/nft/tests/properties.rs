//! Property tests with random configurations that have long lists.

use proptest::prelude::*;

use super::*;

fn ports(max: usize) -> impl Strategy<Value = Vec<u16>> {
    proptest::collection::vec(1_u16..=65535, 0..max)
}

fn networks(max: usize) -> impl Strategy<Value = Vec<ipnet::IpNet>> {
    let v4 = (any::<u32>(), 0_u8..=32)
        .prop_map(|(bits, prefix)| ipnet::IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), prefix).unwrap());
    let v6 = (any::<u128>(), 0_u8..=128)
        .prop_map(|(bits, prefix)| ipnet::IpNet::new(std::net::Ipv6Addr::from_bits(bits).into(), prefix).unwrap());
    proptest::collection::vec(prop_oneof![v4, v6].prop_map(|net| net.trunc()), 0..max)
}

fn configs() -> impl Strategy<Value = CaptureConfig> {
    let interfaces =
        || proptest::collection::vec("[a-z][a-z0-9]{0,8}".prop_map(|name| InterfaceName::new(&name).unwrap()), 0..3);
    let dns = prop_oneof![
        Just(DnsCapture::Off),
        Just(DnsCapture::All),
        proptest::collection::vec(any::<std::net::IpAddr>(), 0..7).prop_map(DnsCapture::Servers)
    ];
    let selection = || prop_oneof![Just(None), networks(9).prop_map(Some)];
    let first =
        (any::<bool>(), any::<bool>(), prop_oneof![Just(None), ports(9).prop_map(Some)], ports(9), ports(7), ports(9));
    let second = (selection(), networks(12), interfaces(), interfaces(), dns, any::<bool>());
    let third = (proptest::collection::vec(any::<u32>(), 1..4), proptest::collection::vec(any::<u32>(), 1..4));
    (first, second, third).prop_map(|(first, second, (proxy_uids, proxy_gids))| {
        let (tproxy, leave, include, inbound_ports_exclude, outbound_ports, outbound_ports_exclude) = first;
        let (cidrs, outbound_cidrs_exclude, exclude_interfaces, reroute_interfaces, dns, drop_invalid) = second;
        CaptureConfig {
            mode: if tproxy { InterceptionMode::Tproxy } else { InterceptionMode::Redirect },
            ipv6: if leave { Ipv6Policy::Leave } else { Ipv6Policy::Capture },
            inbound_ports: include.map_or(PortSelection::All, PortSelection::Only),
            inbound_ports_exclude,
            outbound_ports,
            outbound_ports_exclude,
            outbound_cidrs: cidrs.map_or(CidrSelection::All, CidrSelection::Only),
            outbound_cidrs_exclude,
            exclude_interfaces,
            reroute_interfaces,
            dns,
            drop_invalid,
            proxy_uids,
            proxy_gids,
            ..CaptureConfig::default()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn kernel_holds_exactly_the_applied_rules(first in configs(), second in configs()) {
        // Unsupported combinations have no plan.
        let plans: Vec<RuleSet> = [first, second].iter().filter_map(|config| plan(config).ok()).collect();
        in_namespace(|| {
            for layout in [TableLayout::Inet, TableLayout::PerFamily] {
                for rules in &plans {
                    let expected = lower(rules, layout).unwrap();
                    apply_as(rules, layout, false).unwrap();
                    assert_eq!(read_back().unwrap(), expected);
                    assert_eq!(apply_as(rules, layout, false).unwrap(), ApplyOutcome::Unchanged);
                }
                remove().unwrap();
                for rules in &plans {
                    let expected = lower(rules, layout).unwrap();
                    nft(&expected.to_string());
                    assert_eq!(read_back().unwrap(), expected);
                    remove().unwrap();
                }
            }
        });
    }
}
