//! Packets that connection tracking cannot place: they pass the rules by unless they are dropped.
//!
//! A FIN for a connection that nobody knows is such a packet. The pod's kernel answers one for a closed port with a RST, which is how
//! a test sees whether it got through.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iptables_rules::CaptureConfig;
use socket2::{Domain, Protocol, Socket, Type};
use weir_tests::privileged;
use weir_tests::segment::{FIN, RST, Segment};

use crate::backend::Backend;
use crate::world::{Case, Fate, Ip, Side, World};

/// Where nobody listens, and from where nobody connects.
const CLOSED: u16 = 7777;
const SOURCE: u16 = 40001;

#[test]
fn invalid_packets_are_dropped_only_where_that_is_asked_for() {
    if !privileged() {
        return;
    }
    for backend in Backend::all() {
        for drop_invalid in [false, true] {
            let world = World::new();
            backend.install(&world.pod, &CaptureConfig { drop_invalid, ..CaptureConfig::default() });
            for ip in Ip::BOTH {
                // Connections are not concerned, and their packets make connection tracking watch at all.
                let case = Case::new("peer calls the app", Side::Peer, (ip.pod(), 8080), Fate::Inbound);
                world.check(&format!("{backend:?}"), &[case]);
                let answered = world.peer.run(|| answers_fin(ip)).unwrap();
                assert_eq!(answered, !drop_invalid, "{backend:?}, {ip:?}, drop_invalid {drop_invalid}");
            }
        }
    }
}

/// Sends the FIN from the calling thread's namespace and waits for the RST.
fn answers_fin(ip: Ip) -> bool {
    let (from, to) = (ip.peer(), ip.pod());
    let domain = if from.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP)).unwrap();
    let segment = Segment { from: (from, SOURCE).into(), to: (to, CLOSED).into(), flags: FIN };
    socket.send_to(&segment.bytes(), &SocketAddr::new(to, 0).into()).unwrap();
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        socket.set_read_timeout(Some(left)).unwrap();
        let mut packet = [0; 256];
        let Ok(length) = (&socket).read(&mut packet) else { continue };
        let seen = Segment::ports(&packet[..length], from.is_ipv4());
        if seen.is_some_and(|(source, _, flags)| source == CLOSED && flags & RST != 0) {
            return true;
        }
    }
}
