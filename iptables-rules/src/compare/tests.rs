use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::*;
use crate::CaptureConfig;
use crate::arbitrary;
use crate::config::{CidrSelection, DnsCapture, Group, InterceptionMode, OwnerGroups, PortSelection};
use crate::trace::{Disposition, Packet, PacketOrigin, Trace};

const NOTHING: usize = usize::MAX;

fn planned(config: &CaptureConfig) -> RuleSet {
    crate::plan(config).unwrap()
}

fn chains(rules: &RuleSet) -> [Chains; 2] {
    RestoreFamily::ALL.map(|family| Chains::from_rule_set(rules, family.any_address()))
}

fn differences(a: &CaptureConfig, b: &CaptureConfig) -> Differences {
    match compare(&planned(a), &planned(b)) {
        Equivalence::Different(differences) => differences,
        other => panic!("{other:?}"),
    }
}

/// Lists differences as `CLASS: FATE -> FATE`.
fn lines(differences: &Differences) -> Vec<String> {
    let of = |change: &Change| -> Vec<String> {
        let (before, after) = (change.before, change.after);
        change.classes.iter().map(|class| format!("{class}: {before} -> {after}")).collect()
    };
    differences.changes.iter().flat_map(of).collect()
}

/// The outcome of a trace that is compared.
fn outcome(trace: &Trace) -> (Disposition, u32, u32, u16) {
    match trace.disposition {
        Disposition::Dropped => (Disposition::Dropped, 0, 0, 0),
        _ => (trace.disposition.clone(), trace.mark, trace.connection_mark, trace.zone),
    }
}

fn traces(a: &[Chains; 2], b: &[Chains; 2], packet: &Packet) -> [(Disposition, u32, u32, u16); 2] {
    let family = usize::from(packet.destination.is_ipv6());
    [a, b].map(|chains| outcome(&chains[family].trace(packet)))
}

fn agrees(fate: &Fate, (disposition, _, _, zone): &(Disposition, u32, u32, u16)) -> bool {
    let action = match fate.action {
        FateAction::Redirected { port } => *disposition == Disposition::Redirected { port },
        FateAction::Tproxied { port, redirected } => *disposition == Disposition::Tproxied { port, redirected },
        FateAction::Dropped => *disposition == Disposition::Dropped,
        FateAction::Passes { over_lo } => match disposition {
            Disposition::Passes { interface: Some(interface) } => over_lo == (interface == "lo"),
            Disposition::Passes { interface: None } => !over_lo,
            _ => false,
        },
    };
    action && *zone == fate.zone
}

#[test]
fn equal_configurations_have_equal_fates() {
    let config = CaptureConfig::default();
    assert_eq!(compare(&planned(&config), &planned(&config)), Equivalence::Equal);
    // The same traffic, written in another way.
    let halves = CidrSelection::Only(vec!["10.0.0.0/9".parse().unwrap(), "10.128.0.0/9".parse().unwrap()]);
    let whole = CidrSelection::Only(vec!["10.0.0.0/8".parse().unwrap(), "10.9.8.0/24".parse().unwrap()]);
    let [halves, whole] = [halves, whole].map(|nets| CaptureConfig { outbound_cidrs: nets, ..config.clone() });
    assert_eq!(compare(&planned(&halves), &planned(&whole)), Equivalence::Equal);
}

