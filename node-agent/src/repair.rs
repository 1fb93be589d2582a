//! No pod of the mesh stays without its rules: at start, at intervals and whenever a pod is new, every one of the node is visited in its
//! own namespace, and what is missing or differs is put right there, before anything has crashed over it.
//!
//! ```text
//! Pods ──▶ find.rs: where? ──▶ inspect.rs: is it theirs? are the rules right? mend them ──▶ States (states.rs), metrics, events
//!                                                        │ cannot be mended, or is not to be
//!                                                        ▼
//!                                  budget.rs ──▶ act.rs: delete or label the pod, under preconditions
//! ```

mod act;
mod budget;
mod find;
mod inspect;
mod states;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptables_rules::plan;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use weir_kernel::namespace::Backend;
use weir_protocol::decision::Decision;

pub use self::act::{Action, Actor, Fallback};
pub use self::budget::{Budget, Exhausted, Limits};
pub use self::find::{Look, Places, Source};
pub use self::inspect::{Condition, Forbidden, Visit, visit};
pub use self::states::{Listing, PodState, State, States};
use crate::events::{Events, Told};
use crate::metrics::Metrics;
use crate::pods::{PodFacts, Pods};
use crate::socket::Attachments;
use crate::stop::Stop;

/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(100);
/// Differences that are kept of one pod.
const MAX_DETAIL: usize = 8;

/// How it is done.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Mend rules in place.
    pub in_place: bool,
    /// Time between two visits of all pods.
    pub interval: Duration,
    /// The plugin's own backend.
    pub backend: Backend,
    /// Where namespaces are looked for.
    pub places: Places,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Repaired {
    r#type: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// Its metrics.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    repaired: Family<Repaired, Counter>,
    states: Family<InState, Gauge>,
    drift: Family<InState, Counter>,
}

impl Counts {
    /// Metrics in the registry; the first by Istio's name and labels.
    pub fn register(metrics: &Metrics) -> Self {
        let counts = Self::default();
        metrics.register(|registry| {
            let Self { repaired, states, drift } = counts.clone();
            registry.register("istio_cni_repair_pods_repaired", "Repairs, by kind and result", repaired);
            registry.register(
                "weir_agent_meshed_pods",
                "Pods of the mesh on this node, by the state of their rules",
                states,
            );
            registry.register("weir_agent_drift", "Pods found without their rules, or with others", drift);
        });
        counts
    }

