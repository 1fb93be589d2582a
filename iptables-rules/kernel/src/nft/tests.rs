//! The backend with the real kernel, in fresh network namespaces. Requires root.

mod limits;
mod properties;

use super::*;
use crate::testing::{in_foreign_user_namespace, in_namespace, nft};
use iptables_rules::config::{
    CidrSelection, DnsCapture, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups, PortSelection,
};
use iptables_rules::ruleset::Families;
use iptables_rules::{CaptureConfig, plan};
use netlink_packet_core::{Emitable as _, NlaBuffer, Parseable as _};
use netlink_packet_netfilter::nftables::{ExpressionAttribute, ListAttribute, RuleAttribute};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

fn rules(config: &CaptureConfig) -> RuleSet {
    plan(config).unwrap()
}

fn v4_only() -> CaptureConfig {
    CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() }
}

/// Configurations that use every feature: both families, long lists, interfaces, groups.
fn varied() -> Vec<CaptureConfig> {
    let cidrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<ipnet::IpNet>>();
    vec![
        CaptureConfig::default(),
        v4_only(),
        CaptureConfig {
            inbound_ports_exclude: vec![15020, 15021, 15090, 22, 3306, 5432],
            outbound_ports_exclude: vec![15020, 1, 2, 3, 4, 5],
            outbound_cidrs_exclude: cidrs(&[
                "10.0.0.0/8",
                "10.1.0.0/16",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "100.64.0.0/10",
                "255.0.0.0/8",
                "fd00::/8",
            ]),
            ..CaptureConfig::default()
        },
        CaptureConfig {
            inbound_ports: PortSelection::Only(vec![8080, 8443]),
            outbound_cidrs: CidrSelection::Only(cidrs(&["10.96.0.0/12", "172.16.0.0/13", "fd00:10::/33", "0.0.0.0/0"])),
            outbound_ports: vec![9200],
            reroute_interfaces: vec![InterfaceName::new("tap0").unwrap()],
            exclude_interfaces: vec![InterfaceName::new("net1").unwrap()],
            proxy_uids: vec![1337, 0, 4_294_967_294],
            ..CaptureConfig::default()
        },
        CaptureConfig { mode: InterceptionMode::Tproxy, drop_invalid: true, ..CaptureConfig::default() },
        CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() },
        CaptureConfig {
            dns: DnsCapture::Servers(vec!["10.0.0.10".parse().unwrap(), "fd00::10".parse().unwrap()]),
            mode: InterceptionMode::Tproxy,
            ..v4_only()
        },
    ]
}

#[test]
fn apply_is_idempotent() {
    in_namespace(|| {
        for layout in [TableLayout::Inet, TableLayout::PerFamily] {
            for config in varied() {
                let rules = rules(&config);
                assert_eq!(apply_as(&rules, layout, false).unwrap(), ApplyOutcome::Created);
                assert_eq!(read_back().unwrap(), lower(&rules, layout).unwrap(), "{config:?}");
                assert_eq!(apply_as(&rules, layout, false).unwrap(), ApplyOutcome::Unchanged);
                assert!(remove().unwrap());
                assert!(!remove().unwrap());
            }
        }
    });
}

#[test]
fn nft_script_loads_as_the_same_program() {
    in_namespace(|| {
        for config in varied() {
            for layout in [TableLayout::Inet, TableLayout::PerFamily] {
                let program = lower(&rules(&config), layout).unwrap();
                nft(&program.to_string());
                assert_eq!(read_back().unwrap().to_string(), program.to_string());
                assert_eq!(read_back().unwrap(), program);
                assert!(remove().unwrap());
            }
        }
    });
}

