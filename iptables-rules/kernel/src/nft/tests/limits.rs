//! Namespaces and plans with more rules than anybody needs.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::*;
use crate::nft::diff::differences;
use crate::read_limits::{ExceededLimit, ReadLimits};
use crate::{backend, netns_state};

/// Rules of the audit that stopped the repair of a node.
const HOSTILE_RULES: usize = 300_000;

/// Adds rules to a chain of a table in one transaction.
fn fill(family_and_table: &str, chain: &str, rules: usize) {
    let mut script = format!("add table {family_and_table}\nadd chain {family_and_table} {chain}\n");
    for n in 0..rules {
        let _ = writeln!(script, "add rule {family_and_table} {chain} meta mark {n} accept");
    }
    nft(&script);
}

#[test]
fn foreign_rules_are_not_read() {
    in_namespace(|| {
        let expected = rules(&CaptureConfig::default());
        apply(&expected).unwrap();
        fill("ip foreign", "many", HOSTILE_RULES);
        let begun = Instant::now();
        assert_eq!(verify(&expected).unwrap(), Vec::<String>::new());
        assert_eq!(apply(&expected).unwrap(), ApplyOutcome::Unchanged);
        assert_eq!(inspect().unwrap().others, [(TableFamily::Ip, "foreign".to_owned())]);
        assert_eq!(foreign_tables().unwrap(), Vec::<String>::new());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        remove().unwrap();
    });
}

#[test]
fn own_table_with_too_many_rules_is_refused_and_replaced() {
    in_namespace(|| {
        let expected = rules(&CaptureConfig::default());
        apply(&expected).unwrap();
        fill("inet weir", "many", HOSTILE_RULES);
        let begun = Instant::now();
        let patient = ReadLimits { time: Duration::from_mins(1), ..ReadLimits::default() }; // for debug builds
        let error = patient.within(|| verify(&expected)).unwrap_err();
        let limit = ReadLimits::default().objects;
        assert!(
            matches!(error, NftError::TooLarge { limit: ExceededLimit::Objects(at), .. } if at == limit),
            "{error}"
        );
        assert_eq!(
            error.to_string(),
            "nf_tables is not read completely: rules of family inet: more than 40000 objects"
        );
        assert!(backend::differences(&expected, backend::BackendOptions::default()).unwrap_err().is_over_limit());
        assert!(inspect().unwrap_err().is_over_limit());
        assert!(netns_state::read().is_err());
        assert!(begun.elapsed() < Duration::from_secs(80), "{:?}", begun.elapsed());
        assert_eq!(apply(&expected).unwrap(), ApplyOutcome::Replaced);
        assert_eq!(verify(&expected).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn reading_ends_with_its_time() {
    in_namespace(|| {
        apply(&rules(&CaptureConfig::default())).unwrap();
        let none = ReadLimits { time: Duration::ZERO, ..ReadLimits::default() };
        let error = none.within(read_back).unwrap_err();
        assert!(matches!(error, NftError::Timeout { .. }), "{error}");
        let few = ReadLimits { bytes: 2_000, ..ReadLimits::default() };
        let error = few.within(read_back).unwrap_err();
        assert!(matches!(error, NftError::TooLarge { limit: ExceededLimit::Bytes(2_000), .. }), "{error}");
        assert!(read_back().is_ok(), "the limits end with the scope");
    });
}

#[test]
fn twenty_thousand_rules_are_lowered_compared_and_printed_at_once() {
    let config = CaptureConfig {
        owner_groups: OwnerGroups::AllBut((0..1_000).map(iptables_rules::config::Group::Id).collect()),
        outbound_ports_exclude: (1..1_000).collect(),
        ..CaptureConfig::default()
    };
    let mut many = rules(&config);
    let group = many.rules.iter().find(|rule| rule.reason == iptables_rules::ruleset::RuleReason::OwnerGroup).unwrap();
    let (group, at) = (group.clone(), many.rules.iter().position(|rule| rule == group).unwrap());
    let more = (1_000..20_000).map(|id| iptables_rules::ruleset::Rule {
        matches: vec![iptables_rules::ruleset::Match::Gid {
            group: iptables_rules::config::Group::Id(id),
            negated: false,
        }],
        ..group.clone()
    });
    many.rules.splice(at..at, more);
    let begun = Instant::now();
    let program = program(&many).unwrap();
    assert!(program.to_string().lines().count() > 20_000);
    assert_eq!(differences(&program, &program), Vec::<String>::new());
    let lines = differences(&program, &super::program(&rules(&v4_only())).unwrap());
    assert!(lines.len() <= 201, "{} lines", lines.len());
    let trace = many.trace(&iptables_rules::trace::Packet {
        origin: iptables_rules::trace::PacketOrigin::Sent { interface: "eth0".to_owned(), owner: None },
        transport: iptables_rules::trace::Transport::Tcp,
        source: "10.0.0.1".parse().unwrap(),
        source_port: 1,
        destination: "10.0.0.2".parse().unwrap(),
        destination_port: 2_000,
        mark: 0,
        connection_mark: 0,
        state: iptables_rules::trace::ConntrackState::New,
    });
    assert!(trace.uncertain_rules.is_empty());
    assert!(chains(&program, "10.0.0.1".parse().unwrap()).chains.iter().any(|chain| chain.rules.len() > 20_000));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
