//! Packets that connection tracking finds invalid: they bypass the rules unless they are dropped.
//!
//! A FIN of an unknown connection is such a packet. The pod's kernel answers it on a closed port with a RST, which shows that it was not
//! dropped.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iptables_rules::CaptureConfig;
use socket2::{Domain, Protocol, Socket, Type};
use weir_tests::segment::{FIN, RST, Segment};
use weir_tests::{TIMEOUT, privileged};

use super::backend::Backend;
use super::world::{Case, Ip, Outcome, Side, World};

/// Ports without a listener and without a connection.
const CLOSED: u16 = 7777;
const SOURCE: u16 = 40001;
/// How long a RST that must not come is waited for.
const NO_REPLY_TIME: Duration = Duration::from_millis(500);

#[test]
fn invalid_packets_are_dropped_only_if_configured() {
    if !privileged() {
        return;
    }
    for backend in Backend::all() {
        for drop_invalid in [false, true] {
            let world = World::new();
            backend.install(&world.pod, &CaptureConfig { drop_invalid, ..CaptureConfig::default() });
            for ip in Ip::BOTH {
                // Connections are not affected. Their packets also start connection tracking.
                let case = Case::new("peer calls the app", Side::Peer, (ip.pod(), 8080), Outcome::Inbound);
                world.check(&format!("{backend:?}"), &[case]);
                let answered =
                    world.peer.run(|| is_fin_answered(ip, if drop_invalid { NO_REPLY_TIME } else { TIMEOUT })).unwrap();
                assert_eq!(answered, !drop_invalid, "{backend:?}, {ip:?}, drop_invalid {drop_invalid}");
            }
        }
    }
}

/// Sends the FIN from the calling thread's namespace and waits for the RST.
fn is_fin_answered(ip: Ip, timeout: Duration) -> bool {
    let (from, to) = (ip.peer(), ip.pod());
    let domain = if from.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP)).unwrap();
    let segment = Segment { from: (from, SOURCE).into(), to: (to, CLOSED).into(), flags: FIN };
    socket.send_to(&segment.bytes(), &SocketAddr::new(to, 0).into()).unwrap();
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        socket.set_read_timeout(Some(left)).unwrap();
        let mut packet = [0; 256];
        let Ok(length) = (&socket).read(&mut packet) else { continue };
        let seen = Segment::parse_ports(&packet[..length], from.is_ipv4());
        if seen.is_some_and(|(source, _, flags)| source == CLOSED && flags & RST != 0) {
            return true;
        }
    }
}
