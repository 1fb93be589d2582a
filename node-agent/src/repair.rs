//! Keeps the capture rules of every meshed pod on this node in place: at start, at an interval and whenever a pod is new or changed.
//!
//! ```text
//! PodCache ──▶ netns_lookup.rs: candidates ──▶ inspect.rs: the pod's netns? rules in place? restore them ──▶ states.rs, metrics, events
//!                                                    │ cannot restore, or must not
//!                                                    ▼
//!                                    budget.rs ──▶ fallback.rs: delete or label the pod, under preconditions
//! ```

mod budget;
mod fallback;
mod inspect;
mod metrics;
mod netns_lookup;
mod states;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptables_rules::backend::Backend;
use iptables_rules::{RuleSet, plan};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use weir_protocol::decision::CaptureDecision;

pub use self::budget::{Budget, ExhaustedBudget, RepairLimits};
pub use self::fallback::{Fallback, FallbackDecision, FallbackRunner};
pub use self::inspect::{Inspection, ProtectedNetns, RulesStatus, inspect_and_repair};
pub use self::metrics::RepairMetrics;
pub use self::netns_lookup::{NetnsLookup, NetnsPaths, NetnsSource};
pub use self::states::{PodList, PodState, PodStates, RuleState};
use crate::events::{EventRecord, EventRecorder};
use crate::pods::{PodCache, PodFacts};
use crate::socket::Attachments;
use weir_runtime::CancellationToken;

/// Pause before an inspection, so that changes that come together are inspected together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Most differences that are kept for one pod.
const MAX_DETAIL: usize = 8;

/// How pods are inspected and repaired.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Whether rules are restored in the running pod.
    pub in_place: bool,
    /// Time between two inspections of all pods.
    pub interval: Duration,
    /// Backend of the plugin.
    pub backend: Backend,
    /// Where network namespaces are found.
    pub netns_paths: NetnsPaths,
}

/// Keeps the capture rules of this node's pods in place.
pub struct Repairer {
    /// Pods of this node.
    pub pods: PodCache,
    /// Network namespaces that the plugin reported.
    pub attachments: Attachments,
    /// How pods are inspected and repaired.
    pub options: RepairOptions,
    /// State of the rules of every meshed pod.
    pub states: PodStates,
    /// Metrics of the repairs.
    pub metrics: RepairMetrics,
    /// Records events on pods.
    pub events: EventRecorder,
}

impl Repairer {
    /// Inspects and repairs pods until shutdown. Pods that cannot be repaired go to `fallback`.
    pub async fn run(self, mut fallback: Option<FallbackRunner>, shutdown: CancellationToken) {
        let this = Arc::new(self);
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
        let is_meshed = |pod: &&Arc<PodFacts>| !pod.is_terminating && !matches!(pod.decision, CaptureDecision::Skip(_));
        let all = self.pods.all();
        let meshed: Vec<&Arc<PodFacts>> = all.iter().filter(is_meshed).collect();
        self.states.retain(&meshed.iter().map(|pod| pod.uid.as_str()).collect::<HashSet<_>>());
        let protected = ProtectedNetns::discover(&self.options.netns_paths.host_proc);
        let lookup = NetnsLookup::new(&self.options.netns_paths, &self.attachments);
        let is_due = |pod: &PodFacts| {
            full || self
                .states
                .get(&pod.uid)
                .is_none_or(|last| last.state != RuleState::Ok && last.resource_version != pod.resource_version)
        };
        let broken: Vec<Arc<PodFacts>> = meshed
            .into_iter()
            .filter(|pod| is_due(pod) && self.inspect_pod(pod, &lookup, &protected))
            .map(Arc::clone)
            .collect();
        self.metrics.set_pod_states(&self.states);
        broken
    }

