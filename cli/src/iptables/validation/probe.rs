//! Listeners in place of the proxy, and the connections to them.

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use iptables_rules::CaptureConfig;
use iptables_rules::config::{DnsCapture, InterfaceName};
use iptables_rules::names::port;
use nix::ifaddrs::getifaddrs;
use nix::unistd::{getegid, geteuid};
use socket2::{Domain, Protocol, Socket, Type};
use weir_lab::User;
use weir_lab::sighting::{canonical, original_dst};

use super::checks::{Check, Expected, Transport};

/// How long a connection may take that has to arrive; all of it happens on this machine.
const ARRIVES_WITHIN: Duration = Duration::from_secs(1);
/// How long one is watched that must not arrive.
const WATCHED: Duration = Duration::from_millis(200);
/// How long a listener may be behind the connection that it takes.
const BEHIND: Duration = Duration::from_millis(100);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// What became of a connection.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A listener took it.
    Arrived {
        /// Port of the listener.
        port: u16,
        /// Port that it was made to, as the listener was told; datagrams do not tell.
        original: Option<u16>,
    },
    /// Somebody else took it.
    Elsewhere,
    /// The network refused it.
    Refused(io::Error),
    /// Nothing happened.
    Silent,
    /// It cannot be made here, and there is nothing to be shown.
    NotPossible(String),
}

/// The user whose sockets this thread makes.
pub(super) fn user() -> User {
    User { uid: geteuid().as_raw(), gid: getegid().as_raw() }
}

/// Whether this process may make sockets for any user: `CAP_SETUID` and `CAP_SETGID` (capabilities(7), bits 7 and 6).
pub(super) fn can_be_anybody() -> bool {
    const BOTH: u64 = 1 << 7 | 1 << 6;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits & BOTH == BOTH)
}

/// Sockets on the ports to which traffic is redirected, on the loopback address of both families.
pub(super) struct Listeners {
    tcp: Vec<(u16, socket2::Socket)>,
    udp: Vec<(u16, UdpSocket)>,
}

impl Listeners {
    /// Binds what can be bound.
    ///
    /// # Errors
    /// One line for each port, where none of the proxy's could be bound.
    pub(super) fn bind(config: &CaptureConfig) -> Result<Self, Vec<String>> {
        let mut listeners = Self { tcp: Vec::new(), udp: Vec::new() };
        let mut problems = Vec::new();
        let dns = (config.dns != DnsCapture::Off).then_some(port::DNS);
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            for port in [config.proxy_port, config.inbound_port].into_iter().chain(dns) {
                match listen(SocketAddr::new(ip, port), Type::STREAM, Protocol::TCP) {
                    Ok(socket) => listeners.tcp.push((port, socket)),
                    Err(error) => problems.push(format!("cannot listen on {ip} port {port}: {error}")),
                }
            }
            if let Some(port) = dns {
                match listen(SocketAddr::new(ip, port), Type::DGRAM, Protocol::UDP) {
                    Ok(socket) => listeners.udp.push((port, socket.into())),
                    Err(error) => problems.push(format!("cannot listen on {ip} port {port} for datagrams: {error}")),
                }
            }
        }
        let any = |wanted| listeners.tcp.iter().any(|(port, _)| *port == wanted);
        if any(config.proxy_port) || any(config.inbound_port) { Ok(listeners) } else { Err(problems) }
    }

    /// The listener that took the connection from `client`, with the port it was made to; the client is told, as Istio's does it.
    fn taken(&self, client: SocketAddr) -> io::Result<Option<(u16, Option<u16>)>> {
        for (port, listener) in &self.tcp {
            while let Some((stream, peer)) = would_block(listener.accept())? {
                let mut stream = TcpStream::from(stream);
                if peer.as_socket().map(canonical) != Some(canonical(client)) {
                    continue; // of somebody else, or of an attempt that was given up
                }
                let original = original_dst(&stream).map(|address| address.port());
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(ARRIVES_WITHIN))?;
                stream.write_all(original.unwrap_or_default().to_string().as_bytes())?;
                return Ok(Some((*port, original)));
            }
        }
        for (port, socket) in &self.udp {
            let mut datagram = [0; 16];
            while let Some((_, peer)) = would_block(socket.recv_from(&mut datagram))? {
                if canonical(peer).port() == client.port() {
                    return Ok(Some((*port, None)));
                }
            }
        }
        Ok(None)
    }
}

