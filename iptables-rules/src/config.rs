//! Capture configuration of one pod, as typed values: the input of [`plan`](crate::plan()).

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

pub use crate::cidrs::CidrSelection;
use crate::names;
pub use crate::ports::PortSelection;

/// Capture configuration of a pod: which traffic passes through its proxy, and how.
///
/// A value is complete: nothing is looked up later. Defaults are those of Istio's CNI plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Interception mode of inbound traffic.
    pub mode: InterceptionMode,
    /// Whether IPv6 traffic is captured like IPv4 traffic.
    pub ipv6: Ipv6Policy,
    /// TCP port of the proxy for outbound traffic (15001).
    pub proxy_port: u16,
    /// TCP port of the proxy for inbound traffic (15006).
    pub inbound_port: u16,
    /// TCP port of the HBONE tunnel, never captured (15008).
    pub tunnel_port: u16,
    /// Users that the proxy runs as (1337).
    pub proxy_uids: Vec<u32>,
    /// Groups that the proxy runs as (1337).
    pub proxy_gids: Vec<u32>,
    /// Inbound TCP ports that are captured.
    pub inbound_ports: PortSelection,
    /// Inbound TCP ports that are not captured; only meaningful with [`PortSelection::All`].
    pub inbound_ports_exclude: Vec<u16>,
    /// Destinations whose outbound TCP traffic is captured.
    pub outbound_cidrs: CidrSelection,
    /// Destinations whose outbound traffic is not captured; wins over [`outbound_cidrs`](Self::outbound_cidrs).
    pub outbound_cidrs_exclude: Vec<IpNet>,
    /// Outbound TCP ports that are captured for every destination that is not excluded.
    pub outbound_ports: Vec<u16>,
    /// Outbound ports (TCP and UDP) that are not captured.
    pub outbound_ports_exclude: Vec<u16>,
    /// Interfaces whose traffic is not captured, in both directions.
    pub exclude_interfaces: Vec<InterfaceName>,
    /// Interfaces whose inbound traffic is treated as outbound.
    pub reroute_interfaces: Vec<InterfaceName>,
    /// Which of the application's groups are captured.
    pub owner_groups: OwnerGroups,
    /// Which DNS requests the Istio agent answers.
    pub dns: DnsCapture,
    /// Whether packets in the conntrack state INVALID are dropped.
    pub drop_invalid: bool,
    /// IPv4 addresses that count as "this pod", `127.0.0.1/32` by default; IPv6 is always `::1/128`.
    pub loopback: Ipv4Net,
    /// Packet mark of captured inbound traffic in TPROXY mode (1337).
    pub tproxy_mark: u32,
    /// Routing table that delivers packets with this mark locally (133).
    pub tproxy_route_table: u32,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            mode: InterceptionMode::Redirect,
            ipv6: Ipv6Policy::Capture,
            proxy_port: names::port::OUTBOUND,
            inbound_port: names::port::INBOUND,
            tunnel_port: names::port::TUNNEL,
            proxy_uids: vec![names::PROXY_ID],
            proxy_gids: vec![names::PROXY_ID],
            inbound_ports: PortSelection::All,
            inbound_ports_exclude: vec![names::port::STATUS, names::port::HEALTH, names::port::METRICS],
            outbound_cidrs: CidrSelection::All,
            outbound_cidrs_exclude: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_ports_exclude: vec![names::port::STATUS],
            exclude_interfaces: Vec::new(),
            reroute_interfaces: Vec::new(),
            owner_groups: OwnerGroups::default(),
            dns: DnsCapture::Off,
            drop_invalid: false,
            loopback: Ipv4Net::new_assert(std::net::Ipv4Addr::LOCALHOST, 32),
            tproxy_mark: names::TPROXY_MARK,
            tproxy_route_table: names::TPROXY_ROUTE_TABLE,
        }
    }
}

/// Way in which inbound traffic reaches the proxy (`sidecar.istio.io/interceptionMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterceptionMode {
    /// NAT to a port of the proxy; the application sees the proxy as the peer of inbound connections.
    Redirect,
    /// Transparent proxy: source and destination addresses are kept.
    Tproxy,
    /// Nothing is captured.
    None,
}

impl InterceptionMode {
    /// Parses a mode.
    ///
    /// # Errors
    /// Returns the fault, as the predicate of a sentence whose subject is the value.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "REDIRECT" => Ok(Self::Redirect),
            "TPROXY" => Ok(Self::Tproxy),
            "NONE" => Ok(Self::None),
            _ => Err("must be one of REDIRECT, TPROXY, NONE"),
        }
    }

    /// Returns the name that [`parse`](Self::parse) accepts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::Tproxy => "TPROXY",
            Self::None => "NONE",
        }
    }
}