    /// Inspects and repairs one pod. Returns whether it is still broken.
    fn inspect_pod(&self, pod: &PodFacts, lookup: &NetnsLookup<'_>, protected: &ProtectedNetns) -> bool {
        let rules = match desired_rules(&pod.decision) {
            Ok(rules) => rules,
            Err(faults) => {
                self.record_state(pod, RuleState::Refused, faults, None);
                return false;
            }
        };
        if pod.ips.is_empty() {
            self.record_state(pod, RuleState::Pending, Vec::new(), None);
            return false;
        }
        // Asked right before a change: the pod still exists and is the one that was decided about.
        let may_repair = || {
            self.options.in_place
                && self
                    .pods
                    .get(&pod.uid)
                    .is_some_and(|now| now.resource_version == pod.resource_version && !now.is_terminating)
        };
        let mut unreadable = None;
        for (path, source) in lookup.candidates(pod) {
            match inspect_and_repair(&path, protected, &pod.ips, (&rules, self.options.backend), may_repair) {
                Inspection::OtherNetns => {}
                Inspection::Unreadable(error) => unreadable = Some(format!("{}: {error}", path.display())),
                Inspection::Found(status) => {
                    let (state, detail) = state_of(status);
                    self.record_state(pod, state, detail, Some(source));
                    return matches!(state, RuleState::Missing | RuleState::Drifted);
                }
                Inspection::Repaired(status) => {
                    self.record_repair(pod, status, source);
                    return false;
                }
                Inspection::RepairFailed(status, error) => {
                    let (state, mut detail) = state_of(status);
                    self.metrics.record_repair("repair", "fail");
                    warn!(pod = pod.full_name(), state = state.name(), error, "cannot restore capture rules");
                    detail.insert(0, format!("cannot restore: {error}"));
                    self.record_state(pod, state, detail, Some(source));
                    return true;
                }
            }
        }
        let detail = unreadable.unwrap_or_else(|| "network namespace not found".to_owned());
        self.record_state(pod, RuleState::Unreachable, vec![detail], None);
        pod.failed_validation
    }

    fn record_repair(&self, pod: &PodFacts, status: RulesStatus, source: NetnsSource) {
        let (drift, detail) = state_of(status);
        self.metrics.record_repair("repair", "success");
        self.metrics.record_drift(drift);
        info!(pod = pod.full_name(), drift = drift.name(), found_by = source.name(), "restored capture rules");
        self.record_event(pod, "CaptureRulesRepaired", describe_state(drift, &detail) + "; restored");
        self.states.set(pod, RuleState::Ok, Vec::new(), Some(source.name()), true);
    }

    /// Records the state of a pod. Logs a new state that is not in order, and records an event where rules are missing or changed.
    fn record_state(&self, pod: &PodFacts, state: RuleState, mut detail: Vec<String>, source: Option<NetnsSource>) {
        detail.truncate(MAX_DETAIL);
        let lines = detail.join("; ");
        let note = describe_state(state, &detail);
        if self.states.set(pod, state, detail, source.map(NetnsSource::name), false) == Some(state) {
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

    fn record_event(&self, pod: &PodFacts, reason: &'static str, note: String) {
        self.events.record(EventRecord { regarding: pod.object_reference(), warning: true, reason, note });
    }
}

/// Returns the rules of a meshed pod, or a line for each invalid or unsupported setting.
fn desired_rules(decision: &CaptureDecision) -> Result<RuleSet, Vec<String>> {
    match decision {
        CaptureDecision::Capture(config, _) => plan(config).map_err(|settings| to_lines(&settings)),
        CaptureDecision::InvalidAnnotations(errors) => Err(to_lines(errors)),
        CaptureDecision::InvalidSpec(lines) | CaptureDecision::NeedsSpec(lines) => Err(lines.clone()),
        CaptureDecision::Skip(reason) => Err(vec![reason.to_string()]),
    }
}

fn to_lines<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn state_of(status: RulesStatus) -> (RuleState, Vec<String>) {
    match status {
        RulesStatus::InPlace => (RuleState::Ok, Vec::new()),
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
        RuleState::Refused => "pod has invalid or unsupported capture settings",
        RuleState::Ok | RuleState::Pending => "",
    };
    if detail.is_empty() { what.to_owned() } else { format!("{what}: {}", detail.join("; ")) }
}
