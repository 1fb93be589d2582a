//! A pod, its peer and its guest, with a listener on every port that any rule mentions, TCP and UDP, everywhere.
//!
//! ```text
//! peer  eth0 10.77.0.1 ───── 10.77.0.2 eth0  pod
//!       net1 10.78.0.1 ───── 10.78.0.2 net1
//! guest eth0 10.79.0.2 ───── 10.79.0.1 tap0
//! ```
//! The same with `fd77::`, `fd78::` and `fd79::`. Services are addresses on the peer's `lo`. The pod forwards for its guest.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use ipnet::IpNet;
use iptables_rules::route;
use iptables_rules::ruleset::{LocalDelivery, Routing};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use weir_lab::{Netns, User, link};

/// Every port that a rule may mention.
pub(crate) const PORTS: [u16; 12] = [53, 80, 443, 8080, 9000, 15001, 15006, 15008, 15020, 15021, 15053, 15090];
/// Marks of TPROXY; both are delivered locally throughout.
pub(crate) const TPROXY_MARKS: [u32; 2] = [1337, 99];

/// One of the namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Pod,
    Peer,
    Guest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ip {
    V4,
    V6,
}

impl Ip {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        if self == Self::V4 { v4 } else { v6 }.parse().unwrap()
    }

    pub(crate) fn pod(self) -> IpAddr {
        self.pick("10.77.0.2", "fd77::2")
    }

    pub(crate) fn pod_secondary(self) -> IpAddr {
        self.pick("10.77.0.12", "fd77::12")
    }

    pub(crate) fn pod_net1(self) -> IpAddr {
        self.pick("10.78.0.2", "fd78::2")
    }

    pub(crate) fn pod_tap0(self) -> IpAddr {
        self.pick("10.79.0.1", "fd79::1")
    }

    pub(crate) fn peer(self) -> IpAddr {
        self.pick("10.77.0.1", "fd77::1")
    }

    pub(crate) fn peer_net1(self) -> IpAddr {
        self.pick("10.78.0.1", "fd78::1")
    }

    pub(crate) fn guest(self) -> IpAddr {
        self.pick("10.79.0.2", "fd79::2")
    }

    pub(crate) fn service(self) -> IpAddr {
        self.pick("192.0.2.1", "2001:db8::1")
    }

    pub(crate) fn other_service(self) -> IpAddr {
        self.pick("198.51.100.1", "2001:db8:1::1")
    }

    pub(crate) fn loopback(self) -> IpAddr {
        self.pick("127.0.0.1", "::1")
    }

    pub(crate) fn passthrough(self) -> IpAddr {
        self.pick("127.0.0.6", "::6")
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn net(self, address: IpAddr) -> IpNet {
        IpNet::new(address, if self == Self::V4 { 24 } else { 64 }).unwrap()
    }
}

/// Which namespace has an address.
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

/// The interface by which the pod's packets leave, as its routes say before any rule.
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

/// The interface by which packets from outside arrive.
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

/// What listens in a namespace.
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
        let [pod, peer, guest] = ["pod", "peer", "guest"].map(|name| Netns::new(name).unwrap());
        link::veth((&pod, "eth0"), (&peer, "eth0")).unwrap();
        link::veth((&pod, "net1"), (&peer, "net1")).unwrap();
        link::veth((&pod, "tap0"), (&guest, "eth0")).unwrap();
        for (netns, key) in [(&pod, "net/ipv4/ip_forward"), (&pod, "net/ipv6/conf/all/forwarding")] {
            netns.set_sysctl(key, "1").unwrap();
        }
        for ip in Ip::BOTH {
            for (netns, on, address) in [
                (&pod, "eth0", ip.pod()),
                (&pod, "eth0", ip.pod_secondary()),
                (&pod, "net1", ip.pod_net1()),
                (&pod, "tap0", ip.pod_tap0()),
                (&peer, "eth0", ip.peer()),
                (&peer, "net1", ip.peer_net1()),
                (&peer, "lo", ip.service()),
                (&peer, "lo", ip.other_service()),
                (&guest, "eth0", ip.guest()),
            ] {
                link::add_address(netns, on, ip.net(address)).unwrap();
            }
            link::add_default_route(&pod, ip.peer()).unwrap();
            link::add_default_route(&peer, ip.pod()).unwrap();
            link::add_default_route(&guest, ip.pod_tap0()).unwrap();
        }
        for (mark, table) in TPROXY_MARKS.into_iter().zip(133..) {
            let local_delivery = Some(LocalDelivery { mark, table });
            let routing = Routing { lo_addresses: vec![Ip::V6.passthrough().into()], local_delivery };
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

/// Sockets of both families and for any address, in the calling thread's namespace.
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
