//! Keeps the capture rules of every meshed pod on this node in place: at start, at an interval and whenever a pod is new or changed.
//!
//! A pod keeps the rules that ADD installed: a later change of its annotations is reported, not carried out.
//!
//! ```text
//! PodCache ──▶ target.rs: the rules it was started with ◀── installed.rs ◀── the plugin's reports
//!                 └▶ netns_lookup.rs: candidates ──▶ inspect.rs: the pod's netns? rules in place? restore them ──▶ states.rs, metrics, events
//!                                       visits.rs: a few at a time, within a time limit
//! kernel ──notifications──▶ monitors.rs: one task per pod ──pacing.rs──▶ the same for this pod, at once
//!                                                    │ cannot restore, or must not
//!                                                    ▼
//!                                    budget.rs ──▶ fallback.rs: delete or label the pod, under preconditions
//! ```

mod budget;
mod fallback;
mod inspect;
mod installed;
mod metrics;
mod monitors;
mod netns_lookup;
mod pacing;
mod record;
mod states;
mod subscription;
mod target;
mod verified;
mod visits;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptables_rules::backend::Backend;
use tokio::time::{sleep, timeout};
use tracing::warn;
use weir_protocol::decision::CaptureDecision;

pub use self::budget::{Budget, ExhaustedBudget, RepairLimits};
pub use self::fallback::{Fallback, FallbackDecision, FallbackRunner};
pub use self::inspect::{
    ExpectedRules, Inspection, ProtectedNetns, RulesStatus, Visited, inspect_and_repair, open_connections,
};
pub(crate) use self::inspect::{READ_LIMITS, rules_status};
pub use self::installed::{InstalledConfigs, Knowledge};
pub use self::metrics::RepairMetrics;
pub use self::monitors::Monitors;
use self::monitors::PodNetns;
pub use self::netns_lookup::{NetnsLookup, NetnsPaths, NetnsSource};
pub use self::states::{Observation, PodList, PodState, PodStates, RuleState};
pub use self::subscription::Subscription;
use self::target::Target;
pub use self::verified::VerifiedRules;
use self::visits::map_concurrently;
pub use self::visits::{VisitError, Visits};
use crate::events::EventRecorder;
use crate::pods::{PodCache, PodFacts};
use crate::socket::Attachments;
use weir_runtime::CancellationToken;

/// Pause before an inspection, so that changes that come together are inspected together.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Result of the inspection of one pod after a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookResult {
    /// The rules are in place, or their state is recorded.
    Inspected,
    /// The pod is being inspected for another reason.
    Busy,
    /// The namespace does not have the pod's addresses any more.
    OtherNetns,
    /// The pod is gone, or is not to have rules any more.
    Gone,
}

/// Settings of inspection and repair.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Whether rules are restored in the running pod.
    pub in_place: bool,
    /// Time between two inspections of all pods.
    pub interval: Duration,
    /// Backend of the plugin.
    pub backend: Backend,
    /// Directories of network namespaces.
    pub netns_paths: NetnsPaths,
}

/// Keeps the capture rules of this node's pods in place.
pub struct Repairer {
    /// Pods of this node.
    pub pods: PodCache,
    /// Network namespaces that the plugin reported.
    pub attachments: Attachments,
    /// Settings of inspection and repair.
    pub options: RepairOptions,
    /// State of the rules of every meshed pod.
    pub states: PodStates,
    /// Metrics of the repairs.
    pub metrics: RepairMetrics,
    /// Records events on pods.
    pub events: EventRecorder,
    /// Visits of network namespaces.
    pub visits: Visits,
    /// Monitors of network namespaces.
    pub monitors: Monitors,
    /// Rules that were found in place.
    pub verified: VerifiedRules,
}

impl Repairer {
    /// Inspects and repairs pods until shutdown. Pods that cannot be repaired go to `fallback`.
    pub async fn run(self, mut fallback: Option<FallbackRunner>, shutdown: CancellationToken) {
        let this = Arc::new(self);
        this.monitors.enable();
        let work = async {
            let interval = this.options.interval;
            let mut changes = this.pods.subscribe();
            let mut last_full: Option<Instant> = None;
            loop {
                changes.borrow_and_update();
                let full = last_full.is_none_or(|at| at.elapsed() >= interval);
                if this.pods.is_synced() {
                    if full {
                        last_full = Some(Instant::now());
                    }
                    let broken = this.inspect_pods_blocking(full).await;
                    this.start_monitors();
                    if let Some(fallback) = &mut fallback {
                        fallback.run(broken, &this.events, &this.metrics).await;
                    }
                }
                sleep(DEBOUNCE).await;
                let left = last_full.map_or(interval, |at| interval.saturating_sub(at.elapsed()));
                let _ = timeout(left, changes.changed()).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
        this.monitors.retain(|_| false);
    }

    /// Runs [`inspect_pods`](Self::inspect_pods), which waits for the kernel, on a thread for blocking work.
    async fn inspect_pods_blocking(self: &Arc<Self>, full: bool) -> Vec<Arc<PodFacts>> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.inspect_pods(full)).await.unwrap_or_else(|error| {
            warn!(%error, "pod inspection panicked");
            Vec::new()
        })
    }

