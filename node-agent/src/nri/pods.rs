//! Puts the capture rules of the runtime's pods in place.

use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use iptables_rules::RuleSet;
use nix::fcntl::OFlag;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use weir_kernel::ApplyOutcome;
use weir_kernel::backend::{self, BackendOptions};
use weir_kernel::{netns, route};
use weir_protocol::agent::{CallReport, PROTOCOL_VERSION, PodQuery};
use weir_protocol::decision::{CaptureDecision, SkipReason, decide_capture};
use weir_protocol::pod_plan::{self, PodFault, PodPlan};
use weir_protocol::version::Verb;

use super::messages::PodSandbox;
use super::metrics::NriMetrics;
use super::outcome::{Occasion, PodOutcome};
use crate::repair::{
    ExpectedRules, NetnsPaths, ProtectedNetns, READ_LIMITS, RulesStatus, VisitError, Visits, rules_status,
};
use crate::socket::{Attachments, PodQueryServer};

/// Longest id of a sandbox, and longest path of its namespace, that are kept.
const MAX_TEXT: usize = 4096;

/// Error for which a pod of the mesh has no rules.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The pod's settings.
    #[error(transparent)]
    Fault(#[from] PodFault),
    /// Only the pod's spec could tell, and it is not known.
    #[error("cannot tell what to capture: {0}")]
    Unknown(String),
    /// The runtime reports a path that is not the network namespace of a pod.
    #[error("cannot use network namespace {path}: {reason}")]
    Netns {
        /// As the runtime reports it.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel rejected the rules.
    #[error("cannot install capture rules: {0}")]
    Install(String),
    /// The time of the runtime is up.
    #[error("cannot install capture rules within {} ms", .0.as_millis())]
    TimedOut(Duration),
}

/// Installs the capture rules of the pods that the runtime reports.
#[derive(Clone)]
pub struct PodCapture {
    /// Namespaces whose pods are skipped.
    pub exclude_namespaces: Vec<String>,
    /// Backend of the rules.
    pub options: BackendOptions,
    /// Answers where the annotations do not say enough.
    pub queries: PodQueryServer,
    /// Network namespaces and configurations, for the repair of rules.
    pub attachments: Attachments,
    /// Where the host's namespaces are mounted.
    pub netns_paths: NetnsPaths,
    /// Visits of network namespaces.
    pub visits: Visits,
    /// Counters of the pods.
    pub metrics: NriMetrics,
}

/// The rules of one pod, once they are in place.
struct InPlace {
    outcome: PodOutcome,
    /// Encoding of `weir.dev/capture`, where these are the pod's rules.
    capture: Option<String>,
}

impl From<PodOutcome> for InPlace {
    fn from(outcome: PodOutcome) -> Self {
        Self { outcome, capture: None }
    }
}

impl PodCapture {
    /// Puts the rules of a pod in place, within the time limit.
    ///
    /// # Errors
    /// See [`PodError`].
    pub async fn ensure(&self, pod: PodSandbox, occasion: Occasion, limit: Duration) -> Result<PodOutcome, PodError> {
        let begun = Instant::now();
        let name = pod.full_name();
        let result = timeout(limit, self.decide_and_install(pod, occasion)).await;
        let result = result.unwrap_or(Err(PodError::TimedOut(limit)));
        let (outcome, took) = (result.as_ref().map_or(PodOutcome::Failed, |outcome| *outcome), begun.elapsed());
        self.metrics.record(occasion, outcome, took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match outcome {
            PodOutcome::Skipped => debug!(pod = name, occasion = occasion.name(), "skipping pod"),
            outcome => info!(pod = name, occasion = occasion.name(), outcome = outcome.name(), micros, "NRI pod"),
        }
        result
    }

    async fn decide_and_install(&self, pod: PodSandbox, occasion: Occasion) -> Result<PodOutcome, PodError> {
        let decision = self.decide(&pod).await?;
        if let CaptureDecision::Skip(reason) = &decision {
            debug!(pod = pod.full_name(), %reason, "pod is not captured");
            return Ok(PodOutcome::Skipped);
        }
        let Some(path) = pod.netns() else { return Ok(PodOutcome::Skipped) };
        if !matches!(decision, CaptureDecision::Capture(..)) {
            return Ok(pod_plan::plan_pod(decision, Vec::new).map(|_| PodOutcome::Skipped)?);
        }
        let invalid = |reason: &str| PodError::Netns { path: path.display().to_string(), reason: reason.to_owned() };
        if !path.is_absolute() || path.as_os_str().len() > MAX_TEXT || pod.id.len() > MAX_TEXT {
            return Err(invalid("not the absolute path of a namespace"));
        }
        let visit = Visit {
            path: self.netns_paths.mounted_path(&path),
            protected: ProtectedNetns::discover(&self.netns_paths.host_proc),
            addresses: pod.addresses(),
            options: self.options,
            occasion,
        };
        let (visits, key) = (self.visits.clone(), pod.uid.clone());
        let work = move || {
            // Otherwise the pod is being inspected, which ends with its rules in place.
            let _claim = match (occasion, visits.claim(&key)) {
                (Occasion::Synchronize, None) => return Ok(PodOutcome::Unchanged.into()),
                (_, claim) => claim,
            };
            visits.run(&key, move || visit.run(decision)).unwrap_or_else(|error| Err(error.into()))
        };
        let in_place = tokio::task::spawn_blocking(work).await;
        let in_place = in_place.unwrap_or_else(|error| Err(PodError::Install(error.to_string())))?;
        if in_place.outcome != PodOutcome::Skipped {
            self.report(&pod, &path, Verb::Add, in_place.capture);
        }
        Ok(in_place.outcome)
    }

    /// Decides as the CNI plugin does: from the annotations, and from the pod's spec where they do not say enough.
    async fn decide(&self, pod: &PodSandbox) -> Result<CaptureDecision, PodError> {
        if self.exclude_namespaces.contains(&pod.namespace) {
            return Ok(CaptureDecision::Skip(SkipReason::ExcludedNamespace));
        }
        let decision = decide_capture(&pod.annotations, None);
        if matches!(decision, CaptureDecision::Skip(_)) || pod_plan::is_final(&decision, &pod.annotations) {
            return Ok(decision);
        }
        if pod.netns().is_none() {
            return Ok(CaptureDecision::Skip(SkipReason::HostNetwork));
        }
        let query = PodQuery {
            v: PROTOCOL_VERSION,
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        };
        pod_plan::decision_of_answer(self.queries.answer(&query).await).map_err(PodError::Unknown)
    }

    /// Records an event as if the CNI plugin had reported it.
    fn report(&self, pod: &PodSandbox, netns: &Path, verb: Verb, capture: Option<String>) {
        self.attachments.apply(&CallReport {
            v: PROTOCOL_VERSION,
            verb: verb.as_str().to_owned(),
            uid: pod.uid.clone(),
            container: pod.id.clone(),
            netns: netns.display().to_string(),
            capture,
            ..CallReport::default()
        });
    }

    /// Forgets a pod that has ended.
    pub fn forget(&self, pod: &PodSandbox) {
        self.report(pod, Path::new(""), Verb::Del, None);
    }

    /// Puts the rules of running pods in place, one after the other. Failures are logged: those pods run already.
    pub async fn ensure_all(&self, pods: Vec<PodSandbox>, limit: Duration) {
        for pod in pods {
            let name = pod.full_name();
            if let Err(error) = self.ensure(pod, Occasion::Synchronize, limit).await {
                warn!(pod = name, %error, "running pod may have no capture rules");
            }
        }
    }
}

impl From<VisitError> for PodError {
    fn from(error: VisitError) -> Self {
        Self::Install(error.to_string())
    }
}

/// Work in the network namespace of one pod.
struct Visit {
    path: PathBuf,
    protected: ProtectedNetns,
    addresses: Vec<IpAddr>,
    options: BackendOptions,
    occasion: Occasion,
}

impl Visit {
    fn run(self, decision: CaptureDecision) -> Result<InPlace, PodError> {
        let invalid = |reason: String| PodError::Netns { path: self.path.display().to_string(), reason };
        // O_NONBLOCK: does not wait for the writer of a pipe.
        let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&self.path);
        let namespace = match opened {
            // The sandbox has been stopped.
            Err(error) if self.occasion == Occasion::Synchronize && error.kind() == io::ErrorKind::NotFound => {
                return Ok(PodOutcome::Skipped.into());
            }
            opened => opened.map_err(|error| invalid(error.to_string()))?,
        };
        // Entered by its descriptor: the name may be bound to another namespace in the meantime.
        // A pod in the host's network: CRI-O has a path for that namespace, too.
        if self.protected.contains(&namespace).map_err(|error| invalid(error.to_string()))? {
            return Ok(PodOutcome::Skipped.into());
        }
        let held = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        let inside = || READ_LIMITS.within(|| self.install(decision));
        netns::run_in(&held, inside).map_err(|error| invalid(error.to_string()))?
    }

    /// Installs the rules in the namespace of the calling thread.
    fn install(&self, decision: CaptureDecision) -> Result<InPlace, PodError> {
        let failed = |error: &dyn ToString| PodError::Install(error.to_string());
        let plan = pod_plan::plan_pod(decision, || self.addresses())?;
        let PodPlan::Capture { rules, config, .. } = plan else { return Ok(PodOutcome::Skipped.into()) };
        let capture = Some(config.to_capture_annotation());
        if self.occasion == Occasion::Synchronize {
            match self.status(&rules).map_err(|error| failed(&error))? {
                RulesStatus::InPlace => return Ok(InPlace { outcome: PodOutcome::Unchanged, capture }),
                // What a running pod was started with stays.
                RulesStatus::OtherInPlace | RulesStatus::Foreign(_) => return Ok(PodOutcome::Kept.into()),
                RulesStatus::Missing | RulesStatus::Drifted(_) => {}
            }
        }
        let (applied, _) = backend::install(&rules, self.options, false).map_err(|error| failed(&error))?;
        let outcome = match applied {
            ApplyOutcome::Created => PodOutcome::Installed,
            ApplyOutcome::Unchanged => PodOutcome::Unchanged,
            ApplyOutcome::Replaced => PodOutcome::Replaced,
        };
        Ok(InPlace { outcome, capture })
    }

    fn status(&self, rules: &RuleSet) -> Result<RulesStatus, backend::BackendError> {
        let backend = self.options.backend;
        let expected = ExpectedRules { rules: Some(rules.clone()), is_known: false, backend, verified: None };
        rules_status(&expected, None).map(|(status, _)| status)
    }

    /// Returns the pod's addresses; those in its namespace where the runtime reports none. Every interface has one of the link.
    fn addresses(&self) -> Vec<IpAddr> {
        if !self.addresses.is_empty() {
            return self.addresses.clone();
        }
        let is_global = |address: &IpAddr| match address {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        };
        route::addresses().unwrap_or_default().into_iter().filter(is_global).collect()
    }
}

#[cfg(test)]
mod tests;
