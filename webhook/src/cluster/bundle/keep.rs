//! Following the objects, writing to them, and saying how they are.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};
use weir_runtime::connect::{Connect, Refusal, bounded};
use weir_runtime::damper::Damper;
use weir_runtime::events::Told;
use weir_runtime::health::{Condition, Weight};
use weir_runtime::{Cache, Follower};

use super::facts::Facts;
use super::trust::{Refresh, Trust};
use super::verify::{certificates, verify};
use crate::cluster::lease::MANAGER;
use crate::cluster::{Context, Parts};
use crate::server::tls::Served;

/// How often everything is looked at again although nothing was heard.
const LOOK: Duration = Duration::from_secs(1);
/// First and longest pause after a write that failed.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// So long a bundle may be wrong before an event tells of it: writing it takes a moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is done about a wrong bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is put right.
    Patch,
    /// It is told of: somebody else writes it.
    Verify,
}

/// Whether all objects trust what they should, and since when this was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What they should.
    pub trust: Option<Arc<Trust>>,
    /// `None` while one does not.
    pub since: Option<Instant>,
    /// Whether all objects are known, and none trusts anything.
    pub empty: bool,
}

/// The objects, for those who have to know that a bundle is everywhere.
#[derive(Clone)]
pub struct Bundles {
    connect: Connect,
    labels: String,
    observed: watch::Receiver<Observed>,
}

impl Bundles {
    /// For how long every bundle has been seen to trust `trust`; `None` while one does not.
    pub fn settled(&self, trust: &Trust) -> Option<Duration> {
        let observed = self.observed.borrow();
        observed.trust.as_deref().filter(|seen| *seen == trust).and(observed.since).map(|since| since.elapsed())
    }

    /// Whether all objects are known, and none trusts anything yet.
    pub fn are_empty(&self) -> bool {
        self.observed.borrow().empty
    }

    /// Whether they all do now, by the API server itself: what is watched may be late.
    ///
    /// # Errors
    /// The API server refuses, or is not there.
    pub async fn confirm(&self, trust: &Trust) -> Result<bool, Refusal> {
        let client = (self.connect)().map_err(Refusal::unanswered)?;
        let objects = bounded(api(client).list(&ListParams::default().labels(&self.labels))).await?;
        Ok(objects.items.into_iter().all(|object| Facts::from(object).trusts(trust)))
    }
}

fn api(client: Client) -> Api<MutatingWebhookConfiguration> {
    Api::all(client)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Outcomes of a write.
const OUTCOMES: [&str; 6] = ["patched", "conflict", "forbidden", "not_found", "invalid", "failed"];

/// Metrics about bundles.
#[derive(Debug, Default)]
pub struct BundleMetrics {
    patches: Family<Outcome, Counter>,
    mismatches: Gauge,
}

impl BundleMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for result in OUTCOMES {
            drop(metrics.patches.get_or_create(&Outcome { result }));
        }
        registry.register(
            "weir_webhook_ca_bundle_patches",
            "Writes of the CA bundle to a MutatingWebhookConfiguration, by outcome",
            metrics.patches.clone(),
        );
        registry.register(
            "weir_webhook_ca_bundle_mismatches",
            "Webhook entries whose CA bundle does not verify the certificate that is served",
            metrics.mismatches.clone(),
        );
        metrics
    }

    fn wrote(&self, outcome: Option<&Refusal>) {
        let result = match outcome.map(|refusal| refusal.code) {
            None => "patched",
            Some(Some(403)) => "forbidden",
            Some(Some(404)) => "not_found",
            Some(Some(409)) => "conflict",
            Some(Some(422)) => "invalid",
            Some(_) => "failed",
        };
        self.patches.get_or_create(&Outcome { result }).inc();
    }
}

/// What was done about one object.
#[derive(Debug, Default)]
struct Effort {
    damper: Damper,
    pause: Duration,
    retry_at: Option<Instant>,
    refused: Option<String>,
    wrong_since: Option<Instant>,
    told: bool,
}

/// The part that does it.
pub struct Keeper {
    context: Context,
    labels: String,
    mode: Mode,
    trust: watch::Receiver<Option<Arc<Trust>>>,
    refresh: Refresh,
    served: Served,
    cache: Cache<Facts>,
    observed: watch::Sender<Observed>,
    metrics: BundleMetrics,
    condition: Condition,
    efforts: HashMap<String, Effort>,
    /// Whether everything has ever been right.
    verified: bool,
}

