//! The node agent's list of the meshed pods on its node (`GET /pods`).

use serde::Deserialize;

/// States of a meshed pod that lacks its capture rules, or may lack them.
pub const UNHEALTHY_STATES: [&str; 4] = ["missing", "drifted", "unreachable", "refused"];

/// The agent's answer, as far as it is shown.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPods {
    /// Name of the node.
    pub node: String,
    /// Whether the agent's pod cache is synced.
    pub synced: bool,
    /// Failure of the last update of the pod cache.
    #[serde(default, rename = "trouble")]
    pub last_error: Option<String>,
    /// Meshed pods, sorted by name.
    #[serde(default)]
    pub pods: Vec<AgentPod>,
}

/// A meshed pod on the agent's node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "namespace and name need no comment")]
pub struct AgentPod {
    pub namespace: String,
    pub name: String,
    /// State of its capture rules: `ok`, `pending`, one of [`UNHEALTHY_STATES`].
    pub state: String,
    /// Differences from the expected rules, one line each.
    #[serde(default)]
    pub detail: Vec<String>,
    /// Number of times that the agent restored its rules.
    #[serde(default)]
    pub repairs: u32,
    /// Whether its annotations ask for other rules than it was started with.
    #[serde(default)]
    pub annotations_changed: bool,
    /// Way in which the agent found its network namespace.
    #[serde(default)]
    pub found_by: Option<String>,
}

impl AgentPod {
    /// Returns whether the pod lacks its capture rules, or may lack them.
    pub fn is_unhealthy(&self) -> bool {
        UNHEALTHY_STATES.contains(&self.state.as_str())
    }
}
