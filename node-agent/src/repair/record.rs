//! Records what inspections find: states, metrics, events and the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Repairer;
use super::inspect::RulesStatus;
use super::installed::Knowledge;
use super::netns_lookup::NetnsSource;
use super::states::{Observation, RuleState};
use super::target::Target;
use crate::events::EventRecord;
use crate::pods::PodFacts;

/// Most differences that are kept for one pod.
const MAX_DETAIL: usize = 8;
/// Event about a pod whose annotations have no effect any more.
const ANNOTATIONS_CHANGED: &str = "CaptureAnnotationsChanged";
/// Event about a pod whose network namespace another writer keeps changing.
const CONTENDED: &str = "CaptureRulesContended";
/// Steps in which events tell the time of a repair, in milliseconds: equal events become one series.
const WINDOW_STEPS: [u64; 8] = [20, 50, 100, 200, 500, 1000, 2000, 5000];

impl Repairer {
    /// Reports that another writer keeps changing the network namespace of a pod.
    pub(super) fn report_contention(&self, uid: &str) {
        let Some(pod) = self.pods.get(uid) else { return };
        warn!(pod = pod.full_name(), "network namespace keeps changing; inspecting it less often");
        let note = "something in the pod keeps changing its rules, addresses or routes; between a change and the repair, connections bypass the proxy";
        self.record_event(&pod, CONTENDED, note.to_owned());
    }

    /// Records what was found in a pod's network namespace. Returns whether the pod is broken.
    pub(super) fn record_found(
        &self,
        pod: &PodFacts,
        status: RulesStatus,
        source: NetnsSource,
        target: &mut Target,
    ) -> bool {
        match status {
            RulesStatus::InPlace => self.confirm(pod, target),
            // The annotations say something else, or another version of the plugin installed them.
            RulesStatus::OtherInPlace => target.annotations_changed = true,
            _ if target.faults.is_some() => {
                let faults = target.faults.take().unwrap_or_default();
                self.record_state(pod, RuleState::Refused, faults, Some(source), target);
                return false;
            }
            // Neither the annotations nor the kernel say that it is in the mesh.
            RulesStatus::Missing | RulesStatus::Foreign(_) if !target.is_meshed => return false,
            _ => {}
        }
        let (state, detail) = state_of(status);
        self.record_state(pod, state, detail, Some(source), target);
        matches!(state, RuleState::Missing | RuleState::Drifted)
    }

    /// Keeps the configuration whose rules are in place.
    fn confirm(&self, pod: &PodFacts, target: &Target) {
        if let (Some(config), false) = (&target.config, target.is_known) {
            self.attachments.configs.record_found(pod, Arc::clone(config), Knowledge::Installed);
        }
    }

    /// Records a repair, of what a notification at `since` was about or the interval has found.
    pub(super) fn record_repair(
        &self,
        pod: &PodFacts,
        status: RulesStatus,
        source: NetnsSource,
        target: &Target,
        since: Option<Instant>,
    ) {
        let (drift, detail) = state_of(status);
        self.confirm(pod, target);
        self.metrics.record_repair("repair", "success");
        self.metrics.record_drift(drift);
        let window = since.map(|since| since.elapsed());
        let window_ms = window.map(|window| window.as_millis());
        let found_by = source.name();
        info!(pod = pod.full_name(), drift = drift.name(), found_by, window_ms, "restored capture rules");
        let mut note = describe_state(drift, &detail) + "; restored";
        if let Some(window) = window {
            self.metrics.record_window(window);
            note += &within(window);
        }
        self.record_event(pod, "CaptureRulesRepaired", note);
        self.set_state(pod, RuleState::Ok, Vec::new(), Some(source), target, true);
    }

    /// Records the state of a pod. Logs a new state that is not in order, and records an event where rules are missing or changed.
    pub(super) fn record_state(
        &self,
        pod: &PodFacts,
        state: RuleState,
        mut detail: Vec<String>,
        source: Option<NetnsSource>,
        target: &Target,
    ) {
        detail.truncate(MAX_DETAIL);
        let lines = detail.join("; ");
        let note = describe_state(state, &detail);
        if self.set_state(pod, state, detail, source, target, false) == Some(state) {
            return;
        }
        match state {
            RuleState::Missing | RuleState::Drifted => {
                self.metrics.record_drift(state);
                warn!(pod = pod.full_name(), state = state.name(), detail = lines, "capture rules are broken");
                self.record_event(pod, "CaptureRulesBroken", note);
            }
            RuleState::Unreachable | RuleState::Refused | RuleState::Foreign => {
                info!(pod = pod.full_name(), state = state.name(), detail = lines, "pod state changed");
            }
            RuleState::Ok | RuleState::Pending => {}
        }
    }

    /// Sets the state of a pod, and records an event where its annotations have changed since it was started. Returns the earlier state.
    fn set_state(
        &self,
        pod: &PodFacts,
        state: RuleState,
        detail: Vec<String>,
        source: Option<NetnsSource>,
        target: &Target,
        repaired: bool,
    ) -> Option<RuleState> {
        let annotations_changed = target.annotations_changed;
        let found_by = source.map(NetnsSource::name);
        let seen = Observation { state, detail, found_by, repaired, annotations_changed };
        let before = self.states.set(pod, seen);
        if annotations_changed && before.as_ref().is_none_or(|before| !before.annotations_changed) {
            let note = "annotations ask for other capture rules than the pod was started with; they have no effect until the pod is recreated";
            warn!(
                pod = pod.full_name(),
                "capture annotations have changed since the pod was started; keeping its rules"
            );
            self.record_event(pod, ANNOTATIONS_CHANGED, note.to_owned());
        }
        before.map(|before| before.state)
    }

    fn record_event(&self, pod: &PodFacts, reason: &'static str, note: String) {
        self.events.record(EventRecord { regarding: pod.object_reference(), warning: true, reason, note });
    }
}

fn within(window: Duration) -> String {
    let step = WINDOW_STEPS.into_iter().find(|step| window <= Duration::from_millis(*step));
    step.map_or_else(String::new, |step| format!(" within {step} ms"))
}

/// Returns the state that a status of the rules means, with its details.
pub(super) fn state_of(status: RulesStatus) -> (RuleState, Vec<String>) {
    match status {
        RulesStatus::InPlace | RulesStatus::OtherInPlace => (RuleState::Ok, Vec::new()),
        RulesStatus::Missing => (RuleState::Missing, Vec::new()),
        RulesStatus::Drifted(lines) => (RuleState::Drifted, lines),
        RulesStatus::Foreign(tables) => {
            let lines = tables.iter().map(|table| format!("rules of another installer in table {table}"));
            (RuleState::Foreign, lines.collect())
        }
    }
}

fn describe_state(state: RuleState, detail: &[String]) -> String {
    let what = match state {
        RuleState::Missing => "capture rules were missing",
        RuleState::Drifted => "capture rules were changed",
        RuleState::Foreign => "capture rules belong to another installer",
        RuleState::Unreachable => "cannot read capture rules",
        RuleState::Refused => "pod is refused",
        RuleState::Ok | RuleState::Pending => "",
    };
    if detail.is_empty() { what.to_owned() } else { format!("{what}: {}", detail.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_repairs_have_equal_events() {
        let texts = [1, 20, 21, 4999, 30_000].map(|millis| within(Duration::from_millis(millis)));
        assert_eq!(texts, [" within 20 ms", " within 20 ms", " within 50 ms", " within 5000 ms", ""]);
    }
}
