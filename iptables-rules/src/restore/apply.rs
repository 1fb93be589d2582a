//! Backend `iptables`: the restore text through `iptables-restore`, where nf_tables is missing. Acts on the network namespace of the
//! calling thread, which child processes inherit.
//!
//! Rules in built-in chains carry the comment [`OWNER`], so that ours can be told from foreign ones when they are replaced or removed;
//! apart from that the text is [`restore_text`](super::restore_text)'s. One call per family is atomic per table, no more; where one
//! fails, rules go that were not there before, and rules that took the place of older ones stay.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::parse::{self, Line, Text};
pub use super::process::RestoreError;
use super::process::run;
use super::{RestoreFamily, rule_line, write_rules};
use crate::RuleSet;
use crate::names::chain;
use crate::nft::Applied;
use crate::ruleset::{Action, Families, Match, Rule, Table};

/// Comment of our rules in built-in chains.
pub const OWNER: &str = "weir";

/// How long one call may take; `--wait` bounds the wait for the lock of the legacy variant.
const LIMIT: Duration = Duration::from_secs(10);
const LOCK_WAIT: &str = "--wait=5";

/// Installs the rules of both families; nothing is sent for a family whose rules are in place.
///
/// # Errors
/// See [`RestoreError`]. A family that had no rules of ours has none then; another one has its old or its new ones: a pod of the mesh
/// is never without.
pub fn apply(rules: &RuleSet) -> Result<Applied, RestoreError> {
    let mut created = Vec::new();
    apply_families(rules, &mut created).inspect_err(|_| {
        for family in created {
            // The first error says what is wrong; a second one would only hide it.
            let _ = withdraw(family);
        }
    })
}

/// Notes the families in which there was nothing of ours before it touches them: a call that fails may have done a table already.
fn apply_families(rules: &RuleSet, created: &mut Vec<RestoreFamily>) -> Result<Applied, RestoreError> {
    let (mut sent, mut had_some) = (false, false);
    for family in [RestoreFamily::V4, RestoreFamily::V6] {
        let Some(saved) = saved_for(rules, family)? else { continue };
        let current = parse::parse(&saved);
        let fresh = !current.lines.iter().any(is_ours) && own_chains(&current).next().is_none();
        had_some |= !fresh;
        if differences(&current, rules, family).is_empty() {
            continue;
        }
        if fresh {
            created.push(family);
        }
        restore(family, change(&current, rules, family))?;
        sent = true;
    }
    Ok(match (sent, had_some) {
        (false, _) => Applied::Unchanged,
        (true, false) => Applied::Created,
        (true, true) => Applied::Replaced,
    })
}

/// Removes our rules and chains of one family.
fn withdraw(family: RestoreFamily) -> Result<(), RestoreError> {
    let nothing = RuleSet::default();
    match saved_for(&nothing, family)? {
        Some(saved) => restore(family, change(&parse::parse(&saved), &nothing, family)),
        None => Ok(()),
    }
}

/// Removes our rules and chains of both families; `false` if there were none.
///
/// # Errors
/// See [`RestoreError`].
pub fn remove() -> Result<bool, RestoreError> {
    let none = RuleSet { families: Families::V4, ..RuleSet::default() };
    Ok(apply(&none)? != Applied::Unchanged)
}

/// Compares the kernel's rules with the expected ones: one line per difference, empty when they are equal.
///
/// A rule with the name of a group counts as different from the kernel's, which has the id.
///
/// # Errors
/// See [`RestoreError`].
pub fn verify(expected: &RuleSet) -> Result<Vec<String>, RestoreError> {
    let mut lines = Vec::new();
    for family in [RestoreFamily::V4, RestoreFamily::V6] {
        if let Some(saved) = saved_for(expected, family)? {
            lines.extend(differences(&parse::parse(&saved), expected, family));
        }
    }
    Ok(lines)
}

