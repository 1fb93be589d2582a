use std::ops::RangeInclusive;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::*;
use crate::config::{Group, OwnerGroups};
use crate::names::LOOPBACK_INTERFACE;
use crate::trace::{ConntrackState, Disposition, Packet, PacketOrigin, Transport};
use crate::{CaptureConfig, arbitrary};

const PROXY: u32 = 1337;

/// Every outbound TCP connection of users and groups other than the proxy's, to ports other than the default exclusion.
fn outbound_is_captured() -> Assertion {
    let but = |id: u32| Selection { only: Vec::new(), except: vec![id..=id] };
    Assertion {
        direction: Direction::Outbound,
        families: RestoreFamily::ALL.to_vec(),
        protocols: vec![6],
        peers: Selection::default(),
        ports: Selection { only: Vec::new(), except: vec![15020..=15020] },
        uids: but(PROXY),
        gids: but(PROXY),
        must: Must::BeCaptured,
        quantifier: Quantifier::Every,
    }
}

fn decide(config: &CaptureConfig, assertion: &Assertion) -> AssertionOutcome {
    assert(&crate::plan(config).unwrap(), assertion)
}

/// Lists violations as `CLASS: FATE`.
fn lines(outcome: &AssertionOutcome) -> Vec<String> {
    let AssertionOutcome::Violated(violations) = outcome else { panic!("{outcome:?}") };
    let of = |violation: &Violation| -> Vec<String> {
        violation.classes.iter().map(|class| format!("{class}: {}", violation.fate)).collect()
    };
    violations.fates.iter().flat_map(of).collect()
}

#[test]
fn violations_are_readable_ranges() {
    let (base, captured) = (CaptureConfig::default(), outbound_is_captured());
    assert_eq!(decide(&base, &captured), AssertionOutcome::Holds);
    let excluded = CaptureConfig { outbound_ports_exclude: vec![15020, 3306], ..base.clone() };
    assert_eq!(
        lines(&decide(&excluded, &captured)),
        ["IPv4", "IPv6"].map(|family| format!(
            "outbound {family} TCP of uid other than 1337 and gid other than 1337 to port 3306: not captured"
        ))
    );
}

#[test]
fn one_connection_is_enough_for_some() {
    let excluding = |nets: &[&str]| CaptureConfig {
        outbound_cidrs_exclude: nets.iter().map(|net| net.parse().unwrap()).collect(),
        ..CaptureConfig::default()
    };
    let some = Assertion { quantifier: Quantifier::Some, families: vec![RestoreFamily::V4], ..outbound_is_captured() };
    assert_eq!(decide(&excluding(&["10.0.0.0/8"]), &some), AssertionOutcome::Holds);
    assert!(matches!(decide(&excluding(&["0.0.0.0/0"]), &some), AssertionOutcome::Violated(_)));
    assert!(matches!(decide(&excluding(&["0.0.0.0/1", "128.0.0.0/1"]), &some), AssertionOutcome::Violated(_)));
}

#[test]
fn rules_that_are_not_understood_are_named() {
    let chains = |rule: &str| {
        let save =
            format!("*nat\n:OUTPUT ACCEPT [0:0]\n{rule}\n-A OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n");
        [Chains::from_iptables_save(&save), Chains::default()]
    };
    let captured = Assertion { families: vec![RestoreFamily::V4], ..outbound_is_captured() };
    let of_rule =
        |rule: &str, assertion: &Assertion| assert_chains(&chains(rule), std::slice::from_ref(assertion)).remove(0);
    let random = "-A OUTPUT -p tcp --dport 80 -m statistic --mode random --probability 0.5 -j RETURN";
    let AssertionOutcome::Unknown(places) = of_rule(random, &captured) else { panic!() };
    assert!(places[0].starts_with("rule 1 of chain OUTPUT"), "{places:?}");
    // An assertion that no packet of the rule is about is decided.
    let elsewhere = Assertion { ports: Selection { only: vec![443..=443], except: Vec::new() }, ..captured.clone() };
    assert_eq!(of_rule(random, &elsewhere), AssertionOutcome::Holds);

    let java = OwnerGroups::AllBut(vec![Group::parse("java").unwrap()]);
    let config = CaptureConfig { owner_groups: java, ..CaptureConfig::default() };
    let AssertionOutcome::Unknown(places) = decide(&config, &captured) else { panic!() };
    assert_eq!(places, ["--gid-owner java: a name, not a group id"]);
}

