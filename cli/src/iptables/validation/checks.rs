//! Which connections show that the rules of a configuration work: a pure function of the configuration and of who makes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use iptables_rules::CaptureConfig;
use iptables_rules::config::{CidrSelection, DnsCapture, Group, OwnerGroups};
use iptables_rules::names::{LOOPBACK_INTERFACE, address, port};
use weir_lab::User;

use super::probe::Outcome;
use super::user_text;

/// What a connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the proxy to the pod itself, which comes back as inbound traffic.
    Inbound,
    /// Out of the pod.
    Outbound,
    /// To a DNS server.
    Dns,
}

/// How it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// What has to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// Arrives at the listener on this port.
    Arrives(u16),
    /// Arrives at none of the proxy's ports.
    StaysAway,
}

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) direction: Direction,
    pub(super) what: &'static str,
    pub(super) user: User,
    pub(super) transport: Transport,
    pub(super) from: Option<IpAddr>,
    pub(super) to: SocketAddr,
    pub(super) expected: Expected,
}

impl Check {
    /// Whether it can hold only where there are rules.
    pub(super) fn needs_rules(&self) -> bool {
        matches!(self.expected, Expected::Arrives(_))
    }

    /// What is wrong with an outcome, if anything.
    pub(super) fn objection(&self, outcome: &Outcome) -> Option<String> {
        let should = match self.expected {
            Expected::Arrives(port) => format!("it should have arrived on port {port}"),
            Expected::StaysAway => "it should not have been redirected".to_owned(),
        };
        let did = match (outcome, self.expected) {
            (Outcome::Arrived { port, original: None }, Expected::Arrives(wanted)) if *port == wanted => return None,
            (Outcome::Arrived { port, original: Some(original) }, Expected::Arrives(wanted)) if *port == wanted => {
                if *original == self.to.port() {
                    return None;
                }
                return Some(format!("it arrived on port {port}, but as a connection to port {original}"));
            }
            (Outcome::Arrived { port, .. }, _) => format!("it arrived on port {port}"),
            (_, Expected::StaysAway) => return None,
            (Outcome::Elsewhere, _) => "it was taken by somebody else".to_owned(),
            (Outcome::Refused(error), _) => format!("it failed ({error})"),
            (Outcome::Silent, _) => "nothing answered".to_owned(),
            (Outcome::NotPossible(why), _) => format!("it could not be made ({why})"),
        };
        Some(format!("{did}; {should}"))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
            Direction::Dns => "DNS",
        };
        let family = if self.to.is_ipv4() { "IPv4" } else { "IPv6" };
        let transport = if self.transport == Transport::Tcp { "tcp" } else { "udp" };
        write!(f, "{direction}, {family}: {} ({}) to {}/{transport}", self.what, user_text(self.user), self.to)
    }
}

/// Who makes the connections, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Situation {
    /// A user whose traffic is the proxy's own, if we can be one.
    pub(super) proxy: Option<User>,
    /// A user of the application whose traffic is captured, likewise.
    pub(super) app: Option<User>,
    pub(super) with_ipv6: bool,
    /// A port that no rule treats differently.
    pub(super) port: u16,
}

impl Situation {
    pub(super) fn new(config: &CaptureConfig, we: User, anybody: bool, with_ipv6: bool, probe_port: u16) -> Self {
        let is_proxy = |user: User| config.proxy_uids.contains(&user.uid) || config.proxy_gids.contains(&user.gid);
        let dns = config.dns != DnsCapture::Off;
        let special = |port: u16| {
            port == config.tunnel_port
                || config.outbound_ports_exclude.contains(&port)
                || (dns && port == port::DNS_REQUEST)
                || [config.proxy_port, config.inbound_port, port::DNS].contains(&port)
        };
        let port = std::iter::once(probe_port).chain(15100..=u16::MAX).find(|&port| port != 0 && !special(port));
        let (proxy, app) = if anybody {
            (Some(proxy_user(config)), app_user(config))
        } else if is_proxy(we) {
            (Some(we), None)
        } else {
            (None, Some(we).filter(|we| is_captured(config, we.gid)))
        };
        Self { proxy, app, with_ipv6, port: port.unwrap_or(probe_port) }
    }