/// What the kernel has; `None` where IPv6 is not wanted and cannot be asked for, as on machines without it.
fn saved_for(rules: &RuleSet, family: RestoreFamily) -> Result<Option<String>, RestoreError> {
    let program = match family {
        RestoreFamily::V4 => "iptables-save",
        RestoreFamily::V6 => "ip6tables-save",
    };
    match run(program, &[], String::new(), LIMIT) {
        Err(RestoreError::Missing { .. } | RestoreError::Failed { .. })
            if family == RestoreFamily::V6 && rules.families == Families::V4 =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn restore(family: RestoreFamily, text: String) -> Result<(), RestoreError> {
    let program = match family {
        RestoreFamily::V4 => "iptables-restore",
        RestoreFamily::V6 => "ip6tables-restore",
    };
    run(program, &["--noflush", LOCK_WAIT], text, LIMIT).map(|_| ())
}

/// Whether a rule in a built-in chain is ours: by the comment, or because it leads to one of our chains.
fn is_ours(line: &Line<'_>) -> bool {
    !chain::ALL.contains(&line.chain)
        && (line.has("--comment", |comment| comment == OWNER) || line.has("-j", |target| chain::ALL.contains(&target)))
}

fn own_chains<'t, 'a>(text: &'t Text<'a>) -> impl Iterator<Item = (Table, &'a str)> + 't {
    text.chains.iter().copied().filter(|(_, chain)| chain::ALL.contains(chain))
}

const fn tool(family: RestoreFamily) -> &'static str {
    match family {
        RestoreFamily::V4 => "iptables",
        RestoreFamily::V6 => "ip6tables",
    }
}

const fn any_address(family: RestoreFamily) -> IpAddr {
    match family {
        RestoreFamily::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        RestoreFamily::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// One line for each chain that is not as expected.
fn differences(current: &Text<'_>, rules: &RuleSet, family: RestoreFamily) -> Vec<String> {
    let mut lines = Vec::new();
    for table in Table::ALL {
        let wanted_chains = super::own_chains(&super::rules_of(rules, table, family));
        for name in [chain::PREROUTING, chain::BUILTIN_OUTPUT].into_iter().chain(chain::ALL) {
            let place = format!("{} {} {name}", tool(family), table.name());
            let own = chain::ALL.contains(&name);
            if own && wanted_chains.contains(&name) != own_chains(current).any(|chain| chain == (table, name)) {
                lines.push(format!(
                    "{place}: {}",
                    if wanted_chains.contains(&name) { "is missing" } else { "is left over" }
                ));
                continue;
            }
            let wanted: Vec<_> = rules
                .chain_rules(table, name, any_address(family))
                .into_iter()
                .filter(|_| family.is_in(rules.families))
                .map(|rule| Some(canonical(&rule.matches, rule.action)))
                .collect();
            let found: Vec<_> = current
                .lines
                .iter()
                .filter(|line| line.table == table && line.chain == name)
                .filter(|line| own || is_ours(line))
                .map(|line| line.rule.as_ref().map(|rule| canonical(&rule.matches, rule.action)))
                .collect();
            if let Some(at) = (0..wanted.len().max(found.len())).find(|&at| wanted.get(at) != found.get(at)) {
                lines.push(format!("{place}: rule {} is not the planned one", at + 1));
            }
        }
    }
    lines
}

/// A rule in a form that does not depend on how it was spelled.
fn canonical(matches: &[Match], action: Action) -> (Vec<String>, Action) {
    let mut words: Vec<String> = matches
        .iter()
        .filter_map(|condition| {
            let condition = match condition.clone() {
                Match::Source { net, negated } => Match::Source { net: net.trunc(), negated },
                Match::Destination { net, negated } => Match::Destination { net: net.trunc(), negated },
                other => other,
            };
            let everything = matches!(condition,
                Match::Source { net, negated: false } | Match::Destination { net, negated: false } if net.prefix_len() == 0);
            (!everything).then(|| format!("{condition:?}"))
        })
        .collect();
    words.sort();
    (words, action)
}

/// Input of one restore call that takes away what there is of ours and adds what is planned.
fn change(current: &Text<'_>, rules: &RuleSet, family: RestoreFamily) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let wanted = super::rules_of(rules, table, family);
        let mut section = String::new();
        // Writing to a String cannot fail. Jumps go first: a chain can be deleted only when nothing leads to it.
        for line in current.lines.iter().filter(|line| line.table == table && is_ours(line)) {
            let _ = writeln!(section, "-D {} {}", line.chain, line.spec);
        }
        for command in ["-F", "-X"] {
            for (_, name) in own_chains(current).filter(|(of, _)| *of == table) {
                let _ = writeln!(section, "{command} {name}");
            }
        }
        write_rules(&mut section, &wanted, line_with_owner);
        if !section.is_empty() {
            let _ = write!(text, "* {}\n{section}COMMIT\n", table.name());
        }
    }
    text
}

fn line_with_owner(rule: &Rule) -> String {
    let line = rule_line(rule);
    if chain::ALL.contains(&rule.chain) {
        return line;
    }
    line.replacen(" -j ", &format!(" -m comment --comment {OWNER} -j "), 1)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::CaptureConfig;
    use crate::config::{Group, Ipv6Policy, OwnerGroups};

    /// Rules that are none of ours, in tables and chains that we use too.
    const FOREIGN: &str = "* nat\n-N KUBE\n-A PREROUTING -i cali0 -j RETURN\n-A PREROUTING -p tcp -m comment --comment \"not weir\" -j KUBE\n\
        -A OUTPUT -j KUBE\nCOMMIT\n* filter\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n";

    /// Runs a test in a network namespace of its own, which ends with its thread.
    fn in_fresh_namespace(test: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            println!("skipped: needs root");
            return;
        }
        let body = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            test();
        };
        let ended = thread::scope(|scope| scope.spawn(body).join());
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }

    fn planned(config: &CaptureConfig) -> RuleSet {
        crate::plan(config).unwrap()
    }

    /// What the kernel has, without the lines that change by themselves and the order of chains.
    fn kernel() -> Vec<String> {
        let mut lines = Vec::new();
        for program in ["iptables-save", "ip6tables-save"] {
            let text = run(program, &[], String::new(), LIMIT).unwrap();
            let rules = text.lines().filter(|line| line.starts_with("-A") || line.contains(" - "));
            lines.extend(rules.map(|line| format!("{program} {line}")));
        }
        lines.sort();
        lines
    }

    #[test]
    fn applies_once_replaces_and_removes_without_touching_others() {
        in_fresh_namespace(|| {
            for family in [RestoreFamily::V4, RestoreFamily::V6] {
                restore(family, FOREIGN.to_owned()).unwrap();
            }
            let before = kernel();
            let first = planned(&CaptureConfig::default());
            let left =
                planned(&CaptureConfig { ipv6: Ipv6Policy::Leave, drop_invalid: true, ..CaptureConfig::default() });
            assert!(!verify(&first).unwrap().is_empty());
            assert!(!remove().unwrap());
            assert_eq!(apply(&first).unwrap(), Applied::Created);
            assert_eq!(verify(&first).unwrap(), Vec::<String>::new());
            assert_eq!(apply(&first).unwrap(), Applied::Unchanged);
            assert_eq!(
                verify(&left).unwrap().first().map(String::as_str),
                Some("iptables mangle PREROUTING: rule 1 is not the planned one")
            );
            assert_eq!(apply(&left).unwrap(), Applied::Replaced);
            assert_eq!(verify(&left).unwrap(), Vec::<String>::new());
            assert!(!kernel().iter().any(|line| line.starts_with("ip6") && line.contains("ISTIO")));
            assert!(remove().unwrap());
            assert_eq!(kernel(), before);
        });
    }

    #[test]
    fn replaces_what_istios_own_container_left() {
        in_fresh_namespace(|| {
            let rules = planned(&CaptureConfig::default());
            restore(RestoreFamily::V4, super::super::restore_text(&rules, RestoreFamily::V4)).unwrap();
            restore(RestoreFamily::V4, "* nat\n-A ISTIO_OUTPUT -p icmp -j RETURN\nCOMMIT\n".to_owned()).unwrap();
            assert_eq!(apply(&rules).unwrap(), Applied::Replaced);
            assert_eq!(verify(&rules).unwrap(), Vec::<String>::new());
            assert!(remove().unwrap());
            assert_eq!(kernel(), Vec::<String>::new());
        });
    }

    #[test]
    fn a_family_that_fails_leaves_neither_halves_nor_a_pod_without_rules() {
        use crate::ruleset::{Family, Position, Reason};
        in_fresh_namespace(|| {
            let good = planned(&CaptureConfig::default());
            let mut bad = good.clone();
            bad.rules.push(Rule {
                table: Table::Nat,
                chain: chain::PREROUTING,
                position: Position::Append,
                family: Family::V6,
                matches: Vec::new(),
                action: Action::Jump("NOWHERE"),
                reason: Reason::Hook,
            });
            assert!(apply(&bad).is_err());
            assert_eq!(kernel(), Vec::<String>::new());

            apply(&good).unwrap();
            let before = kernel();
            assert!(apply(&bad).is_err());
            assert_eq!(kernel(), before);
        });
    }

    #[test]
    fn a_family_that_joins_the_other_replaces() {
        in_fresh_namespace(|| {
            let v4 = planned(&CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() });
            assert_eq!(apply(&v4).unwrap(), Applied::Created);
            // Not `Created`, which would let a caller who fails later remove everything.
            assert_eq!(apply(&planned(&CaptureConfig::default())).unwrap(), Applied::Replaced);
        });
    }

    #[test]
    fn a_refused_text_names_the_program_and_its_words() {
        in_fresh_namespace(|| {
            let error = restore(RestoreFamily::V6, "* nat\n-A PREROUTING -j NOWHERE\nCOMMIT\n".to_owned())
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("ip6tables-restore failed (exit status: "), "{error}");
            assert!(error.contains("line"), "{error}");
        });
    }

    /// For any two configurations: the kernel takes each, has exactly it afterwards, and has nothing of either at the end.
    #[test]
    fn any_configuration_can_be_applied_replaced_and_removed() {
        in_fresh_namespace(|| {
            let mut runner =
                TestRunner::new(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() });
            let by_id = crate::arbitrary::config().prop_map(|mut config| {
                // The kernel knows groups by id only, so a set with names never counts as equal.
                let (OwnerGroups::AllBut(groups) | OwnerGroups::Only(groups)) = &mut config.owner_groups;
                groups.retain(|group| matches!(group, Group::Id(_)));
                config
            });
            let foreign = {
                restore(RestoreFamily::V4, FOREIGN.to_owned()).unwrap();
                kernel()
            };
            runner
                .run(&proptest::collection::vec(by_id, 2), |configs| {
                    for config in &configs {
                        let rules = planned(config);
                        apply(&rules).map_err(|error| TestCaseError::fail(error.to_string()))?;
                        prop_assert_eq!(verify(&rules).unwrap(), Vec::<String>::new());
                        prop_assert_eq!(apply(&rules).unwrap(), Applied::Unchanged);
                    }
                    remove().unwrap();
                    prop_assert_eq!(&kernel(), &foreign);
                    Ok(())
                })
                .unwrap();
        });
    }

    #[test]
    fn any_text_is_taken_by_the_kernel() {
        in_fresh_namespace(|| {
            let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
            TestRunner::new(config)
                .run(&crate::arbitrary::config(), |config| {
                    let rules = planned(&config);
                    for family in [RestoreFamily::V4, RestoreFamily::V6] {
                        let text = super::super::restore_text(&rules, family);
                        restore(family, text).map_err(|error| TestCaseError::fail(error.to_string()))?;
                    }
                    prop_assert_eq!(remove().unwrap(), !rules.is_empty());
                    Ok(())
                })
                .unwrap();
        });
    }
}