#[test]
fn differences_are_readable_ranges() {
    let base = CaptureConfig::default();
    let excluded = CaptureConfig { outbound_ports_exclude: vec![15020, 3306], ..base.clone() };
    assert_eq!(
        lines(&differences(&base, &excluded)),
        [
            "outbound TCP over interfaces other than lo of uid other than 1337 and gid other than 1337 to other than 127.0.0.1 to port 3306: captured on port 15001 -> not captured",
            "outbound TCP over interfaces other than lo of uid other than 1337 and gid other than 1337 to other than ::1 to port 3306: captured on port 15001 -> not captured",
            // The proxy calls its own pod.
            "outbound TCP over lo from other than 127.0.0.6 of uid 1337 to other than 127.0.0.1 to port 3306: captured on port 15006 -> not captured, stays in the pod",
            "outbound TCP over lo from other than ::6 of uid 1337 to other than ::1 to port 3306: captured on port 15006 -> not captured, stays in the pod",
        ]
    );
    let ranges = CaptureConfig { outbound_cidrs_exclude: vec!["10.0.0.0/8".parse().unwrap()], ..base.clone() };
    let changed = lines(&differences(&ranges, &base));
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert!(
        changed[0].contains(" to 10.0.0.0/8 to port other than 15020: not captured -> captured on port 15001"),
        "{changed:?}"
    );
    let inbound = CaptureConfig { inbound_ports_exclude: vec![15020, 15021, 15090, 9000], ..base.clone() };
    assert_eq!(
        lines(&differences(&base, &inbound))[0],
        "inbound IPv4 TCP to port 9000: captured on port 15006 -> not captured"
    );
}

#[test]
fn unknown_rules_are_unknown_and_named() {
    let text = |rule: &str| {
        let save = format!("*nat\n:OUTPUT ACCEPT [0:0]\n{rule}\n-A OUTPUT -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n");
        [Chains::from_iptables_save(&save), Chains::default()]
    };
    let random = text("-A OUTPUT -p udp -m statistic --mode random --probability 0.5 -j RETURN");
    let Equivalence::Unknown(places) = compare_chains(&random, &random, &RestoreFamily::ALL) else { panic!() };
    assert_eq!(places.len(), 1);
    assert!(places[0].starts_with("rule 1 of chain OUTPUT: -p udp -m statistic"), "{places:?}");
    // Packets that no unknown rule reaches are still compared.
    let dropped = text("-A OUTPUT -p tcp -j DROP");
    let Equivalence::Different(found) = compare_chains(&random, &dropped, &RestoreFamily::ALL) else { panic!() };
    assert_eq!(
        (lines(&found), found.unknown),
        (vec!["outbound IPv4 TCP: captured on port 1 -> dropped".to_owned()], places)
    );
}

#[test]
fn group_names_are_equal_only_to_themselves() {
    let groups = |name: &str| CaptureConfig {
        owner_groups: OwnerGroups::AllBut(vec![Group::parse(name).unwrap()]),
        ..CaptureConfig::default()
    };
    assert_eq!(compare(&planned(&groups("java")), &planned(&groups("java"))), Equivalence::Equal);
    let different = compare(&planned(&groups("java")), &planned(&groups("ruby")));
    assert!(matches!(&different, Equivalence::Unknown(places) if places.len() == 2), "{different:?}");
    let other = CaptureConfig { proxy_port: 9, ..groups("java") };
    // Of packets without a socket it is known whatever the group is.
    let changed = differences(&groups("java"), &other);
    assert_eq!(changed.unknown, ["--gid-owner java: a name, not a group id"]);
    assert!(lines(&changed).iter().all(|line| line.contains("gid none (sent by the kernel)")), "{changed:?}");
}

#[test]
fn marks_are_compared_as_values() {
    let text = |rules: &str| {
        let save = format!("*mangle\n:PREROUTING ACCEPT [0:0]\n{rules}COMMIT\n");
        [Chains::from_iptables_save(&save), Chains::default()]
    };
    let (none, set) = (text(""), text("-A PREROUTING -m mark --mark 7 -j MARK --set-mark 7\n"));
    assert_eq!(compare_chains(&none, &set, &RestoreFamily::ALL), Equivalence::Equal);
    let restored = text("-A PREROUTING -j CONNMARK --restore-mark\n");
    let Equivalence::Different(found) = compare_chains(&none, &restored, &RestoreFamily::ALL) else { panic!() };
    let witness = &found.changes[0].classes[0].witness;
    assert_ne!(witness.mark, witness.connection_mark);
    let both = "-A PREROUTING -m mark --mark 7 -m connmark --mark 7 -j CONNMARK --restore-mark\n";
    assert_eq!(compare_chains(&none, &text(both), &RestoreFamily::ALL), Equivalence::Equal);
}

