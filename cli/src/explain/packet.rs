//! Builds a packet from the options of the command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::{Args, ValueEnum};
use iptables_rules::CaptureConfig;
use iptables_rules::names::{self, LOOPBACK_INTERFACE};
use iptables_rules::trace::{ConntrackState, Owner, Packet, PacketOrigin, Transport};

/// Default user and group of an application: any but the proxy's.
const APPLICATION_ID: u32 = 1000;
/// Default port of a client, in Linux's ephemeral range.
const CLIENT_PORT: u16 = 40000;
/// Default addresses of the pod.
const POD: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10))];
/// Default addresses of a client outside of the pod.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 99)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x99))];
/// Name that container runtimes give the pod's interface.
const OUTER_INTERFACE: &str = "eth0";
/// `IFNAMSIZ` - 1.
const MAX_INTERFACE_NAME: usize = 15;

/// Options for a packet.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Packet")]
pub(crate) struct PacketArgs {
    /// Sender of the packet [default: app]
    #[arg(long, value_enum, value_name = "SENDER")]
    from: Option<Sender>,

    /// Destination: ADDRESS:PORT or [ADDRESS]:PORT, followed by /udp for UDP; with --from outside, PORT is enough
    #[arg(long, value_name = "DESTINATION")]
    to: Option<String>,

    /// Source: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS")]
    source: Option<String>,

    /// User that owns the sending socket
    #[arg(long, value_name = "UID")]
    uid: Option<String>,

    /// Group that owns the sending socket [default: the id of the user]
    #[arg(long, value_name = "GID")]
    gid: Option<String>,

    /// Interface on which a packet from outside arrives [default: eth0]
    #[arg(long, value_name = "INTERFACE")]
    in_interface: Option<String>,

    /// Interface on which a packet of the pod leaves [default: lo to addresses of the pod, eth0 to others]
    #[arg(long, value_name = "INTERFACE")]
    out_interface: Option<String>,

    /// Address of the pod; repeat for the second family
    #[arg(long, value_name = "ADDRESS")]
    pod_ip: Vec<String>,

    /// Mark of the packet (SO_MARK), decimal or 0x...
    #[arg(long, value_name = "MARK")]
    mark: Option<String>,

    /// Mark of its connection, decimal or 0x...
    #[arg(long, value_name = "MARK")]
    connection_mark: Option<String>,

    /// State in connection tracking [default: new, the packet that decides about a connection]
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<Tracked>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sender {
    /// The application in the pod
    #[default]
    App,
    /// The proxy in the pod
    Proxy,
    /// A client outside of the pod
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tracked {
    /// The first packet of a connection
    New,
    /// A packet of a known connection
    Established,
    /// The first packet of a connection that another one announced
    Related,
    /// A packet that belongs to no connection
    Invalid,
}

/// Facts about a pod that complete a packet.
#[derive(Debug, Clone)]
pub(crate) struct PodIdentity {
    pub(crate) proxy: Owner,
    /// Users and groups that the rules treat as the proxy.
    pub(crate) proxy_ids: Vec<u32>,
    /// Addresses of the pod; empty if unknown.
    pub(crate) addresses: Vec<IpAddr>,
}

impl PodIdentity {
    pub(crate) fn of(config: &CaptureConfig) -> Self {
        let first = |ids: &[u32]| ids.first().copied();
        let uid = first(&config.proxy_uids).or(first(&config.proxy_gids)).unwrap_or(names::PROXY_ID);
        Self {
            proxy: Owner { uid, gid: first(&config.proxy_gids).unwrap_or(uid) },
            proxy_ids: [config.proxy_uids.as_slice(), &config.proxy_gids].concat(),
            addresses: Vec::new(),
        }
    }
}

/// A packet, with the assumptions that completed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PacketQuery {
    pub(crate) packet: Packet,
    pub(crate) sender: Sender,
    /// One clause each.
    pub(crate) assumptions: Vec<String>,
}

impl PacketArgs {
    /// Returns whether any of the options is set.
    pub(crate) fn is_given(&self) -> bool {
        let texts = [
            &self.to,
            &self.source,
            &self.uid,
            &self.gid,
            &self.in_interface,
            &self.out_interface,
            &self.mark,
            &self.connection_mark,
        ];
        self.from.is_some()
            || self.state.is_some()
            || !self.pod_ip.is_empty()
            || texts.iter().any(|text| text.is_some())
    }

    /// Builds the packet, completed with facts about the pod; `None` without options.
    ///
    /// # Errors
    /// Every invalid option.
    pub(crate) fn query(&self, pod: &PodIdentity) -> Result<Option<PacketQuery>, Vec<String>> {
        if !self.is_given() {
            return Ok(None);
        }
        Reader { args: self, pod, sender: self.from.unwrap_or_default(), findings: Vec::new(), assumptions: Vec::new() }
            .read()
            .map(Some)
    }
}

/// Reads the options one by one and collects errors.
struct Reader<'a> {
    args: &'a PacketArgs,
    pod: &'a PodIdentity,
    sender: Sender,
    findings: Vec<String>,
    assumptions: Vec<String>,
}

