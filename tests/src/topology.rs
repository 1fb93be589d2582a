//! A pod, its peer and a virtual machine behind the pod, as network namespaces with addresses and routes.
//!
//! ```text
//! peer  eth0 10.77.0.1 ───── 10.77.0.2 eth0  pod
//!       net1 10.78.0.1 ───── 10.78.0.2 net1
//! guest eth0 10.79.0.2 ───── 10.79.0.1 tap0
//! ```
//! The same with `fd77::`, `fd78::` and `fd79::`. Services that the pod reaches through its default route are addresses on the peer's `lo`.

use std::net::IpAddr;

use ipnet::IpNet;
use weir_lab::{Netns, link};

/// An address family with the addresses of the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Ip {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        let text = if self == Self::V4 { v4 } else { v6 };
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The pod's first address on eth0.
    pub fn pod(self) -> IpAddr {
        self.pick("10.77.0.2", "fd77::2")
    }

    /// The pod's second address on eth0.
    pub fn pod_secondary(self) -> IpAddr {
        self.pick("10.77.0.12", "fd77::12")
    }

    /// The address at which a redirected inbound connection arrives, whichever address of eth0 was called: the interface's first one for
    /// the kernel, which is the one added first for IPv4 and the one added last for IPv6 (`nf_nat_redirect.c`).
    pub fn redirected_to(self) -> IpAddr {
        if self == Self::V4 { self.pod() } else { self.pod_secondary() }
    }

    /// The pod's address on net1.
    pub fn pod_net1(self) -> IpAddr {
        self.pick("10.78.0.2", "fd78::2")
    }

    /// The peer's address on eth0.
    pub fn peer(self) -> IpAddr {
        self.pick("10.77.0.1", "fd77::1")
    }

    /// The peer's address on net1.
    pub fn peer_net1(self) -> IpAddr {
        self.pick("10.78.0.1", "fd78::1")
    }

    /// A service behind the default route.
    pub fn service(self) -> IpAddr {
        self.pick("192.0.2.1", "2001:db8::1")
    }

    /// Another service behind the default route.
    pub fn other_service(self) -> IpAddr {
        self.pick("198.51.100.1", "2001:db8:1::1")
    }

    /// The pod's address towards the guest.
    pub fn pod_tap0(self) -> IpAddr {
        self.pick("10.79.0.1", "fd79::1")
    }

    /// The guest's address.
    pub fn guest(self) -> IpAddr {
        self.pick("10.79.0.2", "fd79::2")
    }

    /// The usual address of `lo`.
    pub fn loopback(self) -> IpAddr {
        self.pick("127.0.0.1", "::1")
    }

    /// Source address of the proxy's connections to the application.
    pub fn passthrough(self) -> IpAddr {
        self.pick("127.0.0.6", "::6")
    }

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn net(self, address: IpAddr) -> ipnet::IpNet {
        IpNet::new_assert(address, if self == Self::V4 { 24 } else { 64 })
    }
}

/// The namespaces of the topology.
pub struct Namespaces {
    /// The pod.
    pub pod: Netns,
    /// The peer, also with the addresses of the services.
    pub peer: Netns,
    /// The virtual machine behind tap0.
    pub guest: Netns,
}

impl Namespaces {
    /// Creates and connects the namespaces.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[expect(clippy::unwrap_used, reason = "tests cannot run without it")]
    #[expect(clippy::new_without_default, reason = "creating namespaces is no default")]
    pub fn new() -> Self {
        let [pod, peer, guest] = ["pod", "peer", "guest"].map(|name| Netns::new(name).unwrap());
        link::veth((&pod, "eth0"), (&peer, "eth0")).unwrap();
        link::veth((&pod, "net1"), (&peer, "net1")).unwrap();
        link::veth((&pod, "tap0"), (&guest, "eth0")).unwrap();
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
            link::add_default_route(&guest, ip.pod_tap0()).unwrap();
        }
        Self { pod, peer, guest }
    }
}
