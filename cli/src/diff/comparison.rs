//! Pairs the workloads of both sides, and compares their rules.

use std::collections::{HashMap, VecDeque};

use iptables_rules::compare::{Change, Equivalence, Fate, PacketClass, compare_chains};
use iptables_rules::names::annotation;
use iptables_rules::restore::RestoreFamily;
use iptables_rules::ruleset::RuleReason;
use iptables_rules::trace::{Chains, Packet, Trace};

use super::input::{Side, WorkloadRules};
use super::pod_changes::{self, OldPod};
use crate::explain::sentences::deciding_reason;
use crate::failure::Failure;

/// Comparison of two sides.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) old: String,
    pub(crate) new: String,
    pub(crate) workloads: Vec<WorkloadComparison>,
}

/// Comparison of one workload.
#[derive(Debug)]
pub(crate) struct WorkloadComparison {
    pub(crate) name: String,
    /// Source of the rules, on the sides that have the workload.
    pub(crate) origins: [Option<String>; 2],
    pub(crate) verdict: Verdict,
    /// Differences of the injected pods; one line each.
    pub(crate) pod_changes: Vec<String>,
    /// Parts that were not compared, and assumptions.
    pub(crate) notes: Vec<String>,
    /// File and line, of the new side if it has the workload.
    pub(crate) place: Option<(String, usize)>,
}

/// Result of the comparison of a workload.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Every packet is treated alike.
    Equal,
    Different(FoundChanges),
    /// Undecided, for these reasons.
    Unknown(Vec<String>),
    /// Only the new side has the workload.
    Added,
    /// Only the old side has the workload.
    Removed,
}

#[derive(Debug)]
pub(crate) struct FoundChanges {
    /// The gravest first.
    pub(crate) changes: Vec<TrafficChange>,
    /// Rules that are not understood, so that there may be more changes.
    pub(crate) unknown: Vec<String>,
}

/// Traffic with a new fate.
#[derive(Debug)]
pub(crate) struct TrafficChange {
    pub(crate) kind: ChangeKind,
    pub(crate) before: Fate,
    pub(crate) after: Fate,
    pub(crate) classes: Vec<ExplainedClass>,
    /// Way of the witness of the first class, by the old and the new rules.
    pub(crate) traces: Vec<Trace>,
    /// Whether more classes differ than those listed.
    pub(crate) is_truncated: bool,
}

/// Meaning of a change for the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChangeKind {
    /// The packets were captured, and no longer are.
    Bypass,
    /// The packets were not captured, and are now.
    Captured,
    /// Anything else, such as another port of the proxy.
    Other,
}

impl ChangeKind {
    /// Returns the name in JSON and SARIF.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Captured => "captured",
            Self::Other => "other",
        }
    }

    /// Describes the change.
    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::Bypass => "no longer captured",
            Self::Captured => "newly captured",
            Self::Other => "treated differently",
        }
    }
}

/// A class of packets, with the reason of the rule that decides about its witness.
#[derive(Debug, Clone)]
pub(crate) struct ExplainedClass {
    pub(crate) class: PacketClass,
    /// Reason on the new side, or on the old one if that says more.
    pub(crate) reason: Option<RuleReason>,
    /// The setting behind the reason.
    pub(crate) setting: Option<&'static str>,
    /// Whether the reason is from the old side.
    pub(crate) is_former: bool,
}

impl ExplainedClass {
    /// Explains a class by a reason of one side, whose pod sets rerouted interfaces by this annotation.
    pub(crate) fn new(
        class: PacketClass,
        reason: Option<RuleReason>,
        reroute_annotation: &'static str,
        is_former: bool,
    ) -> Self {
        let setting = reason.and_then(RuleReason::setting).map(|setting| match setting {
            annotation::REROUTE_VIRTUAL_INTERFACES => reroute_annotation,
            setting => setting,
        });
        Self { class, reason, setting, is_former }
    }
}

impl Comparison {
    /// Compares the workloads of both sides.
    ///
    /// # Errors
    /// One side has no names, and the numbers of workloads differ.
    pub(super) fn of(old: &Side, new: &Side) -> Result<Self, Failure> {
        let pairs = pairs(old, new)?;
        let workloads = pairs.into_iter().filter_map(|pair| match pair {
            (Some(old), Some(new)) => Some(compare(old, new)),
            (Some(old), None) => Some(single(old, true)),
            (None, Some(new)) => Some(single(new, false)),
            (None, None) => None,
        });
        Ok(Self { old: old.name.clone(), new: new.name.clone(), workloads: workloads.collect() })
    }
}

type Pair<'a> = (Option<&'a WorkloadRules>, Option<&'a WorkloadRules>);

fn pairs<'a>(old: &'a Side, new: &'a Side) -> Result<Vec<Pair<'a>>, Failure> {
    if !(old.has_names && new.has_names) {
        return match (&old.workloads[..], &new.workloads[..]) {
            ([old], [new]) => Ok(vec![(Some(old), Some(new))]),
            (olds, news) => Err(Failure::usage(format!(
                "{} and {} are compared by one pod each, but they have {} and {}",
                old.name,
                new.name,
                olds.len(),
                news.len()
            ))),
        };
    }
    let mut by_name: HashMap<&str, VecDeque<&WorkloadRules>> = HashMap::new();
    for workload in &old.workloads {
        by_name.entry(&workload.name).or_default().push_back(workload);
    }
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    for workload in &new.workloads {
        let before = by_name.get_mut(workload.name.as_str()).and_then(VecDeque::pop_front);
        pairs.push((before, Some(workload)));
    }
    // What is left of the old side, in its order.
    for workload in &old.workloads {
        let left = by_name.get_mut(workload.name.as_str());
        if left.is_some_and(|left| left.front().is_some_and(|first| std::ptr::eq(*first, workload))) {
            by_name.get_mut(workload.name.as_str()).and_then(VecDeque::pop_front);
            pairs.push((Some(workload), None));
        }
    }
    Ok(pairs)
}

