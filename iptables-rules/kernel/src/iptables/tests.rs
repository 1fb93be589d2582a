//! The fallback against the real kernel, by every variant of iptables that works here.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::testing::{cases, in_namespace};
use iptables_rules::CaptureConfig;
use iptables_rules::config::Ipv6Policy;

/// Rules that are none of ours, in tables and chains that we use too.
const FOREIGN: &str = "* nat\n-N KUBE\n-A PREROUTING -i cali0 -j RETURN\n-A PREROUTING -p tcp -m comment --comment \"not weir\" -j KUBE\n\
    -A OUTPUT -j KUBE\nCOMMIT\n* filter\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n";

/// One variant in a namespace of its own.
struct Fixture {
    variant: Option<Variant>,
    programs: Programs,
}

impl Fixture {
    fn apply(&self, rules: &RuleSet) -> Result<Applied, RestoreError> {
        apply(rules, self.variant, false)
    }

    fn verify(&self, rules: &RuleSet) -> Vec<String> {
        verify(rules, self.variant).unwrap()
    }

    fn remove(&self) -> bool {
        remove(self.variant).unwrap()
    }

    /// What the kernel has, without the lines that change by themselves and the order of chains.
    fn kernel(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for family in RestoreFamily::ALL {
            let text = self.programs.save(family).unwrap();
            let rules = text.lines().filter(|line| line.starts_with("-A") || line.contains(" - "));
            lines.extend(rules.map(|line| format!("{} {line}", family.tool())));
        }
        lines.sort();
        lines
    }
}

/// Runs a test once for each variant that works here, and once for the one that is found.
fn with_every_variant(test: impl Fn(&Fixture) + Sync) {
    for variant in [None, Some(Variant::Legacy), Some(Variant::Nft)] {
        in_namespace(|| {
            let programs = Programs::find(variant).unwrap();
            // A new kernel may have no x_tables any more.
            match programs.restore(RestoreFamily::V4, "*nat\nCOMMIT\n".to_owned()) {
                Err(error) if variant == Some(Variant::Legacy) => eprintln!("skipped: {error}"),
                other => {
                    other.unwrap();
                    test(&Fixture { variant, programs });
                }
            }
        });
    }
}

fn planned(config: &CaptureConfig) -> RuleSet {
    iptables_rules::plan(config).unwrap()
}

#[test]
fn applies_once_replaces_and_removes_without_touching_others() {
    with_every_variant(|on| {
        for family in RestoreFamily::ALL {
            on.programs.restore(family, FOREIGN.to_owned()).unwrap();
        }
        let before = on.kernel();
        let first = planned(&CaptureConfig::default());
        let left = planned(&CaptureConfig { ipv6: Ipv6Policy::Leave, drop_invalid: true, ..CaptureConfig::default() });
        assert!(!on.verify(&first).is_empty());
        assert!(!on.remove());
        assert_eq!(on.apply(&first).unwrap(), Applied::Created);
        assert_eq!(on.verify(&first), Vec::<String>::new());
        assert_eq!(on.apply(&first).unwrap(), Applied::Unchanged);
        assert_eq!(
            on.verify(&left).first().map(String::as_str),
            Some("iptables mangle PREROUTING: rule 1 is not the planned one")
        );
        assert_eq!(on.apply(&left).unwrap(), Applied::Replaced);
        assert_eq!(on.verify(&left), Vec::<String>::new());
        assert!(!on.kernel().iter().any(|line| line.starts_with("ip6") && line.contains("ISTIO")));
        assert!(on.remove());
        assert_eq!(on.kernel(), before);
    });
}

#[test]
fn replaces_what_istios_own_container_left() {
    with_every_variant(|on| {
        let rules = planned(&CaptureConfig::default());
        on.programs
            .restore(RestoreFamily::V4, iptables_rules::restore::restore_text(&rules, RestoreFamily::V4))
            .unwrap();
        on.programs
            .restore(RestoreFamily::V4, "* nat\n-A ISTIO_OUTPUT -p icmp -j RETURN\nCOMMIT\n".to_owned())
            .unwrap();
        assert_eq!(on.apply(&rules).unwrap(), Applied::Replaced);
        assert_eq!(on.verify(&rules), Vec::<String>::new());
        assert!(on.remove());
        assert_eq!(on.kernel(), Vec::<String>::new());
    });
}

#[test]
fn a_family_that_fails_leaves_neither_halves_nor_a_pod_without_rules() {
    use iptables_rules::ruleset::{Family, Position, Reason};
    with_every_variant(|on| {
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
        assert!(on.apply(&bad).is_err());
        assert_eq!(on.kernel(), Vec::<String>::new());

        on.apply(&good).unwrap();
        let before = on.kernel();
        assert!(on.apply(&bad).is_err());
        assert_eq!(on.kernel(), before);
    });
}

#[test]
fn a_family_that_joins_the_other_replaces() {
    with_every_variant(|on| {
        let v4 = planned(&CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() });
        assert_eq!(on.apply(&v4).unwrap(), Applied::Created);
        // Not `Created`, which would let a caller who fails later remove everything.
        assert_eq!(on.apply(&planned(&CaptureConfig::default())).unwrap(), Applied::Replaced);
    });
}

#[test]
fn a_refused_text_names_the_program_and_its_words() {
    with_every_variant(|on| {
        let error = on
            .programs
            .restore(RestoreFamily::V6, "* nat\n-A PREROUTING -j NOWHERE\nCOMMIT\n".to_owned())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("ip6tables") && error.contains("-restore failed (exit status: "), "{error}");
        assert!(error.contains("line"), "{error}");
    });
}

/// For any two configurations: the kernel takes each, has exactly it afterwards, and has nothing of either at the end.
#[test]
fn any_configuration_can_be_applied_replaced_and_removed() {
    with_every_variant(|on| {
        let mut runner = TestRunner::new(cases(24));
        let foreign = {
            on.programs.restore(RestoreFamily::V4, FOREIGN.to_owned()).unwrap();
            on.kernel()
        };
        runner
            .run(&proptest::collection::vec(iptables_rules::arbitrary::config_by_id(), 2), |configs| {
                for config in &configs {
                    let rules = planned(config);
                    on.apply(&rules).map_err(|error| TestCaseError::fail(error.to_string()))?;
                    prop_assert_eq!(on.verify(&rules), Vec::<String>::new());
                    prop_assert_eq!(on.apply(&rules).unwrap(), Applied::Unchanged);
                }
                on.remove();
                prop_assert_eq!(&on.kernel(), &foreign);
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn any_text_is_taken_by_the_kernel() {
    with_every_variant(|on| {
        let config = cases(24);
        TestRunner::new(config)
            .run(&iptables_rules::arbitrary::config(), |config| {
                let rules = planned(&config);
                for family in RestoreFamily::ALL {
                    let text = iptables_rules::restore::restore_text(&rules, family);
                    on.programs.restore(family, text).map_err(|error| TestCaseError::fail(error.to_string()))?;
                }
                prop_assert_eq!(on.remove(), !rules.is_empty());
                Ok(())
            })
            .unwrap();
    });
}
