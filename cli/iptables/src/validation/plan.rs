//! Chooses the test connections for a configuration and for who makes them, as a pure function.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iptables_rules::CaptureConfig;
use iptables_rules::config::{CidrSelection, DnsCapture, Group, OwnerGroups};
use iptables_rules::names::{LOOPBACK_INTERFACE, address, port};

use super::check::{Check, Direction, Expected, Transport};
use crate::identity::Identity;

/// Identities, family and port of the test connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TestIdentities {
    /// An identity whose traffic is the proxy's own, if this process has or can assume one.
    pub(super) proxy: Option<Identity>,
    /// An identity of an application whose traffic is captured, likewise.
    pub(super) app: Option<Identity>,
    pub(super) with_ipv6: bool,
    /// A port that no rule treats specially.
    pub(super) port: u16,
}

impl TestIdentities {
    pub(super) fn new(
        config: &CaptureConfig,
        own: Identity,
        can_change_user: bool,
        with_ipv6: bool,
        probe_port: u16,
    ) -> Self {
        let is_proxy = |user: Identity| config.proxy_uids.contains(&user.uid) || config.proxy_gids.contains(&user.gid);
        let dns = config.dns != DnsCapture::Off;
        let special = |port: u16| {
            port == config.tunnel_port
                || config.outbound_ports_exclude.contains(&port)
                || (dns && port == port::DNS_REQUEST)
                || [config.proxy_port, config.inbound_port, port::DNS].contains(&port)
        };
        let port = std::iter::once(probe_port).chain(15100..=u16::MAX).find(|&port| port != 0 && !special(port));
        let (proxy, app) = if can_change_user {
            (Some(proxy_user(config)), app_user(config))
        } else if is_proxy(own) {
            (Some(own), None)
        } else {
            (None, Some(own).filter(|own| is_captured(config, own.gid)))
        };
        Self { proxy, app, with_ipv6, port: port.unwrap_or(probe_port) }
    }

    fn families(&self) -> &'static [Family] {
        if self.with_ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
    }
}

/// Returns an identity that the rules treat as the proxy, by user and by group if both are configured.
fn proxy_user(config: &CaptureConfig) -> Identity {
    let other = other_id(&config.proxy_uids, &config.proxy_gids);
    Identity { uid: *config.proxy_uids.first().unwrap_or(&other), gid: *config.proxy_gids.first().unwrap_or(&other) }
}

/// Returns an identity that the rules treat as the application.
fn app_user(config: &CaptureConfig) -> Option<Identity> {
    let uid = other_id(&config.proxy_uids, &[]);
    let gid = match &config.owner_groups {
        OwnerGroups::AllBut(groups) => {
            let excluded: Vec<u32> = groups.iter().filter_map(number).collect();
            other_id(&config.proxy_gids, &excluded)
        }
        OwnerGroups::Only(groups) => groups.iter().filter_map(number).find(|id| !config.proxy_gids.contains(id))?,
    };
    Some(Identity { uid, gid })
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

/// Returns an id that is in neither list.
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

    /// Returns addresses for documentation (RFC 5737, RFC 3849), which no host has.
    fn documentation_addresses(self) -> &'static [IpAddr] {
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

/// Returns the checks for a configuration, and notes about what cannot be checked.
pub(super) fn checks(config: &CaptureConfig, identities: &TestIdentities) -> (Vec<Check>, Vec<String>) {
    let (mut checks, mut notes) = (Vec::new(), Vec::new());
    if config.exclude_interfaces.iter().any(|name| name.as_str() == LOOPBACK_INTERFACE) {
        notes.push("connections of the pod to itself: not tested: lo is an excluded interface".to_owned());
    } else if let Some(user) = identities.proxy {
        for &family in identities.families() {
            checks.extend(of_proxy(config, identities.port, family, user));
        }
    }
    if identities.proxy.is_none() {
        notes.push(
            "connections of the proxy: not tested: this is another user; run as the proxy's user, or with CAP_SETUID"
                .to_owned(),
        );
    }
    match identities.app {
        None if identities.proxy.is_some() => notes.push(
            "connections of the application: not tested: outbound traffic of the proxy's user is never captured; run as another user, \
             or with CAP_SETUID"
                .to_owned(),
        ),
        None => notes.push("connections of the application: not tested: its group is not captured".to_owned()),
        Some(user) => {
            for &family in identities.families() {
                checks.extend(of_app(config, identities.port, family, user));
            }
        }
    }
    (checks, notes)
}

fn of_proxy(config: &CaptureConfig, port: u16, family: Family, user: Identity) -> Vec<Check> {
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
            Expected::NotCaptured,
        ),
        tcp(Direction::Outbound, "the proxy calls out", None, (outside(config, family), port), Expected::NotCaptured),
    ];
    // With DNS capture, requests of the proxy to port 53 are excluded; without it they are like any other connection.
    if captures_dns(config, family) && config.proxy_uids.contains(&user.uid) {
        let to = (passthrough, port::DNS_REQUEST);
        checks.push(Check {
            direction: Direction::Dns,
            ..tcp(Direction::Dns, "the agent asks a server", own, to, Expected::NotCaptured)
        });
    }
    checks
}

fn of_app(config: &CaptureConfig, port: u16, family: Family, user: Identity) -> Vec<Check> {
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
        DnsCapture::All => Some(family.documentation_addresses()[0]),
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
    // These connections are captured if a loopback network is among the captured ones.
    if captured_list(config).iter().all(|net| !net.addr().is_loopback()) {
        checks.push(check(
            Direction::Outbound,
            "the application calls itself",
            Transport::Tcp,
            itself,
            Expected::NotCaptured,
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

/// Returns an address outside of the pod.
fn outside(config: &CaptureConfig, family: Family) -> IpAddr {
    let is_unlisted = |address: &&IpAddr| !captured_list(config).iter().any(|net| net.contains(*address));
    family.documentation_addresses().iter().find(is_unlisted).copied().unwrap_or(family.documentation_addresses()[0])
}

fn captured_list(config: &CaptureConfig) -> &[ipnet::IpNet] {
    match &config.outbound_cidrs {
        CidrSelection::All => &[],
        CidrSelection::Only(nets) => nets,
    }
}

/// Returns a destination whose traffic is captured.
fn captured(config: &CaptureConfig, port: u16, family: Family) -> Option<(IpAddr, u16)> {
    let is_excluded = |address: &IpAddr| config.outbound_cidrs_exclude.iter().any(|net| net.contains(address));
    let unused = || family.documentation_addresses().iter().copied().filter(|address| !is_excluded(address));
    let listed = captured_list(config).iter().filter(|net| family.has(net.addr()) && !net.addr().is_loopback());
    // Not the network's own address, which may be a broadcast address.
    let mut listed = listed.filter_map(|net| net.hosts().next()).filter(|address| !is_excluded(address));
    match &config.outbound_cidrs {
        CidrSelection::All => unused().next().map(|address| (address, port)),
        CidrSelection::Only(_) => listed.next().map(|address| (address, port)).or_else(|| {
            let port =
                config.outbound_ports.iter().find(|port| **port != 0 && !config.outbound_ports_exclude.contains(port));
            unused().next().zip(port.copied())
        }),
    }
}
