//! Makes test connections, and listens for them in place of the proxy.

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use iptables_rules::CaptureConfig;
use iptables_rules::config::{DnsCapture, InterfaceName};
use iptables_rules::names::port;
use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::check::{Check, ConnectionResult, Expected, Transport};
use crate::identity::Identity;

/// Time for a connection to arrive; it never leaves this host.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time after which a connection counts as not captured.
const NO_ARRIVAL_TIMEOUT: Duration = Duration::from_millis(200);
/// Time between an established connection and its appearance at our listener.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Returns whether this process can create sockets for any user: `CAP_SETUID` and `CAP_SETGID` (capabilities(7), bits 7 and 6).
pub(super) fn can_change_user() -> bool {
    const BOTH: u64 = 1 << 7 | 1 << 6;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits & BOTH == BOTH)
}

/// Sockets on the ports to which traffic is redirected, on the loopback addresses of both families.
pub(super) struct Listeners {
    tcp: Vec<(u16, socket2::Socket)>,
    udp: Vec<(u16, UdpSocket)>,
}

impl Listeners {
    /// Binds as many ports as possible; a running proxy may hold some.
    ///
    /// # Errors
    /// One message for each port, if neither port of the proxy could be bound.
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

    /// Accepts the connection from `client`, and returns the listener's port and the original one. Sends the latter to the client, as
    /// Istio's listener does.
    fn accept_from(&self, client: SocketAddr) -> io::Result<Option<(u16, Option<u16>)>> {
        for (port, listener) in &self.tcp {
            while let Some((stream, peer)) = would_block(listener.accept())? {
                let mut stream = TcpStream::from(stream);
                if peer.as_socket().map(canonical) != Some(canonical(client)) {
                    continue; // from another process, or of an attempt that timed out
                }
                let original = original_destination(&stream).map(|address| address.port());
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(ARRIVAL_TIMEOUT))?;
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

/// Returns the destination before redirection. `SO_ORIGINAL_DST` goes by the family of the packets: a dual-stack socket that was reached
/// over IPv4 answers to `SOL_IP` only (`linux/netfilter_ipv4.h`, `linux/netfilter_ipv6/ip6_tables.h`).
fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let over_v4 = stream.local_addr().is_ok_and(|local| canonical(local).is_ipv4());
    let destination = if over_v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    destination.ok().and_then(|address| address.as_socket())
}

/// Normalises an address for comparison: no IPv4-mapped form, flow label or scope.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => SocketAddrV6::new(ip, address.port(), 0, 0).into(),
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
    }
}

/// Makes one connection and returns where it ended.
pub(super) fn connect(check: &Check, listeners: &Listeners, excluded: &[InterfaceName]) -> ConnectionResult {
    try_connect(check, listeners, excluded).unwrap_or_else(ConnectionResult::Refused)
}

fn try_connect(check: &Check, listeners: &Listeners, excluded: &[InterfaceName]) -> io::Result<ConnectionResult> {
    let leaves = !check.to.ip().is_loopback() && check.from.is_none();
    if leaves && let Some(why) = why_no_route(check.to, excluded) {
        return Ok(ConnectionResult::NotTestable(why));
    }
    let socket = match open(check, leaves) {
        Ok(socket) => socket,
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            let source = check.from.map_or_else(|| "the source".to_owned(), |from| from.to_string());
            return Ok(ConnectionResult::Refused(io::Error::new(
                error.kind(),
                format!("{source} is not an address of lo"),
            )));
        }
        Err(error) => return Err(error),
    };
    match socket.connect(&check.to.into()) {
        Ok(()) => {}
        // EINPROGRESS, which has no kind of its own.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) || error.kind() == ErrorKind::WouldBlock => {
        }
        Err(error) => return Ok(ConnectionResult::Refused(error)),
    }
    let client = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no address"))?;
    if check.transport == Transport::Udp {
        socket.send(b"?")?;
    }
    let limit = if check.expected == Expected::NotCaptured { NO_ARRIVAL_TIMEOUT } else { ARRIVAL_TIMEOUT };
    let mut deadline = Instant::now() + limit;
    let mut connected = false;
    loop {
        if let Some((port, original)) = listeners.accept_from(client)? {
            return Ok(arrived(socket, check.transport, port, original));
        }
        if let Some(error) = socket.take_error()? {
            return Ok(ConnectionResult::Refused(error));
        }
        if check.transport == Transport::Tcp && !connected && socket.peer_addr().is_ok() {
            connected = true;
            deadline = deadline.min(Instant::now() + ACCEPT_DELAY);
        }
        if Instant::now() >= deadline {
            return Ok(if connected { ConnectionResult::ArrivedElsewhere } else { ConnectionResult::TimedOut });
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Reads over TCP what the listener sent: the port that it saw the client connect to.
fn arrived(socket: Socket, transport: Transport, port: u16, original: Option<u16>) -> ConnectionResult {
    if transport == Transport::Udp {
        return ConnectionResult::Arrived { port, original };
    }
    let mut stream = TcpStream::from(socket);
    let mut answer = String::new();
    let read = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(ARRIVAL_TIMEOUT)))
        .and_then(|()| stream.read_to_string(&mut answer));
    match read {
        Ok(_) => ConnectionResult::Arrived { port, original: Some(answer.trim().parse().unwrap_or_default()) },
        Err(error) => ConnectionResult::Refused(error),
    }
}

/// Creates a socket that the check's user owns, in a thread of its own, because the identity cannot be given back.
fn open(check: &Check, leaves: bool) -> io::Result<Socket> {
    let make = || {
        if Identity::current() != check.user {
            check.user.assume()?;
        }
        let (kind, protocol) = match check.transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let socket = Socket::new(Domain::for_address(check.to), kind, Some(protocol))?;
        if leaves {
            // A packet that is not captured must not leave the node.
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

/// Returns why a destination outside cannot be tested: there is no route, or one over an excluded interface. A datagram socket looks the
/// route up without sending a packet.
fn why_no_route(to: SocketAddr, excluded: &[InterfaceName]) -> Option<String> {
    let any =
        SocketAddr::new(if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }, 0);
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(to)?;
        socket.local_addr()
    });
    let source = match source {
        Ok(source) => source.ip(),
        Err(error) => return Some(format!("no route to {} ({error})", to.ip())),
    };
    let interface = getifaddrs().into_iter().flatten().find(|interface| {
        let address = interface.address.as_ref();
        let v4 = address.and_then(|address| address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip())));
        let v6 = address.and_then(|address| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
        v4.or(v6) == Some(source)
    })?;
    let is_excluded = excluded.iter().any(|name| name.as_str() == interface.interface_name);
    is_excluded.then(|| format!("its route leads over {}, an excluded interface", interface.interface_name))
}
