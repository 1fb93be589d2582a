//! Sends many first packets at once, and observes where each of them arrives.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use iptables_rules::RuleSet;
use iptables_rules::trace::{ConntrackState, Disposition, Owner, Packet, PacketOrigin, Trace, Transport};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use weir_lab::connection_info::canonical;
use weir_lab::{ConnectionInfo, User};
use weir_tests::TIMEOUT;
use weir_tests::segment::{ACK, FIN, RST, Segment};

use super::conntrack;
use super::generator::Probe;
use super::world::{self, Place, World};

/// First source port; every probe has its own.
const FIRST_CLIENT_PORT: u16 = 20_000;
/// How long unexpected arrivals are waited for after all expected ones. Packets take microseconds.
const GRACE_PERIOD: Duration = Duration::from_millis(15);

/// A probe with its predicted trace and what was observed.
#[derive(Debug)]
pub(crate) struct ProbeResult {
    pub(crate) probe: Probe,
    /// `None` where it could not be sent.
    pub(crate) trace: Option<Trace>,
    pub(crate) packet: Option<Packet>,
    /// Whether replies to a forwarded connection are predicted to be delivered in the pod: TPROXY takes packets of every known connection
    /// for the proxy's.
    pub(crate) replies_are_captured: bool,
    pub(crate) arrival: Option<Arrival>,
    /// The entry in the pod's connection tracking.
    pub(crate) entry: Option<conntrack::Entry>,
}

impl ProbeResult {
    /// Returns where the packet arrived. Without any rule, connections are not tracked, and their original destination is the local address.
    pub(crate) fn target(&self) -> Option<Arrival> {
        let mut arrival = self.arrival.clone()?;
        if let Some(connection) = &mut arrival.connection {
            connection.original_dst = connection.original_dst.or(Some(connection.local));
        }
        Some(arrival)
    }
}

/// Where a packet arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) place: Place,
    /// Port of the listener.
    pub(crate) port: u16,
    /// What the listener knows about a connection; `None` for datagrams and stray segments.
    pub(crate) connection: Option<ConnectionInfo>,
}

/// A sent probe. Its socket is kept open until all arrivals are collected.
struct Sent {
    source: SocketAddr,
    _socket: Option<Socket>,
}

