//! The backend with the real kernel, with every variant of iptables that works here.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::testing::{cases, in_namespace};
use iptables_rules::CaptureConfig;
use iptables_rules::config::Ipv6Policy;

/// Foreign rules in tables and chains that we use, too.
const FOREIGN: &str = "* nat\n-N KUBE\n-A PREROUTING -i cali0 -j RETURN\n-A PREROUTING -p tcp -m comment --comment \"not weir\" -j KUBE\n\
    -A OUTPUT -j KUBE\nCOMMIT\n* filter\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n";

/// A variant in a fresh namespace.
struct Fixture {
    variant: Option<IptablesVariant>,
    programs: IptablesPrograms,
}

impl Fixture {
    fn apply(&self, rules: &RuleSet) -> Result<ApplyOutcome, IptablesError> {
        apply(rules, self.variant, false)
    }

    fn verify(&self, rules: &RuleSet) -> Vec<String> {
        verify(rules, self.variant).unwrap()
    }

    fn remove(&self) -> bool {
        remove(self.variant).unwrap()
    }

    /// Returns the rules in the kernel, without counters and sorted, as the order of chains varies.
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

/// Runs a test with each variant that works here, and with the detected one.
fn with_every_variant(test: impl Fn(&Fixture) + Sync) {
    for variant in [None, Some(IptablesVariant::Legacy), Some(IptablesVariant::Nft)] {
        in_namespace(|| {
            let programs = IptablesPrograms::find(variant).unwrap();
            // New kernels may lack x_tables.
            match programs.restore(RestoreFamily::V4, "*nat\nCOMMIT\n".to_owned()) {
                Err(error) if variant == Some(IptablesVariant::Legacy) => weir_lab::skip_or_fail(error),
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
fn applies_replaces_and_removes_only_own_rules() {
    with_every_variant(|on| {
        for family in RestoreFamily::ALL {
            on.programs.restore(family, FOREIGN.to_owned()).unwrap();
        }
        let before = on.kernel();
        let first = planned(&CaptureConfig::default());
        let left = planned(&CaptureConfig { ipv6: Ipv6Policy::Leave, drop_invalid: true, ..CaptureConfig::default() });
        assert!(!on.verify(&first).is_empty());
        assert!(!on.remove());
        assert_eq!(on.apply(&first).unwrap(), ApplyOutcome::Created);
        assert_eq!(on.verify(&first), Vec::<String>::new());
        assert_eq!(on.apply(&first).unwrap(), ApplyOutcome::Unchanged);
        assert_eq!(on.verify(&left).first().map(String::as_str), Some("iptables mangle PREROUTING: rule 1 differs"));
        assert_eq!(on.apply(&left).unwrap(), ApplyOutcome::Replaced);
        assert_eq!(on.verify(&left), Vec::<String>::new());
        assert!(!on.kernel().iter().any(|line| line.starts_with("ip6") && line.contains("ISTIO")));
        assert!(on.remove());
        assert_eq!(on.kernel(), before);
    });
}

#[test]
fn replaces_rules_of_istio_init() {
    with_every_variant(|on| {
        let rules = planned(&CaptureConfig::default());
        on.programs
            .restore(RestoreFamily::V4, iptables_rules::restore::restore_text(&rules, RestoreFamily::V4))
            .unwrap();
        on.programs
            .restore(RestoreFamily::V4, "* nat\n-A ISTIO_OUTPUT -p icmp -j RETURN\nCOMMIT\n".to_owned())
            .unwrap();
        assert_eq!(on.apply(&rules).unwrap(), ApplyOutcome::Replaced);
        assert_eq!(on.verify(&rules), Vec::<String>::new());
        assert!(on.remove());
        assert_eq!(on.kernel(), Vec::<String>::new());
    });
}

#[test]
fn failed_family_leaves_all_or_no_rules() {
    use iptables_rules::ruleset::{Family, Position, RuleReason};
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
            reason: RuleReason::Hook,
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
fn adding_a_family_is_a_replacement() {
    with_every_variant(|on| {
        let v4 = planned(&CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() });
        assert_eq!(on.apply(&v4).unwrap(), ApplyOutcome::Created);
        // Not `Created`: a caller that fails later would remove everything.
        assert_eq!(on.apply(&planned(&CaptureConfig::default())).unwrap(), ApplyOutcome::Replaced);
    });
}

#[test]
fn error_names_the_program_and_its_output() {
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
                    prop_assert_eq!(on.apply(&rules).unwrap(), ApplyOutcome::Unchanged);
                }
                on.remove();
                prop_assert_eq!(&on.kernel(), &foreign);
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn kernel_accepts_the_text_of_any_configuration() {
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
