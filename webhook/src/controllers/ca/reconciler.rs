//! Keeps the CA Secret and this replica's leaf.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};
use weir_runtime::client::{ApiError, with_timeout};
use weir_runtime::events::EventRecord;
use weir_runtime::health::{Condition, ReadinessImpact};

use super::authority::Ca;
use super::leaf::{self, Leaf, LeafAction};
use super::metrics::CaMetrics;
use super::plan::{self, CaChange, CaLifetimes, Plan, PlanInput, SecretState};
use super::secret::{FetchedSecret, new_secret, secret_patch};
use super::state::{CaState, Phase};
use crate::controllers::ControllerContext;
use crate::controllers::ca_bundle::{BundleStatusReader, TrustBundle};
use crate::controllers::lease::{FIELD_MANAGER, Leadership};
use crate::tls::ServedCertificate;

/// Interval at which the leaf is checked against the wall clock, which may have jumped.
const LEAF_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest Lease.
const MIN_LEASE: Duration = Duration::from_secs(3);
/// Largest difference of this replica's clock to the API server's: half of what certificates are backdated by.
const MAX_CLOCK_SKEW: Duration = Duration::from_mins(30);
/// Consecutive writes before a pause.
const MAX_WRITES_PER_RECONCILE: u32 = 4;

/// Configuration of the built-in CA.
#[derive(Debug, Clone)]
pub struct CaOptions {
    /// Name of the Secret, and of the Lease.
    pub secret: String,
    /// Names in the leaf.
    pub names: Vec<String>,
    /// Validity of certificates and length of a rotation's phases.
    pub lifetimes: CaLifetimes,
    /// Interval at which the Secret is read.
    pub poll_interval: Duration,
}

/// Returns the names by which clients in the cluster call a service, shortest first.
pub fn service_dns_names(service: &str, namespace: &str) -> Vec<String> {
    let suffixes = ["", ".svc", ".svc.cluster.local"];
    let qualified = suffixes.iter().map(|suffix| format!("{service}.{namespace}{suffix}"));
    std::iter::once(service.to_owned()).chain(qualified).collect()
}

/// Problems of the CA and of the leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CaError {
    /// Reason of the condition.
    reason: &'static str,
    message: String,
}

impl CaError {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Keeps the CA in a Secret, and issues this replica's leaf.
pub struct CaReconciler {
    context: ControllerContext,
    options: CaOptions,
    lease: Leadership,
    served: ServedCertificate,
    trust: watch::Sender<Option<Arc<TrustBundle>>>,
    bundles: BundleStatusReader,
    client: Option<Client>,
    /// The last valid state of the Secret.
    last_good: Option<CaState>,
    phase_since: Instant,
    absent_since: Option<Instant>,
    leaf: Option<Leaf>,
    /// Reason for which no leaf of the current CA can be issued.
    leaf_error: Option<CaError>,
    condition: Condition,
    metrics: CaMetrics,
    /// The last error that was reported, so that each is reported once.
    last_reported: Option<CaError>,
}

impl CaReconciler {
    /// Issued leaves go to `served`, and trust bundles to `trust`.
    pub fn new(
        context: ControllerContext,
        options: CaOptions,
        served: ServedCertificate,
        trust: watch::Sender<Option<Arc<TrustBundle>>>,
        bundles: BundleStatusReader,
    ) -> Self {
        let conditions = context.health.conditions();
        let condition = conditions.register("ca", ReadinessImpact::Blocking, "CANotLoaded", "CA not loaded yet");
        let metrics = context.metrics.with_registry(CaMetrics::register);
        let lease = Leadership::new(
            context.namespace.clone(),
            options.secret.clone(),
            context.pod_name.clone(),
            (options.poll_interval * 3).max(MIN_LEASE),
        );
        Self {
            context,
            options,
            lease,
            served,
            trust,
            bundles,
            client: None,
            last_good: None,
            phase_since: Instant::now(),
            absent_since: None,
            leaf: None,
            leaf_error: None,
            condition,
            metrics,
            last_reported: None,
        }
    }

    /// Reconciles until shutdown, and releases the Lease.
    pub async fn run(mut self) {
        let shutdown = self.context.shutdown.clone();
        shutdown.run_until_cancelled(self.reconcile_loop()).await;
        if let Some(client) = &self.client {
            self.lease.release(client).await;
        }
    }

    async fn reconcile_loop(&mut self) {
        let mut reconciled_at: Option<Instant> = None;
        loop {
            if reconciled_at.is_none_or(|at| at.elapsed() >= self.options.poll_interval) {
                reconciled_at = Some(Instant::now());
                self.reconcile().await;
            }
            self.renew_leaf(SystemTime::now());
            if let Some(error) = self.leaf_error.clone() {
                self.report_error(error);
            }
            sleep(LEAF_CHECK_INTERVAL.min(self.options.poll_interval)).await;
        }
    }

