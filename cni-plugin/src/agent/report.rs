//! Sends a report of a call to the node agent. Nobody waits for it, and it may be lost.

use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use weir_protocol::agent::{Agent, Report};

/// Sends a report if that is possible at once. An agent that is not running, or whose queue is full, misses it.
pub fn send(report: &Report, agent: &Agent) {
    let Ok(bytes) = serde_json::to_vec(report) else { return };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(address) = UnixAddr::new(&agent.report_socket()) else { return };
    let Ok(socket) = socket(AddressFamily::Unix, SockType::Datagram, flags, None) else { return };
    let _ = sendto(socket.as_raw_fd(), &bytes, &address, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use weir_protocol::agent::Outcome;

    use super::*;

    #[test]
    fn arrives_where_somebody_listens_and_is_dropped_where_not() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent { socket: dir.path().join("agent.sock"), timeout: Duration::from_secs(1) };
        let report = Report { v: 1, verb: "ADD".to_owned(), outcome: Outcome::Passed, ..Report::default() };
        send(&report, &agent);
        let listener = UnixDatagram::bind(agent.report_socket()).unwrap();
        // Nobody reads, so the queue runs full, and sending still does not wait.
        for _ in 0..1000 {
            send(&report, &agent);
        }
        let mut bytes = [0; 1000];
        let count = listener.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..count]).unwrap();
        assert_eq!(text, r#"{"v":1,"verb":"ADD","outcome":"passed","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#);
        assert_eq!(serde_json::from_str::<Report>(text).unwrap(), report);
    }
}
