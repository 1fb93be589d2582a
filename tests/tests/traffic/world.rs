//! A pod, its peers and everything they listen on.
//!
//! ```text
//! peer  eth0 10.77.0.1 ───── 10.77.0.2 eth0  pod    app: 8080, 8081, 8090 (uid 2000)
//!       net1 10.78.0.1 ───── 10.78.0.2 net1         proxy: 15001, 15006, 15008, 15020, 15021, 15090 (uid 1337)
//! guest eth0 10.79.0.2 ───── 10.79.0.1 tap0
//! ```
//! The same with `fd77::`, `fd78::` and `fd79::`. Services that the pod reaches through its default route are addresses on the peer's `lo`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use weir_lab::{Dial, Echo, LabError, Netns, Sighting, User, link};

/// Ports of the application in the pod.
const APP: [u16; 3] = [8080, 8081, 8090];
/// Ports of the proxy in the pod.
const PROXY: [u16; 6] = [15001, 15006, 15008, 15020, 15021, 15090];
/// Ports of services outside the pod.
const SERVICES: [u16; 4] = [9000, 9200, 15020, 15021];

/// The application's user.
pub(crate) const APP_USER: User = User::of(2000);

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

    /// The pod's address on eth0.
    pub(crate) fn pod(self) -> IpAddr {
        self.pick("10.77.0.2", "fd77::2")
    }

    /// Its second address there.
    pub(crate) fn pod_secondary(self) -> IpAddr {
        self.pick("10.77.0.12", "fd77::12")
    }

    /// The address at which a redirected inbound connection arrives, whichever address of eth0 was called: the kernel takes the
    /// interface's first one, which is the one added first for IPv4 and the one added last for IPv6 (`nf_nat_redirect.c`).
    pub(crate) fn redirected_to(self) -> IpAddr {
        if self == Self::V4 { self.pod() } else { self.pod_secondary() }
    }

    /// The pod's address on net1.
    pub(crate) fn pod_net1(self) -> IpAddr {
        self.pick("10.78.0.2", "fd78::2")
    }

    /// The peer's address on eth0.
    pub(crate) fn peer(self) -> IpAddr {
        self.pick("10.77.0.1", "fd77::1")
    }

    /// The peer's address on net1.
    pub(crate) fn peer_net1(self) -> IpAddr {
        self.pick("10.78.0.1", "fd78::1")
    }

    /// A service reached through the default route.
    pub(crate) fn service(self) -> IpAddr {
        self.pick("192.0.2.1", "2001:db8::1")
    }

    /// Another one.
    pub(crate) fn other_service(self) -> IpAddr {
        self.pick("198.51.100.1", "2001:db8:1::1")
    }

    /// The pod's address towards the guest.
    pub(crate) fn pod_tap0(self) -> IpAddr {
        self.pick("10.79.0.1", "fd79::1")
    }

    fn guest(self) -> IpAddr {
        self.pick("10.79.0.2", "fd79::2")
    }

    pub(crate) fn loopback(self) -> IpAddr {
        self.pick("127.0.0.1", "::1")
    }

    /// Source of the proxy's connections to the application.
    pub(crate) fn passthrough(self) -> IpAddr {
        self.pick("127.0.0.6", "::6")
    }

    fn net(self, address: IpAddr) -> ipnet::IpNet {
        ipnet::IpNet::new(address, if self == Self::V4 { 24 } else { 64 }).unwrap()
    }
}

/// Where a connection starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// In the pod, as this user.
    Pod(User),
    /// At the peer.
    Peer,
    /// In the virtual machine behind tap0.
    Guest,
}

/// What must become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Arrives at the outbound port of the proxy, which can read where it was going.
    Outbound,
    /// Arrives at the inbound port of the proxy, likewise.
    Inbound,
    /// Arrives where it was going.
    Direct,
}

/// One connection and its fate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) side: Side,
    pub(crate) from: Option<IpAddr>,
    pub(crate) to: SocketAddr,
    pub(crate) fate: Fate,
    /// Address at which the listener must see it arrive, where redirection changes it.
    pub(crate) arrives_at: Option<IpAddr>,
}

impl Case {
    pub(crate) fn new(what: &'static str, side: Side, to: (IpAddr, u16), fate: Fate) -> Self {
        Self { what, side, from: None, to: to.into(), fate, arrives_at: None }
    }

    pub(crate) fn from(self, from: IpAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    pub(crate) fn arriving_at(self, address: IpAddr) -> Self {
        Self { arrives_at: Some(address), ..self }
    }

    /// What is wrong with what a listener saw, if anything.
    fn objection(&self, seen: &Sighting) -> Option<String> {
        let wanted = weir_lab::sighting::canonical(self.to);
        let port = match self.fate {
            Fate::Outbound => 15001,
            Fate::Inbound => 15006,
            Fate::Direct => wanted.port(),
        };
        if seen.port != port {
            return Some(format!("arrived on port {}, not {port}", seen.port));
        }
        // Where nothing was redirected, connection tracking may not know the connection at all.
        let destination_kept =
            seen.original_dst == Some(wanted) || (self.fate == Fate::Direct && seen.original_dst.is_none());
        if !destination_kept {
            return Some(format!("original destination {:?}, not {wanted}", seen.original_dst));
        }
        let arrival = self.arrives_at.or((self.fate == Fate::Direct).then_some(wanted.ip()));
        match arrival {
            Some(address) if address != seen.local.ip() => {
                Some(format!("arrived at {}, not {address}", seen.local.ip()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} -> {}, {:?}", self.what, self.side, self.to, self.fate)
    }
}

/// The namespaces. Listeners stop before the namespaces go: fields are dropped in this order.
pub(crate) struct World {
    _listeners: Vec<Echo>,
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
    pub(crate) guest: Netns,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_proxy(Echo::start)
    }

    /// The same with a proxy whose listeners take connections to any address, as TPROXY hands them over.
    pub(crate) fn with_transparent_proxy() -> Self {
        Self::with_proxy(Echo::start_transparent)
    }

    fn with_proxy(start_proxy: fn(&Netns, User, &[u16]) -> Result<Echo, LabError>) -> Self {
        let (pod, peer, guest) =
            (Netns::new("pod").unwrap(), Netns::new("peer").unwrap(), Netns::new("guest").unwrap());
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
        let listeners = vec![
            start_proxy(&pod, User::PROXY, &PROXY).unwrap(),
            Echo::start(&pod, APP_USER, &APP).unwrap(),
            Echo::start(&peer, User::ROOT, &SERVICES).unwrap(),
        ];
        Self { _listeners: listeners, pod, peer, guest }
    }

    /// Makes the connection and says what is wrong with its fate, if anything.
    pub(crate) fn try_case(&self, case: &Case) -> Result<(), String> {
        let (netns, user) = match case.side {
            Side::Pod(user) => (&self.pod, user),
            Side::Peer => (&self.peer, User::ROOT),
            Side::Guest => (&self.guest, User::ROOT),
        };
        let dial = Dial { user, from: case.from, to: case.to };
        match dial.go(netns).map_err(|error| error.to_string())? {
            Ok(seen) => case.objection(&seen).map_or(Ok(()), |objection| Err(format!("{case}: {objection} ({seen})"))),
            Err(error) => Err(format!("{case}: {error}")),
        }
    }

    /// Every case must hold.
    pub(crate) fn check(&self, of_what: &str, cases: &[Case]) {
        let wrong: Vec<String> = cases.iter().filter_map(|case| self.try_case(case).err()).collect();
        assert!(
            wrong.is_empty(),
            "{of_what}: {} of {} connections went wrong:\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }
}
