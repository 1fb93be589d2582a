//! The Secret in the cluster, and the leaf of this replica.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};
use weir_runtime::connect::{Refusal, bounded};
use weir_runtime::events::Told;
use weir_runtime::health::{Condition, Weight};

use super::authority::Ca;
use super::leaf::{self, Leaf, LeafStep};
use super::plan::{self, Change, Plan, Seen, Times, View};
use super::secret::{Found, changed_secret, new_secret};
use super::state::CaState;
use crate::cluster::Context;
use crate::cluster::bundle::{Bundles, Trust};
use crate::cluster::lease::{Leadership, MANAGER};
use crate::server::tls::Served;

/// How often the leaf is looked at; by the wall clock, which may have jumped since.
const LOOK: Duration = Duration::from_secs(1);
/// Shortest Lease.
const MIN_LEASE: Duration = Duration::from_secs(3);
/// So far a clock may be from the API server's: half of what certificates are backdated by.
const CLOCK_GAP: Duration = Duration::from_mins(30);
/// Writes in a row, before there is a pause.
const IN_A_ROW: u32 = 4;

/// What the built-in CA is like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the Secret, and of the Lease.
    pub secret: String,
    /// Names in the leaf.
    pub names: Vec<String>,
    /// How long things last.
    pub times: Times,
    /// How often the Secret is read.
    pub interval: Duration,
}

/// The names by which clients in the cluster call a service, shortest first.
pub fn names(service: &str, namespace: &str) -> Vec<String> {
    let ends = ["", ".svc", ".svc.cluster.local"];
    let full = ends.iter().map(|end| format!("{service}.{namespace}{end}"));
    std::iter::once(service.to_owned()).chain(full).collect()
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Debug, Default)]
struct CaMetrics {
    expiry: Gauge,
    phase: Family<PhaseLabel, Gauge>,
    holder: Gauge,
}

impl CaMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "End of the CA that signs, in seconds since 1970";
        registry.register("weir_webhook_ca_expiry_timestamp_seconds", help, metrics.expiry.clone());
        let help = "1 for the phase of the CA's rotation";
        registry.register("weir_webhook_ca_rotation_phase", help, metrics.phase.clone());
        let help = "Whether this replica holds the Lease under which the CA is written";
        registry.register("weir_webhook_lease_holder", help, metrics.holder.clone());
        metrics.in_phase("");
        metrics
    }

    fn in_phase(&self, name: &str) {
        for phase in ["stable", "publishing", "retiring"] {
            self.phase.get_or_create(&PhaseLabel { phase }).set(i64::from(phase == name));
        }
    }
}

/// The part that does it.
pub struct Keeper {
    context: Context,
    options: Options,
    lease: Leadership,
    served: Served,
    trust: watch::Sender<Option<Arc<Trust>>>,
    bundles: Bundles,
    client: Option<Client>,
    memory: Option<CaState>,
    phase_since: Instant,
    absent_since: Option<Instant>,
    leaf: Option<Leaf>,
    /// Why no leaf of the current CA can be made at the moment.
    leaf_trouble: Option<String>,
    condition: Condition,
    metrics: CaMetrics,
    /// The last trouble that was told, so that each is told once.
    told: String,
}

impl Keeper {
    /// A part that serves leaves through `served`, and says through `trust` what is to be trusted.
    pub fn new(
        context: Context,
        options: Options,
        served: Served,
        trust: watch::Sender<Option<Arc<Trust>>>,
        bundles: Bundles,
    ) -> Self {
        let condition = context.health.register("ca", Weight::Blocking, "the CA is not known yet");
        let metrics = context.metrics.with_registry(CaMetrics::register);
        let lease = Leadership::new(
            context.namespace.clone(),
            options.secret.clone(),
            context.replica.clone(),
            (options.interval * 3).max(MIN_LEASE),
        );
        Self {
            context,
            options,
            lease,
            served,
            trust,
            bundles,
            client: None,
            memory: None,
            phase_since: Instant::now(),
            absent_since: None,
            leaf: None,
            leaf_trouble: None,
            condition,
            metrics,
            told: String::new(),
        }
    }

    /// Keeps CA and leaf until told to stop, and gives the Lease back.
    pub async fn run(mut self) {
        let stop = self.context.stop.clone();
        tokio::select! {
            () = self.keep() => {}
            () = stop.requested() => {}
        }
        if let Some(client) = &self.client {
            self.lease.release(client).await;
        }
    }

