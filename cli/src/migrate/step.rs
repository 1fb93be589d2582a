//! Decides about the next step of a namespace's migration: a pure function of what is observed, so that a run which was killed goes on.

use std::time::Duration;

use super::current::Origin;
use super::record::{InjectionLabels, Phase, Record};

/// The injector that a namespace is to end under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Under Weir.
    Move,
    /// Under its former injector.
    Restore,
}

/// Limits that a person has set.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Revision of Weir.
    pub(super) revision: String,
    /// Name of this run, for new records.
    pub(super) run: String,
    /// Workloads that are restarted at the same time; at least 1.
    pub(super) batch: usize,
    /// Pods of the namespace that may be unavailable when a workload is restarted.
    pub(super) max_unavailable: u64,
    /// Time without progress after which a namespace has failed.
    pub(super) timeout: Duration,
    /// Time for which the error rate is watched after the last restart.
    pub(super) observe: Duration,
}

/// A namespace as it is observed.
#[derive(Debug, Clone, Default)]
pub(super) struct NamespaceView {
    pub(super) labels: InjectionLabels,
    pub(super) record: Option<Record>,
    /// Workloads that a restart replaces the pods of, in the order of their restarts.
    pub(super) workloads: Vec<WorkloadView>,
}

/// A workload as it is observed; its pods are read after its status.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkloadView {
    /// `Deployment/web`.
    pub(super) name: String,
    /// Value of the annotation `weir.dev/migration`.
    pub(super) marker: Option<String>,
    /// Condition that the rollout waits for; `None` if it is complete.
    pub(super) rollout: Option<String>,
    /// Reasons for which the rollout will never complete.
    pub(super) broken: Vec<String>,
    /// Pods that are wanted and not available.
    pub(super) unavailable: u64,
    /// Pods that are not terminating.
    pub(super) pods: Vec<PodView>,
}

/// A pod as it is observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodView {
    pub(super) name: String,
    /// Origin of its rules; `None` without a sidecar.
    pub(super) origin: Option<Origin>,
    /// State of its rules by its node's agent; `None` if they are in place, or nobody has to ask.
    pub(super) rules: Option<String>,
}

/// Circumstances of a decision.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions {
    /// Time without progress.
    pub(super) stalled: Duration,
    /// Reason for which the error rate, or its absence, stops the migration.
    pub(super) errors: Option<String>,
    /// Time since the last restart of this run.
    pub(super) since_restart: Duration,
}

/// The next action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Write the record, or remove it, and the labels, in one request.
    Write { record: Option<Record>, labels: InjectionLabels },
    /// Restart these workloads, by their index, and mark them.
    Restart { workloads: Vec<usize>, marker: String },
    /// Look again later.
    Wait(Vec<String>),
    /// The goal is reached.
    Finished,
    /// The goal cannot be reached.
    Failed(Vec<String>),
}

/// State of a workload on its way to the goal.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing to do, or done.
    Done,
    /// To be restarted.
    Pending,
    /// To be restarted, when the rollout that somebody else has started is complete.
    Held(String),
    /// Restarted, and not yet done.
    InFlight(String),
    Failed(Vec<String>),
}