    /// Reads Lease and Secret, and writes what is due.
    async fn reconcile(&mut self) {
        for _ in 0..MAX_WRITES_PER_RECONCILE {
            match self.reconcile_once().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    if error.needs_new_client() {
                        self.client = None;
                    }
                    let (namespace, secret) = (&self.context.namespace, &self.options.secret);
                    let message = format!("cannot read or write Secret or Lease {namespace}/{secret}: {error}");
                    return self.report_error(CaError::new("APIServerError", message));
                }
            }
        }
    }

    /// Returns whether something was written, so that there may be more to do.
    async fn reconcile_once(&mut self) -> Result<bool, ApiError> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert((self.context.client_factory)().map_err(ApiError::no_response)?).clone(),
        };
        let elected = self.lease.acquire_or_renew(&client).await;
        self.metrics.set_leader(self.lease.is_leader());
        let secrets = Api::<Secret>::namespaced(client, &self.context.namespace);
        let secret = FetchedSecret::from(with_timeout(secrets.get_opt(&self.options.secret)).await?);
        if let SecretState::Valid { state, .. } = &secret.state {
            self.adopt_state(state.clone());
            self.absent_since = None;
        } else {
            self.absent_since.get_or_insert_with(Instant::now);
        }
        // Without the Lease, the Secret is read and used all the same.
        elected?;
        let trust = self.last_good.as_ref().and_then(|state| TrustBundle::parse(&state.bundle()).ok());
        let input = PlanInput {
            now: SystemTime::now(),
            is_leader: self.lease.is_leader() && !self.has_clock_skew(),
            secret: &secret.state,
            last_good: self.last_good.as_ref(),
            absent_for: self.absent_since.map(|since| since.elapsed()).unwrap_or_default(),
            first_install: self.bundles.none_trusts_anything(),
            phase_seen: self.phase_since.elapsed(),
            trusted_for: trust.as_ref().and_then(|trust| self.bundles.trusted_for(trust)),
            lifetimes: self.options.lifetimes,
        };
        let plan = plan::decide(&input);
        let findings = secret.findings.join("; ");
        match plan {
            Plan::Apply(CaChange::PromoteNext) if !self.is_trusted_everywhere(trust.as_ref()).await? => {}
            Plan::Apply(change) => return self.apply_change(&secrets, &secret, &change).await,
            Plan::Wait(_) if self.has_clock_skew() => {
                let skew = self.lease.clock_skew().unwrap_or_default().as_secs();
                let message = format!("clock differs from the API server's by {skew} s; not writing the CA");
                self.report_error(CaError::new("ClockSkew", message));
            }
            Plan::Wait(awaited) => self.report_ok(awaited, &findings),
            Plan::Blocked(why) => {
                let foreign = secret.state == SecretState::Foreign;
                let reason = if foreign { "CASecretForeign" } else { "CASecretInvalid" };
                let message = format!("Secret {}: {findings}: {why}", self.options.secret);
                self.report_error(CaError::new(reason, message));
            }
        }
        Ok(false)
    }

    /// Returns whether the clock differs so much from the API server's that it must not decide about a CA. Leaves are issued by it all the same.
    fn has_clock_skew(&self) -> bool {
        self.lease.clock_skew().is_some_and(|skew| skew > MAX_CLOCK_SKEW.min(self.options.lifetimes.ca / 8))
    }

    async fn is_trusted_everywhere(&self, trust: Option<&TrustBundle>) -> Result<bool, ApiError> {
        match trust {
            Some(trust) => self.bundles.is_trusted_everywhere(trust).await,
            None => Ok(false),
        }
    }

    async fn apply_change(
        &mut self,
        secrets: &Api<Secret>,
        found: &FetchedSecret,
        change: &CaChange,
    ) -> Result<bool, ApiError> {
        let now = SystemTime::now();
        let base = match (&found.state, change) {
            (SecretState::Valid { state, .. }, _) => Some(state),
            (_, CaChange::Create) => None,
            _ => self.last_good.as_ref(),
        };
        let lifetime = self.options.lifetimes.ca;
        let state = plan::apply(change, base, now, || Ca::generate(now, lifetime));
        let Some(state) = state.map_err(|error| ApiError::no_response(error.to_string()))? else { return Ok(false) };
        let name = &self.options.secret;
        let written = match &found.resource_version {
            None => {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let secret = serde_json::from_value(new_secret(name, &state));
                let secret: Secret = secret.map_err(|error| ApiError::no_response(error.to_string()))?;
                with_timeout(secrets.create(&params, &secret)).await
            }
            Some(version) => {
                let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                with_timeout(secrets.patch(name, &params, &Patch::Merge(secret_patch(version, &state)))).await
            }
        };
        let secret = match written {
            Ok(secret) => secret,
            // Another writer was first: read the Secret again.
            Err(ApiError { status: Some(404 | 409), .. }) => return Ok(true),
            Err(error) => return Err(error),
        };
        let uid = secret.metadata.uid.or_else(|| found.uid.clone());
        let regarding = ObjectReference { uid, ..self.object_reference() };
        let (warning, reason, note) = event_for(change, &found.findings);
        info!(secret = name, reason, note, "wrote CA Secret");
        self.context.events.record(EventRecord { regarding, warning, reason, note });
        self.adopt_state(state);
        Ok(true)
    }

    fn object_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.context.namespace.clone()),
            name: Some(self.options.secret.clone()),
            ..ObjectReference::default()
        }
    }

    /// Uses a state from now on.
    fn adopt_state(&mut self, state: CaState) {
        if self.last_good.as_ref() == Some(&state) {
            return;
        }
        let same_phase =
            self.last_good.as_ref().is_some_and(|last| last.phase == state.phase && last.current == state.current);
        if !same_phase {
            self.phase_since = Instant::now();
            let validity = state.current.cert().validity();
            info!(phase = state.phase.name(), ?validity, "loaded CA state");
        }
        self.metrics.set_state(&state);
        // The bundle of a parsed state always parses.
        if let Ok(trust) = TrustBundle::parse(&state.bundle()) {
            self.trust.send_if_modified(|before| {
                let changed = before.as_deref() != Some(&trust);
                *before = Some(Arc::new(trust));
                changed
            });
        }
        self.last_good = Some(state);
        self.renew_leaf(SystemTime::now());
    }

    /// Issues another leaf if one is due.
    fn renew_leaf(&mut self, now: SystemTime) {
        let Some(state) = &self.last_good else { return };
        let lifetime = self.options.lifetimes.leaf;
        self.leaf_error = match leaf::decide(self.leaf.as_ref(), &state.current, lifetime, now) {
            LeafAction::Keep => None,
            LeafAction::Unavailable(why) => Some(CaError::new("CANotValid", why.to_string())),
            LeafAction::Issue => match state.current.sign(&self.options.names, now, lifetime) {
                Ok(cert) => {
                    let validity = cert.validity();
                    self.leaf = Some(Leaf::new(state.current.cert().clone(), validity, now, jitter()));
                    self.context.metrics.set_certificate_expiry(validity.not_after);
                    self.served.store(Arc::new(Some(cert)));
                    info!(?validity, "issued serving certificate");
                    None
                }
                Err(reason) => {
                    Some(CaError::new("SigningFailed", format!("cannot issue a serving certificate: {reason}")))
                }
            },
        };
    }

    fn report_ok(&mut self, awaited: Option<&'static str>, findings: &str) {
        let Some(state) = &self.last_good else {
            return self.condition.set_failed("CANotLoaded", awaited.unwrap_or("CA not loaded yet"));
        };
        if self.leaf_error.is_some() {
            // The loop reports it.
            return;
        }
        self.last_reported = None;
        let mut message = format!("phase {}", state.phase.name());
        for more in [awaited.unwrap_or_default(), findings] {
            if !more.is_empty() {
                message = format!("{message}; {more}");
            }
        }
        if findings.is_empty() {
            let reason = if state.phase == Phase::Stable { "CAReady" } else { "CARotating" };
            self.condition.set_ok(reason, message);
        } else {
            self.condition.set_degraded("CASecretInconsistent", message);
        }
    }

    /// Reports an error. The certificate in memory is served meanwhile.
    fn report_error(&mut self, error: CaError) {
        let serving = self.served.load().is_some();
        let message = &error.message;
        if serving {
            let message = format!("{message}; still serving the certificate in memory");
            self.condition.set_degraded(error.reason, message);
        } else {
            self.condition.set_failed(error.reason, message);
        }
        if self.last_reported.as_ref() != Some(&error) {
            warn!(serving, error = message, "CA reconcile failed; retrying");
            let (regarding, note) = (self.object_reference(), message.clone());
            self.context.events.record(EventRecord { regarding, warning: true, reason: "CAError", note });
            self.last_reported = Some(error);
        }
    }
}