/// Whether IPv6 traffic of the pod is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6Policy {
    /// IPv6 gets the same rules as IPv4, and `::6/128` is added to `lo`. Harmless where the pod has no IPv6 address.
    Capture,
    /// IPv6 is not captured: for proxies that listen on IPv4 only although the pod has an IPv6 address.
    Leave,
    /// As the proxy listens. Without `ISTIO_DUAL_STACK` it accepts IPv4 only in a pod with addresses of both families, and the family
    /// of the pod in others. Until the addresses are known, this is [`Capture`](Self::Capture).
    Auto,
}

impl Ipv6Policy {
    /// Parses a policy.
    ///
    /// # Errors
    /// Returns the fault, as the predicate of a sentence whose subject is the value.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "capture" => Ok(Self::Capture),
            "leave" => Ok(Self::Leave),
            "auto" => Ok(Self::Auto),
            _ => Err("must be 'auto', 'capture' or 'leave'"),
        }
    }

    /// Decides [`Auto`](Self::Auto) by the addresses of the pod; without any it stays.
    #[must_use]
    pub fn for_addresses(self, addresses: &[IpAddr]) -> Self {
        match (self, addresses.iter().any(IpAddr::is_ipv4), addresses.iter().any(IpAddr::is_ipv6)) {
            (Self::Auto, true, true) => Self::Leave,
            (Self::Auto, true, false) | (Self::Auto, false, true) => Self::Capture,
            (policy, ..) => policy,
        }
    }

    /// Returns whether the rules are for both families.
    pub const fn is_captured(self) -> bool {
        !matches!(self, Self::Leave)
    }

    /// Returns the name that [`parse`](Self::parse) accepts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Leave => "leave",
            Self::Auto => "auto",
        }
    }
}

/// Groups of the application whose outbound traffic is captured (`ISTIO_OUTBOUND_OWNER_GROUPS` and `.._EXCLUDE`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerGroups {
    /// All groups but these (`*` with exclusions; empty by default).
    AllBut(Vec<Group>),
    /// These groups only, at most [`MAX_INCLUDED_GROUPS`](crate::limits::MAX_INCLUDED_GROUPS); an empty list selects none.
    Only(Vec<Group>),
}

impl Default for OwnerGroups {
    fn default() -> Self {
        Self::AllBut(Vec::new())
    }
}

/// A group, by id or by name. Only iptables can resolve a name, and only where it sees the group file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Group {
    /// Numeric group id.
    Id(u32),
    /// Name of a group.
    Name(GroupName),
}

impl Group {
    /// Parses digits as an id, everything else as a name.
    ///
    /// # Errors
    /// Returns the fault, as the predicate of a sentence whose subject is the value.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let id = text.parse().ok().filter(|&id| id != u32::MAX); // which means "no group" (`chown(2)`)
            return id.map(Self::Id).ok_or("is out of range for a group id (0-4294967294)");
        }
        GroupName::new(text).map(Self::Name)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Name of a group: a letter or `_`, then letters, digits, `_`, `.`, `-`; 32 bytes at most (`groupadd(8)`).
///
/// So a name is one word of a rule text, and neither an id nor an option.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupName(String);

impl GroupName {
    /// Validates a name.
    ///
    /// # Errors
    /// Returns the fault, as the predicate of a sentence whose subject is the value.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        match name.chars().next() {
            None => return Err("is empty"),
            Some(c) if !c.is_ascii_alphabetic() && c != '_' => return Err("must start with a letter or '_'"),
            Some(_) => {}
        }
        if name.len() > 32 {
            return Err("is longer than 32 characters");
        }
        if !name.chars().all(is_name_char) {
            return Err("must contain only letters, digits, '_', '.' and '-'");
        }
        Ok(Self(name.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// DNS requests that the Istio agent answers, on port 15053.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsCapture {
    /// None.
    Off,
    /// All requests to port 53.
    All,
    /// Requests to these servers; an empty list captures none.
    Servers(Vec<IpAddr>),
}

/// Name of a network interface: a letter, then letters, digits, `_`, `.`, `-`; 15 bytes at most (`IFNAMSIZ` - 1, `linux/if.h`).
///
/// This is Istio's rule. It is narrower than the kernel's, so that a name is never read as a command-line option.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Validates a name.
    ///
    /// # Errors
    /// Returns the fault, as the predicate of a sentence whose subject is the value.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        let mut chars = name.chars();
        match chars.next() {
            None => return Err("is empty"),
            Some(c) if !c.is_ascii_alphabetic() => return Err("must start with a letter"),
            Some(_) => {}
        }
        if name.len() > 15 {
            return Err("is longer than 15 characters");
        }
        if !chars.all(is_name_char) {
            return Err("must contain only letters, digits, '_', '.' and '-'");
        }
        Ok(Self(name.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Characters of a name after the first one.
fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}
