//! Observes webhook configurations, writes their `caBundle`, and reports how they are.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kube::api::{Patch, PatchParams};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};
use weir_injector::selection::configurations::OWNER_REVISION_LABEL;
use weir_runtime::client::{ApiError, with_timeout};
use weir_runtime::contention::ContentionBackoff;
use weir_runtime::events::EventRecord;
use weir_runtime::health::{Condition, ReadinessImpact};
use weir_runtime::tasks::Tasks;
use weir_runtime::{Cache, ObjectLimits, Reflector};

use super::metrics::BundleMetrics;
use super::observed::{ObservedConfiguration, ObservedEntry};
use super::status::{BundleStatus, BundleStatusReader, api};
use super::trust::{TrustBundle, TrustFetcher};
use super::verify::{parse_certificates, verify};
use crate::controllers::ControllerContext;
use crate::controllers::lease::FIELD_MANAGER;
use crate::tls::{ServedCertificate, ServerCert};

/// Time after which everything is reconciled again without a change.
const RESYNC_INTERVAL: Duration = Duration::from_secs(1);
/// First and longest pause after a write that failed.
const WRITE_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Time for which a bundle may be wrong before an event reports it: writing it takes a moment.
const MISMATCH_EVENT_DELAY: Duration = Duration::from_secs(10);

/// Reaction to a wrong `caBundle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaBundleMode {
    /// It is written.
    Patch,
    /// It is reported; another component, such as cert-manager, writes it.
    Verify,
}

/// Result for one webhook configuration.
#[derive(Debug, Default)]
struct ObjectState {
    backoff: ContentionBackoff,
    write_pause: Duration,
    retry_at: Option<Instant>,
    write_error: Option<String>,
    wrong_since: Option<Instant>,
    mismatch_reported: bool,
}

impl ObjectState {
    fn clear_write_error(&mut self) {
        (self.write_error, self.retry_at, self.write_pause) = (None, None, Duration::ZERO);
    }
}

/// Keeps the `caBundle` of all webhook configurations of a revision equal to the trust bundle.
pub struct CaBundleReconciler {
    context: ControllerContext,
    label_selector: String,
    mode: CaBundleMode,
    trust: watch::Receiver<Option<Arc<TrustBundle>>>,
    fetcher: TrustFetcher,
    served: ServedCertificate,
    cache: Cache<ObservedConfiguration>,
    status: watch::Sender<BundleStatus>,
    metrics: BundleMetrics,
    condition: Condition,
    objects: HashMap<String, ObjectState>,
    /// Whether every bundle has ever verified the serving certificate.
    was_verified: bool,
}

impl CaBundleReconciler {
    /// Starts the watch of the objects of `revision`; [`run`](Self::run) does the rest. `trust` is what they are to trust, and `fetcher`
    /// reads that from its source.
    pub fn new(
        context: ControllerContext,
        revision: &str,
        mode: CaBundleMode,
        served: ServedCertificate,
        (trust, fetcher): (watch::Receiver<Option<Arc<TrustBundle>>>, TrustFetcher),
        tasks: &Tasks,
    ) -> Self {
        let label_selector = format!("{OWNER_REVISION_LABEL}={revision}");
        let cache = Cache::default();
        let reflector = Reflector {
            client_factory: Arc::clone(&context.client_factory),
            kind: "webhook configurations",
            api: Box::new(api),
            field_selector: String::new(),
            label_selector: label_selector.clone(),
            limits: ObjectLimits::ETCD,
            transform: Box::new(ObservedConfiguration::from),
            cache: cache.clone(),
        };
        tasks.spawn("webhook-configurations", reflector.run(context.shutdown.clone()));
        let message = "webhook configurations not synced yet";
        let conditions = context.health.conditions();
        let condition = conditions.register("ca-bundle", ReadinessImpact::Blocking, "CacheNotSynced", message);
        let metrics = context.metrics.with_registry(BundleMetrics::register);
        Self {
            context,
            label_selector,
            mode,
            trust,
            fetcher,
            served,
            cache,
            status: watch::Sender::default(),
            metrics,
            condition,
            objects: HashMap::new(),
            was_verified: false,
        }
    }

    /// Returns a reader of what is observed.
    pub fn status_reader(&self) -> BundleStatusReader {
        BundleStatusReader {
            client_factory: Arc::clone(&self.context.client_factory),
            label_selector: self.label_selector.clone(),
            status: self.status.subscribe(),
        }
    }