    fn families(&self) -> &'static [Family] {
        if self.with_ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
    }
}

/// A user that the rules take for the proxy, by user and by group where both are named.
fn proxy_user(config: &CaptureConfig) -> User {
    let other = other_id(&config.proxy_uids, &config.proxy_gids);
    User { uid: *config.proxy_uids.first().unwrap_or(&other), gid: *config.proxy_gids.first().unwrap_or(&other) }
}

/// A user that the rules take for the application.
fn app_user(config: &CaptureConfig) -> Option<User> {
    let uid = other_id(&config.proxy_uids, &[]);
    let gid = match &config.owner_groups {
        OwnerGroups::AllBut(groups) => {
            let excluded: Vec<u32> = groups.iter().filter_map(number).collect();
            other_id(&config.proxy_gids, &excluded)
        }
        OwnerGroups::Only(groups) => groups.iter().filter_map(number).find(|id| !config.proxy_gids.contains(id))?,
    };
    Some(User { uid, gid })
}

fn is_captured(config: &CaptureConfig, gid: u32) -> bool {
    match &config.owner_groups {
        OwnerGroups::AllBut(groups) => !groups.contains(&Group::Id(gid)),
        OwnerGroups::Only(groups) => groups.contains(&Group::Id(gid)),
    }
}

fn number(group: &Group) -> Option<u32> {
    match group {
        Group::Id(id) => Some(*id),
        Group::Name(_) => None,
    }
}

/// An id that is in neither list.
fn other_id(taken: &[u32], also: &[u32]) -> u32 {
    (2000..u32::MAX).find(|id| !taken.contains(id) && !also.contains(id)).unwrap_or(u32::MAX - 1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn loopback(self) -> IpAddr {
        if self == Self::V4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
    }

    fn passthrough(self) -> IpAddr {
        if self == Self::V4 { address::PASSTHROUGH_V4.into() } else { address::PASSTHROUGH_V6.into() }
    }

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    /// Addresses for documentation (RFC 5737, RFC 3849), which belong to nobody.
    fn nobodys(self) -> &'static [IpAddr] {
        const V4: [IpAddr; 3] = [
            IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
            IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
        ];
        const V6: [IpAddr; 2] = [
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
        ];
        if self == Self::V4 { &V4 } else { &V6 }
    }
}

/// The checks, and what cannot be checked, in words.
pub(super) fn checks(config: &CaptureConfig, situation: &Situation) -> (Vec<Check>, Vec<String>) {
    let (mut checks, mut notes) = (Vec::new(), Vec::new());
    if config.exclude_interfaces.iter().any(|name| name.as_str() == LOOPBACK_INTERFACE) {
        notes.push("connections of the pod to itself: not tested: lo is an excluded interface".to_owned());
    } else if let Some(user) = situation.proxy {
        for &family in situation.families() {
            checks.extend(of_proxy(config, situation.port, family, user));
        }
    }
    if situation.proxy.is_none() {
        notes.push(
            "connections of the proxy: not tested: this is another user; run it as the proxy's, or with CAP_SETUID"
                .to_owned(),
        );
    }
    match situation.app {
        None if situation.proxy.is_some() => notes.push(
            "connections of the application: not tested: this is the proxy's user, whose traffic is never captured on its way out; \
             run it as another user, or with CAP_SETUID"
                .to_owned(),
        ),
        None => notes.push("connections of the application: not tested: its group is not captured".to_owned()),
        Some(user) => {
            for &family in situation.families() {
                checks.extend(of_app(config, situation.port, family, user));
            }
        }
    }
    (checks, notes)
}

