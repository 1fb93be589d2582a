//! Compares with the real kernel, and with what iptables-nft writes and prints.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::iptables as fallback;
use crate::testing::{cases, in_foreign_user_namespace, in_namespace, nft, tool};
use iptables_rules::CaptureConfig;
use iptables_rules::config::{DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups};

/// Foreign rules in tables and chains that we use, too.
const FOREIGN: &str = "*nat\n-N KUBE\n-A PREROUTING -i cali0 -j RETURN\n-A PREROUTING -p tcp -m comment --comment \"not weir\" -j KUBE\n\
    -A OUTPUT -j KUBE\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n";

fn rules(config: &CaptureConfig) -> RuleSet {
    iptables_rules::plan(config).unwrap()
}

/// Returns what both programs print, sorted by chain, without counters and timestamps.
fn saved() -> String {
    let mut lines = Vec::new();
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        let mut table = String::new();
        for line in tool(program, &[], "").lines().filter(|line| !line.starts_with('#')) {
            if line.starts_with('*') {
                line.clone_into(&mut table);
            }
            lines.push(format!("{program} {table} {}", line.split(" [").next().unwrap()));
        }
    }
    // Chains are listed by age. The sort is stable, so that the rules of a chain keep their order.
    lines.sort_by_key(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (
            words[0].to_owned(),
            words[1].to_owned(),
            words[2] == "-A",
            words.get(3).map(|w| (*w).to_owned()).filter(|_| words[2] == "-A"),
        )
    });
    lines.sort_by_key(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "));
    lines.join("\n")
}

fn apply_now(rules: &RuleSet) -> ApplyOutcome {
    super::apply(rules, false).unwrap()
}

fn clean() -> Vec<String> {
    Vec::new()
}