#[test]
fn replaces_with_exactly_the_new_rules() {
    in_namespace(|| {
        for (from, to) in [
            (TableLayout::Inet, TableLayout::Inet),
            (TableLayout::PerFamily, TableLayout::PerFamily),
            (TableLayout::PerFamily, TableLayout::Inet),
        ] {
            let all = varied();
            // Each configuration is replaced by its next two neighbours.
            for (at, first) in all.iter().enumerate() {
                for second in [&all[(at + 1) % all.len()], &all[(at + 2) % all.len()]] {
                    apply_as(&rules(first), from, false).unwrap();
                    assert_eq!(apply_as(&rules(second), to, false).unwrap(), ApplyOutcome::Replaced);
                    let expected = lower(&rules(second), to).unwrap();
                    assert_eq!(diff::differences(&expected, &read_back().unwrap()), Vec::<String>::new());
                    assert_eq!(apply_as(&rules(second), to, false).unwrap(), ApplyOutcome::Unchanged);
                    // There is nothing else in the namespace, such as old fingerprint chains.
                    let fingerprints = nft("list ruleset").lines().filter(|line| line.contains("chain rules-")).count();
                    assert_eq!(fingerprints, expected.tables.len());
                    remove().unwrap();
                }
            }
        }
    });
}

#[test]
fn keeps_other_tables() {
    in_namespace(|| {
        nft("table ip nat { chain PREROUTING { type nat hook prerouting priority -100; ip daddr 10.0.0.1 tcp dport 80 redirect to :8080; }; }
             table inet other { set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
                                chain weir { ip saddr @s counter packets 7 bytes 9 drop; }; }
             table ip6 weird { chain ISTIO_OUTPUT { }; }");
        let before = nft("list ruleset");
        for config in varied() {
            apply(&rules(&config)).unwrap();
            assert_eq!(verify(&rules(&config)).unwrap(), Vec::<String>::new());
            assert!(nft("list ruleset").starts_with(&before));
        }
        assert!(remove().unwrap());
        assert_eq!(nft("list ruleset"), before);
    });
}

#[test]
fn replaces_foreign_table_with_our_name() {
    in_namespace(|| {
        nft("table inet weir { flags dormant; counter c { }; map m { type ipv4_addr : verdict; };
             chain ISTIO_OUTPUT { type filter hook input priority 5; policy drop; ip daddr vmap @m; counter name c; }; }");
        let rules = rules(&CaptureConfig::default());
        assert_eq!(apply(&rules).unwrap(), ApplyOutcome::Replaced);
        assert_eq!(verify(&rules).unwrap(), Vec::<String>::new());
        assert!(!nft("list table inet weir").contains("counter"));
    });
}

#[test]
fn replacement_removes_foreign_objects() {
    in_namespace(|| {
        apply(&rules(&CaptureConfig::default())).unwrap();
        // A foreign chain with a name that the next rules need, but another hook, and a map with jumps to our chain.
        nft("add chain inet weir mangle-prerouting { type filter hook input priority 7; policy drop; }
             add map inet weir m { type ipv4_addr : verdict; elements = { 10.0.0.1 : jump ISTIO_REDIRECT }; }
             add chain inet weir extra { type nat hook prerouting priority 9; }
             add rule inet weir extra ip daddr vmap @m
             add rule inet weir mangle-prerouting tcp dport { 1, 2 } accept
             add table inet weir { flags dormant; }");
        let tproxy = rules(&CaptureConfig { mode: InterceptionMode::Tproxy, ..CaptureConfig::default() });
        assert_eq!(apply(&tproxy).unwrap(), ApplyOutcome::Replaced);
        assert_eq!(verify(&tproxy).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn rejected_batch_changes_nothing_and_names_the_rule() {
    in_namespace(|| {
        let before = rules(&v4_only());
        apply(&before).unwrap();
        // The kernel rejects a redirect outside of NAT chains; plans never contain one.
        let mut broken = rules(&CaptureConfig::default());
        let mut rule = broken.rules[0].clone();
        rule.table = iptables_rules::ruleset::Table::Raw;
        rule.chain = "OUTPUT";
        rule.matches = vec![iptables_rules::ruleset::Match::Protocol(iptables_rules::ruleset::Protocol::Tcp)];
        rule.action = iptables_rules::ruleset::Action::Redirect(7);
        broken.rules.push(rule);
        let error = apply(&broken).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("rule 1 of chain raw-output of table inet weir (meta l4proto tcp redirect to :7)"),
            "{error}"
        );
        assert_eq!(verify(&before).unwrap(), Vec::<String>::new());
        assert!(remove().unwrap());
        apply(&broken).unwrap_err();
        assert_eq!(nft("list ruleset"), "");
    });
}

#[test]
fn verify_describes_drift() {
    in_namespace(|| {
        let rules = rules(&varied()[2]);
        assert_eq!(verify(&rules).unwrap(), ["table inet weir is missing"]);
        let drift = |commands: &str| {
            remove().unwrap();
            apply(&rules).unwrap();
            nft(commands);
            verify(&rules).unwrap()
        };
        let lines = drift("flush chain inet weir ISTIO_IN_REDIRECT");
        assert_eq!(lines, ["rule 1 of chain ISTIO_IN_REDIRECT is missing: \"meta l4proto tcp redirect to :15006\""]);
        let lines = drift(
            "insert rule inet weir ISTIO_OUTPUT meta skuid 1000 accept\nadd rule inet weir ISTIO_OUTPUT meta skuid 2000 accept",
        );
        assert_eq!(lines.len(), 2, "the rules between them are the same: {lines:?}");
        assert!(lines.iter().all(|line| line.contains("is unexpected")), "{lines:?}");
        let lines = drift("insert rule inet weir ISTIO_OUTPUT meta skuid 1000 counter accept");
        assert_eq!(lines, ["rule 1 of chain ISTIO_OUTPUT is unexpected: \"meta skuid 1000 [counter] accept\""]);
        let lines = drift(
            "flush chain inet weir ISTIO_REDIRECT\nadd rule inet weir ISTIO_REDIRECT tcp dport 1-5 redirect to :1",
        );
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].starts_with(
                "rule 1 of chain ISTIO_REDIRECT differs: expected \"meta l4proto tcp redirect to :15001\", found"
            ),
            "{lines:?}"
        );
        let lines = drift(
            "delete element inet weir excluded-outbound-ipv4 { 10.0.0.0/8 }\nadd element inet weir excluded-outbound-ipv4 { 9.0.0.1 }",
        );
        assert_eq!(lines, ["set excluded-outbound-ipv4 differs; 1 missing: 10.0.0.0/8; 1 unexpected: 9.0.0.1"]);
        let lines = drift("add chain inet weir mine\nadd set inet weir s { type mark; }");
        assert_eq!(lines, ["set s is unexpected", "chain mine is unexpected"]);
        let lines = drift("add chain inet weir nat-output { policy drop; }");
        assert_eq!(
            lines,
            [
                "chain nat-output has \"type nat hook output priority -100; policy drop;\" instead of \"type nat hook output priority -100; policy accept;\""
            ]
        );
        let lines = drift("add table inet weir { flags dormant; }");
        assert_eq!(lines, ["table inet weir has flags 0x1 instead of 0x0"]);
        let lines = drift("add table ip weir");
        assert_eq!(lines, ["table ip weir is unexpected"]);
    });
}

#[test]
fn apply_repairs_changes_despite_the_fingerprint() {
    in_namespace(|| {
        let rules = rules(&varied()[2]);
        apply(&rules).unwrap();
        for change in [
            "flush table inet weir",
            "flush chain inet weir ISTIO_OUTPUT",
            "insert rule inet weir nat-output accept",
            "delete element inet weir excluded-outbound-ipv4 { 10.0.0.0/8 }",
            "add chain inet weir nat-output { policy drop; }",
            "add chain inet weir mine",
            "add table inet weir { flags dormant; }",
        ] {
            nft(change);
            assert_eq!(apply(&rules).unwrap(), ApplyOutcome::Replaced, "{change}");
            assert_eq!(verify(&rules).unwrap(), Vec::<String>::new(), "{change}");
            assert_eq!(apply(&rules).unwrap(), ApplyOutcome::Unchanged, "{change}");
        }
    });
}

#[test]
fn missing_rules_are_added_without_a_removal() {
    in_namespace(|| {
        let rules = rules(&varied()[2]);
        let program = program(&rules).unwrap();
        apply(&rules).unwrap();
        for (change, adds_only) in [
            ("flush table inet weir", true),
            ("flush chain inet weir ISTIO_OUTPUT", true),
            ("flush table inet weir; delete chain inet weir nat-output; delete chain inet weir ISTIO_OUTPUT", true),
            ("flush table inet weir; delete set inet weir excluded-outbound-ipv4", true),
            ("add rule inet weir ISTIO_OUTPUT accept", false),
            ("insert rule inet weir nat-output accept", false),
            ("delete element inet weir excluded-outbound-ipv4 { 10.0.0.0/8 }", false),
            ("add chain inet weir mine", false),
        ] {
            nft(change);
            let batch = Batch::complete(&program, &read_back().unwrap(), generation().unwrap());
            assert_eq!(batch.is_some(), adds_only, "{change}");
            assert!(batch.iter().all(|batch| (1..=batch.last()).all(|number| !batch.is_removal(number))), "{change}");
            assert_eq!(apply(&rules).unwrap(), ApplyOutcome::Replaced, "{change}");
            assert_eq!(verify(&rules).unwrap(), Vec::<String>::new(), "{change}");
        }
    });
}

#[test]
fn installs_five_thousand_networks() {
    in_namespace(|| {
        let v4 = (0..5000_u32).map(|n| format!("10.{}.{}.{}/28", n >> 8, n & 0xff, (n % 8) * 32));
        let v6 = (0..5000_u32).map(|n| format!("fd00:{n:x}::/32").replace("/32", "/64"));
        let outbound_cidrs_exclude: Vec<ipnet::IpNet> = v4.chain(v6).map(|text| text.parse().unwrap()).collect();
        let config = CaptureConfig { outbound_cidrs_exclude, ..CaptureConfig::default() };
        for layout in [TableLayout::Inet, TableLayout::PerFamily] {
            let rules = rules(&config);
            assert_eq!(apply_as(&rules, layout, false).unwrap(), ApplyOutcome::Created);
            let found = read_back().unwrap();
            assert_eq!(
                found.tables.iter().flat_map(|table| &table.sets).map(|set| set.elements.len()).sum::<usize>(),
                10_002 // including the loopback addresses, which have the same action
            );
            assert!(found == lower(&rules, layout).unwrap());
            assert_eq!(
                apply_as(&super::tests::rules(&CaptureConfig::default()), layout, false).unwrap(),
                ApplyOutcome::Replaced
            );
            assert_eq!(apply_as(&rules, layout, false).unwrap(), ApplyOutcome::Replaced);
            assert!(found == read_back().unwrap());
            remove().unwrap();
        }
    });
}

#[test]
fn installs_in_namespace_of_another_user_namespace() {
    in_namespace(|| {
        let rules = rules(&CaptureConfig::default());
        let (applied, verified) = in_foreign_user_namespace(|| {
            let applied = apply(&rules);
            (applied, verify(&rules))
        });
        assert_eq!(applied.unwrap(), ApplyOutcome::Created);
        assert_eq!(verified.unwrap(), Vec::<String>::new());
        assert_eq!(nft("list ruleset"), "", "the rules are in the pod only");
    });
}

#[test]
fn concurrent_applies_end_with_one_rule_set() {
    in_namespace(|| {
        let all: Vec<RuleSet> = varied().iter().map(rules).collect();
        std::thread::scope(|scope| {
            for start in 0..4 {
                let all = &all;
                scope.spawn(move || {
                    for round in 0..40 {
                        match apply(&all[(start + round) % all.len()]) {
                            Ok(_) | Err(NftError::Contended | NftError::NotCommitted) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
        });
        let found = read_back().unwrap();
        assert!(all.iter().any(|rules| program(rules).unwrap() == found), "{found}");
    });
}

#[test]
fn applies_in_different_namespaces_are_independent() {
    in_namespace(|| {
        std::thread::scope(|scope| {
            for config in varied() {
                scope.spawn(move || {
                    unshare(CloneFlags::CLONE_NEWNET).unwrap();
                    let rules = rules(&config);
                    for _ in 0..20 {
                        assert_eq!(apply(&rules).unwrap(), ApplyOutcome::Created);
                        assert_eq!(verify(&rules).unwrap(), Vec::<String>::new());
                        assert!(remove().unwrap());
                    }
                });
            }
        });
    });
}

#[test]
fn empty_rule_set_removes_the_tables() {
    in_namespace(|| {
        let nothing = RuleSet::default();
        assert_eq!(apply(&nothing).unwrap(), ApplyOutcome::Unchanged);
        apply(&rules(&CaptureConfig::default())).unwrap();
        assert_eq!(verify(&nothing).unwrap(), ["table inet weir is unexpected"]);
        assert_eq!(apply(&nothing).unwrap(), ApplyOutcome::Replaced);
        assert_eq!(nft("list ruleset"), "");
        assert_eq!(to_nft_script(&nothing).unwrap(), "");
    });
}

#[test]
fn excluded_ipv6_has_no_rules() {
    for config in varied().into_iter().filter(|config| config.ipv6 == Ipv6Policy::Leave) {
        for table in lower(&rules(&config), TableLayout::Inet).unwrap().tables {
            for rule in table.chains.iter().filter(|chain| chain.hook.is_some()).flat_map(|chain| &chain.rules) {
                assert!(rule.exprs.contains(&Test::Family(IpFamily::V4).into()), "{rule}");
            }
        }
    }
}

#[test]
fn text_of_the_default_rules() {
    insta::assert_snapshot!(to_nft_script(&rules(&CaptureConfig::default())).unwrap());
}

#[test]
fn nft_lists_the_default_rules_as_planned() {
    in_namespace(|| {
        apply(&rules(&v4_only())).unwrap();
        insta::assert_snapshot!(nft("list table inet weir"));
    });
}

#[test]
fn missing_capability_is_reported() {
    const INSIDE: &str = "WEIR_TEST_WITHOUT_NET_ADMIN";
    if std::env::var_os(INSIDE).is_some() {
        let refused = |error: NftError| matches!(error, NftError::Unavailable(e) if e.raw_os_error() == Some(Errno::EPERM as i32));
        let rules = rules(&CaptureConfig::default());
        assert!(refused(apply(&rules).unwrap_err()));
        assert!(refused(verify(&rules).unwrap_err()));
        assert!(refused(read_back().unwrap_err()));
        assert!(refused(remove().unwrap_err()), "not the same as no table");
        return;
    }
    in_namespace(|| {
        // Runs this test again in a process without CAP_NET_ADMIN.
        let output = std::process::Command::new("setpriv")
            .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "nft::tests::missing_capability_is_reported"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    });
}

#[test]
fn rejects_group_names() {
    let config = CaptureConfig {
        owner_groups: OwnerGroups::AllBut(vec![iptables_rules::config::Group::Name(
            iptables_rules::config::GroupName::new("java").unwrap(),
        )]),
        ..CaptureConfig::default()
    };
    let error = apply(&rules(&config)).unwrap_err();
    assert!(matches!(error, NftError::Unsupported(_)));
    assert!(error.to_string().contains("java"), "{error}");
}

#[test]
fn layout_depends_on_the_kernel_release() {
    assert_eq!(TableLayout::of_release("6.18.44-fc-v669"), TableLayout::Inet);
    assert_eq!(TableLayout::of_release("5.2.0"), TableLayout::Inet);
    assert_eq!(TableLayout::of_release("5.1.21-generic"), TableLayout::PerFamily);
    assert_eq!(TableLayout::of_release("4.18.0-553.el8.x86_64"), TableLayout::PerFamily);
}

#[test]
fn fingerprints_of_programs_differ() {
    let mut fingerprints: Vec<String> =
        varied().iter().map(|config| Batch::create(&lower(&rules(config), TableLayout::Inet).unwrap()).1).collect();
    let count = fingerprints.len();
    fingerprints.sort();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), count);
}

#[test]
fn decodes_the_expressions_that_it_encodes() {
    for layout in [TableLayout::Inet, TableLayout::PerFamily] {
        for config in varied() {
            for table in lower(&rules(&config), layout).unwrap().tables {
                for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
                    assert_eq!(expr::decode(&parsed(rule)), *rule);
                }
            }
        }
    }
}

#[test]
fn long_lists_stay_below_the_attribute_limit() {
    let outbound_cidrs_exclude =
        (0..3000_u128).map(|n| ipnet::IpNet::new(std::net::Ipv6Addr::from_bits(n << 64).into(), 65).unwrap());
    let config = CaptureConfig { outbound_cidrs_exclude: outbound_cidrs_exclude.collect(), ..CaptureConfig::default() };
    let (batch, _) = Batch::create(&lower(&rules(&config), TableLayout::Inet).unwrap());
    let (mut rest, mut messages, mut longest) = (batch.bytes.as_slice(), 0, 0);
    while !rest.is_empty() {
        let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
        longest = longest.max(length);
        messages += 1;
        rest = &rest[length.next_multiple_of(4)..];
    }
    assert_eq!(messages, batch.last());
    assert!(longest < usize::from(u16::MAX), "{longest}");
    assert!(batch.bytes.len() > 3000 * 64);
}

#[test]
fn rules_are_in_the_order_of_each_family() {
    use iptables_rules::ruleset::{Action, Family, Match, Position, Routing, Rule, RuleReason, Table};
    let rule = |position, family, port| Rule {
        table: Table::Nat,
        chain: "PREROUTING",
        position,
        family,
        matches: vec![Match::Mark { mark: port, negated: false }],
        action: Action::Return,
        reason: RuleReason::Hook,
    };
    let rules = RuleSet {
        rules: vec![
            rule(Position::Append, Family::V4, 1),
            rule(Position::Append, Family::V4, 2),
            rule(Position::Append, Family::V6, 3),
            rule(Position::Insert(2), Family::Any, 9), // second for IPv4, last for IPv6
            rule(Position::Append, Family::Any, 5),
        ],
        families: Families::V4AndV6,
        routing: Routing::default(),
    };
    let program = lower(&rules, TableLayout::Inet).unwrap();
    let marks_of = |wanted: IpFamily| -> Vec<u32> {
        let rules = program.tables[0].chains[0].rules.iter();
        let seen = rules.filter(|rule| {
            rule.exprs.iter().all(|e| !matches!(e, Expr::Test { test: Test::Family(f), .. } if *f != wanted))
        });
        seen.flat_map(|rule| &rule.exprs)
            .filter_map(|e| if let Expr::Test { test: Test::Mark(mark), .. } = e { Some(*mark) } else { None })
            .collect()
    };
    assert_eq!(marks_of(IpFamily::V4), [1, 9, 2, 5]);
    assert_eq!(marks_of(IpFamily::V6), [3, 9, 5]);
}

/// Encodes a rule and parses it with the library.
fn parsed(rule: &RuleDef) -> Vec<ListAttribute<ExpressionAttribute>> {
    let mut bytes = Vec::new();
    let attribute = expr::encode(rule).into_nested(encode::RULE_EXPRESSIONS);
    bytes.resize(attribute.buffer_len(), 0);
    attribute.emit(&mut bytes);
    match RuleAttribute::parse(&NlaBuffer::new(bytes.as_slice())).unwrap() {
        RuleAttribute::Expressions(list) => list,
        other => panic!("{other:?}"),
    }
}