    /// Inspects and repairs all meshed pods, or only those that are not in order and have changed. Returns the pods that are still broken.
    pub fn inspect_pods(&self, full: bool) -> Vec<Arc<PodFacts>> {
        let all = self.pods.all();
        self.attachments.configs.retain(&all);
        let meshed: Vec<&Arc<PodFacts>> = all.iter().filter(|pod| self.may_be_captured(pod)).collect();
        let uids: HashSet<&str> = meshed.iter().map(|pod| pod.uid.as_str()).collect();
        self.states.retain(&uids);
        self.verified.retain(&uids);
        self.monitors.retain(|uid| uids.contains(uid));
        let due: Vec<&Arc<PodFacts>> = meshed.into_iter().filter(|pod| full || self.is_due(pod)).collect();
        let protected = ProtectedNetns::discover(&self.options.netns_paths.host_proc);
        let lookup = NetnsLookup::new(&self.options.netns_paths, &self.attachments, &self.visits);
        let is_broken = map_concurrently(&due, |pod| {
            // Otherwise a notification has made somebody inspect it.
            self.visits.claim(&pod.uid).is_some_and(|_claim| self.inspect_pod(pod, &lookup, &protected))
        });
        self.metrics.set_pod_states(&self.states);
        due.into_iter().zip(is_broken).filter(|(_, is_broken)| *is_broken).map(|(pod, _)| Arc::clone(pod)).collect()
    }

    /// Inspects and repairs one pod, something in whose network namespace has changed at `since`.
    fn look(&self, uid: &str, netns: &PodNetns, since: Instant) -> LookResult {
        let Some(pod) = self.pods.get(uid).filter(|pod| self.may_be_captured(pod)) else { return LookResult::Gone };
        let Some(_claim) = self.visits.claim(uid) else { return LookResult::Busy };
        let Some((mut target, expected)) = self.prepare(&pod) else { return LookResult::Gone };
        let protected = ProtectedNetns::discover(&self.options.netns_paths.host_proc);
        let candidates = std::iter::once((netns.path.clone(), netns.source));
        let found = self.inspect_candidates(&pod, candidates, &protected, &expected, &mut target, Some(since));
        self.metrics.set_pod_states(&self.states);
        if found.is_ok() { LookResult::Inspected } else { LookResult::OtherNetns }
    }

    /// Returns whether a pod may have capture rules.
    fn may_be_captured(&self, pod: &PodFacts) -> bool {
        let is_meshed = !matches!(pod.decision, CaptureDecision::Skip(_));
        !pod.is_terminating && (is_meshed || pod.was_capturable || self.attachments.configs.get(pod).is_some())
    }

    /// Returns whether a change of the pod makes an inspection necessary.
    fn is_due(&self, pod: &PodFacts) -> bool {
        match self.states.get(&pod.uid) {
            // A pod that its annotations keep out of the mesh has no state; the next full inspection looks whether it has rules.
            None => !pod.was_capturable || self.attachments.configs.get(pod).is_some(),
            Some(last) => {
                last.resource_version != pod.resource_version
                    && (last.state != RuleState::Ok
                        || Target::of(pod, &self.attachments.configs).annotations_changed != last.annotations_changed)
            }
        }
    }

    /// Inspects and repairs one pod. Returns whether it is still broken.
    fn inspect_pod(&self, pod: &PodFacts, lookup: &NetnsLookup<'_>, protected: &ProtectedNetns) -> bool {
        let Some((mut target, expected)) = self.prepare(pod) else { return false };
        let unreadable =
            match self.inspect_candidates(pod, lookup.candidates(pod), protected, &expected, &mut target, None) {
                Ok(is_broken) => return is_broken,
                Err(unreadable) => unreadable,
            };
        match target.faults.take() {
            Some(faults) => self.record_state(pod, RuleState::Refused, faults, None, &target),
            None if !target.is_meshed => {}
            None => {
                let detail = unreadable.unwrap_or_else(|| "network namespace not found".to_owned());
                self.record_state(pod, RuleState::Unreachable, vec![detail], None, &target);
                return pod.failed_validation;
            }
        }
        false
    }

