//! What is done about a broken pod where it is not mended in place: delete it, so that its controller makes a new one, or label it for
//! somebody else to see to. Both under the precondition that the pod is still as it was seen, and within a budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Error};
use serde_json::json;
use tokio::time::timeout;
use tracing::{info, warn};

use super::Counts;
use super::budget::{Budget, Exhausted, Limits};
use crate::events::{Events, Told};
use crate::pods::{Connect, PodFacts, PodObject};

/// For one request.
const WAIT: Duration = Duration::from_secs(10);

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    /// Delete the pod.
    Delete,
    /// Give it this label.
    Label {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// What the decision about one pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Do it.
    Go,
    /// Nobody would make the pod again.
    NoOwner,
    /// The budget is used up.
    Wait(Exhausted),
}

/// Acts on broken pods.
pub struct Actor {
    connect: Connect,
    client: Option<Client>,
    fallback: Fallback,
    budget: Budget,
    limits: Limits,
    /// When an owner's pods were last told that they have to wait, so that 200 of them say it once.
    told: HashMap<String, Instant>,
}

impl Actor {
    /// With an unspent budget.
    pub fn new(connect: Connect, fallback: Fallback, limits: Limits) -> Self {
        Self { connect, client: None, fallback, budget: Budget::new(limits), limits, told: HashMap::new() }
    }

    /// Decides about a pod, and takes what it costs from the budget.
    pub fn decide(&mut self, pod: &PodFacts, now: Instant) -> Action {
        let owner = pod.owner.as_ref().map(|owner| owner.uid.as_str());
        let owner = match (&self.fallback, owner) {
            (Fallback::Delete, None) => return Action::NoOwner,
            (_, owner) => owner.unwrap_or(&pod.uid),
        };
        match self.budget.spend(owner, now) {
            Ok(()) => Action::Go,
            Err(exhausted) => Action::Wait(exhausted),
        }
    }

    /// Acts on each pod, as far as the budget goes.
    pub async fn act(&mut self, broken: Vec<Arc<PodFacts>>, events: &Events, counts: &Counts) {
        let kind = match self.fallback {
            Fallback::Delete => "delete",
            Fallback::Label { .. } => "label",
        };
        for pod in broken {
            match self.decide(&pod, Instant::now()) {
                Action::NoOwner => counts.repaired(kind, "skip"),
                Action::Wait(exhausted) => {
                    counts.repaired(kind, "skip");
                    self.tell_to_wait(&pod, exhausted, events);
                }
                Action::Go => match timeout(WAIT, self.carry_out(&pod)).await {
                    Ok(Ok(())) => {
                        counts.repaired(kind, "success");
                        info!(pod = pod.full_name(), kind, "a pod without capture rules was dealt with");
                        let (reason, note) = match &self.fallback {
                            Fallback::Delete => {
                                ("DeleteBrokenPod", "the pod has no capture rules and is deleted".to_owned())
                            }
                            Fallback::Label { key, value } => (
                                "LabelBrokenPod",
                                format!("the pod has no capture rules and is labelled {key}={value}"),
                            ),
                        };
                        events.tell(Told { about: pod.reference(), warning: true, reason, note });
                    }
                    // It is gone, or somebody changed it since: it will be looked at again.
                    Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => counts.repaired(kind, "skip"),
                    Ok(Err(error)) => self.failed(&pod, kind, &error.to_string(), counts),
                    Err(_) => self.failed(&pod, kind, "the API server does not answer", counts),
                },
            }
        }
    }

    fn failed(&mut self, pod: &PodFacts, kind: &'static str, reason: &str, counts: &Counts) {
        counts.repaired(kind, "fail");
        warn!(pod = pod.full_name(), kind, reason, "a pod without capture rules could not be dealt with");
        // The next client reads the token anew.
        self.client = None;
    }

    fn tell_to_wait(&mut self, pod: &PodFacts, exhausted: Exhausted, events: &Events) {
        let owner = pod.owner.as_ref().map_or_else(|| pod.uid.clone(), |owner| owner.uid.clone());
        let now = Instant::now();
        self.told.retain(|_, at| now.saturating_duration_since(*at) < self.limits.window);
        if self.told.contains_key(&owner) {
            return;
        }
        self.told.insert(owner, now);
        let whose = match (exhausted, &pod.owner) {
            (Exhausted::Owner, Some(owner)) => {
                format!("{} pods of {} {}", self.limits.per_owner, owner.kind, owner.name)
            }
            _ => format!("{} pods of this node", self.limits.per_node),
        };
        let note = format!(
            "the pod has no capture rules, but {whose} have been dealt with within {} s; no more until the cause is mended",
            self.limits.window.as_secs()
        );
        warn!(pod = pod.full_name(), "{note}");
        events.tell(Told { about: pod.reference(), warning: true, reason: "RepairBudgetExhausted", note });
    }

    async fn carry_out(&mut self, pod: &PodFacts) -> Result<(), Error> {
        let client = match self.client.take() {
            Some(client) => client,
            None => (self.connect)().map_err(|reason| Error::Service(reason.into()))?,
        };
        let api: Api<PodObject> = Api::namespaced(client.clone(), &pod.namespace);
        self.client = Some(client);
        match &self.fallback {
            Fallback::Delete => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: Some(pod.uid.clone()),
                        resource_version: Some(pod.version.clone()),
                    }),
                    ..DeleteParams::default()
                };
                api.delete(&pod.name, &params).await.map(drop)
            }
            Fallback::Label { key, value } => {
                let patch = json!({
                    "metadata": { "uid": pod.uid, "resourceVersion": pod.version, "labels": { key: value } },
                });
                // As Istio does: the permission for the status is the smaller one.
                api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
            }
        }
    }
}
