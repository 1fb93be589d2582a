//! Packets that connection tracking cannot place: they pass the rules by unless they are dropped.
//!
//! A FIN for a connection that nobody knows is such a packet. The pod's kernel answers one for a closed port with a RST, which is how
//! a test sees whether it got through.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use iptables_rules::CaptureConfig;
use socket2::{Domain, Protocol, Socket, Type};
use weir_tests::privileged;

use crate::backend::Backend;
use crate::world::{Case, Fate, Ip, Side, World};

const FIN: u8 = 0x01;
const RST: u8 = 0x04;
/// Length of a TCP header without options, in bytes (RFC 9293, 3.1).
const HEADER: usize = 20;
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
    socket.send_to(&segment(from, to, FIN), &SocketAddr::new(to, 0).into()).unwrap();
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        socket.set_read_timeout(Some(left)).unwrap();
        let mut packet = [0; 256];
        let Ok(length) = (&socket).read(&mut packet) else { continue };
        // Over IPv4 the packet comes with its IP header, whose length in words is in the low half of its first byte (raw(7)).
        let start = if from.is_ipv4() { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
        let tcp = packet.get(start..length).unwrap_or_default();
        if tcp.len() >= HEADER && tcp[..2] == CLOSED.to_be_bytes() && tcp[13] & RST != 0 {
            return true;
        }
    }
}

/// A TCP segment without data.
fn segment(from: IpAddr, to: IpAddr, flags: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&SOURCE.to_be_bytes());
    header[2..4].copy_from_slice(&CLOSED.to_be_bytes());
    header[4..8].copy_from_slice(&1000u32.to_be_bytes()); // sequence number, any
    header[12] = 5 << 4; // length in words
    header[13] = flags;
    header[14..16].copy_from_slice(&1024u16.to_be_bytes()); // window
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // Pseudo header: addresses, protocol 6, length (RFC 9293, 3.1; RFC 8200, 8.1).
    let summed = [octets(from), octets(to), vec![0, 6, 0, 20], header.to_vec()].concat();
    let sum: u32 = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    header
}