#[test]
fn iptables_prints_our_rules_like_its_own() {
    in_namespace(|| {
        let config = cases(32);
        TestRunner::new(config)
            .run(&iptables_rules::arbitrary::config_by_id(), |config| {
                nft("flush ruleset");
                let rules = rules(&config);
                fallback::apply(&rules, Some(fallback::IptablesVariant::Nft), false).unwrap();
                let theirs = saved();
                nft("flush ruleset");
                let applied = apply_now(&rules);
                prop_assert_eq!(applied == ApplyOutcome::Unchanged, rules.is_empty());
                prop_assert_eq!(saved(), theirs);
                // The backend iptables accepts our rules.
                prop_assert_eq!(fallback::verify(&rules, Some(fallback::IptablesVariant::Nft)).unwrap(), clean());
                prop_assert_eq!(verify(&rules).unwrap(), clean());
                prop_assert_eq!(apply_now(&rules), ApplyOutcome::Unchanged);
                // And can remove them.
                prop_assert_eq!(fallback::remove(Some(fallback::IptablesVariant::Nft)).unwrap(), !rules.is_empty());
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn replaces_and_keeps_foreign_rules() {
    in_namespace(|| {
        for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
            tool(program, &[], FOREIGN);
        }
        let before = saved();
        let net1 = vec![InterfaceName::new("net1").unwrap()];
        let configs = [
            CaptureConfig::default(),
            CaptureConfig { mode: InterceptionMode::Tproxy, drop_invalid: true, ..CaptureConfig::default() },
            CaptureConfig { dns: DnsCapture::All, ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() },
            CaptureConfig { exclude_interfaces: net1.clone(), reroute_interfaces: net1, ..CaptureConfig::default() },
        ];
        assert!(!remove().unwrap());
        for (turn, config) in configs.iter().chain(&configs[..1]).enumerate() {
            let rules = rules(config);
            assert!(!verify(&rules).unwrap().is_empty());
            assert_eq!(apply_now(&rules), if turn == 0 { ApplyOutcome::Created } else { ApplyOutcome::Replaced });
            assert_eq!(verify(&rules).unwrap(), clean());
            assert_eq!(apply_now(&rules), ApplyOutcome::Unchanged);
            assert_eq!(super::apply(&rules, true).unwrap(), ApplyOutcome::Replaced);
            let ours = saved();
            assert!(before.lines().all(|line| ours.contains(line)), "{ours}");
        }
        assert!(remove().unwrap());
        assert!(!remove().unwrap());
        let left = saved();
        // Empty tables and built-in chains may stay, as with iptables.
        let missing: Vec<_> = before.lines().filter(|line| !left.contains(line)).collect();
        assert!(missing.is_empty() && !left.contains("ISTIO") && !left.contains("comment weir"), "{missing:?}\n{left}");
        assert_eq!(left.matches(" -A ").count(), before.matches(" -A ").count());
    });
}

#[test]
fn replaces_rules_of_istio_init() {
    in_namespace(|| {
        let rules = rules(&CaptureConfig::default());
        tool("iptables-nft-restore", &["--noflush"], &iptables_rules::restore::restore_text(&rules, RestoreFamily::V4));
        tool("iptables-nft", &["-t", "nat", "-A", "ISTIO_OUTPUT", "-p", "icmp", "-j", "RETURN"], "");
        assert_eq!(apply_now(&rules), ApplyOutcome::Replaced);
        assert_eq!(verify(&rules).unwrap(), clean());
        assert_eq!(saved().matches("PREROUTING").count(), 4, "one chain and one rule in table nat of each family");
        assert!(remove().unwrap());
        assert_eq!(saved().matches(" -A ").count(), 0);
    });
}

#[test]
fn verify_names_the_differences() {
    in_namespace(|| {
        let rules = rules(&CaptureConfig::default());
        let after = |command: &str| {
            apply_now(&rules);
            let words: Vec<&str> = command.split(' ').collect();
            tool(words[0], &words[1..], "");
            verify(&rules).unwrap()
        };
        assert_eq!(after("iptables-nft -t nat -F ISTIO_OUTPUT"), ["iptables nat ISTIO_OUTPUT: rule 1 differs"]);
        assert_eq!(after("ip6tables-nft -t nat -D ISTIO_OUTPUT 3"), ["ip6tables nat ISTIO_OUTPUT: rule 3 differs"]);
        assert_eq!(after("iptables-nft -t nat -D OUTPUT 1"), ["iptables nat OUTPUT: rule 1 differs"]);
        assert_eq!(after("iptables-nft -t mangle -N ISTIO_DROP"), ["iptables mangle ISTIO_DROP: is stale"]);
        assert_eq!(after("iptables-nft -t nat -A OUTPUT -p udp -j RETURN"), clean(), "foreign rule");
    });
}

#[test]
fn rejects_group_names_and_names_rejected_rules() {
    in_namespace(|| {
        let java = Group::parse("java").unwrap();
        let named = CaptureConfig { owner_groups: OwnerGroups::AllBut(vec![java]), ..CaptureConfig::default() };
        let error = super::apply(&rules(&named), false).unwrap_err().to_string();
        assert!(error.contains("ISTIO_OUTPUT in table nat: group java is given by name"), "{error}");
        let mut broken = rules(&CaptureConfig::default());
        let mut rule = broken.rules[1].clone();
        (rule.table, rule.chain) = (Table::Raw, "OUTPUT");
        rule.action = iptables_rules::ruleset::Action::Redirect(7);
        broken.rules.push(rule);
        let error = super::apply(&broken, false).unwrap_err().to_string();
        assert!(error.contains("iptables raw: -A OUTPUT -p tcp"), "{error}");
        assert_eq!(saved().matches("ISTIO").count(), 0);
    });
}

/// This is a limit of the kernel, which native expressions do not have.
#[test]
fn error_for_user_namespace_names_the_alternative() {
    in_namespace(|| {
        let rules = rules(&CaptureConfig::default());
        let (error, held) = in_foreign_user_namespace(|| (super::apply(&rules, false), saved()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("-m owner --uid-owner 1337") && error.contains("hostUsers: false"), "{error}");
        assert!(!held.contains("ISTIO"), "{held}");
    });
}
