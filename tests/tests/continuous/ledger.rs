//! What is promised at which moment, and whether it was kept for each pod.
//!
//! A pod is judged by the whole time from before its `RunPodSandbox` until after its rules were read:
//!
//! | in all that time | its rules |
//! |---|---|
//! | the plugin was in the list that the runtime has in memory (`Kept`) | must be complete, else: a bypass |
//! | somebody overwrote the list for a while (`Contended`) | may be missing; the agent has to bring them, within a bound |
//! | the agent was not installed for a while (`None`) | are not expected |
//!
//! Calls that overlap with an outage (the daemon killed, the machine rebooted) may fail; no other call of any pod may.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a pod can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// The plugin is not installed.
    None,
    /// The plugin is installed, and the runtime knows it.
    Kept,
    /// Somebody else writes the configuration.
    Contended,
}

/// A moment, to compare with a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    promise: Promise,
    /// How often the promise has changed.
    changes: u64,
    /// How many outages have begun, and how many of them were reboots.
    outages: u64,
    reboots: u64,
    /// Whether one goes on.
    out: bool,
}

impl Stamp {
    /// Whether the runtime was away then.
    pub(crate) fn out(self) -> bool {
        self.out
    }

    /// How many outages have begun until then.
    pub(crate) fn outages(self) -> u64 {
        self.outages
    }

    /// Whether the node was rebooted in between.
    pub(crate) fn is_after_a_reboot(self, earlier: Self) -> bool {
        self.reboots != earlier.reboots
    }
}

/// What takes the runtime away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// The daemon is restarted; pods go on.
    Daemon,
    /// Everything ends.
    Reboot,
}

/// What is known about a pod's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rules {
    /// All that were expected, and no other; for a pod outside the mesh: no table.
    Right,
    /// Lines of difference.
    Wrong(Vec<String>),
}

/// What the ledger wants to be done with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Done,
    /// It has to get its rules within the bound: watch it.
    Owed,
}

#[derive(Debug)]
struct State {
    now: Stamp,
    report: Report,
}

/// The book of all pods. Shared by all threads.
#[derive(Debug)]
pub(crate) struct Ledger(Mutex<State>);