fn single(workload: &WorkloadRules, is_old: bool) -> WorkloadComparison {
    let origin = Some(workload.origin.clone());
    WorkloadComparison {
        name: workload.name.clone(),
        origins: if is_old { [origin, None] } else { [None, origin] },
        verdict: if is_old { Verdict::Removed } else { Verdict::Added },
        pod_changes: Vec::new(),
        notes: Vec::new(),
        place: workload.place.clone(),
    }
}

/// Compares the rules of a workload, for the families that both sides know.
pub(crate) fn compare(old: &WorkloadRules, new: &WorkloadRules) -> WorkloadComparison {
    let families: Vec<_> = RestoreFamily::ALL
        .into_iter()
        .filter(|family| [old, new].iter().all(|one| one.families.contains(family)))
        .collect();
    let mut notes = Vec::new();
    for (family, name) in RestoreFamily::ALL.into_iter().zip(["IPv4", "IPv6"]) {
        for one in [old, new].iter().filter(|one| !one.families.contains(&family)) {
            notes.push(format!("{name} is not compared: {} has no rules of {}", one.name, family.tool()));
        }
    }
    let [before, after] = comparable_chains(old, new, &mut notes);
    let verdict = if families.is_empty() {
        Verdict::Unknown(vec!["the sides have no family in common".to_owned()])
    } else {
        match compare_chains(&before, &after, &families) {
            Equivalence::Equal => Verdict::Equal,
            Equivalence::Unknown(places) => Verdict::Unknown(places),
            Equivalence::Different(found) => {
                let explained = found.changes.into_iter().map(|change| explain(change, [&before, &after], [old, new]));
                let mut changes: Vec<TrafficChange> = explained.collect();
                changes.sort_by_key(|change| change.kind);
                Verdict::Different(FoundChanges { changes, unknown: found.unknown })
            }
        }
    };
    WorkloadComparison {
        // A manifest's name says more than that of a namespace or a text.
        name: if new.place.is_some() { new.name.clone() } else { old.name.clone() },
        origins: [old, new].map(|one| Some(one.origin.clone())),
        verdict,
        pod_changes: match (&old.pod, &new.pod) {
            (Some(pod), Some(planned)) => {
                // What is of no file is a pod of the cluster.
                let kind = if old.place.is_some() { OldPod::Planned } else { OldPod::Running };
                pod_changes::changes(pod, planned, kind)
            }
            _ => Vec::new(),
        },
        notes,
        place: new.place.clone().or_else(|| old.place.clone()),
    }
}

/// Returns the chains of both sides, planned ones as Weir programs them if the other side is programmed by Weir. A text of iptables says nothing about routes: what the other side delivers locally is assumed.
fn comparable_chains(old: &WorkloadRules, new: &WorkloadRules, notes: &mut Vec<String>) -> [[Chains; 2]; 2] {
    let prepare = |one: &WorkloadRules, other: &WorkloadRules, notes: &mut Vec<String>| {
        let programmed = if other.is_programmed { one.programmed() } else { None };
        let mut chains = programmed.unwrap_or_else(|| one.chains.clone());
        for (chains, theirs) in chains.iter_mut().zip(&other.chains).filter(|_| !one.has_routing) {
            if let Some(delivery) = theirs.local_delivery {
                *chains = std::mem::take(chains).with_local_delivery(&[delivery]);
                if chains.local_delivery.is_some() {
                    notes.push(format!("{}: mark {} is assumed to be delivered locally", one.name, delivery.mark));
                }
            }
        }
        notes.dedup();
        chains
    };
    [prepare(old, new, notes), prepare(new, old, notes)]
}

fn explain(change: Change, chains: [&[Chains; 2]; 2], sides: [&WorkloadRules; 2]) -> TrafficChange {
    let Change { before, after, classes, is_truncated } = change;
    let kind = match (before.is_captured(), after.is_captured()) {
        (true, false) => ChangeKind::Bypass,
        (false, true) => ChangeKind::Captured,
        _ => ChangeKind::Other,
    };
    let traces = classes.first().map(|class| chains.map(|chains| trace(chains, &class.witness)));
    let traces = traces.into_iter().flatten().collect();
    let classes = classes.into_iter().map(|class| {
        let reasons = [1, 0].map(|side| (side, deciding_reason(&trace(chains[side], &class.witness))));
        let (side, reason) = reasons.into_iter().min_by_key(|(_, reason)| rank(*reason)).unwrap_or_default();
        ExplainedClass::new(class, reason, sides[side].reroute_annotation, side == 0)
    });
    TrafficChange { kind, before, after, classes: classes.collect(), traces, is_truncated }
}

/// Orders reasons by how much they say: rules about some traffic, rules about all other, rules without a setting, none.
const fn rank(reason: Option<RuleReason>) -> u8 {
    match reason {
        Some(RuleReason::Inbound | RuleReason::Outbound) => 1,
        Some(reason) if reason.setting().is_some() => 0,
        Some(_) => 2,
        None => 3,
    }
}

/// Traces a packet through the chains of its family.
pub(crate) fn trace(chains: &[Chains; 2], packet: &Packet) -> Trace {
    chains[usize::from(packet.destination.is_ipv6())].trace(packet)
}