impl Keeper {
    /// Starts following the objects of `revision`; the rest is up to [`run`](Self::run). `trust` is what they are to trust; `refresh`
    /// reads it at its source.
    pub fn new(
        context: Context,
        revision: &str,
        mode: Mode,
        served: Served,
        (trust, refresh): (watch::Receiver<Option<Arc<Trust>>>, Refresh),
        parts: &mut Parts,
    ) -> Self {
        let labels = format!("weir.dev/rev={revision}");
        let cache = Cache::default();
        let follower = Follower {
            connect: Arc::clone(&context.connect),
            what: "the webhook configurations",
            api: Box::new(api),
            fields: String::new(),
            labels: labels.clone(),
            keep: Box::new(Facts::from),
            cache: cache.clone(),
        };
        parts.spawn("webhook configurations", Box::pin(follower.run(context.stop.clone())));
        let condition =
            context.health.register("ca-bundle", Weight::Blocking, "the webhook configurations are not known yet");
        let metrics = context.metrics.with_registry(BundleMetrics::register);
        let observed = watch::Sender::default();
        let (efforts, verified) = (HashMap::new(), false);
        Self { context, labels, mode, trust, refresh, served, cache, observed, metrics, condition, efforts, verified }
    }

    /// What others may know of the objects.
    pub fn bundles(&self) -> Bundles {
        Bundles {
            connect: Arc::clone(&self.context.connect),
            labels: self.labels.clone(),
            observed: self.observed.subscribe(),
        }
    }

    /// Keeps the bundles right until told to stop.
    pub async fn run(mut self) {
        let stop = self.context.stop.clone();
        tokio::select! {
            () = self.keep() => {}
            () = stop.requested() => {}
        }
    }