impl Reader<'_> {
    fn read(mut self) -> Result<PacketQuery, Vec<String>> {
        self.check_contradictions();
        let known = self.pod_addresses();
        let to = self.destination();
        let source = self.args.source.as_deref().and_then(|text| match address_and_port(text) {
            Ok(source) => Some(source),
            Err(reason) => self.reject("--source", text, &reason),
        });
        let owner = self.owner();
        let [mark, connection_mark] = [("--mark", &self.args.mark), ("--connection-mark", &self.args.connection_mark)]
            .map(|(option, text)| self.number(option, text.as_deref()).unwrap_or(0));
        let named = [("--in-interface", &self.args.in_interface), ("--out-interface", &self.args.out_interface)]
            .map(|(option, name)| self.interface(option, name.as_deref()));
        let Some(to) = to else { return Err(self.findings) };
        let wants_v6 = to.address.or(source.map(|(address, _)| address)).is_some_and(|address| address.is_ipv6());
        let of_family = |addresses: &[IpAddr]| addresses.iter().copied().find(|address| address.is_ipv6() == wants_v6);
        let own = of_family(&known).unwrap_or_else(|| {
            let own = POD[usize::from(wants_v6)];
            self.assumptions.push(format!("the pod's address is {own} (--pod-ip)"));
            own
        });
        let destination = to.address.unwrap_or(own);
        let inside = self.sender != Sender::Outside;
        let to_itself = destination.is_loopback() || known.contains(&destination) || destination == own;
        let (address, port) = source.unwrap_or_else(|| {
            let address = match (inside, destination.is_loopback()) {
                (true, true) => destination,
                (true, false) => own,
                (false, _) => OUTSIDE[usize::from(wants_v6)],
            };
            (address, None)
        });
        if address.is_ipv4() != destination.is_ipv4() {
            self.findings
                .push(format!("--source {address} and the destination {destination} are of different families"));
        }
        if !inside && destination.is_loopback() {
            self.findings.push(format!("--to {destination}: a loopback address cannot be reached from outside"));
        }
        if !inside && address.is_loopback() {
            self.findings.push(format!("--source {address}: a loopback address cannot be a source outside of the pod"));
        }
        let [came_in, goes_out] = named;
        let origin = if inside {
            let interface = goes_out.unwrap_or(if to_itself { LOOPBACK_INTERFACE } else { OUTER_INTERFACE });
            PacketOrigin::Sent { interface: interface.to_owned(), owner: Some(owner) }
        } else {
            let interface = came_in.unwrap_or(OUTER_INTERFACE);
            if interface == LOOPBACK_INTERFACE {
                self.findings
                    .push("--in-interface lo: only the pod itself sends over lo (--from app, --from proxy)".to_owned());
            }
            PacketOrigin::Received { interface: interface.to_owned() }
        };
        if !self.findings.is_empty() {
            return Err(self.findings);
        }
        let has_ports = !matches!(to.transport, Transport::Other(_));
        Ok(PacketQuery {
            packet: Packet {
                origin,
                transport: to.transport,
                source: address,
                source_port: if has_ports { port.unwrap_or(CLIENT_PORT) } else { 0 },
                destination,
                destination_port: to.port,
                mark,
                connection_mark,
                state: match self.args.state {
                    None | Some(Tracked::New) => ConntrackState::New,
                    Some(Tracked::Established) => ConntrackState::Established,
                    Some(Tracked::Related) => ConntrackState::Related,
                    Some(Tracked::Invalid) => ConntrackState::Invalid,
                },
            },
            sender: self.sender,
            assumptions: self.assumptions,
        })
    }

    /// Records an error about an option; returns no value.
    fn reject<T>(&mut self, option: &str, text: &str, reason: &str) -> Option<T> {
        self.findings.push(format!("{option} {text:?}: {reason}"));
        None
    }

    fn check_contradictions(&mut self) {
        let outside = self.sender == Sender::Outside;
        let only = |given: bool, option: &str, why: &str| given.then(|| format!("{option}: {why}"));
        let args = self.args;
        self.findings.extend(
            [
                only(outside && args.uid.is_some(), "--uid", "a packet from outside has no user"),
                only(outside && args.gid.is_some(), "--gid", "a packet from outside has no group"),
                only(
                    outside && args.out_interface.is_some(),
                    "--out-interface",
                    "a packet from outside arrives (--in-interface)",
                ),
                only(
                    !outside && args.in_interface.is_some(),
                    "--in-interface",
                    "a packet of the pod leaves (--out-interface), or needs --from outside",
                ),
                only(
                    args.state.unwrap_or(Tracked::New) == Tracked::New && args.connection_mark.is_some(),
                    "--connection-mark",
                    "a new connection has none (--state established)",
                ),
                only(args.to.is_none(), "--to", "is missing; a packet needs a destination"),
            ]
            .into_iter()
            .flatten(),
        );
    }

    fn pod_addresses(&mut self) -> Vec<IpAddr> {
        let mut addresses = self.pod.addresses.clone();
        for text in &self.args.pod_ip {
            match text.parse::<IpAddr>() {
                Ok(address) if address.is_loopback() || address.is_unspecified() || address.is_multicast() => {
                    self.reject::<()>("--pod-ip", text, "is not a valid pod address");
                }
                Ok(address) => addresses.insert(0, address),
                Err(_) => _ = self.reject::<()>("--pod-ip", text, "is not an IP address"),
            }
        }
        addresses
    }

    fn destination(&mut self) -> Option<Destination> {
        let text = self.args.to.as_deref()?;
        let to = match Destination::parse(text) {
            Ok(to) => to,
            Err(reason) => return self.reject("--to", text, &reason),
        };
        if to.address.is_none() && self.sender != Sender::Outside {
            return self.reject("--to", text, "has no address; a port alone is enough only with --from outside");
        }
        Some(to)
    }

    fn owner(&mut self) -> Owner {
        let id = |reader: &mut Self, option: &str, text: Option<&str>| {
            let id = reader.number(option, text)?;
            if id == u32::MAX { reader.reject(option, text.unwrap_or_default(), "is not a valid id") } else { Some(id) }
        };
        let (uid, gid) = (id(self, "--uid", self.args.uid.as_deref()), id(self, "--gid", self.args.gid.as_deref()));
        let default = if self.sender == Sender::Proxy {
            self.pod.proxy
        } else {
            let free = (APPLICATION_ID..u32::MAX).find(|id| !self.pod.proxy_ids.contains(id)).unwrap_or(APPLICATION_ID);
            Owner { uid: free, gid: free }
        };
        Owner { uid: uid.unwrap_or(default.uid), gid: gid.or(uid).unwrap_or(default.gid) }
    }

    fn number(&mut self, option: &str, text: Option<&str>) -> Option<u32> {
        let text = text?;
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            None => None,
        };
        number.or_else(|| self.reject(option, text, "is not a number from 0 to 4294967295"))
    }

    fn interface<'a>(&mut self, option: &str, name: Option<&'a str>) -> Option<&'a str> {
        let name = name?;
        let valid = !name.is_empty()
            && name.len() <= MAX_INTERFACE_NAME
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if valid { Some(name) } else { self.reject(option, name, "is not a valid interface name") }
    }
}