/// Returns the event of a change: whether it is a warning, its reason and its note.
fn event_for(change: &CaChange, findings: &[String]) -> (bool, &'static str, String) {
    let (warning, reason, note) = match change {
        CaChange::Create => (false, "CACreated", "created a CA"),
        CaChange::Restore => (true, "CARestored", "the Secret was deleted or corrupted; restored the CA from memory"),
        CaChange::RemoveExtraKeys => (true, "CACleaned", "removed unexpected or invalid keys from the Secret"),
        CaChange::PublishNext { .. } => {
            (false, "CARotationStarted", "created the next CA; waiting until every caBundle trusts it")
        }
        CaChange::ReplaceNext => (true, "CAReplaced", "recreated the next CA, which would not have been valid"),
        CaChange::PromoteNext => (
            false,
            "CAPromoted",
            "the next CA now signs; the previous one stays trusted until its certificates have expired",
        ),
        CaChange::RetirePrevious => (false, "CARotationCompleted", "the previous CA is no longer trusted"),
    };
    let findings = if findings.is_empty() { String::new() } else { format!(": {}", findings.join("; ")) };
    (warning, reason, format!("{note}{findings}"))
}

/// Returns a random number between 0 and 1.
fn jitter() -> f64 {
    let random = u32::try_from(RandomState::new().hash_one(0_u8) >> 32).unwrap_or(0);
    f64::from(random) / f64::from(u32::MAX)
}