/// Decides about the next step.
pub(super) fn decide(view: &NamespaceView, goal: Goal, limits: &Limits, conditions: &Conditions) -> Step {
    let (phase, labels) = match (goal, &view.record) {
        (Goal::Move, None) => return start(view, limits),
        (Goal::Restore, None) => return Step::Finished,
        // A namespace that somebody has labelled otherwise since is moved again.
        (Goal::Move, Some(record)) if record.phase == Phase::Moved => {
            let is_there = view.labels == InjectionLabels::of_revision(&record.revision);
            return if is_there { Step::Finished } else { start(view, limits) };
        }
        (Goal::Move, Some(record)) => (Phase::Moving, InjectionLabels::of_revision(&record.revision)),
        (Goal::Restore, Some(record)) => (Phase::Restoring, record.former.clone()),
    };
    let Some(record) = &view.record else { return Step::Finished };
    if record.phase != phase || view.labels != labels {
        return Step::Write { record: Some(record.in_phase(phase)), labels };
    }
    if let Some(errors) = conditions.errors.as_ref().filter(|_| goal == Goal::Move) {
        return Step::Failed(vec![errors.clone()]);
    }
    let states: Vec<Progress> = view.workloads.iter().map(|workload| workload.progress(record, phase)).collect();
    let failures: Vec<String> = states.iter().filter_map(Progress::failures).flatten().cloned().collect();
    if !failures.is_empty() {
        return Step::Failed(failures);
    }
    restart_or_wait(view, goal, limits, &states, record.marker(phase)).unwrap_or_else(|waiting| {
        if !waiting.is_empty() {
            return expired(waiting, limits, conditions);
        }
        match goal {
            Goal::Restore => Step::Write { record: None, labels },
            Goal::Move if conditions.since_restart < limits.observe => {
                Step::Wait(vec!["watching the error rate".to_owned()])
            }
            Goal::Move => Step::Write { record: Some(record.in_phase(Phase::Moved)), labels },
        }
    })
}

/// Returns the first step of a namespace, which is not begun if it is not healthy.
fn start(view: &NamespaceView, limits: &Limits) -> Step {
    let unavailable: u64 = view.workloads.iter().map(|workload| workload.unavailable).sum();
    if unavailable > limits.max_unavailable {
        let names = view.workloads.iter().filter(|workload| workload.unavailable > 0);
        let names: Vec<String> =
            names.map(|workload| format!("{}: {} pods unavailable", workload.name, workload.unavailable)).collect();
        let more =
            format!("more than --max-unavailable {} before the start; nothing was changed", limits.max_unavailable);
        return Step::Failed(names.into_iter().chain([more]).collect());
    }
    let record = Record {
        phase: Phase::Moving,
        revision: limits.revision.clone(),
        run: limits.run.clone(),
        former: view.labels.clone(),
    };
    Step::Write { record: Some(record), labels: InjectionLabels::of_revision(&limits.revision) }
}

/// Returns the workloads to restart now, or what is waited for; nothing if all are done.
fn restart_or_wait(
    view: &NamespaceView,
    goal: Goal,
    limits: &Limits,
    states: &[Progress],
    marker: String,
) -> Result<Step, Vec<String>> {
    let in_flight = states.iter().filter(|state| matches!(state, Progress::InFlight(_))).count();
    let unavailable: u64 = view.workloads.iter().map(|workload| workload.unavailable).sum();
    // The way back must not wait for what is broken.
    let is_healthy = goal == Goal::Restore || unavailable <= limits.max_unavailable;
    let free = if is_healthy { limits.batch.max(1).saturating_sub(in_flight) } else { 0 };
    let pending = states.iter().enumerate().filter(|(_, state)| **state == Progress::Pending).map(|(index, _)| index);
    let workloads: Vec<usize> = pending.clone().take(free).collect();
    if !workloads.is_empty() {
        return Ok(Step::Restart { workloads, marker });
    }
    let mut waiting: Vec<String> = states.iter().filter_map(Progress::waiting).cloned().collect();
    if waiting.is_empty() && pending.count() > 0 {
        waiting.push(format!("{unavailable} pods are unavailable, more than {}", limits.max_unavailable));
    }
    Err(waiting)
}

fn expired(waiting: Vec<String>, limits: &Limits, conditions: &Conditions) -> Step {
    if conditions.stalled < limits.timeout {
        return Step::Wait(waiting);
    }
    let seconds = conditions.stalled.as_secs();
    Step::Failed(waiting.into_iter().map(|what| format!("{what}: no progress in {seconds} s")).collect())
}

