//! The namespaces of [`weir_tests::topology`], with TCP and UDP listeners in all of them on every port that a rule may match on. The pod
//! forwards for its guest.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use iptables_rules::ruleset::{LocalDelivery, Routing};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use weir_kernel::route;
use weir_lab::{Netns, User, link};
pub(crate) use weir_tests::topology::Ip;
use weir_tests::topology::Namespaces;

/// Ports that rules may match on.
pub(crate) const PORTS: [u16; 12] = [53, 80, 443, 8080, 9000, 15001, 15006, 15008, 15020, 15021, 15053, 15090];
/// Marks of TPROXY; packets with either are delivered locally.
pub(crate) const TPROXY_MARKS: [u32; 2] = [1337, 99];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Pod,
    Peer,
    Guest,
}

/// Returns the namespace that has an address.
pub(crate) fn home(address: IpAddr) -> Place {
    let ip = Ip::of(address);
    let pod = [ip.pod(), ip.pod_secondary(), ip.pod_net1(), ip.pod_tap0(), ip.passthrough()];
    if address.is_loopback() || pod.contains(&address) {
        Place::Pod
    } else if address == ip.guest() {
        Place::Guest
    } else {
        Place::Peer
    }
}

/// Returns the interface by which a packet leaves the pod, by its routes before any rule.
pub(crate) fn leaves_by(to: IpAddr, mark: u32) -> &'static str {
    let ip = Ip::of(to);
    if TPROXY_MARKS.contains(&mark) || home(to) == Place::Pod {
        "lo"
    } else if to == ip.guest() {
        "tap0"
    } else if to == ip.peer_net1() {
        "net1"
    } else {
        "eth0"
    }
}

/// Returns the interface by which a packet from outside arrives.
pub(crate) fn arrives_by(from: IpAddr) -> &'static str {
    let ip = Ip::of(from);
    if from == ip.guest() {
        "tap0"
    } else if from == ip.peer_net1() {
        "net1"
    } else {
        "eth0"
    }
}

/// The listeners of a namespace.
pub(crate) struct Listeners {
    pub(crate) place: Place,
    pub(crate) tcp: Vec<(u16, TcpListener)>,
    pub(crate) udp: Vec<(u16, UdpSocket)>,
}

pub(crate) struct World {
    pub(crate) listeners: [Listeners; 3],
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
    pub(crate) guest: Netns,
}

impl World {
    pub(crate) fn new() -> Self {
        let Namespaces { pod, peer, guest } = Namespaces::new();
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            pod.set_sysctl(key, "1").unwrap();
        }
        for ip in Ip::BOTH {
            link::add_default_route(&peer, ip.pod()).unwrap(); // to the guest
        }
        let passthrough = Ip::V6.passthrough().into();
        link::add_address(&pod, "lo", passthrough).unwrap(); // delivered from now on; `route::apply` does not wait for that
        for (mark, table) in TPROXY_MARKS.into_iter().zip(133..) {
            let local_delivery = Some(LocalDelivery { mark, table });
            let routing = Routing { lo_addresses: vec![passthrough], local_delivery };
            pod.run(|| route::apply(&routing)).unwrap().unwrap();
        }
        let listeners = [(&pod, Place::Pod), (&peer, Place::Peer), (&guest, Place::Guest)]
            .map(|(netns, place)| netns.run_as(User::PROXY, || listen(place)).unwrap());
        Self { listeners, pod, peer, guest }
    }

    pub(crate) fn netns(&self, place: Place) -> &Netns {
        match place {
            Place::Pod => &self.pod,
            Place::Peer => &self.peer,
            Place::Guest => &self.guest,
        }
    }
}

/// Opens dual-stack sockets for any address in the calling thread's namespace.
fn listen(place: Place) -> Listeners {
    let socket = |kind, protocol, port: u16| {
        let socket = Socket::new(Domain::IPV6, kind, Some(protocol)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let shared = SockRef::from(&socket);
        shared.set_ip_transparent_v4(true).unwrap();
        shared.set_ip_transparent_v6(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).unwrap();
        socket
    };
    let tcp = PORTS.map(|port| {
        let socket = socket(Type::STREAM, Protocol::TCP, port);
        socket.listen(256).unwrap();
        (port, socket.into())
    });
    let udp = PORTS.map(|port| (port, socket(Type::DGRAM, Protocol::UDP, port).into()));
    Listeners { place, tcp: tcp.into(), udp: udp.into() }
}