/// What has been counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    /// Meshed pods that ran.
    pub(crate) meshed: usize,
    /// Other pods that ran.
    pub(crate) unmeshed: usize,
    /// Meshed pods that ran wholly under a kept promise; each had its rules, or is a finding.
    promised: usize,
    /// Times that rules of a running pod were read.
    readings: usize,
    /// Meshed pods that started without rules while the list was contended.
    owed: usize,
    /// Of those: how many got them, and after which time the last one did.
    repaired: usize,
    slowest_repair: Duration,
    /// Of those: ended before they had them, within the bound.
    unsettled: usize,
    /// Meshed pods that ran without rules while nothing was promised.
    unpromised: usize,
    /// Calls that failed because of an outage.
    interrupted: usize,
    /// Calls that failed because a killed runtime had left its own store in disorder.
    damaged: usize,
    /// Meshed pods held back while the list was contended.
    held_back: usize,
    /// Transitions by name.
    transitions: Vec<(String, usize)>,
    /// Everything that must not be.
    pub(crate) findings: Vec<String>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        let now = Stamp { promise: Promise::None, changes: 0, outages: 0, reboots: 0, out: false };
        Self(Mutex::new(State { now, report: Report::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This moment.
    pub(crate) fn stamp(&self) -> Stamp {
        self.state().now
    }

    /// From now on this holds.
    pub(crate) fn promise(&self, promise: Promise) {
        let mut state = self.state();
        if state.now.promise != promise {
            state.now.promise = promise;
            state.now.changes += 1;
        }
    }

    /// Runs what takes the runtime away for a while.
    pub(crate) fn outage<T>(&self, outage: Outage, work: impl FnOnce() -> T) -> T {
        {
            let now = &mut self.state().now;
            now.outages += 1;
            now.reboots += u64::from(outage == Outage::Reboot);
            now.out = true;
        }
        let result = work();
        self.state().now.out = false;
        result
    }

    /// A transition has come to its end.
    pub(crate) fn transition(&self, name: &str) {
        let transitions = &mut self.state().report.transitions;
        match transitions.iter_mut().find(|(known, _)| known == name) {
            Some((_, times)) => *times += 1,
            None => transitions.push((name.to_owned(), 1)),
        }
    }

    /// Something that must not be.
    pub(crate) fn finding(&self, finding: String) {
        self.state().report.findings.push(finding);
    }

    /// A pod started, and these are its rules.
    pub(crate) fn started(&self, pod: &str, meshed: bool, since: Stamp, rules: &Rules) -> Verdict {
        let mut state = self.state();
        let kept = state.now.changes == since.changes && since.promise == Promise::Kept;
        let contended = since.promise == Promise::Contended || state.now.promise == Promise::Contended;
        let report = &mut state.report;
        report.readings += 1;
        match (meshed, rules) {
            (true, _) => {
                report.meshed += 1;
                report.promised += usize::from(kept);
            }
            (false, _) => report.unmeshed += 1,
        }
        match rules {
            Rules::Right => Verdict::Done,
            Rules::Wrong(lines) if !meshed || kept => {
                report.findings.push(format!("bypass: {pod} started with the wrong rules: {}", lines.join("; ")));
                Verdict::Done
            }
            Rules::Wrong(_) if contended => {
                report.owed += 1;
                Verdict::Owed
            }
            Rules::Wrong(_) => {
                report.unpromised += 1;
                Verdict::Done
            }
        }
    }

    /// A pod that had its rules was looked at again.
    pub(crate) fn seen_again(&self, pod: &str, rules: &Rules) {
        let report = &mut self.state().report;
        report.readings += 1;
        if let Rules::Wrong(lines) = rules {
            report.findings.push(format!("bypass: {pod} lost its rules: {}", lines.join("; ")));
        }
    }

    /// A pod that was owed its rules has them.
    pub(crate) fn repaired(&self, after: Duration) {
        let report = &mut self.state().report;
        report.repaired += 1;
        report.slowest_repair = report.slowest_repair.max(after);
    }

    /// A pod ended before it got the rules it was owed; `due` says whether it should have had them by then.
    pub(crate) fn not_repaired(&self, pod: &str, due: bool) {
        let report = &mut self.state().report;
        report.unsettled += 1;
        if due {
            report.findings.push(format!("bypass: {pod} was not repaired in time"));
        }
    }

    /// A call for a pod failed. Whether that was an outage's doing.
    pub(crate) fn failed(&self, pod: &str, meshed: bool, call: &str, since: Stamp, why: &str) {
        let mut state = self.state();
        let interrupted = since.out || state.now.out || state.now.outages != since.outages;
        let contended = since.promise == Promise::Contended || state.now.promise == Promise::Contended;
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

    /// What has been counted so far.
    pub(crate) fn report(&self) -> Report {
        self.state().report.clone()
    }
}

/// Whether the runtime stumbles over its own store: killed in the middle, containerd 2.1 may keep the folder of a snapshot whose number it has
/// forgotten and gives out again. That is before any plugin is called.
fn is_damage(why: &str) -> bool {
    why.contains("failed to rename") && why.contains("/snapshots/") && why.contains("file exists")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings = |kind: &str| self.findings.iter().filter(|finding| finding.starts_with(kind)).count();
        let transitions: usize = self.transitions.iter().map(|(_, times)| times).sum();
        writeln!(f, "{} pods, {transitions} transitions", self.meshed + self.unmeshed)?;
        writeln!(f, "  meshed {} ({} under a kept promise), others {}", self.meshed, self.promised, self.unmeshed)?;
        writeln!(f, "  rules read {} times", self.readings)?;
        writeln!(f, "  bypasses {}, failures {}", findings("bypass"), findings("failure"))?;
        writeln!(
            f,
            "  overwritten by somebody: {} started without rules, {} repaired (slowest after {:.1?}), {} ended before, {} held back",
            self.owed, self.repaired, self.slowest_repair, self.unsettled, self.held_back
        )?;
        writeln!(f, "  not installed: {} meshed pods without rules, as expected", self.unpromised)?;
        writeln!(
            f,
            "  calls that an outage interrupted: {}, that a killed runtime's own store refused: {}",
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

    fn wrong() -> Rules {
        Rules::Wrong(vec!["no table".to_owned()])
    }

    #[test]
    fn a_pod_without_rules_is_a_bypass_only_if_the_promise_held_all_the_time() {
        let ledger = Ledger::new();
        let before = ledger.stamp();
        ledger.promise(Promise::Kept);
        assert_eq!(ledger.started("a", true, before, &wrong()), Verdict::Done);
        assert_eq!(ledger.report().findings, Vec::<String>::new());
        let kept = ledger.stamp();
        ledger.started("b", true, kept, &wrong());
        assert_eq!(ledger.report().findings, ["bypass: b started with the wrong rules: no table"]);
    }

    #[test]
    fn a_pod_without_rules_from_a_contended_time_is_owed_them() {
        let ledger = Ledger::new();
        ledger.promise(Promise::Kept);
        let kept = ledger.stamp();
        ledger.promise(Promise::Contended);
        assert_eq!(ledger.started("a", true, kept, &wrong()), Verdict::Owed);
        let contended = ledger.stamp();
        ledger.promise(Promise::Kept);
        assert_eq!(ledger.started("b", true, contended, &wrong()), Verdict::Owed);
        assert_eq!(ledger.report().findings, Vec::<String>::new());
    }

    #[test]
    fn an_unmeshed_pod_with_a_table_is_a_finding_whenever_it_was_made() {
        let ledger = Ledger::new();
        ledger.started("a", false, ledger.stamp(), &wrong());
        assert_eq!(ledger.report().findings.len(), 1);
    }

    #[test]
    fn a_failure_is_excused_by_an_outage_and_by_the_runtimes_own_store_alone() {
        let ledger = Ledger::new();
        let before = ledger.stamp();
        ledger.failed("a", false, "run", before, "refused");
        ledger.outage(Outage::Daemon, || ledger.failed("b", false, "run", before, "gone"));
        ledger.failed("c", true, "stop", before, "gone");
        ledger.failed(
            "d",
            false,
            "run",
            ledger.stamp(),
            "failed to rename: rename /r/snapshots/new-1 /r/snapshots/4: file exists",
        );
        assert_eq!(ledger.report().findings, ["failure: run of a: refused"]);
    }
}
