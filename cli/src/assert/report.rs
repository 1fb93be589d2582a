//! Decides all assertions about all workloads.

use std::collections::HashMap;

use iptables_rules::compare::Fate;
use iptables_rules::compare::assertion::{Assertion, AssertionOutcome, Violations, assert_chains};
use iptables_rules::restore::RestoreFamily;
use iptables_rules::trace::Chains;
use weir_injector::assertions::{AssertionRule, CaptureAssertion, ProxyTraits};

use super::input::{Evidence, Workload, Workloads};
use crate::diff::comparison::{ExplainedClass, trace};
use crate::explain::sentences::deciding_reason;

/// Outcomes of all assertions.
#[derive(Debug)]
pub(super) struct Report<'a> {
    /// The workloads that are selected.
    pub(super) workloads: Vec<CheckedWorkload<'a>>,
    /// Number of workloads that no assertion selects.
    pub(super) unselected: usize,
    /// Assertions that select nothing.
    pub(super) unused: Vec<&'a str>,
}

/// Outcomes of the assertions about one workload.
#[derive(Debug)]
pub(super) struct CheckedWorkload<'a> {
    pub(super) workload: &'a Workload,
    pub(super) results: Vec<RuleResult<'a>>,
}

/// Outcome of one rule.
#[derive(Debug)]
pub(super) struct RuleResult<'a> {
    pub(super) assertion: &'a str,
    /// `None` if it is unknown whether the whole assertion is about the workload.
    pub(super) rule: Option<&'a str>,
    pub(super) outcome: RuleOutcome,
}

#[derive(Debug, Clone)]
pub(super) enum RuleOutcome {
    Holds,
    Violated {
        traffic: Vec<WrongTraffic>,
        /// Rules that are not understood, so that there may be more.
        unknown: Vec<String>,
    },
    /// For these reasons.
    Undecided(Vec<String>),
}

/// Traffic with another fate than the demanded one.
#[derive(Debug, Clone)]
pub(super) struct WrongTraffic {
    pub(super) fate: Fate,
    pub(super) classes: Vec<ExplainedClass>,
    /// Whether there are more classes than those listed.
    pub(super) is_truncated: bool,
}

/// Verdict about a workload, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Holds,
    Undecided,
    Violated,
}

impl Verdict {
    /// Returns the name in JSON.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Undecided => "undecided",
            Self::Violated => "violated",
        }
    }
}

impl RuleOutcome {
    pub(super) const fn verdict(&self) -> Verdict {
        match self {
            Self::Holds => Verdict::Holds,
            Self::Undecided(_) => Verdict::Undecided,
            Self::Violated { .. } => Verdict::Violated,
        }
    }
}

impl RuleResult<'_> {
    /// Returns the name of the rule, with that of its assertion.
    pub(super) fn name(&self) -> String {
        self.rule.map_or_else(|| self.assertion.to_owned(), |rule| format!("{}: {rule}", self.assertion))
    }
}

impl CheckedWorkload<'_> {
    /// Returns the worst verdict. Rules that are not in place prove nothing, whatever they are.
    pub(super) fn verdict(&self) -> Verdict {
        let worst = self.results.iter().map(|result| result.outcome.verdict()).max().unwrap_or(Verdict::Holds);
        if matches!(self.workload.evidence, Evidence::NotInPlace(_)) { worst.max(Verdict::Undecided) } else { worst }
    }
}

impl<'a> Report<'a> {
    /// Decides all assertions. Equal questions are decided once.
    pub(super) fn of(assertions: &'a [CaptureAssertion], workloads: &'a Workloads) -> Self {
        let mut known: HashMap<String, Vec<RuleOutcome>> = HashMap::new();
        let mut report = Self { workloads: Vec::new(), unselected: 0, unused: Vec::new() };
        let mut selected = vec![false; assertions.len()];
        for workload in &workloads.all {
            let labels = workloads.namespace_labels(workload);
            let mut results = Vec::new();
            let mut asked: Vec<(&str, &AssertionRule)> = Vec::new();
            for (assertion, selected) in assertions.iter().zip(&mut selected) {
                match assertion.selects(&workload.labels, labels) {
                    Some(false) => continue,
                    Some(true) => asked.extend(assertion.rules.iter().map(|rule| (assertion.name.as_str(), rule))),
                    None => results.push(undecided(assertion, workload)),
                }
                *selected = true;
            }
            let traits = ProxyTraits::new(&workload.config, &workload.shared_ids, &workload.families);
            let questions: Vec<Assertion> = asked.iter().map(|(_, rule)| rule.for_pod(&traits)).collect();
            let key = format!("{:?}{questions:?}{}", workload.rules, workload.reroute_annotation);
            let outcomes = known.entry(key).or_insert_with(|| decide(workload, &questions)).clone();
            results.extend(asked.into_iter().zip(outcomes).map(|((assertion, rule), outcome)| RuleResult {
                assertion,
                rule: Some(rule.name.as_str()),
                outcome,
            }));
            if results.is_empty() {
                report.unselected += 1;
            } else {
                report.workloads.push(CheckedWorkload { workload, results });
            }
        }
        let unused = assertions.iter().zip(selected).filter(|(_, selected)| !selected);
        report.unused = unused.map(|(assertion, _)| assertion.name.as_str()).collect();
        report
    }

    pub(super) fn holds(&self) -> bool {
        self.workloads.iter().all(|workload| workload.verdict() == Verdict::Holds)
    }

    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.workloads.iter().filter(|workload| workload.verdict() == verdict).count()
    }
}

fn undecided<'a>(assertion: &'a CaptureAssertion, workload: &Workload) -> RuleResult<'a> {
    let reason = if workload.namespace.is_empty() {
        "its namespace is unknown, and the assertion selects namespaces; pass -n".to_owned()
    } else {
        format!("the labels of namespace {} are unknown; add its Namespace to the files", workload.namespace)
    };
    RuleResult { assertion: &assertion.name, rule: None, outcome: RuleOutcome::Undecided(vec![reason]) }
}

fn decide(workload: &Workload, assertions: &[Assertion]) -> Vec<RuleOutcome> {
    let chains = RestoreFamily::ALL.map(|family| Chains::from_rule_set(&workload.rules, family.any_address()));
    let outcomes = assert_chains(&chains, assertions).into_iter();
    outcomes
        .map(|outcome| match outcome {
            AssertionOutcome::Holds => RuleOutcome::Holds,
            AssertionOutcome::Unknown(places) => {
                RuleOutcome::Undecided(places.iter().map(|place| format!("not understood: {place}")).collect())
            }
            AssertionOutcome::Violated(Violations { fates, unknown }) => {
                let traffic = fates.into_iter().map(|violation| WrongTraffic {
                    fate: violation.fate,
                    classes: violation
                        .classes
                        .into_iter()
                        .map(|class| {
                            let reason = deciding_reason(&trace(&chains, &class.witness));
                            ExplainedClass::new(class, reason, workload.reroute_annotation, false)
                        })
                        .collect(),
                    is_truncated: violation.is_truncated,
                });
                RuleOutcome::Violated { traffic: traffic.collect(), unknown }
            }
        })
        .collect()
}