impl Progress {
    fn failures(&self) -> Option<&[String]> {
        if let Self::Failed(why) = self { Some(why) } else { None }
    }

    fn waiting(&self) -> Option<&String> {
        match self {
            Self::InFlight(what) | Self::Held(what) => Some(what),
            _ => None,
        }
    }
}

impl WorkloadView {
    fn progress(&self, record: &Record, phase: Phase) -> Progress {
        let is_marked = |phase| self.marker.as_deref() == Some(record.marker(phase).as_str());
        let is_weir = |pod: &PodView| pod.origin == Some(Origin::Weir);
        let is_istio = |pod: &PodView| matches!(pod.origin, Some(Origin::InitContainer | Origin::IstioCni));
        let named = |what: &str| format!("{}: {what}", self.name);
        if is_marked(phase) {
            if !self.broken.is_empty() {
                return Progress::Failed(self.broken.iter().map(|why| named(why)).collect());
            }
            if let Some(waiting) = &self.rollout {
                return Progress::InFlight(named(waiting));
            }
            return self.restarted(phase);
        }
        let is_pending = match phase {
            Phase::Restoring => is_marked(Phase::Moving) || self.pods.iter().any(is_weir),
            _ => self.pods.iter().any(is_istio),
        };
        match (&self.rollout, is_pending, phase) {
            (_, false, _) => Progress::Done,
            (Some(waiting), true, Phase::Moving) => Progress::Held(named(waiting)),
            (_, true, _) => Progress::Pending,
        }
    }

