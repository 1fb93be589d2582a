//! Sending a volley of first packets, and seeing where each of them arrives.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use iptables_rules::RuleSet;
use iptables_rules::trace::{Entry, Fate, Owner, Packet, State, Trace, Transport};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use weir_lab::sighting::canonical;
use weir_lab::{Sighting, User};
use weir_tests::segment::{ACK, FIN, RST, Segment};

use crate::conntrack;
use crate::draw::Shot;
use crate::world::{self, Place, World};

/// First port of clients; every shot of a volley has its own.
const CLIENTS: u16 = 20_000;
/// How long an arrival that must come is waited for. Packets take microseconds; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one that must not come is waited for after all others have come.
const GRACE: Duration = Duration::from_millis(15);

/// A shot, what was foretold of it, and what was seen.
#[derive(Debug)]
pub(crate) struct Fired {
    pub(crate) shot: Shot,
    /// `None` where it did not go off.
    pub(crate) trace: Option<Trace>,
    pub(crate) packet: Option<Packet>,
    /// Whether the answer to a connection that the pod forwards is foretold to end in the pod: TPROXY takes packets of every known
    /// connection for the proxy's.
    pub(crate) answer_is_taken: bool,
    pub(crate) arrival: Option<Arrival>,
    /// What the pod's connection tracking holds.
    pub(crate) entry: Option<conntrack::Entry>,
}

/// Where a packet was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) place: Place,
    /// Port of the listener.
    pub(crate) port: u16,
    /// What the listener saw of a connection; `None` for datagrams, and for stray segments, which are answered and no more.
    pub(crate) sighting: Option<Sighting>,
}

/// One that went off; its socket lives until everything was seen.
struct Flying {
    source: SocketAddr,
    _socket: Option<Socket>,
}

