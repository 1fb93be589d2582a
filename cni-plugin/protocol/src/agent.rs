//! Messages between the plugin and the node agent.
//!
//! ```text
//! agent.sock   stream    {"v":1,"uid":...,"namespace":...,"name":...}\n ──▶ {"decision":"capture","capture":"{\"v\":1}"}\n
//! report.sock  datagram  {"v":1,"verb":"ADD","outcome":"installed",...} ──▶
//! ```
//!
//! The plugin sends one [`PodQuery`] a connection and waits for the [`PodAnswer`] within a timeout. It sends a [`CallReport`] after every
//! call, without waiting.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Version of query, answer and report. The agent rejects any other.
pub const PROTOCOL_VERSION: u32 = 1;
/// Longest query that the agent reads. Kubernetes limits each of the three names to 253 characters.
pub const QUERY_MAX_BYTES: usize = 4 << 10;
/// Longest answer that the plugin reads: an annotation `weir.dev/capture` with every character escaped, and the JSON around it.
pub const ANSWER_MAX_BYTES: usize = 2 * iptables_rules::capture_annotation::CAPTURE_MAX_BYTES + (16 << 10);
/// Longest report: one of GC lists every sandbox of the node.
pub const REPORT_MAX_BYTES: usize = 128 << 10;
/// Name of the socket for reports, in the directory of the socket for queries.
pub const REPORT_SOCKET: &str = "report.sock";

/// Settings with which the plugin reaches the node agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentEndpoint {
    /// Path of the socket for queries (key `agent_socket`).
    pub socket: PathBuf,
    /// Limit for a whole query: connect, write and read (key `agent_timeout_ms`).
    pub timeout: Duration,
}

impl AgentEndpoint {
    /// Returns the path of the socket for reports.
    pub fn report_socket(&self) -> PathBuf {
        self.socket.with_file_name(REPORT_SOCKET)
    }
}

/// Asks whether a pod is in the mesh, and what is captured in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodQuery {
    /// [`PROTOCOL_VERSION`].
    pub v: u32,
    /// `K8S_POD_UID`; empty where the runtime passes none.
    #[serde(default)]
    pub uid: String,
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
}

/// The agent's answer to a [`PodQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "lowercase")]
pub enum PodAnswer {
    /// The pod is not captured.
    Skip {
        /// Reason, for people.
        reason: String,
    },
    /// The pod is in the mesh.
    Capture {
        /// Capture configuration in the encoding of `weir.dev/capture`.
        capture: String,
    },
    /// The pod is in the mesh, but has invalid settings.
    Refuse {
        /// One line for each invalid setting.
        findings: Vec<String>,
    },
    /// The agent does not know the pod, or not yet.
    Unknown {
        /// Reason, for people.
        reason: String,
    },
}

impl PodAnswer {
    /// Returns the name of the decision, as in the JSON.
    pub const fn decision(&self) -> &'static str {
        match self {
            Self::Skip { .. } => "skip",
            Self::Capture { .. } => "capture",
            Self::Refuse { .. } => "refuse",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// Result of a call of the plugin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallOutcome {
    /// The call failed with [`CallReport::code`].
    #[default]
    Failed,
    /// The pod is not in the mesh.
    #[serde(rename = "passed")]
    Skipped,
    /// Capture rules were installed.
    Installed,
    /// The capture rules were in place already.
    Unchanged,
    /// Capture rules of an earlier ADD were replaced.
    Replaced,
    /// A call that installs no rules succeeded.
    Done,
}

impl CallOutcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Failed, Self::Skipped, Self::Installed, Self::Unchanged, Self::Replaced, Self::Done];

    /// Returns the name used in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Skipped => "passed",
            Self::Installed => "installed",
            Self::Unchanged => "unchanged",
            Self::Replaced => "replaced",
            Self::Done => "done",
        }
    }
}

/// Duration of a call by stage, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTimes {
    /// Parsing the configuration and deciding about the pod, without waiting for the agent.
    pub decide: u64,
    /// Waiting for the agent.
    pub agent: u64,
    /// In the pod's network namespace.
    pub kernel: u64,
    /// The whole call, up to this report.
    pub total: u64,
}

/// Describes one call of the plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallReport {
    /// [`PROTOCOL_VERSION`].
    pub v: u32,
    /// `CNI_COMMAND`.
    pub verb: String,
    /// Result of the call.
    pub outcome: CallOutcome,
    /// Code of the CNI error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// `K8S_POD_NAMESPACE`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `K8S_POD_NAME`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `K8S_POD_UID`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// `CNI_CONTAINERID`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// `CNI_NETNS`, a path of the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// ADD: the configuration whose rules are in place, in the encoding of `weir.dev/capture`. Left out where the report would be longer
    /// than [`REPORT_MAX_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<String>,
    /// Version of the plugin; empty where an older plugin does not report it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// GC: ids of the valid sandboxes; the agent forgets all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<Vec<String>>,
    /// Duration of the call by stage.
    #[serde(rename = "us")]
    pub stages: StageTimes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_names_are_those_of_the_json() {
        for outcome in CallOutcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.name());
        }
    }
}
