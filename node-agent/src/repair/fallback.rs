//! Handles broken pods whose rules are not restored: deletes the pod, so that its controller creates another, or labels it for another
//! component. Both require that the pod is unchanged, and that the budget is not exhausted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Error};
use serde_json::json;
use tokio::time::timeout;
use tracing::{info, warn};

use super::budget::{Budget, ExhaustedBudget, RepairLimits};
use super::metrics::RepairMetrics;
use crate::events::{EventRecord, EventRecorder};
use crate::pods::{ClientFactory, PodFacts, PodObject};

/// Limit for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Reaction to a broken pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    /// Delete the pod.
    Delete,
    /// Label the pod.
    Label {
        /// Key of the label.
        key: String,
        /// Value of the label.
        value: String,
    },
}

/// Whether the fallback applies to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackDecision {
    /// Delete or label it.
    Proceed,
    /// Not deleted: without an owner it would not be created again.
    NoOwner,
    /// The budget is exhausted.
    BudgetExhausted(ExhaustedBudget),
}

/// Deletes or labels broken pods.
pub struct FallbackRunner {
    client_factory: ClientFactory,
    client: Option<Client>,
    fallback: Fallback,
    budget: Budget,
    limits: RepairLimits,
    /// When an exhausted budget was last recorded for an owner, so that 200 of its pods do so once.
    last_recorded: HashMap<String, Instant>,
}

impl FallbackRunner {
    /// Creates a runner with an unspent budget.
    pub fn new(client_factory: ClientFactory, fallback: Fallback, limits: RepairLimits) -> Self {
        Self {
            client_factory,
            client: None,
            fallback,
            budget: Budget::new(limits),
            limits,
            last_recorded: HashMap::new(),
        }
    }

    /// Decides about a pod, and charges the budget.
    pub fn decide(&mut self, pod: &PodFacts, now: Instant) -> FallbackDecision {
        let owner = pod.owner.as_ref().map(|owner| owner.uid.as_str());
        let owner = match (&self.fallback, owner) {
            (Fallback::Delete, None) => return FallbackDecision::NoOwner,
            (_, owner) => owner.unwrap_or(&pod.uid),
        };
        match self.budget.spend(owner, now) {
            Ok(()) => FallbackDecision::Proceed,
            Err(exhausted) => FallbackDecision::BudgetExhausted(exhausted),
        }
    }

    /// Handles each pod, within the budget.
    pub async fn run(&mut self, broken: Vec<Arc<PodFacts>>, events: &EventRecorder, metrics: &RepairMetrics) {
        let kind = match self.fallback {
            Fallback::Delete => "delete",
            Fallback::Label { .. } => "label",
        };
        for pod in broken {
            match self.decide(&pod, Instant::now()) {
                FallbackDecision::NoOwner => metrics.record_repair(kind, "skip"),
                FallbackDecision::BudgetExhausted(exhausted) => {
                    metrics.record_repair(kind, "skip");
                    self.record_exhausted(&pod, exhausted, events);
                }
                FallbackDecision::Proceed => match timeout(REQUEST_TIMEOUT, self.execute(&pod)).await {
                    Ok(Ok(())) => {
                        metrics.record_repair(kind, "success");
                        events.record(self.success_event(&pod));
                    }
                    // The pod is gone or has changed: the next inspection decides.
                    Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => {
                        metrics.record_repair(kind, "skip");
                    }
                    Ok(Err(error)) => self.failed(&pod, kind, &error.to_string(), metrics),
                    Err(_) => self.failed(&pod, kind, "timed out", metrics),
                },
            }
        }
    }

    fn failed(&mut self, pod: &PodFacts, kind: &'static str, error: &str, metrics: &RepairMetrics) {
        metrics.record_repair(kind, "fail");
        warn!(pod = pod.full_name(), action = kind, error, "cannot delete or label broken pod; retrying");
        // A new client reads the token again.
        self.client = None;
    }

    fn record_exhausted(&mut self, pod: &PodFacts, exhausted: ExhaustedBudget, events: &EventRecorder) {
        let owner = pod.owner.as_ref().map_or_else(|| pod.uid.clone(), |owner| owner.uid.clone());
        let now = Instant::now();
        self.last_recorded.retain(|_, at| now.saturating_duration_since(*at) < self.limits.window);
        if self.last_recorded.contains_key(&owner) {
            return;
        }
        self.last_recorded.insert(owner, now);
        let limit = match (exhausted, &pod.owner) {
            (ExhaustedBudget::Owner, Some(owner)) => {
                format!("{} pods of {} {}", self.limits.per_owner, owner.kind, owner.name)
            }
            _ => format!("{} pods of this node", self.limits.per_node),
        };
        let window = self.limits.window.as_secs();
        warn!(pod = pod.full_name(), limit, window, "repair budget exhausted");
        let note =
            format!("pod has no capture rules, but the limit of {limit} within {window} s is reached; fix the cause");
        events.record(EventRecord {
            regarding: pod.object_reference(),
            warning: true,
            reason: "RepairBudgetExhausted",
            note,
        });
    }

    fn success_event(&self, pod: &PodFacts) -> EventRecord {
        let (reason, note) = match &self.fallback {
            Fallback::Delete => {
                info!(pod = pod.full_name(), "deleted broken pod");
                ("BrokenPodDeleted", "pod had no capture rules and was deleted".to_owned())
            }
            Fallback::Label { key, value } => {
                info!(pod = pod.full_name(), key, value, "labeled broken pod");
                ("BrokenPodLabeled", format!("pod has no capture rules and was labeled {key}={value}"))
            }
        };
        EventRecord { regarding: pod.object_reference(), warning: true, reason, note }
    }

    async fn execute(&mut self, pod: &PodFacts) -> Result<(), Error> {
        let client = match self.client.take() {
            Some(client) => client,
            None => (self.client_factory)().map_err(|reason| Error::Service(reason.into()))?,
        };
        let api: Api<PodObject> = Api::namespaced(client.clone(), &pod.namespace);
        self.client = Some(client);
        match &self.fallback {
            Fallback::Delete => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: Some(pod.uid.clone()),
                        resource_version: Some(pod.resource_version.clone()),
                    }),
                    ..DeleteParams::default()
                };
                api.delete(&pod.name, &params).await.map(drop)
            }
            Fallback::Label { key, value } => {
                let patch = json!({
                    "metadata": { "uid": pod.uid, "resourceVersion": pod.resource_version, "labels": { key: value } },
                });
                // As Istio does: the permission for the status is the smaller one.
                api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
            }
        }
    }
}