#[test]
fn thousands_of_networks_are_compared_quickly() {
    let nets = |seed: u32| {
        let v4 = (0..5_000_u32).map(|n| {
            let bits = (n.wrapping_add(seed)).wrapping_mul(2_654_435_761);
            ipnet::IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), 16 + u8::try_from(n % 17).unwrap()).unwrap()
        });
        v4.collect::<Vec<_>>()
    };
    let config = |seed| CaptureConfig {
        outbound_cidrs: CidrSelection::Only(nets(seed)),
        outbound_cidrs_exclude: nets(seed + 7),
        outbound_ports_exclude: (1..500).collect(),
        ..CaptureConfig::default()
    };
    let (a, b) = (chains(&planned(&config(0))), chains(&planned(&config(3))));
    let start = Instant::now();
    assert!(matches!(compare_chains(&a, &b, &RestoreFamily::ALL), Equivalence::Different(_)));
    let elapsed = start.elapsed();
    eprintln!("compared in {elapsed:?}");
    // Without optimization, and beside other tests, it takes much longer.
    let limit = if cfg!(debug_assertions) { 120 } else { 2 };
    assert!(elapsed < Duration::from_secs(limit), "{elapsed:?}");
}

#[test]
fn jumps_that_multiply_are_evaluated_once() {
    use std::fmt::Write as _;
    let mut save = "*nat\n:OUTPUT ACCEPT [0:0]\n:c30 - [0:0]\n-A OUTPUT -j c0\n".to_owned();
    for number in 0..30 {
        let _ = write!(
            save,
            ":c{number} - [0:0]\n-A c{number} -j c{next}\n-A c{number} -p tcp -j c{next}\n",
            next = number + 1
        );
    }
    let chains = [Chains::from_iptables_save(&(save + "COMMIT\n")), Chains::default()];
    assert_eq!(
        compare_chains(&chains, &[Chains::default(), Chains::default()], &RestoreFamily::ALL),
        Equivalence::Equal
    );
}

/// Takes some parts of a configuration from another one, so that both have traffic in common.
fn mixed(a: &CaptureConfig, b: &CaptureConfig, parts: u8) -> CaptureConfig {
    let mut mixed = a.clone();
    let takes = |part: u8| parts & (1 << part) != 0;
    if takes(0) {
        (mixed.outbound_cidrs, mixed.outbound_cidrs_exclude) =
            (b.outbound_cidrs.clone(), b.outbound_cidrs_exclude.clone());
    }
    if takes(1) {
        (mixed.outbound_ports, mixed.outbound_ports_exclude) =
            (b.outbound_ports.clone(), b.outbound_ports_exclude.clone());
    }
    if takes(2) {
        (mixed.inbound_ports, mixed.inbound_ports_exclude) = (b.inbound_ports.clone(), b.inbound_ports_exclude.clone());
    }
    if takes(3) {
        (mixed.exclude_interfaces, mixed.reroute_interfaces) =
            (b.exclude_interfaces.clone(), b.reroute_interfaces.clone());
    }
    if takes(4) {
        (mixed.dns, mixed.drop_invalid) = (b.dns.clone(), b.drop_invalid);
    }
    if takes(5) {
        mixed.owner_groups = b.owner_groups.clone();
    }
    if takes(6) {
        (mixed.ipv6, mixed.loopback) = (b.ipv6, b.loopback);
    }
    if parts == 0 {
        return b.clone();
    }
    mixed
}

