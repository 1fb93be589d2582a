//! The node agent, as the plugin meets it: one question over a Unix socket with a hard bound on its time, and one report that nobody
//! waits for. The types are what both sides speak; [`crate::decision::decide`] is what the agent answers by.
//!
//! ```text
//! agent.sock   stream    {"v":1,"uid":...,"namespace":...,"name":...}\n ──▶ {"decision":"capture","capture":"{\"v\":1}"}\n
//! report.sock  datagram  {"v":1,"verb":"ADD","outcome":"installed",...} ──▶
//! ```

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Version of question and answer. The agent refuses another one, so that an answer is never taken for what it is not.
pub const VERSION: u32 = 1;
/// Longest question that an agent reads: three names of at most 253 characters (Kubernetes), and room.
pub const QUESTION_MAX_BYTES: usize = 4 << 10;
/// Longest answer that the plugin reads: an annotation `weir.dev/capture` with every character escaped, and room.
pub const ANSWER_MAX_BYTES: usize = 2 * iptables_rules::annotations::CAPTURE_MAX_BYTES + (16 << 10);
/// Name of the socket for reports, beside that for questions.
pub const REPORT_SOCKET: &str = "report.sock";

/// Where the agent is, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Path of its socket (key `agent_socket`).
    pub socket: PathBuf,
    /// For connecting, asking and reading, all in all (key `agent_timeout_ms`).
    pub timeout: Duration,
}

impl Agent {
    /// Where reports go.
    pub fn report_socket(&self) -> PathBuf {
        self.socket.with_file_name(REPORT_SOCKET)
    }
}

/// What the plugin wants to know: is this pod in the mesh, and what is captured in it?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// [`VERSION`].
    pub v: u32,
    /// `K8S_POD_UID`; empty where the runtime passes none.
    #[serde(default)]
    pub uid: String,
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "lowercase")]
pub enum Answer {
    /// The pod is left alone.
    Skip {
        /// Why.
        reason: String,
    },
    /// The pod is in the mesh.
    Capture {
        /// What is captured, in the encoding of `weir.dev/capture`.
        capture: String,
    },
    /// The pod is in the mesh, and asks for what cannot be taken.
    Refuse {
        /// All of it, one line each.
        findings: Vec<String>,
    },
    /// The agent does not know the pod, or not yet.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip { .. } => "skip",
            Self::Capture { .. } => "capture",
            Self::Refuse { .. } => "refuse",
            Self::Unknown { .. } => "unknown",
        })
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It failed, with the code of the report.
    #[default]
    Failed,
    /// The pod was left alone.
    Passed,
    /// The rules are new.
    Installed,
    /// The rules were in place.
    Unchanged,
    /// Other rules of ours were replaced.
    Replaced,
    /// Whatever else the verb does was done.
    Done,
}

/// Every outcome, with the name that it has in reports and metrics.
pub const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::Failed, "failed"),
    (Outcome::Passed, "passed"),
    (Outcome::Installed, "installed"),
    (Outcome::Unchanged, "unchanged"),
    (Outcome::Replaced, "replaced"),
    (Outcome::Done, "done"),
];

/// Where the time of a call went, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stages {
    /// Reading the configuration and deciding; without the agent's part.
    pub decide: u64,
    /// Waiting for the agent.
    pub agent: u64,
    /// In the pod's namespace.
    pub kernel: u64,
    /// From the beginning of the process's work to this report.
    pub total: u64,
}

/// One call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub v: u32,
    /// `CNI_COMMAND`.
    pub verb: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Code of the error.
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
    /// `CNI_NETNS`, as the host calls it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// GC: the sandboxes that there are; the agent forgets all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<Vec<String>>,
    /// Where the time went.
    #[serde(rename = "us")]
    pub stages: Stages,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_every_outcome_as_it_is_written() {
        for (outcome, name) in OUTCOMES {
            assert_eq!(serde_json::to_value(outcome).unwrap(), name);
        }
    }
}
