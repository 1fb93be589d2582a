//! What the plugin tells the agent about a call. Nobody waits for it, and it may be lost.

use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use serde::{Deserialize, Serialize};

use super::Agent;

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
    /// [`super::VERSION`].
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

impl Report {
    /// Sends it, if that is possible at once. An agent that is not there, or behind, misses it.
    pub fn send(&self, agent: &Agent) {
        let Ok(bytes) = serde_json::to_vec(self) else { return };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let Ok(address) = UnixAddr::new(&agent.report_socket()) else { return };
        let Ok(socket) = socket(AddressFamily::Unix, SockType::Datagram, flags, None) else { return };
        let _ = sendto(socket.as_raw_fd(), &bytes, &address, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::*;

    #[test]
    fn arrives_where_somebody_listens_and_is_dropped_where_not() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent { socket: dir.path().join("agent.sock"), timeout: Duration::from_secs(1) };
        let report = Report { v: 1, verb: "ADD".to_owned(), outcome: Outcome::Passed, ..Report::default() };
        report.send(&agent);
        let listener = UnixDatagram::bind(agent.report_socket()).unwrap();
        // Nobody reads, so the queue runs full, and sending still does not wait.
        for _ in 0..1000 {
            report.send(&agent);
        }
        let mut bytes = [0; 1000];
        let count = listener.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..count]).unwrap();
        assert_eq!(text, r#"{"v":1,"verb":"ADD","outcome":"passed","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#);
        assert_eq!(serde_json::from_str::<Report>(text).unwrap(), report);
    }

    #[test]
    fn names_every_outcome_as_it_is_written() {
        for (outcome, name) in OUTCOMES {
            assert_eq!(serde_json::to_value(outcome).unwrap(), name);
        }
    }
}