    pub(crate) fn repaired(&self, kind: &'static str, result: &'static str) {
        self.repaired.get_or_create(&Repaired { r#type: kind, result }).inc();
    }
}

/// Keeps the rules of the node's pods right.
pub struct Repairer {
    /// The pods.
    pub pods: Pods,
    /// What the plugin said about them.
    pub attachments: Attachments,
    /// How it is done.
    pub settings: Settings,
    /// What is known.
    pub states: States,
    /// What is counted.
    pub counts: Counts,
    /// Who hears of it.
    pub events: Events,
}

impl Repairer {
    /// Looks and mends until told to stop; does about the rest what `actor` can.
    pub async fn run(self, mut actor: Option<Actor>, stop: Stop) {
        let this = Arc::new(self);
        let work = async {
            let mut changes = this.pods.subscribe();
            let mut visited_all: Option<Instant> = None;
            loop {
                changes.borrow_and_update();
                let full = visited_all.is_none_or(|at| at.elapsed() >= this.settings.interval);
                if this.pods.is_synced() {
                    if full {
                        visited_all = Some(Instant::now());
                    }
                    let broken = this.pass_aside(full).await;
                    if let Some(actor) = &mut actor {
                        actor.act(broken, &this.events, &this.counts).await;
                    }
                }
                sleep(SETTLE).await;
                let left = visited_all
                    .map_or(this.settings.interval, |at| this.settings.interval.saturating_sub(at.elapsed()));
                // A new pod, or the time for all of them.
                let _ = timeout(left, changes.changed()).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.requested() => {}
        }
    }

    /// A pass enters namespaces and waits for the kernel: not on a thread that serves others.
    async fn pass_aside(self: &Arc<Self>, full: bool) -> Vec<Arc<PodFacts>> {
        let this = Arc::clone(self);
        match tokio::task::spawn_blocking(move || this.pass(full)).await {
            Ok(broken) => broken,
            Err(error) => {
                warn!(%error, "a visit of the node's pods was cut short");
                Vec::new()
            }
        }
    }

    /// Visits all pods of the mesh, or those about which something is new. Returns those that are broken and were not mended.
    pub fn pass(&self, full: bool) -> Vec<Arc<PodFacts>> {
        let all = self.pods.all();
        let meshed: Vec<&Arc<PodFacts>> =
            all.iter().filter(|pod| !pod.ending && !matches!(pod.decision, Decision::Skip(_))).collect();
        self.states.keep(&meshed.iter().map(|pod| pod.uid.as_str()).collect::<HashSet<_>>());
        let forbidden = Forbidden::find(&self.settings.places.host_proc);
        let look = Look::new(&self.settings.places, &self.attachments);
        let mut broken = Vec::new();
        for pod in meshed {
            let is_new =
                self.states.of(&pod.uid).is_none_or(|known| known.state != State::Ok && known.version != pod.version);
            if (full || is_new) && self.examine(pod, &look, &forbidden) {
                broken.push(Arc::clone(pod));
            }
        }
        for (state, count) in self.states.counts() {
            self.counts
                .states
                .get_or_create(&InState { state: state.name() })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        broken
    }

    /// Visits one pod; whether it is broken afterwards.
    fn examine(&self, pod: &PodFacts, look: &Look<'_>, forbidden: &Forbidden) -> bool {
        let refused = |detail: Vec<String>| {
            self.remember(pod, State::Refused, detail, None, false);
            false
        };
        let config = match &pod.decision {
            Decision::Capture(config, _) => config,
            Decision::Refused(errors) => return refused(errors.iter().map(ToString::to_string).collect()),
            Decision::BadSpec(lines) | Decision::NeedsSpec(lines) => return refused(lines.clone()),
            Decision::Skip(_) => return false,
        };
        let rules = match plan(config) {
            Ok(rules) => rules,
            Err(settings) => return refused(settings.iter().map(ToString::to_string).collect()),
        };
        if pod.ips.is_empty() {
            self.remember(pod, State::Pending, Vec::new(), None, false);
            return false;
        }
        // Right before anything is changed: the pod is still there, and nothing about it is new.
        let still = || {
            self.settings.in_place
                && self.pods.get(&pod.uid).is_some_and(|now| now.version == pod.version && !now.ending)
        };
        let mut trouble = None;
        for (path, source) in look.candidates(pod) {
            let found_by = Some(source.name());
            match visit(&path, forbidden, &pod.ips, (&rules, self.settings.backend), still) {
                Visit::NotTheirs => {}
                Visit::Unreadable(reason) => trouble = Some(format!("{}: {reason}", path.display())),
                Visit::Seen(condition) => {
                    let (state, detail) = state_of(condition);
                    self.remember(pod, state, detail, found_by, false);
                    return matches!(state, State::Missing | State::Drifted);
                }
                Visit::Mended(condition) => {
                    let (was, detail) = state_of(condition);
                    self.counts.repaired("repair", "success");
                    self.counts.drift.get_or_create(&InState { state: was.name() }).inc();
                    info!(
                        pod = pod.full_name(),
                        was = was.name(),
                        found_by = source.name(),
                        "capture rules were put back"
                    );
                    self.tell(pod, "CaptureRulesRepaired", was_text(was, &detail) + "; they were put back in place");
                    self.remember(pod, State::Ok, Vec::new(), found_by, true);
                    return false;
                }
                Visit::Failed(condition, reason) => {
                    let (state, mut detail) = state_of(condition);
                    self.counts.repaired("repair", "fail");
                    warn!(pod = pod.full_name(), state = state.name(), reason, "capture rules cannot be put back");
                    detail.insert(0, format!("cannot be put back: {reason}"));
                    self.remember(pod, state, detail, found_by, false);
                    return true;
                }
            }
        }
        let detail = trouble.unwrap_or_else(|| "its network namespace was not found".to_owned());
        self.remember(pod, State::Unreachable, vec![detail], None, false);
        pod.failed_validation
    }

    /// Notes a state; tells of one that is bad and new.
    fn remember(
        &self,
        pod: &PodFacts,
        state: State,
        mut detail: Vec<String>,
        found_by: Option<&'static str>,
        repaired: bool,
    ) {
        detail.truncate(MAX_DETAIL);
        let text = was_text(state, &detail);
        let before = self.states.set(pod, state, detail, found_by, repaired);
        if before == Some(state) {
            return;
        }
        if matches!(state, State::Missing | State::Drifted) {
            self.counts.drift.get_or_create(&InState { state: state.name() }).inc();
            warn!(pod = pod.full_name(), "{text}");
            self.tell(pod, "CaptureRulesBroken", text);
        } else if matches!(state, State::Unreachable | State::Refused | State::Foreign) {
            info!(pod = pod.full_name(), state = state.name(), "{text}");
        }
    }

    fn tell(&self, pod: &PodFacts, reason: &'static str, note: String) {
        self.events.tell(Told { about: pod.reference(), warning: true, reason, note });
    }
}

fn state_of(condition: Condition) -> (State, Vec<String>) {
    match condition {
        Condition::InPlace => (State::Ok, Vec::new()),
        Condition::Missing => (State::Missing, Vec::new()),
        Condition::Drifted(lines) => (State::Drifted, lines),
        Condition::Foreign(tables) => (
            State::Foreign,
            tables.iter().map(|table| format!("rules of another installer in table {table}")).collect(),
        ),
    }
}

fn was_text(state: State, detail: &[String]) -> String {
    let what = match state {
        State::Missing => "the pod is in the mesh, but had no capture rules",
        State::Drifted => "somebody changed the capture rules of the pod",
        State::Foreign => "the capture rules are another installer's",
        State::Unreachable => "the capture rules cannot be looked at",
        State::Refused => "the pod asks for what cannot be captured",
        State::Ok | State::Pending => "",
    };
    if detail.is_empty() { what.to_owned() } else { format!("{what}: {}", detail.join("; ")) }
}