    async fn keep(&mut self) {
        let mut read_at: Option<Instant> = None;
        loop {
            if read_at.is_none_or(|at| at.elapsed() >= self.options.interval) {
                read_at = Some(Instant::now());
                self.round().await;
            }
            self.renew_leaf(SystemTime::now());
            if let Some(trouble) = self.leaf_trouble.clone() {
                self.complain(&trouble);
            }
            sleep(LOOK.min(self.options.interval)).await;
        }
    }

    /// One look at Lease and Secret, with the writes that are due.
    async fn round(&mut self) {
        for _ in 0..IN_A_ROW {
            match self.step().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(refusal) => {
                    if refusal.needs_new_client() {
                        self.client = None;
                    }
                    let Options { secret, .. } = &self.options;
                    return self.complain(&format!("Secret or Lease {}/{secret}: {refusal}", self.context.namespace));
                }
            }
        }
    }

    /// Returns whether something was written, so that there may be more to do.
    async fn step(&mut self) -> Result<bool, Refusal> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert((self.context.connect)().map_err(Refusal::unanswered)?).clone(),
        };
        let elected = self.lease.keep(&client).await;
        self.metrics.holder.set(i64::from(self.lease.holds()));
        let secrets = Api::<Secret>::namespaced(client, &self.context.namespace);
        let found = Found::from(bounded(secrets.get_opt(&self.options.secret)).await?);
        if let Seen::Good { state, .. } = &found.seen {
            self.remember(state.clone());
            self.absent_since = None;
        } else {
            self.absent_since.get_or_insert_with(Instant::now);
        }
        // Without the Lease the Secret is read and followed all the same.
        elected?;
        let settled = self.memory.as_ref().and_then(|state| Trust::parse(&state.bundle()).ok());
        let view = View {
            now: SystemTime::now(),
            holder: self.lease.holds() && !self.clock_is_wrong(),
            secret: &found.seen,
            memory: self.memory.as_ref(),
            absent: self.absent_since.map(|since| since.elapsed()).unwrap_or_default(),
            first: self.bundles.are_empty(),
            phase_seen: self.phase_since.elapsed(),
            settled: settled.as_ref().and_then(|trust| self.bundles.settled(trust)),
            times: self.options.times,
        };
        let plan = plan::plan(&view);
        let findings = found.findings.join("; ");
        match plan {
            Plan::Do(Change::Switch) if !self.everywhere(settled.as_ref()).await? => Ok(false),
            Plan::Do(change) => self.change(&secrets, &found, &change).await,
            Plan::Wait(_) if self.clock_is_wrong() => {
                let gap = self.lease.clock_gap().unwrap_or_default().as_secs();
                self.complain(&format!("this node's clock is {gap} s from the API server's: nothing is written by it"));
                Ok(false)
            }
            Plan::Wait(why) => {
                self.all_well(why, &findings);
                Ok(false)
            }
            Plan::Stuck(why) => {
                self.complain(&format!("Secret {}: {findings}: {why}", self.options.secret));
                Ok(false)
            }
        }
    }

    /// A clock that is far from the API server's does not decide about a CA. Leaves are made by it all the same.
    fn clock_is_wrong(&self) -> bool {
        self.lease.clock_gap().is_some_and(|gap| gap > CLOCK_GAP.min(self.options.times.ca / 8))
    }

    async fn everywhere(&self, trust: Option<&Trust>) -> Result<bool, Refusal> {
        match trust {
            Some(trust) => self.bundles.confirm(trust).await,
            None => Ok(false),
        }
    }

    async fn change(&mut self, secrets: &Api<Secret>, found: &Found, change: &Change) -> Result<bool, Refusal> {
        let now = SystemTime::now();
        let base = match (&found.seen, change) {
            (Seen::Good { state, .. }, _) => Some(state),
            (_, Change::Create) => None,
            _ => self.memory.as_ref(),
        };
        let life = self.options.times.ca;
        let made = plan::apply(change, base, now, || Ca::make(now, life));
        let Some(state) = made.map_err(|error| Refusal::unanswered(error.to_string()))? else { return Ok(false) };
        let name = &self.options.secret;
        let written = match &found.version {
            None => {
                let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
                let secret = serde_json::from_value(new_secret(name, &state));
                let secret: Secret = secret.map_err(|error| Refusal::unanswered(error.to_string()))?;
                bounded(secrets.create(&params, &secret)).await
            }
            Some(version) => {
                let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                bounded(secrets.patch(name, &params, &Patch::Merge(changed_secret(version, &state)))).await
            }
        };
        let secret = match written {
            Ok(secret) => secret,
            // Somebody else was first: what it says now is what counts.
            Err(Refusal { code: Some(404 | 409), .. }) => return Ok(true),
            Err(refusal) => return Err(refusal),
        };
        let about = ObjectReference { uid: secret.metadata.uid.or_else(|| found.uid.clone()), ..self.reference() };
        let (warning, reason, note) = words(change, &found.findings);
        info!(secret = name, reason, "{note}");
        self.context.events.tell(Told { about, warning, reason, note });
        self.remember(state);
        Ok(true)
    }

    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.context.namespace.clone()),
            name: Some(self.options.secret.clone()),
            ..ObjectReference::default()
        }
    }

    /// From now on this is the state.
    fn remember(&mut self, state: CaState) {
        if self.memory.as_ref() == Some(&state) {
            return;
        }
        let same_phase =
            self.memory.as_ref().is_some_and(|memory| memory.phase == state.phase && memory.current == state.current);
        if !same_phase {
            self.phase_since = Instant::now();
            info!(phase = state.phase.name(), ca = ?state.current.cert().validity(), "the CA's state is known");
        }
        self.metrics.in_phase(state.phase.name());
        let end = state.current.cert().validity().not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.expiry.set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
        // Ours are never damaged.
        if let Ok(trust) = Trust::parse(&state.bundle()) {
            self.trust.send_if_modified(|before| {
                let changed = before.as_deref() != Some(&trust);
                *before = Some(Arc::new(trust));
                changed
            });
        }
        self.memory = Some(state);
        self.renew_leaf(SystemTime::now());
    }

    /// Makes another leaf if one is due.
    fn renew_leaf(&mut self, now: SystemTime) {
        let Some(state) = &self.memory else { return };
        let times = self.options.times;
        self.leaf_trouble = match leaf::decide(self.leaf.as_ref(), &state.current, times.leaf, now) {
            LeafStep::Keep => None,
            LeafStep::Impossible(why) => Some(why.to_string()),
            LeafStep::Issue => match state.current.sign(&self.options.names, now, times.leaf) {
                Ok(cert) => {
                    let validity = cert.validity();
                    self.leaf = Some(Leaf::new(state.current.cert().clone(), validity, now, jitter()));
                    self.context.metrics.certificate_expires(validity.not_after);
                    self.served.store(Arc::new(Some(cert)));
                    info!(?validity, "a new certificate is served");
                    None
                }
                Err(reason) => Some(format!("no certificate can be made: {reason}")),
            },
        };
    }

    fn all_well(&mut self, waiting: Option<&'static str>, findings: &str) {
        let Some(state) = &self.memory else { return self.condition.bad(waiting.unwrap_or("the CA is not known yet")) };
        if self.leaf_trouble.is_some() {
            // It is told at the next look at the leaf.
            return;
        }
        self.told.clear();
        let mut text = format!("phase {}", state.phase.name());
        for more in [waiting.unwrap_or_default(), findings] {
            if !more.is_empty() {
                text = format!("{text}; {more}");
            }
        }
        if findings.is_empty() { self.condition.good(text) } else { self.condition.odd(text) }
    }

    /// Tells of trouble: what is served goes on to be served.
    fn complain(&mut self, trouble: &str) {
        let serving = self.served.load().is_some();
        if serving {
            self.condition.odd(format!("{trouble}; what is in memory goes on to be served"));
        } else {
            self.condition.bad(trouble);
        }
        if self.told != trouble {
            trouble.clone_into(&mut self.told);
            warn!(serving, "the CA: {trouble}");
            let note = trouble.to_owned();
            self.context.events.tell(Told { about: self.reference(), warning: true, reason: "CATrouble", note });
        }
    }
}

/// What an event says of a change.
fn words(change: &Change, findings: &[String]) -> (bool, &'static str, String) {
    let (warning, reason, note) = match change {
        Change::Create => (false, "CACreated", "A CA was made"),
        Change::Restore => {
            (true, "CARestored", "The Secret was removed or damaged; the CA was written back from memory")
        }
        Change::Tidy => (true, "CATidied", "What did not belong into the Secret was taken out"),
        Change::Publish { .. } => {
            (false, "CARotationBegun", "The next CA was made; every caBundle has to trust it now")
        }
        Change::Remake => (true, "CARemade", "The next CA would not have been valid and was made anew"),
        Change::Switch => {
            (false, "CASwitched", "The next CA signs from now on; the one before stays trusted for a while")
        }
        Change::Drop => (false, "CARotationEnded", "The CA before is not trusted any more"),
    };
    let why = if findings.is_empty() { String::new() } else { format!(": {}", findings.join("; ")) };
    (warning, reason, format!("{note}{why}"))
}

/// Between 0 and 1.
fn jitter() -> f64 {
    let random = u32::try_from(RandomState::new().hash_one(0_u8) >> 32).unwrap_or(0);
    f64::from(random) / f64::from(u32::MAX)
}
