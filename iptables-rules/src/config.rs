//! What is captured in one pod, as typed values: the input of [`plan`](crate::plan()).

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

pub use crate::cidrs::CidrSelection;
use crate::names;
pub use crate::ports::PortSelection;

/// Everything that decides which traffic of a pod passes through its proxy.
///
/// A value is complete: nothing is looked up later. Defaults are those of Istio's CNI plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// How inbound traffic reaches the proxy.
    pub mode: InterceptionMode,
    /// Whether IPv6 traffic is captured like IPv4 traffic.
    pub ipv6: Ipv6Policy,
    /// TCP port of the proxy for outbound traffic (15001).
    pub proxy_port: u16,
    /// TCP port of the proxy for inbound traffic (15006).
    pub inbound_port: u16,
    /// TCP port of the HBONE tunnel, never captured (15008).
    pub tunnel_port: u16,
    /// Users whose traffic is the proxy's own (1337).
    pub proxy_uids: Vec<u32>,
    /// Groups whose traffic is the proxy's own (1337).
    pub proxy_gids: Vec<u32>,
    /// Inbound TCP ports that are captured.
    pub inbound_ports: PortSelection,
    /// Inbound TCP ports that are not captured; only meaningful with [`PortSelection::All`].
    pub inbound_ports_exclude: Vec<u16>,
    /// Destinations whose outbound TCP traffic is captured.
    pub outbound_cidrs: CidrSelection,
    /// Destinations whose outbound traffic is not captured; wins over [`outbound_cidrs`](Self::outbound_cidrs).
    pub outbound_cidrs_exclude: Vec<IpNet>,
    /// Outbound TCP ports that are captured whatever the destination.
    pub outbound_ports: Vec<u16>,
    /// Outbound ports (TCP and UDP) that are not captured.
    pub outbound_ports_exclude: Vec<u16>,
    /// Interfaces that are left alone in both directions.
    pub exclude_interfaces: Vec<InterfaceName>,
    /// Interfaces whose inbound traffic is treated as outbound.
    pub reroute_interfaces: Vec<InterfaceName>,
    /// Which of the application's groups are captured.
    pub owner_groups: OwnerGroups,
    /// DNS requests that are answered by the Istio agent.
    pub dns: DnsCapture,
    /// Whether packets that connection tracking calls invalid are dropped.
    pub drop_invalid: bool,
    /// IPv4 addresses that count as "this pod", `127.0.0.1/32` by default; IPv6 is always `::1/128`.
    pub loopback: Ipv4Net,
    /// Packet mark of captured inbound traffic in TPROXY mode (1337).
    pub tproxy_mark: u32,
    /// Routing table for that mark (133).
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

/// How inbound traffic reaches the proxy (`sidecar.istio.io/interceptionMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterceptionMode {
    /// NAT to a port of the proxy; the proxy sees its own address as source of the application's peer.
    Redirect,
    /// Transparent: source and destination of the connection are kept.
    Tproxy,
    /// The proxy is there, nothing is captured.
    None,
}

/// What happens to IPv6 traffic of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6Policy {
    /// The same rules hold for IPv6, and `::6/128` is added to `lo`. Costs nothing where the pod has no IPv6 address.
    Capture,
    /// IPv6 is not touched: for proxies that listen on IPv4 only although the pod has an IPv6 address.
    Leave,
}

/// Which groups of the application are captured (`ISTIO_OUTBOUND_OWNER_GROUPS` and its `_EXCLUDE`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerGroups {
    /// All groups but these (`*` with exclusions; empty by default).
    AllBut(Vec<Group>),
    /// These groups only, at most [`MAX_INCLUDED_GROUPS`]; an empty list is none.
    Only(Vec<Group>),
}

/// How many groups [`OwnerGroups::Only`] may name: Istio's bound, as they all become conditions of one rule.
pub const MAX_INCLUDED_GROUPS: usize = 64;

impl Default for OwnerGroups {
    fn default() -> Self {
        Self::AllBut(Vec::new())
    }
}

/// A group as the user wrote it. A name can only be resolved where the group file is, which is not the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Group {
    /// Numeric group id.
    Id(u32),
    /// Name of a group.
    Name(GroupName),
}

impl Group {
    /// Reads what a user wrote: digits are an id, everything else has to be a name.
    ///
    /// # Errors
    /// The reason why it is neither, as a half sentence.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let id = text.parse().ok().filter(|&id| id != u32::MAX); // which means "no group" (`chown(2)`)
            return id.map(Self::Id).ok_or("is not a group id (0 to 4294967294)");
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
/// Such a name is one word of a rule text and cannot be taken for an id or an option.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupName(String);

impl GroupName {
    /// Checks a name.
    ///
    /// # Errors
    /// The reason why it is none, as a half sentence.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        match name.chars().next() {
            None => return Err("is empty"),
            Some(c) if !c.is_ascii_alphabetic() && c != '_' => return Err("does not start with a letter or '_'"),
            Some(_) => {}
        }
        if name.len() > 32 {
            return Err("is longer than 32 characters");
        }
        if !name.chars().all(is_name_char) {
            return Err("has a character other than letters, digits, '_', '.' and '-'");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// DNS requests that are answered by the Istio agent on port 15053.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsCapture {
    /// DNS goes its way.
    Off,
    /// Every request to port 53, whatever the server.
    All,
    /// Requests to these servers; an empty list captures nothing.
    Servers(Vec<IpAddr>),
}

/// Name of a network interface: a letter, then letters, digits, `_`, `.`, `-`; 15 bytes at most (`IFNAMSIZ` - 1, `linux/if.h`).
///
/// Istio's rule, and narrower than the kernel's on purpose: such a name cannot be taken for an option of a command line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Checks a name.
    ///
    /// # Errors
    /// The reason why it is none, as a half sentence.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        let mut chars = name.chars();
        match chars.next() {
            None => return Err("is empty"),
            Some(c) if !c.is_ascii_alphabetic() => return Err("does not start with a letter"),
            Some(_) => {}
        }
        if name.len() > 15 {
            return Err("is longer than 15 characters");
        }
        if !chars.all(is_name_char) {
            return Err("has a character other than letters, digits, '_', '.' and '-'");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
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