type Seen = HashMap<(&'static str, SocketAddr), Arrival>;

/// Sends the probes through the installed rules.
pub(crate) fn send_all(world: &World, rules: &RuleSet, probes: &[Probe]) -> Vec<ProbeResult> {
    world.pod.run(conntrack::flush).unwrap();
    let stray = strays(world);
    let mut sent: Vec<Option<Sent>> = probes.iter().map(|_| None).collect();
    for place in [Place::Pod, Place::Peer, Place::Guest] {
        let numbered: Vec<_> = probes.iter().enumerate().filter(|(_, probe)| probe.from == place).collect();
        let off = world
            .netns(place)
            .run(|| numbered.iter().map(|(number, probe)| (*number, send(probe, *number, &stray))).collect::<Vec<_>>());
        for (number, sent_probe) in off.unwrap() {
            sent[number] = sent_probe;
        }
    }
    let mut results: Vec<ProbeResult> = probes
        .iter()
        .zip(&sent)
        .map(|(probe, sent)| {
            let packet = sent.as_ref().map(|sent| packet(probe, sent.source));
            let trace = packet.as_ref().map(|packet| rules.trace(packet));
            let replies_are_captured =
                packet.as_ref().zip(trace.as_ref()).is_some_and(|(p, t)| replies_are_captured(rules, p, t));
            ProbeResult { probe: *probe, trace, packet, replies_are_captured, arrival: None, entry: None }
        })
        .collect();
    let mut seen = Seen::new();
    let expected: Vec<_> = results
        .iter()
        .filter(|result| {
            !result.replies_are_captured
                && result.trace.as_ref().is_some_and(|trace| trace.disposition != Disposition::Dropped)
        })
        .filter_map(|result| key(result))
        .collect();
    collect_arrivals(world, &stray, &mut seen, &expected);
    let entries = world.pod.run(conntrack::entries).unwrap();
    for result in &mut results {
        let Some(key) = key(result) else { continue };
        result.arrival = seen.get(&key).cloned();
        result.entry = entries.get(&key).filter(|_| !result.probe.stray).cloned();
    }
    results
}

fn key(result: &ProbeResult) -> Option<(&'static str, SocketAddr)> {
    let packet = result.packet.as_ref()?;
    let name = if result.probe.stray { "stray" } else { conntrack::name(packet.transport) };
    Some((name, (packet.source, packet.source_port).into()))
}

/// Opens raw sockets at the peer, one for each family.
fn strays(world: &World) -> [Socket; 2] {
    let open = || {
        [Domain::IPV4, Domain::IPV6].map(|domain| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
    };
    world.peer.run(open).unwrap()
}

/// Sends a first packet from the calling thread's namespace; `None` where the kernel does not allow it.
fn send(probe: &Probe, number: usize, strays: &[Socket; 2]) -> Option<Sent> {
    let port = probe.source_port.unwrap_or(FIRST_CLIENT_PORT + u16::try_from(number).unwrap());
    if probe.stray {
        let source = SocketAddr::new(probe.source?, port);
        let segment = Segment { from: source, to: probe.to, flags: FIN | ACK };
        let raw = &strays[usize::from(probe.to.is_ipv6())];
        raw.send_to(&segment.bytes(), &SocketAddr::new(probe.to.ip(), 0).into()).unwrap();
        return Some(Sent { source, _socket: None });
    }
    probe.user.assume_on_thread().unwrap();
    let (kind, protocol) = match probe.transport {
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        _ => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(probe.to), kind, Some(protocol)).unwrap();
    User::ROOT.assume_on_thread().unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    if probe.mark != 0 {
        socket.set_mark(probe.mark).unwrap();
    }
    if kind == Type::STREAM {
        socket.set_linger(Some(Duration::ZERO)).unwrap(); // closed by RST, which leaves nothing behind
    }
    let any: IpAddr = if probe.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    socket.bind(&SocketAddr::new(probe.source.unwrap_or(any), port).into()).ok()?;
    let connected = socket.connect(&probe.to.into());
    if kind == Type::DGRAM {
        connected.ok()?;
        // Fails if rules drop the datagram on its way out.
        let _ = socket.send(b"?");
    } else if let Err(error) = connected {
        nix::errno::Errno::EINPROGRESS.eq(&nix::errno::Errno::from_raw(error.raw_os_error()?)).then_some(())?;
    }
    let source = canonical(socket.local_addr().ok()?.as_socket()?);
    Some(Sent { source, _socket: Some(socket) })
}

/// Returns the probe as a packet for the tracer.
fn packet(probe: &Probe, source: SocketAddr) -> Packet {
    let origin = match probe.from {
        Place::Pod => PacketOrigin::Sent {
            interface: world::leaves_by(probe.to.ip(), probe.mark).to_owned(),
            owner: Some(Owner { uid: probe.user.uid, gid: probe.user.gid }),
        },
        Place::Peer | Place::Guest => PacketOrigin::Received { interface: world::arrives_by(source.ip()).to_owned() },
    };
    Packet {
        origin,
        transport: probe.transport,
        source: source.ip(),
        source_port: source.port(),
        destination: probe.to.ip(),
        destination_port: probe.to.port(),
        mark: probe.mark,
        connection_mark: 0,
        state: if probe.stray { ConntrackState::Invalid } else { ConntrackState::New },
    }
}

fn replies_are_captured(rules: &RuleSet, packet: &Packet, trace: &Trace) -> bool {
    let forwarded =
        matches!(packet.origin, PacketOrigin::Received { .. }) && world::home(packet.destination) != Place::Pod;
    if !forwarded || packet.transport != Transport::Tcp || !matches!(trace.disposition, Disposition::Passes { .. }) {
        return false;
    }
    let reply = rules.trace(&Packet {
        origin: PacketOrigin::Received { interface: world::leaves_by(packet.destination, 0).to_owned() },
        source: packet.destination,
        source_port: packet.destination_port,
        destination: packet.source,
        destination_port: packet.source_port,
        mark: 0,
        connection_mark: trace.connection_mark,
        state: ConntrackState::Established,
        transport: packet.transport,
    });
    world::TPROXY_MARKS.contains(&reply.mark)
}

/// Collects arrivals until all expected ones have come and no more come.
fn collect_arrivals(world: &World, strays: &[Socket; 2], seen: &mut Seen, expected: &[(&'static str, SocketAddr)]) {
    let deadline = Instant::now() + TIMEOUT;
    let mut quiet_since = Instant::now();
    loop {
        let complete = expected.iter().all(|key| seen.contains_key(key));
        if Instant::now() > deadline || (complete && quiet_since.elapsed() >= GRACE_PERIOD) {
            return;
        }
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        for listeners in &world.listeners {
            fds.extend(listeners.tcp.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
            fds.extend(listeners.udp.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        }
        fds.extend(strays.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        let ready = poll(&mut fds, PollTimeout::from(5_u8)).unwrap();
        if ready == 0 {
            continue;
        }
        quiet_since = Instant::now();
        for listeners in &world.listeners {
            for (port, socket) in &listeners.tcp {
                while let Ok((stream, _)) = socket.accept() {
                    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    let Ok(connection) = ConnectionInfo::from_stream(&stream) else { continue };
                    let arrival = Arrival { place: listeners.place, port: *port, connection: Some(connection) };
                    seen.insert(("tcp", connection.peer), arrival);
                }
            }
            for (port, socket) in &listeners.udp {
                while let Ok((_, sender)) = socket.recv_from(&mut [0; 16]) {
                    let arrival = Arrival { place: listeners.place, port: *port, connection: None };
                    seen.insert(("udp", canonical(sender)), arrival);
                }
            }
        }
        for mut socket in strays {
            let mut bytes = [0; 256];
            while let Ok(length) = socket.read(&mut bytes) {
                let v4 = socket.domain().is_ok_and(|domain| domain == Domain::IPV4);
                let Some((from, to, flags)) = Segment::parse_ports(&bytes[..length], v4) else { continue };
                // The raw socket also receives handshakes. The port tells which segment a reply is for.
                let source = expected
                    .iter()
                    .find(|(kind, source)| *kind == "stray" && source.port() == to && source.is_ipv4() == v4);
                if let Some(key) = source.filter(|_| flags & RST != 0) {
                    seen.insert(*key, Arrival { place: Place::Pod, port: from, connection: None });
                }
            }
        }
    }
}