/// Compares one pair with the tracer on packets; returns how many of them have different fates.
fn check_pair(a: &CaptureConfig, b: &CaptureConfig, packets: &[Packet]) -> usize {
    let (a, b) = (chains(&planned(a)), chains(&planned(b)));
    let found = match compare_with_limit(&a, &b, &RestoreFamily::ALL, NOTHING) {
        Equivalence::Equal => Differences::default(),
        Equivalence::Different(found) => found,
        Equivalence::Unknown(places) => panic!("{places:?}"),
    };
    assert!(found.unknown.is_empty(), "{:?}", found.unknown);
    for change in &found.changes {
        for class in &change.classes {
            let witness = &class.witness;
            let [before, after] = traces(&a, &b, witness);
            assert!(class.contains(witness), "{class}: {witness:?}");
            assert_ne!(before, after, "{class}: {witness:?}");
            assert!(agrees(&change.before, &before) && agrees(&change.after, &after), "{class}: {before:?} {after:?}");
        }
    }
    let mut different = 0;
    for packet in packets {
        let [before, after] = traces(&a, &b, packet);
        let classes = found.changes.iter().flat_map(|change| {
            change.classes.iter().filter(|class| class.contains(packet)).map(move |class| (change, class))
        });
        let classes: Vec<_> = classes.collect();
        assert!(classes.len() <= 1, "classes overlap: {packet:?}");
        // A class is about packets whose marks differ where a mark is restored.
        let is_different = before != after;
        assert!(!is_different || classes.len() == 1, "not found: {packet:?} {before:?} {after:?}");
        if let [(change, class)] = classes[..] {
            assert!(is_different || packet.mark == packet.connection_mark, "{class}: {packet:?} {before:?}");
            assert!(!is_different || (agrees(&change.before, &before) && agrees(&change.after, &after)), "{packet:?}");
        }
        different += usize::from(is_different);
    }
    different
}

/// `WEIR_COMPARE_PAIRS` is the number of pairs of configurations, 100 packets each, `WEIR_COMPARE_SEED` the seed.
#[test]
fn comparison_agrees_with_the_tracer() {
    let number = |variable: &str, default: u64| {
        std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
    };
    let (pairs, seed) = (number("WEIR_COMPARE_PAIRS", 40), number("WEIR_COMPARE_SEED", 20_261_201));
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() });
    let strategy = (
        arbitrary::config_by_id(),
        arbitrary::config_by_id(),
        any::<u8>(),
        proptest::collection::vec((arbitrary::packet(), any::<[bool; 3]>()), 100),
    );
    let (mut packets_in_all, mut different) = (0, 0);
    for pair in 0..pairs {
        let (a, other, parts, packets) = strategy.new_tree(&mut runner).unwrap().current();
        let b = mixed(&a, &other, parts);
        let packets = packets.iter().map(|(packet, [towards_a, by_kernel, usual])| {
            let mut packet = packet.towards(if *towards_a { &a } else { &b });
            if let PacketOrigin::Sent { owner, .. } = &mut packet.origin
                && *by_kernel
                && *usual
            {
                *owner = None;
            }
            packet
        });
        let packets: Vec<_> = packets.collect();
        packets_in_all += packets.len();
        different += check_pair(&a, &b, &packets);
        if pair % 1000 == 999 {
            eprintln!("{} pairs", pair + 1);
        }
    }
    eprintln!("{pairs} pairs, {packets_in_all} packets, {different} with different fates, seed {seed}");
    assert!(different * 20 > packets_in_all, "too few packets differ: {different} of {packets_in_all}");
}

#[test]
fn every_kind_of_fate_is_compared() {
    let base = CaptureConfig::default();
    let tproxy = CaptureConfig { mode: InterceptionMode::Tproxy, ..base.clone() };
    let dns = CaptureConfig { dns: DnsCapture::All, ..base.clone() };
    let invalid = CaptureConfig { drop_invalid: true, ..base.clone() };
    let inbound = CaptureConfig { inbound_ports: PortSelection::Only(vec![80]), ..base.clone() };
    for (other, fate) in [
        (tproxy, "captured by TPROXY on port 15006, gets mark 1337"),
        (dns, "captured on port 15053, conntrack zone 2"),
        (invalid, "dropped"),
        (inbound, "not captured"),
    ] {
        let found = lines(&differences(&base, &other));
        assert!(found.iter().any(|line| line.ends_with(&format!("-> {fate}"))), "{fate}: {found:#?}");
        check_pair(&base, &other, &[]);
    }
}
