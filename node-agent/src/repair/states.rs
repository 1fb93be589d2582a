//! State of the capture rules of every meshed pod on this node, for `GET /pods` and the metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::pods::PodFacts;

/// State of a pod's capture rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleState {
    /// In place.
    Ok,
    /// The pod has no address yet: its sandbox is being created.
    Pending,
    /// There are none, and they were not restored.
    Missing,
    /// They differ, and were not restored.
    Drifted,
    /// Rules of another installer, which are never changed.
    Foreign,
    /// The pod's network namespace was not found or cannot be read.
    Unreachable,
    /// The pod has invalid or unsupported settings, so the plugin does not let it start; or its network namespace holds more than is read.
    Refused,
}

impl RuleState {
    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Pending, Self::Missing, Self::Drifted, Self::Foreign, Self::Unreachable, Self::Refused];

    /// Returns the name used in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Pending => "pending",
            Self::Missing => "missing",
            Self::Drifted => "drifted",
            Self::Foreign => "foreign",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
        }
    }
}

/// State of one meshed pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// State of its rules.
    pub state: RuleState,
    /// Faults, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<String>,
    /// Way in which its network namespace was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found_by: Option<&'static str>,
    /// Number of times that the agent restored its rules.
    pub repairs: u32,
    /// Whether its annotations ask for other rules than it was started with; they have no effect until the pod is recreated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub annotations_changed: bool,
    /// Resource version at the last inspection.
    #[serde(skip)]
    pub resource_version: String,
}

/// Result of the inspection of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// State of its rules.
    pub state: RuleState,
    /// Faults, one line each.
    pub detail: Vec<String>,
    /// Way in which its network namespace was found.
    pub found_by: Option<&'static str>,
    /// Whether its rules were restored.
    pub repaired: bool,
    /// Whether its annotations ask for other rules than it was started with.
    pub annotations_changed: bool,
}

/// The answer to `GET /pods`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodList {
    /// Name of the node.
    pub node: String,
    /// Whether the cache of pods is complete.
    pub synced: bool,
    /// Seconds since the last response of the API server.
    pub age_seconds: Option<u64>,
    /// Reason for which the cache is not kept current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Whether missing and changed rules are restored.
    pub repairs: bool,
    /// Meshed pods, sorted by name.
    pub pods: Vec<PodState>,
}

/// States of all meshed pods; clones share them.
#[derive(Debug, Clone, Default)]
pub struct PodStates(Arc<Mutex<BTreeMap<String, PodState>>>);

impl PodStates {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PodState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state of a pod.
    pub fn get(&self, uid: &str) -> Option<PodState> {
        self.lock().get(uid).cloned()
    }

    /// Sets the state of a pod. Returns the previous one.
    pub fn set(&self, pod: &PodFacts, seen: Observation) -> Option<PodState> {
        let Observation { state, detail, found_by, repaired, annotations_changed } = seen;
        let mut all = self.lock();
        let repairs = all.get(&pod.uid).map_or(0, |known| known.repairs) + u32::from(repaired);
        all.insert(
            pod.uid.clone(),
            PodState {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                state,
                detail,
                found_by,
                repairs,
                annotations_changed,
                resource_version: pod.resource_version.clone(),
            },
        )
    }

    /// Returns the number of pods whose annotations have changed since they were started.
    pub fn changed_count(&self) -> usize {
        self.lock().values().filter(|pod| pod.annotations_changed).count()
    }

    /// Removes pods with other uids.
    pub fn retain(&self, uids: &std::collections::HashSet<&str>) {
        self.lock().retain(|uid, _| uids.contains(uid.as_str()));
    }

    /// Returns all states, sorted by name.
    pub fn all(&self) -> Vec<PodState> {
        let mut all: Vec<PodState> = self.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all
    }

    /// Returns the number of pods in each state.
    pub fn counts(&self) -> [(RuleState, usize); 7] {
        let all = self.lock();
        RuleState::ALL.map(|state| (state, all.values().filter(|pod| pod.state == state).count()))
    }
}
