//! Random configurations and packets, with values that often match each other.

use std::net::{IpAddr, SocketAddr};

use iptables_rules::CaptureConfig;
use iptables_rules::config::{
    CidrSelection, DnsCapture, Group, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups, PortSelection,
};
use iptables_rules::trace::Transport;
use weir_lab::User;

use super::world::{Ip, PORTS, Place, TPROXY_MARKS};

const UIDS: [u32; 6] = [2000, 1337, 1400, 0, 2000, 2000];
const GIDS: [u32; 5] = [2000, 1337, 1400, 3001, 3002];
const NETS: [&str; 17] = [
    "10.77.0.0/24",
    "10.77.0.2/32",
    "10.77.0.1/32",
    "10.78.0.0/24",
    "192.0.2.0/24",
    "198.51.100.0/25",
    "127.0.0.0/8",
    "127.0.0.1/32",
    "0.0.0.0/0",
    "10.0.0.0/8",
    "fd77::/64",
    "fd77::2/128",
    "fd78::/64",
    "2001:db8::/48",
    "2001:db8:1::/48",
    "::1/128",
    "::/0",
];
const INTERFACES: [&str; 4] = ["eth0", "net1", "tap0", "lo"];
const LOOPBACKS: [&str; 4] = ["127.0.0.1/32", "127.0.0.0/8", "127.0.0.0/29", "127.1.0.0/16"];

/// One first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) from: Place,
    /// Owner of the socket, for probes from the pod.
    pub(crate) user: User,
    pub(crate) mark: u32,
    pub(crate) transport: Transport,
    /// Address that the socket is bound to.
    pub(crate) source: Option<IpAddr>,
    /// A source port that rules match on; unique by place and family.
    pub(crate) source_port: Option<u16>,
    pub(crate) to: SocketAddr,
    /// A segment that belongs to no connection.
    pub(crate) stray: bool,
}

