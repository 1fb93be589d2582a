use iptables_rules::CaptureConfig;
use iptables_rules::compare::{Dimension, Equivalence, compare_chains};
use iptables_rules::config::{DnsCapture, OwnerGroups};
use iptables_rules::restore::RestoreFamily;

use super::*;

proptest::proptest! {
    /// The plan and its nf_tables program have the same disposition for every packet.
    #[test]
    fn plan_and_program_agree(
        config in iptables_rules::arbitrary::config_by_id(),
        packets in proptest::collection::vec(iptables_rules::arbitrary::packet(), 16),
    ) {
        let rules = iptables_rules::plan(&config).unwrap();
        let program = crate::nft::program(&rules).unwrap();
        for packet in packets.iter().map(|packet| packet.towards(&config)) {
            let planned = rules.trace(&packet);
            let routing = Chains { local_delivery: rules.routing.local_delivery, ..Chains::default() };
            let found = chains(&program, packet.destination).merge(routing).trace(&packet);
            proptest::prop_assert_eq!(&found.uncertain_rules, &Vec::<String>::new());
            proptest::prop_assert_eq!(
                (&found.disposition, found.mark, found.connection_mark, found.zone),
                (&planned.disposition, planned.mark, planned.connection_mark, planned.zone)
            );
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(32))]

    /// Over the whole packet space they differ only for packets that the kernel itself sends: `! --uid-owner` matches them, `meta skuid !=`
    /// does not (see `lower.rs`).
    #[test]
    fn plan_and_program_differ_only_without_an_owner(config in iptables_rules::arbitrary::config_by_id()) {
        let rules = iptables_rules::plan(&config).unwrap();
        let program = crate::nft::program(&rules).unwrap();
        let planned = RestoreFamily::ALL.map(|family| Chains::from_rule_set(&rules, family.any_address()));
        let programmed = RestoreFamily::ALL.map(|family| {
            let routing = Chains { local_delivery: rules.routing.local_delivery, ..Chains::default() };
            chains(&program, family.any_address()).merge(routing)
        });
        match compare_chains(&planned, &programmed, &RestoreFamily::ALL) {
            Equivalence::Equal => {}
            Equivalence::Unknown(places) => panic!("{places:?}"),
            Equivalence::Different(found) => {
                proptest::prop_assert_eq!(&found.unknown, &Vec::<String>::new());
                for class in found.changes.iter().flat_map(|change| &change.classes) {
                    let owners = [Dimension::Uid, Dimension::Gid].map(|dimension| class.values(dimension));
                    let is_kernels = owners.iter().flatten().any(|owner| owner.contains("sent by the kernel"));
                    proptest::prop_assert!(is_kernels, "{}", class);
                }
            }
        }
    }
}

#[test]
fn every_programmed_rule_has_a_reason() {
    let config = CaptureConfig {
        outbound_cidrs_exclude: vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()],
        outbound_ports: vec![9000],
        outbound_ports_exclude: vec![15020, 1, 2, 3, 4, 5],
        exclude_interfaces: vec![InterfaceName::new("net1").unwrap()],
        reroute_interfaces: vec![InterfaceName::new("tap0").unwrap()],
        owner_groups: OwnerGroups::AllBut(vec![Group::Id(3001)]),
        dns: DnsCapture::All,
        drop_invalid: true,
        ..CaptureConfig::default()
    };
    let program = crate::nft::program(&iptables_rules::plan(&config).unwrap()).unwrap();
    let programmed = chains(&program, [10, 0, 0, 2].into());
    for rule in programmed.chains.iter().flat_map(|chain| &chain.rules) {
        assert!(rule.reason.is_some() || rule.effects == [Effect::Drop], "{}", rule.text);
    }
}

#[test]
fn large_sets_are_not_copied_for_every_rule() {
    let config = CaptureConfig {
        outbound_cidrs_exclude: (0..9000_u32)
            .map(|n| ipnet::Ipv4Net::new_assert((n << 12).into(), 24).into())
            .collect(),
        ..CaptureConfig::default()
    };
    let mut program = crate::nft::program(&iptables_rules::plan(&config).unwrap()).unwrap();
    let looks_up =
        |rule: &RuleDef| rule.exprs.iter().any(|expr| matches!(expr, Expr::Test { test: Test::DestinationIn(..), .. }));
    let chain =
        program.tables.iter_mut().flat_map(|table| &mut table.chains).find(|chain| chain.rules.iter().any(looks_up));
    let rules = &mut chain.unwrap().rules;
    let rule = rules.iter().find(|rule| looks_up(rule)).unwrap().clone();
    rules.extend(std::iter::repeat_n(rule, 20_000));
    let found = chains(&program, [10, 0, 0, 2].into());
    let conditions = found.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.conditions);
    let copied = conditions.map(|condition| match condition {
        Predicate::DestinationIn(ranges) => ranges.len(),
        _ => 0,
    });
    let copied: usize = copied.sum();
    assert!((9000..=MAX_COPIED_ELEMENTS).contains(&copied), "{copied} elements");
}
