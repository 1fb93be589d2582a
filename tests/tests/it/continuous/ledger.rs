//! Records what is guaranteed when, and checks it for each pod.
//!
//! What a pod may expect depends on the guarantee from before its `RunPodSandbox` until after its rules were read:
//!
//! | in all that time | its rules |
//! |---|---|
//! | the runtime had the plugin loaded (`Full`) | must be complete, else it is a bypass |
//! | the configuration was overwritten at some time (`Contended`) | may be missing; the agent must restore them within the timeout |
//! | the agent was not installed at some time (`None`) | are not expected |
//!
//! Calls that overlap with an outage (the daemon killed, the machine rebooted) may fail; no other call may.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is guaranteed for pods that start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guarantee {
    /// The plugin is not installed.
    None,
    /// The plugin is installed, and the runtime has loaded it.
    Full,
    /// Another program overwrites the configuration.
    Contended,
}

/// A moment, to be compared with a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    guarantee: Guarantee,
    /// How often the guarantee has changed.
    changes: u64,
    /// Outages that have begun, and those of them that were reboots.
    outages: u64,
    reboots: u64,
    in_outage: bool,
}

impl Moment {
    pub(crate) fn is_in_outage(self) -> bool {
        self.in_outage
    }

    /// Returns the number of outages that had begun.
    pub(crate) fn outages(self) -> u64 {
        self.outages
    }

    /// Returns whether the node was rebooted since `earlier`.
    pub(crate) fn is_after_a_reboot(self, earlier: Self) -> bool {
        self.reboots != earlier.reboots
    }
}

/// A cause of an outage of the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// The daemon is restarted; pods go on.
    Daemon,
    /// All processes end.
    Reboot,
}

/// A pod's rules, compared with the expected ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rules {
    /// All expected rules, and no other; for a pod outside the mesh, no table.
    Complete,
    /// The differences.
    Differ(Vec<String>),
}

/// What a worker has to do with a started pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FollowUp {
    None,
    /// Watch it: the agent must restore its rules within the timeout.
    AwaitRepair,
}

#[derive(Debug)]
struct State {
    now: Moment,
    report: Report,
}

/// The record of all pods, shared by all threads.
#[derive(Debug)]
pub(crate) struct Ledger(Mutex<State>);