    /// Returns the rules that a pod should have; `None` where its network namespace is not to be visited, for a reason that is recorded.
    fn prepare(&self, pod: &PodFacts) -> Option<(Target, ExpectedRules)> {
        let configs = &self.attachments.configs;
        let mut target = Target::of(pod, configs);
        if pod.ips.is_empty() {
            match target.faults.take() {
                Some(faults) => self.record_state(pod, RuleState::Refused, faults, None, &target),
                None if target.is_meshed => self.record_state(pod, RuleState::Pending, Vec::new(), None, &target),
                None => {}
            }
            return None;
        }
        if let (Some(config), false) = (&target.config, target.is_known) {
            configs.record_found(pod, Arc::clone(config), Knowledge::FirstSight);
        }
        match target.expected_rules(self.options.backend) {
            Ok(mut expected) => {
                expected.verified = target.config.as_ref().and_then(|config| self.verified.get(&pod.uid, config));
                Some((target, expected))
            }
            Err(faults) => {
                self.record_state(pod, RuleState::Refused, faults, None, &target);
                None
            }
        }
    }

    /// Inspects the pod's network namespace, which is among the candidates. Returns whether the pod is still broken.
    ///
    /// # Errors
    /// No candidate is the pod's; with the reason where one cannot be read.
    fn inspect_candidates(
        &self,
        pod: &PodFacts,
        candidates: impl Iterator<Item = (PathBuf, NetnsSource)>,
        protected: &ProtectedNetns,
        expected: &ExpectedRules,
        target: &mut Target,
        since: Option<Instant>,
    ) -> Result<bool, Option<String>> {
        let mut unreadable = None;
        for (path, source) in candidates {
            let mut visited = self.visit(pod, path.clone(), protected, expected).unwrap_or_else(|error| {
                if !matches!(error, VisitError::Failed(_)) {
                    self.metrics.record_timeout();
                    return Inspection::OverLimit(error.to_string()).into();
                }
                Inspection::Unreadable(error.to_string()).into()
            });
            self.monitor(pod, &path, source, &mut visited);
            if visited.netns.is_some() {
                self.verified.record(&pod.uid, target.config.as_ref(), visited.verified);
            }
            match visited.inspection {
                Inspection::OtherNetns => {}
                Inspection::Unreadable(error) => unreadable = Some(format!("{}: {error}", path.display())),
                Inspection::OverLimit(reason) => {
                    self.record_state(pod, RuleState::Refused, vec![reason], Some(source), target);
                    return Ok(false);
                }
                Inspection::Found(status) => return Ok(self.record_found(pod, status, source, target)),
                Inspection::Repaired(status) => {
                    self.record_repair(pod, status, source, target, since);
                    return Ok(false);
                }
                Inspection::RepairFailed(status, error) => {
                    let (state, mut detail) = record::state_of(status);
                    self.metrics.record_repair("repair", "fail");
                    warn!(pod = pod.full_name(), state = state.name(), error, "cannot restore capture rules");
                    detail.insert(0, format!("cannot restore: {error}"));
                    self.record_state(pod, state, detail, Some(source), target);
                    return Ok(true);
                }
            }
        }
        Err(unreadable)
    }

    /// Keeps what a visit has found out about the changes of a network namespace.
    fn monitor(&self, pod: &PodFacts, path: &Path, source: NetnsSource, visited: &mut Visited) {
        let Some(id) = visited.netns else { return };
        match visited.subscription.take() {
            Some(opened) => {
                let netns = PodNetns { id, path: path.to_owned(), source };
                self.monitors.add(&pod.uid, netns, opened, visited.generation);
            }
            None => self.monitors.record_seen(&pod.uid, id, visited.generation),
        }
    }

    /// Visits a network namespace, within the time limit.
    fn visit(
        &self,
        pod: &PodFacts,
        path: PathBuf,
        protected: &ProtectedNetns,
        expected: &ExpectedRules,
    ) -> Result<Visited, VisitError> {
        let (uid, version) = (pod.uid.clone(), pod.resource_version.clone());
        let (pods, in_place) = (self.pods.clone(), self.options.in_place);
        // Asked right before a change: the pod still exists and is the one that was decided about.
        let may_repair = move || {
            in_place && pods.get(&uid).is_some_and(|now| now.resource_version == version && !now.is_terminating)
        };
        let (protected, ips, expected) = (protected.clone(), pod.ips.clone(), expected.clone());
        let (monitors, uid) = (self.monitors.clone(), pod.uid.clone());
        let is_monitor_wanted = move |netns| monitors.is_wanted(&uid, netns);
        self.visits.run(&pod.uid, move || {
            inspect_and_repair(&path, &protected, &ips, &expected, may_repair, is_monitor_wanted)
        })
    }
}
