//! The node agent, as the plugin meets it: one question over a Unix socket with a hard bound on its time, and one report that nobody
//! waits for. The types are what both sides speak; [`crate::pod::decide`] is what the agent answers by.
//!
//! ```text
//! agent.sock   stream    {"v":1,"uid":...,"namespace":...,"name":...}\n ──▶ {"decision":"capture","capture":"{\"v\":1}"}\n
//! report.sock  datagram  {"v":1,"verb":"ADD","outcome":"installed",...} ──▶
//! ```

mod ask;
mod report;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::ask::{AskError, ask};
pub use self::report::{OUTCOMES, Outcome, Report, Stages};

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