#[test]
fn other_fates_can_be_demanded() {
    let base = CaptureConfig::default();
    let proxy = Selection { only: vec![PROXY..=PROXY], except: Vec::new() };
    let bypass = Assertion { must: Must::Bypass, uids: proxy, gids: Selection::default(), ..outbound_is_captured() };
    assert_eq!(decide(&base, &bypass), AssertionOutcome::Holds);
    let dropped = Assertion { must: Must::BeDropped, ..outbound_is_captured() };
    assert!(matches!(decide(&base, &dropped), AssertionOutcome::Violated(_)));
    let inbound = Assertion {
        direction: Direction::Inbound,
        ports: Selection { only: vec![8080..=8080], except: Vec::new() },
        peers: Selection { only: vec!["10.0.0.0/8".parse().unwrap()], except: Vec::new() },
        ..outbound_is_captured()
    };
    assert_eq!(decide(&base, &inbound), AssertionOutcome::Holds);
    let everything = Assertion { ports: Selection::default(), ..inbound };
    let found = lines(&decide(&base, &everything));
    assert!(found.iter().any(|line| line.contains("from 10.0.0.0/8") && line.contains("15008")), "{found:?}");
}

fn has<T: PartialOrd>(selection: &Selection<RangeInclusive<T>>, value: &T) -> bool {
    (selection.only.is_empty() || selection.only.iter().any(|range| range.contains(value)))
        && !selection.except.iter().any(|range| range.contains(value))
}

/// Decides packet by packet what an assertion is about.
fn covers(assertion: &Assertion, packet: &Packet) -> bool {
    let protocol = match packet.transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Other(number) => number,
    };
    let family = if packet.destination.is_ipv4() { RestoreFamily::V4 } else { RestoreFamily::V6 };
    let (is_outbound, interface, owners, peer) = match &packet.origin {
        PacketOrigin::Received { interface } => (false, interface, true, packet.source),
        PacketOrigin::Sent { interface, owner } => {
            let selected =
                |owner: crate::trace::Owner| has(&assertion.uids, &owner.uid) && has(&assertion.gids, &owner.gid);
            (true, interface, owner.is_some_and(selected), packet.destination)
        }
    };
    let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&peer));
    is_outbound == (assertion.direction == Direction::Outbound)
        && assertion.families.contains(&family)
        && (assertion.protocols.is_empty() || assertion.protocols.contains(&protocol))
        && interface != LOOPBACK_INTERFACE
        && owners
        && (assertion.peers.only.is_empty() || within(&assertion.peers.only))
        && !within(&assertion.peers.except)
        && has(&assertion.ports, &packet.destination_port)
        && matches!(packet.state, ConntrackState::New | ConntrackState::Related)
        && (packet.mark, packet.connection_mark) == (0, 0)
        && (is_outbound || !packet.source.is_loopback())
        && !packet.destination.is_loopback()
}

fn allowed(must: Must, disposition: &Disposition) -> bool {
    match must {
        Must::BeCaptured => matches!(disposition, Disposition::Redirected { .. } | Disposition::Tproxied { .. }),
        Must::Bypass => matches!(disposition, Disposition::Passes { .. }),
        Must::BeDropped => matches!(disposition, Disposition::Dropped),
    }
}