type Seen = HashMap<(&'static str, SocketAddr), Arrival>;

/// Fires at the rules that are installed.
pub(crate) fn fire(world: &World, rules: &RuleSet, shots: &[Shot]) -> Vec<Fired> {
    world.pod.run(conntrack::flush).unwrap();
    let stray = strays(world);
    let mut flying: Vec<Option<Flying>> = shots.iter().map(|_| None).collect();
    for place in [Place::Pod, Place::Peer, Place::Guest] {
        let numbered: Vec<_> = shots.iter().enumerate().filter(|(_, shot)| shot.from == place).collect();
        let off = world
            .netns(place)
            .run(|| numbered.iter().map(|(number, shot)| (*number, launch(shot, *number, &stray))).collect::<Vec<_>>());
        for (number, launched) in off.unwrap() {
            flying[number] = launched;
        }
    }
    let mut fired: Vec<Fired> = shots
        .iter()
        .zip(&flying)
        .map(|(shot, flying)| {
            let packet = flying.as_ref().map(|flying| packet(shot, flying.source));
            let trace = packet.as_ref().map(|packet| rules.trace(packet));
            let answer_is_taken =
                packet.as_ref().zip(trace.as_ref()).is_some_and(|(p, t)| answer_is_taken(rules, p, t));
            Fired { shot: *shot, trace, packet, answer_is_taken, arrival: None, entry: None }
        })
        .collect();
    let mut seen = Seen::new();
    let wanted: Vec<_> = fired
        .iter()
        .filter(|fired| !fired.answer_is_taken && fired.trace.as_ref().is_some_and(|trace| trace.fate != Fate::Dropped))
        .filter_map(|fired| key(fired))
        .collect();
    watch(world, &stray, &mut seen, &wanted);
    let entries = world.pod.run(conntrack::entries).unwrap();
    for fired in &mut fired {
        let Some(key) = key(fired) else { continue };
        fired.arrival = seen.get(&key).cloned();
        fired.entry = entries.get(&key).filter(|_| !fired.shot.stray).cloned();
    }
    fired
}

fn key(fired: &Fired) -> Option<(&'static str, SocketAddr)> {
    let packet = fired.packet.as_ref()?;
    let name = if fired.shot.stray { "stray" } else { conntrack::name(packet.transport) };
    Some((name, (packet.source, packet.source_port).into()))
}

/// Raw sockets at the peer, one for each family.
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

/// Sends a first packet from the calling thread's namespace; `None` where the system does not let it go.
fn launch(shot: &Shot, number: usize, strays: &[Socket; 2]) -> Option<Flying> {
    let port = shot.source_port.unwrap_or(CLIENTS + u16::try_from(number).unwrap());
    if shot.stray {
        let source = SocketAddr::new(shot.source?, port);
        let segment = Segment { from: source, to: shot.to, flags: FIN | ACK };
        let raw = &strays[usize::from(shot.to.is_ipv6())];
        raw.send_to(&segment.bytes(), &SocketAddr::new(shot.to.ip(), 0).into()).unwrap();
        return Some(Flying { source, _socket: None });
    }
    shot.user.assume().unwrap();
    let (kind, protocol) = match shot.transport {
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        _ => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(shot.to), kind, Some(protocol)).unwrap();
    User::ROOT.assume().unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    if shot.mark != 0 {
        socket.set_mark(shot.mark).unwrap();
    }
    if kind == Type::STREAM {
        socket.set_linger(Some(Duration::ZERO)).unwrap(); // nothing is left of a connection that was seen
    }
    let any: IpAddr = if shot.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    socket.bind(&SocketAddr::new(shot.source.unwrap_or(any), port).into()).ok()?;
    let connected = socket.connect(&shot.to.into());
    if kind == Type::DGRAM {
        connected.ok()?;
        // A datagram that rules drop on its way out is refused to its sender.
        let _ = socket.send(b"?");
    } else if let Err(error) = connected {
        nix::errno::Errno::EINPROGRESS.eq(&nix::errno::Errno::from_raw(error.raw_os_error()?)).then_some(())?;
    }
    let source = canonical(socket.local_addr().ok()?.as_socket()?);
    Some(Flying { source, _socket: Some(socket) })
}

/// The shot as the rules meet it.
fn packet(shot: &Shot, source: SocketAddr) -> Packet {
    let entry = match shot.from {
        Place::Pod => Entry::Sent {
            interface: world::leaves_by(shot.to.ip(), shot.mark).to_owned(),
            owner: Some(Owner { uid: shot.user.uid, gid: shot.user.gid }),
        },
        Place::Peer | Place::Guest => Entry::Arrives { interface: world::arrives_by(source.ip()).to_owned() },
    };
    Packet {
        entry,
        transport: shot.transport,
        source: source.ip(),
        source_port: source.port(),
        destination: shot.to.ip(),
        destination_port: shot.to.port(),
        mark: shot.mark,
        connection_mark: 0,
        state: if shot.stray { State::Invalid } else { State::New },
    }
}

fn answer_is_taken(rules: &RuleSet, packet: &Packet, trace: &Trace) -> bool {
    let forwarded = matches!(packet.entry, Entry::Arrives { .. }) && world::home(packet.destination) != Place::Pod;
    if !forwarded || packet.transport != Transport::Tcp || !matches!(trace.fate, Fate::Passes { .. }) {
        return false;
    }
    let answer = rules.trace(&Packet {
        entry: Entry::Arrives { interface: world::leaves_by(packet.destination, 0).to_owned() },
        source: packet.destination,
        source_port: packet.destination_port,
        destination: packet.source,
        destination_port: packet.source_port,
        mark: 0,
        connection_mark: trace.connection_mark,
        state: State::Established,
        transport: packet.transport,
    });
    world::TPROXY_MARKS.contains(&answer.mark)
}

/// Collects arrivals until all that are wanted have come and nothing more comes.
fn watch(world: &World, strays: &[Socket; 2], seen: &mut Seen, wanted: &[(&'static str, SocketAddr)]) {
    let deadline = Instant::now() + PATIENCE;
    let mut quiet_since = Instant::now();
    loop {
        let complete = wanted.iter().all(|key| seen.contains_key(key));
        if Instant::now() > deadline || (complete && quiet_since.elapsed() >= GRACE) {
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
                    let Ok(sighting) = Sighting::of(&stream) else { continue };
                    let arrival = Arrival { place: listeners.place, port: *port, sighting: Some(sighting) };
                    seen.insert(("tcp", sighting.peer), arrival);
                }
            }
            for (port, socket) in &listeners.udp {
                while let Ok((_, sender)) = socket.recv_from(&mut [0; 16]) {
                    let arrival = Arrival { place: listeners.place, port: *port, sighting: None };
                    seen.insert(("udp", canonical(sender)), arrival);
                }
            }
        }
        for mut socket in strays {
            let mut bytes = [0; 256];
            while let Ok(length) = socket.read(&mut bytes) {
                let v4 = socket.domain().is_ok_and(|domain| domain == Domain::IPV4);
                let Some((from, to, flags)) = Segment::ports(&bytes[..length], v4) else { continue };
                // The raw socket sees handshakes too. Who was answered is known by its port.
                let source = wanted
                    .iter()
                    .find(|(kind, source)| *kind == "stray" && source.port() == to && source.is_ipv4() == v4);
                if let Some(key) = source.filter(|_| flags & RST != 0) {
                    seen.insert(*key, Arrival { place: Place::Pod, port: from, sighting: None });
                }
            }
        }
    }
}