    async fn keep(&mut self) {
        let mut changes = self.cache.subscribe();
        loop {
            changes.mark_unchanged();
            let trust = self.trust.borrow_and_update().clone();
            self.observe(trust.as_ref());
            if let (Mode::Patch, Some(trust)) = (self.mode, trust) {
                self.put_right(&trust).await;
                self.observe(Some(&trust));
            }
            self.tell();
            tokio::select! {
                _ = changes.changed() => {}
                // Without a sender nothing will ever change again.
                Ok(()) = self.trust.changed() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    fn objects(&self) -> Vec<Arc<Facts>> {
        let mut all = self.cache.all();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn observe(&self, trust: Option<&Arc<Trust>>) {
        let known = self.cache.is_synced() && self.cache.trouble().is_none();
        let objects = self.objects();
        let complete = known && trust.is_some_and(|trust| objects.iter().all(|object| object.trusts(trust)));
        let empty = known && objects.iter().all(|object| object.entries.iter().all(|entry| entry.bundle.is_empty()));
        self.observed.send_if_modified(|observed| {
            let since = match observed.since {
                Some(since) if complete && observed.trust.as_ref() == trust => Some(since),
                _ => complete.then(Instant::now),
            };
            let next = Observed { trust: trust.cloned(), since, empty };
            let changed = *observed != next;
            *observed = next;
            changed
        });
    }

    async fn put_right(&mut self, trust: &Arc<Trust>) {
        let objects = self.objects();
        for object in &objects {
            let effort = self.efforts.entry(object.uid.clone()).or_default();
            let now = Instant::now();
            if effort.damper.settle(now) {
                info!(object = object.name, "nobody fights over the CA bundle any more");
            }
            if !object.differs(trust) {
                (effort.refused, effort.retry_at, effort.pause) = (None, None, Duration::ZERO);
                continue;
            }
            if !effort.damper.wait(now).is_zero() || effort.retry_at.is_some_and(|at| now < at) {
                continue;
            }
            let written = self.write(object).await;
            self.account(object, written);
        }
    }

    /// Writes what is to be trusted by now; `Ok(false)` where nothing had to be written.
    async fn write(&self, object: &Facts) -> Result<bool, Refusal> {
        let trust = (self.refresh)().await.map_err(Refusal::unanswered)?;
        if !object.differs(&trust) {
            return Ok(false);
        }
        let client = (self.context.connect)().map_err(Refusal::unanswered)?;
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object.patch(&trust));
        let outcome = bounded(api(client).patch(&object.name, &params, &patch)).await;
        self.metrics.wrote(outcome.as_ref().err());
        // The watch tells of it too, but a look before that would write it again.
        let written = Facts::from(outcome?);
        self.cache.put(written.uid.clone(), written);
        Ok(true)
    }

    fn account(&mut self, object: &Facts, written: Result<bool, Refusal>) {
        let now = Instant::now();
        let effort = self.efforts.entry(object.uid.clone()).or_default();
        match written {
            Ok(false) => {}
            Ok(true) => {
                info!(object = object.name, "the CA bundle was put right");
                (effort.refused, effort.retry_at, effort.pause) = (None, None, Duration::ZERO);
                if effort.damper.repaired(now) {
                    let note = format!(
                        "Somebody keeps overwriting the caBundle of {}; it is put right more and more rarely. Take the field out of what \
                         writes it, or start the webhook with --patch-ca-bundle=false",
                        object.name
                    );
                    warn!(object = object.name, "{note}");
                    let about = object.reference();
                    self.context.events.tell(Told { about, warning: true, reason: "CABundleFought", note });
                }
            }
            Err(refusal) => {
                warn!(
                    object = object.name,
                    code = refusal.code,
                    reason = refusal.reason,
                    "the CA bundle cannot be written"
                );
                effort.pause = (effort.pause * 2).clamp(PAUSES.0, PAUSES.1);
                effort.retry_at = Some(now + effort.pause);
                effort.refused = Some(refusal.to_string());
            }
        }
    }

    /// Compares the bundles with what is served, and says so.
    fn tell(&mut self) {
        let rev = self.labels.clone();
        if !self.cache.is_synced() {
            let trouble = self.cache.trouble();
            // Who only compares may go without the right to read.
            let needed = self.mode == Mode::Patch || trouble.is_none();
            let why = trouble.unwrap_or_else(|| "no answer yet".to_owned());
            let text = format!("MutatingWebhookConfigurations labelled {rev} cannot be read: {why}");
            return self.set(needed, text);
        }
        let served = self.served.load_full();
        let Some(served) = served.as_ref() else { return self.condition.bad("no certificate is served yet") };
        let objects = self.objects();
        let known: BTreeSet<&str> = objects.iter().map(|object| object.uid.as_str()).collect();
        self.efforts.retain(|uid, _| known.contains(uid.as_str()));
        let mut wrong = Vec::new();
        let now = SystemTime::now();
        for object in &objects {
            let before = wrong.len();
            for entry in &object.entries {
                let (bundle, _) = certificates(&entry.bundle);
                if let Err(reason) = verify(&bundle, served.chain(), &entry.host, now) {
                    wrong.push(format!(
                        "{}, {}: the caBundle does not verify what is served: {reason}",
                        object.name, entry.name
                    ));
                }
            }
            let found = wrong.get(before).cloned();
            self.tell_of(object, found.as_deref());
        }
        self.metrics.mismatches.set(i64::try_from(wrong.len()).unwrap_or(i64::MAX));
        let names: Vec<&str> = objects.iter().map(|object| object.name.as_str()).collect();
        let Some(first) = wrong.first() else {
            self.verified = true;
            return self.condition.good(if names.is_empty() {
                format!("no MutatingWebhookConfiguration is labelled {rev}: no API server calls this webhook")
            } else {
                format!("every caBundle of {} verifies what is served", names.join(", "))
            });
        };
        let others = if wrong.len() > 1 { format!(" (and {} more)", wrong.len() - 1) } else { String::new() };
        let refused = self.efforts.values().find_map(|effort| effort.refused.as_deref());
        let refused = refused.map(|reason| format!("; it cannot be written: {reason}")).unwrap_or_default();
        let text = format!("{first}{others}{refused}");
        // A replica out of service would not make a bundle right, and in service it is there the moment that it is.
        self.set(true, text);
    }

    /// Something is wrong: a reason not to be ready where it is `blocking`, and nothing has ever been right.
    fn set(&self, blocking: bool, text: String) {
        if blocking && !self.verified {
            self.condition.bad(text);
        } else {
            self.condition.odd(text);
        }
    }

    /// Tells of an object by an event, when it was wrong for a while and when that is over.
    fn tell_of(&mut self, object: &Facts, wrong: Option<&str>) {
        let effort = self.efforts.entry(object.uid.clone()).or_default();
        let (warning, reason, note) = if let Some(wrong) = wrong {
            let since = *effort.wrong_since.get_or_insert_with(Instant::now);
            if effort.told || since.elapsed() < PATIENCE {
                return;
            }
            effort.told = true;
            let refused = effort.refused.as_deref().map(|reason| format!("; it cannot be written: {reason}"));
            (true, "CABundleMismatch", format!("{wrong}{}", refused.unwrap_or_default()))
        } else {
            effort.wrong_since = None;
            if !std::mem::take(&mut effort.told) {
                return;
            }
            (false, "CABundleVerified", "The caBundle verifies what is served again".to_owned())
        };
        self.context.events.tell(Told { about: object.reference(), warning, reason, note });
    }
}
