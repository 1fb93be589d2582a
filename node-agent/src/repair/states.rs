//! What is known about the rules of every pod of the mesh on this node: for the listing, the metrics, and to know what is new.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::pods::PodFacts;

/// How a pod's rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In place.
    Ok,
    /// The pod has no address yet: its sandbox is being made, and the plugin is at work.
    Pending,
    /// There are none, and they were not put in.
    Missing,
    /// They differ, and were not mended.
    Drifted,
    /// Another installer's rules are there; they are left alone.
    Foreign,
    /// The pod's namespace was not found, or could not be looked at.
    Unreachable,
    /// The pod asks for what cannot be taken; the plugin holds it back.
    Refused,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Pending, Self::Missing, Self::Drifted, Self::Foreign, Self::Unreachable, Self::Refused];

    /// As in the listing and in metrics.
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

/// One pod of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// How its rules are.
    pub state: State,
    /// What is wrong, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<String>,
    /// How its namespace was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found_by: Option<&'static str>,
    /// How often the agent mended its rules.
    pub repairs: u32,
    /// Resource version that was looked at.
    #[serde(skip)]
    pub version: String,
}

/// The answer to `GET /pods`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    /// Name of the node.
    pub node: String,
    /// Whether all pods of the node are known.
    pub synced: bool,
    /// Seconds since the API server was last heard of.
    pub age_seconds: Option<u64>,
    /// What keeps the agent from knowing its pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Whether missing and drifted rules are mended in place.
    pub repairs: bool,
    /// Pods of the mesh, by name.
    pub pods: Vec<PodState>,
}

/// All states; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct States(Arc<Mutex<BTreeMap<String, PodState>>>);

impl States {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PodState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a pod.
    pub fn of(&self, uid: &str) -> Option<PodState> {
        self.lock().get(uid).cloned()
    }

    /// Remembers; returns what was known before.
    pub fn set(
        &self,
        pod: &PodFacts,
        state: State,
        detail: Vec<String>,
        found_by: Option<&'static str>,
        repaired: bool,
    ) -> Option<State> {
        let mut all = self.lock();
        let before = all.get(&pod.uid).map(|known| (known.state, known.repairs));
        all.insert(
            pod.uid.clone(),
            PodState {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                state,
                detail,
                found_by,
                repairs: before.map_or(0, |(_, repairs)| repairs) + u32::from(repaired),
                version: pod.version.clone(),
            },
        );
        before.map(|(state, _)| state)
    }

    /// Forgets pods that are not among these.
    pub fn keep(&self, uids: &std::collections::HashSet<&str>) {
        self.lock().retain(|uid, _| uids.contains(uid.as_str()));
    }

    /// All, in the order of their names.
    pub fn all(&self) -> Vec<PodState> {
        let mut all: Vec<PodState> = self.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all
    }

    /// How many pods are in each state.
    pub fn counts(&self) -> [(State, usize); 7] {
        let all = self.lock();
        State::ALL.map(|state| (state, all.values().filter(|pod| pod.state == state).count()))
    }
}
