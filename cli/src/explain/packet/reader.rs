//! Reads the options of a packet one by one, and completes it with defaults.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iptables_rules::names::LOOPBACK_INTERFACE;
use iptables_rules::trace::{ConntrackState, Owner, Packet, PacketOrigin, Transport};

use super::{PacketArgs, PacketQuery, PodIdentity, Sender, Tracked};

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

/// Reads the options one by one and collects errors.
pub(super) struct PacketReader<'a> {
    args: &'a PacketArgs,
    pod: &'a PodIdentity,
    sender: Sender,
    findings: Vec<String>,
    assumptions: Vec<String>,
}

impl<'a> PacketReader<'a> {
    pub(super) fn new(args: &'a PacketArgs, pod: &'a PodIdentity) -> Self {
        let sender = args.from.unwrap_or_default();
        Self { args, pod, sender, findings: Vec::new(), assumptions: Vec::new() }
    }

    pub(super) fn read(mut self) -> Result<PacketQuery, Vec<String>> {
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
        let Some(to) = to else {
            self.interfaces();
            return Err(self.findings);
        };
        let own = self.own_address(&known, to.address.or(source.map(|(address, _)| address)));
        let destination = to.address.unwrap_or(own);
        let (address, port) = source.unwrap_or_else(|| (self.default_source(destination, own), None));
        self.check_addresses(address, destination);
        let to_itself = destination.is_loopback() || known.contains(&destination) || destination == own;
        let origin = self.origin(to_itself, owner);
        if !self.findings.is_empty() {
            return Err(self.findings);
        }
        let has_ports = !matches!(to.transport, Transport::Other(_));
        let packet = Packet {
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
        };
        Ok(PacketQuery { packet, sender: self.sender, assumptions: self.assumptions })
    }

    /// Returns the pod's address in the family of `other`, IPv4 without one; assumes an address if none is known.
    fn own_address(&mut self, known: &[IpAddr], other: Option<IpAddr>) -> IpAddr {
        let wants_v6 = other.is_some_and(|address| address.is_ipv6());
        known.iter().copied().find(|address| address.is_ipv6() == wants_v6).unwrap_or_else(|| {
            let own = POD[usize::from(wants_v6)];
            self.assumptions.push(format!("the pod's address is {own} (--pod-ip)"));
            own
        })
    }

    fn default_source(&self, destination: IpAddr, own: IpAddr) -> IpAddr {
        match (self.sender, destination.is_loopback()) {
            (Sender::Outside, _) => OUTSIDE[usize::from(own.is_ipv6())],
            (_, true) => destination,
            (_, false) => own,
        }
    }

    fn check_addresses(&mut self, source: IpAddr, destination: IpAddr) {
        if source.is_ipv4() != destination.is_ipv4() {
            self.findings
                .push(format!("--source {source} and the destination {destination} are of different families"));
        }
        if self.sender != Sender::Outside {
            return;
        }
        if destination.is_loopback() {
            self.findings.push(format!("--to {destination}: a loopback address cannot be reached from outside"));
        }
        if source.is_loopback() {
            self.findings.push(format!("--source {source}: a loopback address cannot be a source outside of the pod"));
        }
    }

    fn interfaces(&mut self) -> [Option<&'a str>; 2] {
        let args = self.args;
        [("--in-interface", &args.in_interface), ("--out-interface", &args.out_interface)]
            .map(|(option, name)| self.interface(option, name.as_deref()))
    }

    fn origin(&mut self, to_itself: bool, owner: Owner) -> PacketOrigin {
        let [inbound, outbound] = self.interfaces();
        if self.sender != Sender::Outside {
            let interface = outbound.unwrap_or(if to_itself { LOOPBACK_INTERFACE } else { OUTER_INTERFACE });
            return PacketOrigin::Sent { interface: interface.to_owned(), owner: Some(owner) };
        }
        let interface = inbound.unwrap_or(OUTER_INTERFACE);
        if interface == LOOPBACK_INTERFACE {
            self.findings
                .push("--in-interface lo: only the pod itself sends over lo (--from app, --from proxy)".to_owned());
        }
        PacketOrigin::Received { interface: interface.to_owned() }
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

    fn interface<'b>(&mut self, option: &str, name: Option<&'b str>) -> Option<&'b str> {
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