/// A parsed `--to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Destination {
    address: Option<IpAddr>,
    port: u16,
    transport: Transport,
}

impl Destination {
    fn parse(text: &str) -> Result<Self, String> {
        let (place, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let transport = match protocol {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "icmp" => Transport::Other(if place.contains("::") || place.matches(':').count() > 1 { 58 } else { 1 }),
            other => return Err(format!("protocol {other:?} is not one of tcp, udp, icmp")),
        };
        let (address, port) = match place.strip_prefix(':').unwrap_or(place) {
            digits if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                (None, Some(port(digits)?))
            }
            _ => address_and_port(place).map(|(address, port)| (Some(address), port))?,
        };
        let port = match (transport, port) {
            (Transport::Other(_), None) => 0,
            (Transport::Other(_), Some(_)) => return Err("icmp has no ports".to_owned()),
            (_, Some(port)) => port,
            (_, None) => return Err("has no port".to_owned()),
        };
        match address {
            Some(address) if address.is_unspecified() || address.is_multicast() => {
                Err(format!("{address} is not a unicast address"))
            }
            _ => Ok(Self { address, port, transport }),
        }
    }
}

/// Parses `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
fn address_and_port(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(address) = text.parse() {
        return Ok((address, None));
    }
    let (address, rest) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, rest)) => {
            (address, Some(rest.strip_prefix(':').ok_or("has something other than :PORT after ]")?))
        }
        None => match text.rsplit_once(':') {
            Some((address, port)) if !address.contains(':') => (address, Some(port)),
            Some(_) => return Err("is not an address; IPv6 with a port is [ADDRESS]:PORT".to_owned()),
            None => (text, None),
        },
    };
    let address = address.parse().map_err(|_| format!("{address:?} is not an IP address (names are not resolved)"))?;
    Ok((address, rest.map(port).transpose()?))
}

fn port(text: &str) -> Result<u16, String> {
    let number = if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None };
    number.filter(|&port| port != 0).ok_or_else(|| format!("{text:?} is not a port (1-65535)"))
}