/// Generates values with SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub(crate) struct Generator {
    state: u64,
    /// Source ports in use that rules match on, by place and family.
    taken: Vec<(Place, Ip, u16)>,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        // The state is hashed: neighbouring seeds would give the same sequence, shifted by one.
        let state = Self { state: seed, taken: Vec::new() }.next();
        Self { state, taken: Vec::new() }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Returns up to `most` different items.
    fn some<T: Copy + PartialEq>(&mut self, from: &[T], most: usize) -> Vec<T> {
        let mut chosen = Vec::new();
        for _ in 0..self.below(most + 1) {
            let item = self.pick(from);
            if !chosen.contains(&item) {
                chosen.push(item);
            }
        }
        chosen
    }

    pub(crate) fn config(&mut self) -> CaptureConfig {
        let mode = match self.below(20) {
            0 => InterceptionMode::None,
            1..=9 => InterceptionMode::Tproxy,
            _ => InterceptionMode::Redirect,
        };
        let users = self.some(&UIDS[1..3], 2);
        let groups_of_proxy = if users.is_empty() || self.percent(70) { vec![1337] } else { self.some(&GIDS[1..3], 2) };
        let nets = |generator: &mut Self, most| {
            generator.some(&NETS, most).iter().map(|net| net.parse().unwrap()).collect::<Vec<ipnet::IpNet>>()
        };
        let interfaces = |generator: &mut Self, chance| {
            let chosen = if generator.percent(chance) { generator.some(&INTERFACES, 2) } else { Vec::new() };
            chosen.into_iter().map(|name| InterfaceName::new(name).unwrap()).collect::<Vec<_>>()
        };
        let groups: Vec<Group> = self.some(&GIDS, 3).into_iter().map(Group::Id).collect();
        let dns = match self.below(4) {
            0 => DnsCapture::All,
            1 => {
                let servers = [Ip::peer, Ip::service, Ip::loopback].map(|of| [of(Ip::V4), of(Ip::V6)]).concat();
                DnsCapture::Servers(self.some(&servers, 4))
            }
            _ => DnsCapture::Off,
        };
        CaptureConfig {
            mode,
            ipv6: if self.percent(85) { Ipv6Policy::Capture } else { Ipv6Policy::Leave },
            proxy_port: self.pick(&[15001, 15001, 9000]),
            inbound_port: self.pick(&[15006, 15006, 8080]),
            tunnel_port: self.pick(&[15008, 15008, 443, 53]),
            inbound_ports: if self.percent(65) {
                PortSelection::All
            } else {
                PortSelection::Only(self.some(&PORTS, 7))
            },
            inbound_ports_exclude: self.some(&PORTS, 7),
            outbound_cidrs: if self.percent(55) { CidrSelection::All } else { CidrSelection::Only(nets(self, 8)) },
            outbound_cidrs_exclude: if self.percent(50) { nets(self, 7) } else { Vec::new() },
            outbound_ports: self.some(&PORTS, 3),
            outbound_ports_exclude: self.some(&PORTS, 3),
            exclude_interfaces: interfaces(self, 25),
            reroute_interfaces: interfaces(self, 30),
            owner_groups: match self.below(6) {
                0 => OwnerGroups::Only(groups),
                1 => OwnerGroups::AllBut(groups),
                _ => OwnerGroups::default(),
            },
            dns,
            drop_invalid: self.percent(40),
            loopback: if self.percent(80) { LOOPBACKS[0] } else { self.pick(&LOOPBACKS) }.parse().unwrap(),
            tproxy_mark: self.pick(&TPROXY_MARKS),
            proxy_uids: users,
            proxy_gids: groups_of_proxy,
            ..CaptureConfig::default()
        }
    }

    pub(crate) fn probe(&mut self, config: &CaptureConfig) -> Probe {
        let ip = self.pick(&Ip::BOTH);
        let from = self.pick(&[Place::Pod, Place::Pod, Place::Pod, Place::Pod, Place::Peer, Place::Peer, Place::Guest]);
        let stray = from == Place::Peer && self.percent(20);
        let mut source_port = None;
        let transport = if stray || self.percent(60) { Transport::Tcp } else { Transport::Udp };
        if transport == Transport::Udp && self.percent(8) {
            let place = (from, ip, self.pick(&[53, 15053]));
            if !self.taken.contains(&place) {
                self.taken.push(place);
                source_port = Some(place.2);
            }
        }
        let (to, source) = match from {
            Place::Pod => self.pod_target(ip),
            Place::Peer if self.percent(30) => (ip.pod_net1(), Some(ip.peer_net1())),
            Place::Peer => (self.pick(&[ip.pod(), ip.pod(), ip.pod_secondary()]), Some(ip.peer())),
            Place::Guest => (self.pick(&[ip.pod_tap0(), ip.service(), ip.peer()]), Some(ip.guest())),
        };
        let mark = match self.below(12) {
            0 => 1338,
            1 => 7,
            2 if config.mode == InterceptionMode::Tproxy => config.tproxy_mark,
            _ => 0,
        };
        let uid = self.pick(&UIDS);
        let gid = if self.percent(50) { uid } else { self.pick(&GIDS) };
        let mut port = if transport == Transport::Udp && self.percent(40) { 53 } else { self.pick(&PORTS) };
        if source_port == Some(port) {
            port = 9000; // or the sender might receive it itself
        }
        let from_pod = from == Place::Pod;
        Probe {
            from,
            user: if from_pod { User { uid, gid } } else { User::ROOT },
            mark: if from_pod { mark } else { 0 },
            transport,
            source,
            source_port,
            to: (to, port).into(),
            stray,
        }
    }

    /// Returns the destination of a probe from the pod, and the source address to bind to.
    fn pod_target(&mut self, ip: Ip) -> (IpAddr, Option<IpAddr>) {
        let loopbacks: &[&str] =
            if ip == Ip::V4 { &["127.0.0.1", "127.0.0.6", "127.0.0.9", "127.1.2.3"] } else { &["::1", "::6"] };
        let own = [ip.pod(), ip.pod_secondary(), ip.pod_net1(), ip.pod_tap0()];
        match self.below(10) {
            0 | 1 => (self.pick(loopbacks).parse().unwrap(), None),
            2 => (self.pick(&own), Some(ip.passthrough())),
            3 | 4 => (self.pick(&own), None),
            5 => (ip.peer_net1(), None),
            6 => (ip.guest(), None),
            7 => (ip.other_service(), None),
            8 => (ip.service(), Some(ip.pod())),
            _ => (ip.peer(), None),
        }
    }
}