    /// Returns the progress of a workload whose rollout is complete.
    fn restarted(&self, phase: Phase) -> Progress {
        let named = |pod: &PodView, what: &str| format!("{}: pod {}: {what}", self.name, pod.name);
        let wrong = |pod: &&PodView| match phase {
            Phase::Restoring => !matches!(pod.origin, Some(Origin::InitContainer | Origin::IstioCni)),
            _ => pod.origin != Some(Origin::Weir),
        };
        let injector = if phase == Phase::Restoring { "the former injector" } else { "Weir" };
        let failures: Vec<String> =
            self.pods.iter().filter(wrong).map(|pod| named(pod, &format!("{injector} has not injected it"))).collect();
        if !failures.is_empty() {
            return Progress::Failed(failures);
        }
        let rules = self.pods.iter().filter(|_| phase != Phase::Restoring);
        let rules: Vec<String> = rules.filter_map(|pod| Some(named(pod, pod.rules.as_deref()?))).collect();
        if rules.is_empty() { Progress::Done } else { Progress::InFlight(rules.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            revision: "weir".to_owned(),
            run: "7".to_owned(),
            batch: 1,
            max_unavailable: 0,
            timeout: Duration::from_mins(5),
            observe: Duration::ZERO,
        }
    }

    fn pod(origin: Option<Origin>) -> PodView {
        PodView { name: "p".to_owned(), origin, rules: None }
    }

    fn workload(name: &str, marker: Option<&str>, origin: Option<Origin>) -> WorkloadView {
        WorkloadView {
            name: name.to_owned(),
            marker: marker.map(str::to_owned),
            pods: vec![pod(origin)],
            ..WorkloadView::default()
        }
    }

    fn moving(workloads: Vec<WorkloadView>) -> NamespaceView {
        let former = InjectionLabels::default();
        let record = Record { phase: Phase::Moving, revision: "weir".to_owned(), run: "7".to_owned(), former };
        NamespaceView { labels: InjectionLabels::of_revision("weir"), record: Some(record), workloads }
    }

    fn next(view: &NamespaceView, goal: Goal) -> Step {
        decide(view, goal, &limits(), &Conditions::default())
    }

    #[test]
    fn batch_limits_the_restarts() {
        let istio = || workload("a", None, Some(Origin::IstioCni));
        let view = moving(vec![istio(), istio(), istio()]);
        assert_eq!(next(&view, Goal::Move), Step::Restart { workloads: vec![0], marker: "7/moving".to_owned() });
        let wide = Limits { batch: 2, ..limits() };
        let mut flying = view.clone();
        flying.workloads[0].marker = Some("7/moving".to_owned());
        flying.workloads[0].rollout = Some("0 of 1 updated".to_owned());
        let step = decide(&flying, Goal::Move, &wide, &Conditions::default());
        assert_eq!(step, Step::Restart { workloads: vec![1], marker: "7/moving".to_owned() });
        flying.workloads[0].unavailable = 1;
        assert!(matches!(decide(&flying, Goal::Move, &wide, &Conditions::default()), Step::Wait(_)));
    }

    #[test]
    fn pods_without_the_new_sidecar_fail() {
        let view = moving(vec![workload("a", Some("7/moving"), None)]);
        assert_eq!(next(&view, Goal::Move), Step::Failed(vec!["a: pod p: Weir has not injected it".to_owned()]));
        // A restart for another run says nothing about this one.
        let view = moving(vec![workload("a", Some("6/moving"), Some(Origin::InitContainer))]);
        assert!(matches!(next(&view, Goal::Move), Step::Restart { .. }));
    }

    #[test]
    fn workload_is_done_when_its_rules_are_in_place() {
        let mut view = moving(vec![workload("a", Some("7/moving"), Some(Origin::Weir))]);
        view.workloads[0].pods[0].rules = Some("pending".to_owned());
        assert_eq!(next(&view, Goal::Move), Step::Wait(vec!["a: pod p: pending".to_owned()]));
        let stalled = Conditions { stalled: Duration::from_mins(5), ..Conditions::default() };
        let step = decide(&view, Goal::Move, &limits(), &stalled);
        assert_eq!(step, Step::Failed(vec!["a: pod p: pending: no progress in 300 s".to_owned()]));
        view.workloads[0].pods[0].rules = None;
        let Step::Write { record: Some(record), .. } = next(&view, Goal::Move) else { panic!() };
        assert_eq!(record.phase, Phase::Moved);
        view.record = Some(record);
        assert_eq!(next(&view, Goal::Move), Step::Finished);
    }

    #[test]
    fn way_back_does_not_wait_for_broken_rollouts() {
        let mut view = moving(vec![workload("a", Some("7/moving"), Some(Origin::IstioCni))]);
        view.workloads[0].rollout = Some("0 of 1 ready".to_owned());
        view.workloads[0].unavailable = 1;
        view.record.as_mut().unwrap().phase = Phase::Restoring;
        view.labels = InjectionLabels::default();
        assert_eq!(next(&view, Goal::Restore), Step::Restart { workloads: vec![0], marker: "7/restoring".to_owned() });
        view.workloads[0].marker = Some("7/restoring".to_owned());
        view.workloads[0].rollout = None;
        assert_eq!(next(&view, Goal::Restore), Step::Write { record: None, labels: InjectionLabels::default() });
    }

    #[test]
    fn unhealthy_namespace_is_not_begun() {
        let mut view =
            NamespaceView { workloads: vec![workload("a", None, Some(Origin::IstioCni))], ..NamespaceView::default() };
        view.workloads[0].unavailable = 1;
        let Step::Failed(why) = next(&view, Goal::Move) else { panic!() };
        assert!(why[0].contains("a: 1 pods unavailable") && why[1].contains("nothing was changed"), "{why:?}");
    }

    #[test]
    fn errors_stop_the_move_and_not_the_way_back() {
        let view = moving(vec![workload("a", None, Some(Origin::IstioCni))]);
        let conditions = Conditions { errors: Some("5 % of requests fail".to_owned()), ..Conditions::default() };
        assert!(matches!(decide(&view, Goal::Move, &limits(), &conditions), Step::Failed(_)));
        assert!(matches!(decide(&view, Goal::Restore, &limits(), &conditions), Step::Write { .. }));
    }
}