    /// Reconciles until shutdown.
    pub async fn run(mut self) {
        let shutdown = self.context.shutdown.clone();
        shutdown.run_until_cancelled(self.reconcile_loop()).await;
    }

    async fn reconcile_loop(&mut self) {
        let mut changes = self.cache.subscribe();
        loop {
            changes.mark_unchanged();
            let trust = self.trust.borrow_and_update().clone();
            self.observe(trust.as_ref());
            if let (CaBundleMode::Patch, Some(trust)) = (self.mode, trust) {
                self.reconcile(&trust).await;
                self.observe(Some(&trust));
            }
            self.update_condition();
            tokio::select! {
                _ = changes.changed() => {}
                // Without a sender the trust bundle never changes again.
                Ok(()) = self.trust.changed() => {}
                () = sleep(RESYNC_INTERVAL) => {}
            }
        }
    }

    fn observed(&self) -> Vec<Arc<ObservedConfiguration>> {
        let mut all = self.cache.all();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Updates the status that others read.
    fn observe(&self, trust: Option<&Arc<TrustBundle>>) {
        let current = self.cache.is_synced() && self.cache.last_error().is_none();
        let objects = self.observed();
        let trusted = current && trust.is_some_and(|trust| objects.iter().all(|object| object.trusts_all_of(trust)));
        let mut entries = objects.iter().flat_map(|object| &object.entries);
        let none_trusts_anything = current && entries.all(|entry| entry.bundle.is_empty());
        self.status.send_if_modified(|status| {
            let trusted_since = match status.trusted_since {
                Some(since) if trusted && status.trust.as_ref() == trust => Some(since),
                _ => trusted.then(Instant::now),
            };
            let next = BundleStatus { trust: trust.cloned(), trusted_since, none_trusts_anything };
            let changed = *status != next;
            *status = next;
            changed
        });
    }

    async fn reconcile(&mut self, trust: &Arc<TrustBundle>) {
        for object in &self.observed() {
            let state = self.objects.entry(object.uid.clone()).or_default();
            let now = Instant::now();
            if state.backoff.expire(now) {
                info!(object = object.name, "caBundle contention ended");
            }
            if !object.differs_from(trust) {
                state.clear_write_error();
                continue;
            }
            if !state.backoff.delay(now).is_zero() || state.retry_at.is_some_and(|at| now < at) {
                continue;
            }
            let written = self.write(object).await;
            self.record_write(object, written);
        }
    }

    /// Fetches and writes the trust bundle; `Ok(false)` if the object has it already.
    async fn write(&self, object: &ObservedConfiguration) -> Result<bool, ApiError> {
        let trust = (self.fetcher)().await.map_err(ApiError::no_response)?;
        if !object.differs_from(&trust) {
            return Ok(false);
        }
        let client = (self.context.client_factory)().map_err(ApiError::no_response)?;
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(object.apply_patch(&trust));
        let result = with_timeout(api(client).patch(&object.name, &params, &patch)).await;
        self.metrics.record_patch(result.as_ref().err());
        // The watch reports it too, but a reconcile before that would write it again.
        let written = ObservedConfiguration::from(result?);
        self.cache.put(written.uid.clone(), written);
        Ok(true)
    }

    fn record_write(&mut self, object: &ObservedConfiguration, written: Result<bool, ApiError>) {
        let name = object.name.as_str();
        let state = self.objects.entry(object.uid.clone()).or_default();
        match written {
            Ok(false) => {}
            Ok(true) => {
                info!(object = name, "restored caBundle");
                state.clear_write_error();
                if state.backoff.record_repair(Instant::now()) {
                    warn!(object = name, "another writer keeps overwriting caBundle; backing off");
                    let note = format!(
                        "another writer keeps overwriting caBundle of {name}; backing off. Remove the field from what applies it, or \
                         start the webhook with --patch-ca-bundle=false"
                    );
                    let regarding = object.object_reference();
                    let event = EventRecord { regarding, warning: true, reason: "CABundleContended", note };
                    self.context.events.record(event);
                }
            }
            Err(error) => {
                warn!(object = name, code = error.status, error = error.reason, "cannot write caBundle; retrying");
                state.write_pause = (state.write_pause * 2).clamp(WRITE_BACKOFF.0, WRITE_BACKOFF.1);
                state.retry_at = Some(Instant::now() + state.write_pause);
                state.write_error = Some(error.to_string());
            }
        }
    }

    /// Verifies the serving certificate with every bundle, and reports the result.
    fn update_condition(&mut self) {
        let selector = self.label_selector.clone();
        if !self.cache.is_synced() {
            let error = self.cache.last_error();
            // Who only verifies may lack the permission to read.
            let blocking = self.mode == CaBundleMode::Patch || error.is_none();
            let reason = error.unwrap_or_else(|| "not synced".to_owned());
            let message = format!("cannot list MutatingWebhookConfigurations labelled {selector}: {reason}");
            return self.set_unhealthy(blocking, "CacheNotSynced", message);
        }
        let served = self.served.load_full();
        let Some(served) = served.as_ref() else {
            return self.condition.set_failed("CertificateMissing", "no certificate is served yet");
        };
        let objects = self.observed();
        let known: BTreeSet<&str> = objects.iter().map(|object| object.uid.as_str()).collect();
        self.objects.retain(|uid, _| known.contains(uid.as_str()));
        let mut mismatches = Vec::new();
        for object in &objects {
            let found = find_mismatches(object, served);
            self.record_mismatch_event(object, found.first().map(String::as_str));
            mismatches.extend(found);
        }
        self.metrics.set_mismatches(mismatches.len());
        let Some(first) = mismatches.first() else {
            self.was_verified = true;
            return if objects.is_empty() {
                let message =
                    format!("no MutatingWebhookConfiguration is labelled {selector}: no API server calls this webhook");
                self.condition.set_ok("NoWebhookConfiguration", message);
            } else {
                let names: Vec<&str> = objects.iter().map(|object| object.name.as_str()).collect();
                let message = format!("caBundle of {} verifies the serving certificate", names.join(", "));
                self.condition.set_ok("CABundleVerified", message);
            };
        };
        let others = if mismatches.len() > 1 { format!(" (and {} more)", mismatches.len() - 1) } else { String::new() };
        let write_error = self.objects.values().find_map(|state| state.write_error.as_deref());
        let reason = if write_error.is_some() {
            "CABundleWriteFailed"
        } else if self.objects.values().any(|state| state.backoff.is_contended()) {
            "CABundleContended"
        } else {
            "CABundleMismatch"
        };
        let write_error = write_error.map(|error| format!("; cannot write it: {error}")).unwrap_or_default();
        // A replica out of service would not fix a bundle, and in service it is available the moment that it is fixed.
        self.set_unhealthy(true, reason, format!("{first}{others}{write_error}"));
    }

    /// Sets the condition to failed if the problem is blocking and no bundle has ever been right, else to degraded.
    fn set_unhealthy(&self, blocking: bool, reason: &'static str, message: String) {
        if blocking && !self.was_verified {
            self.condition.set_failed(reason, message);
        } else {
            self.condition.set_degraded(reason, message);
        }
    }

    /// Records an event when an object has been wrong for a while, and when that is over.
    fn record_mismatch_event(&mut self, object: &ObservedConfiguration, mismatch: Option<&str>) {
        let state = self.objects.entry(object.uid.clone()).or_default();
        let (warning, reason, note) = if let Some(mismatch) = mismatch {
            let since = *state.wrong_since.get_or_insert_with(Instant::now);
            if state.mismatch_reported || since.elapsed() < MISMATCH_EVENT_DELAY {
                return;
            }
            state.mismatch_reported = true;
            let write_error = state.write_error.as_deref().map(|error| format!("; cannot write it: {error}"));
            (true, "CABundleMismatch", format!("{mismatch}{}", write_error.unwrap_or_default()))
        } else {
            state.wrong_since = None;
            if !std::mem::take(&mut state.mismatch_reported) {
                return;
            }
            (false, "CABundleVerified", "caBundle verifies the serving certificate again".to_owned())
        };
        self.context.events.record(EventRecord { regarding: object.object_reference(), warning, reason, note });
    }
}

/// Describes every entry whose bundle does not verify the serving certificate.
fn find_mismatches(object: &ObservedConfiguration, served: &ServerCert) -> Vec<String> {
    let now = SystemTime::now();
    let mismatch = |entry: &ObservedEntry| {
        let (bundle, _) = parse_certificates(&entry.bundle);
        let reason = verify(&bundle, served.chain(), &entry.host, now).err()?;
        let (object, entry) = (&object.name, &entry.name);
        Some(format!("caBundle of {object}, webhook {entry}, does not verify the serving certificate: {reason}"))
    };
    object.entries.iter().filter_map(mismatch).collect()
}
