//! Sends reports to `report.sock`.

use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use weir_protocol::agent::{AgentEndpoint, CallReport, REPORT_MAX_BYTES};

/// Sends a report without waiting. It is lost where the agent does not run or its queue is full.
pub fn send(report: &CallReport, agent: &AgentEndpoint) {
    let Ok(mut bytes) = serde_json::to_vec(report) else { return };
    if bytes.len() > REPORT_MAX_BYTES && report.capture.is_some() {
        let Ok(shorter) = serde_json::to_vec(&CallReport { capture: None, ..report.clone() }) else { return };
        bytes = shorter;
    }
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(address) = UnixAddr::new(&agent.report_socket()) else { return };
    let Ok(socket) = socket(AddressFamily::Unix, SockType::Datagram, flags, None) else { return };
    let _ = sendto(socket.as_raw_fd(), &bytes, &address, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use weir_protocol::agent::CallOutcome;

    use super::*;

    #[test]
    fn a_configuration_that_is_too_long_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let agent = AgentEndpoint { socket: dir.path().join("agent.sock"), timeout: Duration::from_secs(1) };
        let listener = UnixDatagram::bind(agent.report_socket()).unwrap();
        for (length, kept) in [(1000, true), (REPORT_MAX_BYTES, false)] {
            send(&CallReport { v: 1, capture: Some("x".repeat(length)), ..CallReport::default() }, &agent);
            let mut bytes = vec![0; 2 * REPORT_MAX_BYTES];
            let count = listener.recv(&mut bytes).unwrap();
            let report: CallReport = serde_json::from_slice(&bytes[..count]).unwrap();
            assert_eq!(report.capture.is_some(), kept);
        }
    }

    #[test]
    fn sending_never_waits_for_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let agent = AgentEndpoint { socket: dir.path().join("agent.sock"), timeout: Duration::from_secs(1) };
        let report =
            CallReport { v: 1, verb: "ADD".to_owned(), outcome: CallOutcome::Skipped, ..CallReport::default() };
        send(&report, &agent);
        let listener = UnixDatagram::bind(agent.report_socket()).unwrap();
        // More than the queue of the socket holds.
        for _ in 0..1000 {
            send(&report, &agent);
        }
        let mut bytes = [0; 1000];
        let count = listener.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..count]).unwrap();
        assert_eq!(text, r#"{"v":1,"verb":"ADD","outcome":"passed","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#);
        assert_eq!(serde_json::from_str::<CallReport>(text).unwrap(), report);
    }
}