fn assertions() -> impl Strategy<Value = Assertion> {
    let nets = || {
        let net = prop::sample::select(vec!["10.0.0.0/8", "0.0.0.0/1", "192.0.2.0/24", "2001:db8::/32", "::/1"]);
        prop::collection::vec(net.prop_map(|net| net.parse::<IpNet>().unwrap()), 0..2)
    };
    let ports = || prop::collection::vec(prop::sample::select(vec![0..=1023, 80..=80, 15000..=15100, 53..=53]), 0..2);
    let ids = || prop::collection::vec(prop::sample::select(vec![0..=999, 1337..=1337, 1000..=70_000]), 0..2);
    let must = prop::sample::select(vec![Must::BeCaptured, Must::BeCaptured, Must::Bypass, Must::BeDropped]);
    let protocols = prop::sample::select(vec![vec![6], vec![6], vec![17], vec![]]);
    let selections = ((nets(), nets()), (ports(), ports()), (ids(), ids()));
    (any::<bool>(), must, protocols, selections).prop_map(|(is_outbound, must, protocols, (peers, ports, uids))| {
        Assertion {
            direction: if is_outbound { Direction::Outbound } else { Direction::Inbound },
            families: RestoreFamily::ALL.to_vec(),
            protocols,
            peers: Selection { only: peers.0, except: peers.1 },
            ports: Selection { only: ports.0, except: ports.1 },
            uids: Selection { only: uids.0, except: uids.1 },
            gids: Selection::default(),
            must,
            quantifier: Quantifier::Every,
        }
    })
}

/// Compares the outcome of one assertion with the tracer on packets; returns how many packets violate it.
fn check(config: &CaptureConfig, assertion: &Assertion, packets: &[Packet]) -> usize {
    let chains =
        RestoreFamily::ALL.map(|family| Chains::from_rule_set(&crate::plan(config).unwrap(), family.any_address()));
    let violates = |packet: &Packet| {
        let trace = chains[usize::from(packet.destination.is_ipv6())].trace(packet);
        !allowed(assertion.must, &trace.disposition)
    };
    let outcome = assert_chains(&chains, std::slice::from_ref(assertion)).remove(0);
    let violations = match &outcome {
        AssertionOutcome::Holds => &[][..],
        AssertionOutcome::Violated(found) => &found.fates,
        AssertionOutcome::Unknown(places) => panic!("{places:?}"),
    };
    for class in violations.iter().flat_map(|violation| &violation.classes) {
        let witness = &class.witness;
        assert!(class.contains(witness) && covers(assertion, witness) && violates(witness), "{class}: {assertion:?}");
    }
    let is_truncated = violations.iter().any(|violation| violation.is_truncated);
    let mut found = 0;
    for packet in packets {
        let is_violation = covers(assertion, packet) && violates(packet);
        let listed = violations.iter().flat_map(|violation| &violation.classes).any(|class| class.contains(packet));
        assert!(is_violation || !listed || !covers(assertion, packet), "{packet:?} {assertion:?}");
        assert!(!is_violation || listed || is_truncated, "{packet:?} {assertion:?} {outcome:?}");
        found += usize::from(is_violation);
    }
    found
}

#[test]
fn assertions_agree_with_the_tracer() {
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(20_261_202), ..Config::default() });
    let packets = prop::collection::vec(arbitrary::packet(), 100);
    let strategy = (arbitrary::config_by_id(), prop::collection::vec(assertions(), 4), packets);
    let mut found = 0;
    for _ in 0..100 {
        let (config, assertions, packets) = strategy.new_tree(&mut runner).unwrap().current();
        let mut packets: Vec<Packet> = packets.iter().map(|packet| packet.towards(&config)).collect();
        for packet in &mut packets {
            // Most assertions are about first packets without marks.
            (packet.mark, packet.connection_mark) = (0, 0);
            packet.state = ConntrackState::New;
        }
        for assertion in &assertions {
            found += check(&config, assertion, &packets);
        }
    }
    assert!(found > 200, "too few violations: {found}");
}