fn listen(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(64)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn would_block<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted]
                .contains(&error.kind()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Makes one connection and sees what becomes of it.
pub(super) fn attempt(check: &Check, listeners: &Listeners, excluded: &[InterfaceName]) -> Outcome {
    try_it(check, listeners, excluded).unwrap_or_else(Outcome::Refused)
}

fn try_it(check: &Check, listeners: &Listeners, excluded: &[InterfaceName]) -> io::Result<Outcome> {
    let leaves = !check.to.ip().is_loopback() && check.from.is_none();
    if leaves && let Some(why) = no_way_out(check.to, excluded) {
        return Ok(Outcome::NotPossible(why));
    }
    let socket = match open(check, leaves) {
        Ok(socket) => socket,
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            let source = check.from.map_or_else(|| "the source".to_owned(), |from| from.to_string());
            return Ok(Outcome::Refused(io::Error::new(error.kind(), format!("{source} is not an address of lo"))));
        }
        Err(error) => return Err(error),
    };
    match socket.connect(&check.to.into()) {
        Ok(()) => {}
        // EINPROGRESS, which has no kind of its own.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) || error.kind() == ErrorKind::WouldBlock => {
        }
        Err(error) => return Ok(Outcome::Refused(error)),
    }
    let client = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no address"))?;
    if check.transport == Transport::Udp {
        socket.send(b"?")?;
    }
    let limit = if check.expected == Expected::StaysAway { WATCHED } else { ARRIVES_WITHIN };
    let mut deadline = Instant::now() + limit;
    let mut connected = false;
    loop {
        if let Some((port, original)) = listeners.taken(client)? {
            return Ok(arrived(socket, check.transport, port, original));
        }
        if let Some(error) = socket.take_error()? {
            return Ok(Outcome::Refused(error));
        }
        if check.transport == Transport::Tcp && !connected && socket.peer_addr().is_ok() {
            connected = true;
            deadline = deadline.min(Instant::now() + BEHIND);
        }
        if Instant::now() >= deadline {
            return Ok(if connected { Outcome::Elsewhere } else { Outcome::Silent });
        }
        thread::sleep(LOOK);
    }
}

/// Over TCP the client takes the listener's word for the port that it called.
fn arrived(socket: Socket, transport: Transport, port: u16, original: Option<u16>) -> Outcome {
    if transport == Transport::Udp {
        return Outcome::Arrived { port, original };
    }
    let mut stream = TcpStream::from(socket);
    let mut answer = String::new();
    let read = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(ARRIVES_WITHIN)))
        .and_then(|()| stream.read_to_string(&mut answer));
    match read {
        Ok(_) => Outcome::Arrived { port, original: Some(answer.trim().parse().unwrap_or_default()) },
        Err(error) => Outcome::Refused(error),
    }
}

/// A socket of the check's user. It belongs to whom its thread was when it was made, so that the thread ends with that.
fn open(check: &Check, leaves: bool) -> io::Result<Socket> {
    let make = || {
        if user() != check.user {
            check.user.assume().map_err(io::Error::other)?;
        }
        let (kind, protocol) = match check.transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let socket = Socket::new(Domain::for_address(check.to), kind, Some(protocol))?;
        if leaves {
            // What is not captured ends at the first hop.
            if check.to.is_ipv4() { socket.set_ttl_v4(1)? } else { socket.set_unicast_hops_v6(1)? }
        }
        if let Some(from) = check.from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// Why a destination outside cannot be tried: no route leads there, or only one by an interface whose traffic is left alone. A socket for
/// datagrams asks for a route without sending anything.
fn no_way_out(to: SocketAddr, excluded: &[InterfaceName]) -> Option<String> {
    let any =
        SocketAddr::new(if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }, 0);
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(to)?;
        socket.local_addr()
    });
    let source = match source {
        Ok(source) => source.ip(),
        Err(error) => return Some(format!("no route leads to {} ({error})", to.ip())),
    };
    let by = getifaddrs().into_iter().flatten().find(|interface| {
        let address = interface.address.as_ref();
        let v4 = address.and_then(|address| address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip())));
        let v6 = address.and_then(|address| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
        v4.or(v6) == Some(source)
    })?;
    let left_alone = excluded.iter().any(|name| name.as_str() == by.interface_name);
    left_alone.then(|| format!("it leaves by {}, an excluded interface", by.interface_name))
}