fn of_proxy(config: &CaptureConfig, port: u16, family: Family, user: User) -> Vec<Check> {
    let tcp = |direction, what, from, to: (IpAddr, u16), expected| Check {
        direction,
        what,
        user,
        transport: Transport::Tcp,
        from,
        to: to.into(),
        expected,
    };
    let (own, passthrough) = (Some(family.loopback()), family.passthrough());
    let mut checks = vec![
        tcp(
            Direction::Inbound,
            "the proxy calls the pod itself",
            own,
            (passthrough, port),
            Expected::Arrives(config.inbound_port),
        ),
        tcp(
            Direction::Inbound,
            "the proxy passes a connection on to the application",
            Some(passthrough),
            (passthrough, port),
            Expected::StaysAway,
        ),
        tcp(Direction::Outbound, "the proxy calls out", None, (outside(config, family), port), Expected::StaysAway),
    ];
    // With DNS capture the proxy's own requests to port 53 are left alone, without it they are like any other connection.
    if captures_dns(config, family) && config.proxy_uids.contains(&user.uid) {
        let to = (passthrough, port::DNS_REQUEST);
        checks.push(Check {
            direction: Direction::Dns,
            ..tcp(Direction::Dns, "the agent asks a server", own, to, Expected::StaysAway)
        });
    }
    checks
}

fn of_app(config: &CaptureConfig, port: u16, family: Family, user: User) -> Vec<Check> {
    let check = |direction, what, transport, to: (IpAddr, u16), expected| Check {
        direction,
        what,
        user,
        transport,
        from: None,
        to: to.into(),
        expected,
    };
    let mut checks = Vec::new();
    if let Some(to) = captured(config, port, family) {
        let expected = Expected::Arrives(config.proxy_port);
        checks.push(check(Direction::Outbound, "the application calls out", Transport::Tcp, to, expected));
    }
    let server = match &config.dns {
        DnsCapture::Off => None,
        DnsCapture::All => Some(family.nobodys()[0]),
        DnsCapture::Servers(servers) => servers.iter().copied().find(|server| family.has(*server)),
    };
    let dns_port = port::DNS_REQUEST;
    if let Some(server) = server.filter(|_| !config.outbound_ports_exclude.contains(&dns_port)) {
        for transport in [Transport::Udp, Transport::Tcp] {
            let expected = Expected::Arrives(port::DNS);
            checks.push(check(
                Direction::Dns,
                "the application asks a server",
                transport,
                (server, dns_port),
                expected,
            ));
        }
    }
    let itself = (family.loopback(), port);
    // A loopback network among the captured ones makes these connections captured, too.
    if captured_list(config).iter().all(|net| !net.addr().is_loopback()) {
        checks.push(check(
            Direction::Outbound,
            "the application calls itself",
            Transport::Tcp,
            itself,
            Expected::StaysAway,
        ));
    }
    checks
}

fn captures_dns(config: &CaptureConfig, family: Family) -> bool {
    match &config.dns {
        DnsCapture::Off => false,
        DnsCapture::All => true,
        DnsCapture::Servers(servers) => servers.iter().any(|server| family.has(*server)),
    }
}

/// An address outside of the pod.
fn outside(config: &CaptureConfig, family: Family) -> IpAddr {
    let not_own = |address: &&IpAddr| !captured_list(config).iter().any(|net| net.contains(*address));
    family.nobodys().iter().find(not_own).copied().unwrap_or(family.nobodys()[0])
}

fn captured_list(config: &CaptureConfig) -> &[ipnet::IpNet] {
    match &config.outbound_cidrs {
        CidrSelection::All => &[],
        CidrSelection::Only(nets) => nets,
    }
}

/// A destination whose traffic is captured.
fn captured(config: &CaptureConfig, port: u16, family: Family) -> Option<(IpAddr, u16)> {
    let left_alone = |address: &IpAddr| config.outbound_cidrs_exclude.iter().any(|net| net.contains(address));
    let nobodys = || family.nobodys().iter().copied().filter(|address| !left_alone(address));
    let listed = captured_list(config).iter().filter(|net| family.has(net.addr()) && !net.addr().is_loopback());
    // The address behind that of the network, where there is one: a network's own address may mean everybody.
    let mut listed = listed.filter_map(|net| net.hosts().next()).filter(|address| !left_alone(address));
    match &config.outbound_cidrs {
        CidrSelection::All => nobodys().next().map(|address| (address, port)),
        CidrSelection::Only(_) => listed.next().map(|address| (address, port)).or_else(|| {
            let port =
                config.outbound_ports.iter().find(|port| **port != 0 && !config.outbound_ports_exclude.contains(port));
            nobodys().next().zip(port.copied())
        }),
    }
}