/// Counts and findings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    /// Meshed pods that ran.
    pub(crate) meshed: usize,
    /// Other pods that ran.
    pub(crate) unmeshed: usize,
    /// Meshed pods that started under the full guarantee; those without rules are findings.
    guaranteed: usize,
    /// How often rules of a running pod were read.
    readings: usize,
    /// Meshed pods that started without rules while the configuration was contended.
    awaiting_repair: usize,
    /// Those of them whose rules were restored, and the longest time that took.
    repaired: usize,
    slowest_repair: Duration,
    /// Those of them that ended before, within the timeout.
    unrepaired: usize,
    /// Meshed pods without rules while nothing was guaranteed.
    unguaranteed: usize,
    /// Calls that failed because of an outage.
    interrupted: usize,
    /// Calls that failed because a killed runtime had left its store inconsistent.
    damaged: usize,
    /// Meshed pods that could not start while the configuration was contended.
    held_back: usize,
    /// Transitions by name.
    transitions: Vec<(String, usize)>,
    /// Everything that must not happen.
    pub(crate) findings: Vec<String>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        let now = Moment { guarantee: Guarantee::None, changes: 0, outages: 0, reboots: 0, in_outage: false };
        Self(Mutex::new(State { now, report: Report::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Moment {
        self.state().now
    }

    pub(crate) fn set_guarantee(&self, guarantee: Guarantee) {
        let mut state = self.state();
        if state.now.guarantee != guarantee {
            state.now.guarantee = guarantee;
            state.now.changes += 1;
        }
    }

    /// Runs `work`, during which the runtime is unavailable.
    pub(crate) fn outage<T>(&self, outage: Outage, work: impl FnOnce() -> T) -> T {
        {
            let now = &mut self.state().now;
            now.outages += 1;
            now.reboots += u64::from(outage == Outage::Reboot);
            now.in_outage = true;
        }
        let result = work();
        self.state().now.in_outage = false;
        result
    }

    /// Counts a completed transition.
    pub(crate) fn transition(&self, name: &str) {
        let transitions = &mut self.state().report.transitions;
        match transitions.iter_mut().find(|(known, _)| known == name) {
            Some((_, times)) => *times += 1,
            None => transitions.push((name.to_owned(), 1)),
        }
    }

    /// Records something that must not happen.
    pub(crate) fn finding(&self, finding: String) {
        self.state().report.findings.push(finding);
    }

    /// Records the rules of a pod that has started since `since`.
    pub(crate) fn started(&self, pod: &str, meshed: bool, since: Moment, rules: &Rules) -> FollowUp {
        let mut state = self.state();
        let full = state.now.changes == since.changes && since.guarantee == Guarantee::Full;
        let contended = since.guarantee == Guarantee::Contended || state.now.guarantee == Guarantee::Contended;
        let report = &mut state.report;
        report.readings += 1;
        match (meshed, rules) {
            (true, _) => {
                report.meshed += 1;
                report.guaranteed += usize::from(full);
            }
            (false, _) => report.unmeshed += 1,
        }
        match rules {
            Rules::Complete => FollowUp::None,
            Rules::Differ(lines) if !meshed || full => {
                report.findings.push(format!("bypass: {pod} started with the wrong rules: {}", lines.join("; ")));
                FollowUp::None
            }
            Rules::Differ(_) if contended => {
                report.awaiting_repair += 1;
                FollowUp::AwaitRepair
            }
            Rules::Differ(_) => {
                report.unguaranteed += 1;
                FollowUp::None
            }
        }
    }

    /// Records the rules of a pod that had them before.
    pub(crate) fn checked_again(&self, pod: &str, rules: &Rules) {
        let report = &mut self.state().report;
        report.readings += 1;
        if let Rules::Differ(lines) = rules {
            report.findings.push(format!("bypass: {pod} lost its rules: {}", lines.join("; ")));
        }
    }

    /// Records that the rules of a pod were restored.
    pub(crate) fn repaired(&self, after: Duration) {
        let report = &mut self.state().report;
        report.repaired += 1;
        report.slowest_repair = report.slowest_repair.max(after);
    }

    /// Records that a pod ended before its rules were restored; `due` says whether they should have been.
    pub(crate) fn not_repaired(&self, pod: &str, due: bool) {
        let report = &mut self.state().report;
        report.unrepaired += 1;
        if due {
            report.findings.push(format!("bypass: {pod} was not repaired in time"));
        }
    }

    /// Records a failed call.
    pub(crate) fn failed(&self, pod: &str, meshed: bool, call: &str, since: Moment, why: &str) {
        let mut state = self.state();
        let interrupted = since.in_outage || state.now.in_outage || state.now.outages != since.outages;
        let contended = since.guarantee == Guarantee::Contended || state.now.guarantee == Guarantee::Contended;
        if interrupted {
            state.report.interrupted += 1;
        } else if is_damage(why) {
            state.report.damaged += 1;
        } else if meshed && contended && call == "run" {
            state.report.held_back += 1;
        } else {
            state.report.findings.push(format!("failure: {call} of {pod}: {why}"));
        }
    }

    pub(crate) fn report(&self) -> Report {
        self.state().report.clone()
    }
}

/// Returns whether the runtime failed because of its own store: when killed, containerd 2.1 may leave the directory of a snapshot whose number it
/// then uses again. No plugin has been called at that point.
fn is_damage(why: &str) -> bool {
    why.contains("failed to rename") && why.contains("/snapshots/") && why.contains("file exists")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings = |kind: &str| self.findings.iter().filter(|finding| finding.starts_with(kind)).count();
        let transitions: usize = self.transitions.iter().map(|(_, times)| times).sum();
        writeln!(f, "{} pods, {transitions} transitions", self.meshed + self.unmeshed)?;
        writeln!(
            f,
            "  meshed {} ({} under the full guarantee), others {}",
            self.meshed, self.guaranteed, self.unmeshed
        )?;
        writeln!(f, "  rules read {} times", self.readings)?;
        writeln!(f, "  bypasses {}, failures {}", findings("bypass"), findings("failure"))?;
        writeln!(
            f,
            "  configuration overwritten: {} started without rules, {} repaired (slowest after {:.1?}), {} ended before, {} held back",
            self.awaiting_repair, self.repaired, self.slowest_repair, self.unrepaired, self.held_back
        )?;
        writeln!(f, "  not installed: {} meshed pods without rules, as expected", self.unguaranteed)?;
        writeln!(
            f,
            "  calls that an outage interrupted: {}, that a killed runtime's store broke: {}",
            self.interrupted, self.damaged
        )?;
        for (name, times) in &self.transitions {
            writeln!(f, "  {times:4} x {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differ() -> Rules {
        Rules::Differ(vec!["no table".to_owned()])
    }

    #[test]
    fn pod_without_rules_is_a_bypass_only_under_full_guarantee() {
        let ledger = Ledger::new();
        let before = ledger.now();
        ledger.set_guarantee(Guarantee::Full);
        assert_eq!(ledger.started("a", true, before, &differ()), FollowUp::None);
        assert_eq!(ledger.report().findings, Vec::<String>::new());
        let full = ledger.now();
        ledger.started("b", true, full, &differ());
        assert_eq!(ledger.report().findings, ["bypass: b started with the wrong rules: no table"]);
    }

    #[test]
    fn pod_from_a_contended_time_awaits_repair() {
        let ledger = Ledger::new();
        ledger.set_guarantee(Guarantee::Full);
        let full = ledger.now();
        ledger.set_guarantee(Guarantee::Contended);
        assert_eq!(ledger.started("a", true, full, &differ()), FollowUp::AwaitRepair);
        let contended = ledger.now();
        ledger.set_guarantee(Guarantee::Full);
        assert_eq!(ledger.started("b", true, contended, &differ()), FollowUp::AwaitRepair);
        assert_eq!(ledger.report().findings, Vec::<String>::new());
    }

    #[test]
    fn unmeshed_pod_with_a_table_is_always_a_finding() {
        let ledger = Ledger::new();
        ledger.started("a", false, ledger.now(), &differ());
        assert_eq!(ledger.report().findings.len(), 1);
    }

    #[test]
    fn only_outages_and_a_damaged_store_excuse_failures() {
        let ledger = Ledger::new();
        let before = ledger.now();
        ledger.failed("a", false, "run", before, "refused");
        ledger.outage(Outage::Daemon, || ledger.failed("b", false, "run", before, "gone"));
        ledger.failed("c", true, "stop", before, "gone");
        ledger.failed(
            "d",
            false,
            "run",
            ledger.now(),
            "failed to rename: rename /r/snapshots/new-1 /r/snapshots/4: file exists",
        );
        assert_eq!(ledger.report().findings, ["failure: run of a: refused"]);
    }
}
