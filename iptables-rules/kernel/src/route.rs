//! Sets up the addresses, routes and routing rules that a [`RuleSet`](iptables_rules::RuleSet) relies on, over rtnetlink, in the namespace of
//! the calling thread.

mod local;
mod message;

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkDeserializable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use self::message::{ListedRoute, Message};
use crate::netlink::{DumpResult, MAX_DUMP_ATTEMPTS, Netlink, Reply, append};
use crate::read_limits::ExceededLimit;
use iptables_rules::ruleset::{LocalDelivery, Routing};

/// `lo` is the first interface of every network namespace.
const LO: u32 = 1;
/// `RT_TABLE_UNSPEC`, linux/rtnetlink.h: the table is in an attribute, which also allows numbers above 255.
const TABLE_IN_ATTRIBUTE: u8 = 0;

/// Result of [`apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingOutcome {
    /// Everything is in place.
    Complete,
    /// The IPv6 part was skipped, as IPv6 is disabled in the namespace or missing from the kernel.
    WithoutIpv6,
}

/// Error returned when routing cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct RouteError {
    /// The failed operation.
    pub what: String,
    /// The error of the kernel.
    pub source: io::Error,
}

impl RouteError {
    /// Returns whether there is more than is read (see [`crate::ReadLimits`]).
    pub fn is_over_limit(&self) -> bool {
        ExceededLimit::of(&self.source).is_some()
    }
}

/// Sets up `routing`, except for what exists already. Local delivery is set up for IPv4, and for IPv6 if `lo` gets an address of that
/// family, as in every [`RuleSet`](iptables_rules::RuleSet) with IPv6 rules. Where `lo` is down, it is brought up, and IPv6 addresses become
/// usable without being added to it (see `route/local.rs`).
pub fn apply(routing: &Routing) -> Result<RoutingOutcome, RouteError> {
    if *routing == Routing::default() {
        return Ok(RoutingOutcome::Complete);
    }
    let netlink = open()?;
    let mut routed = RoutingOutcome::Complete;
    for change in changes(&netlink, routing)? {
        let mut bytes = Vec::with_capacity(128);
        append(&mut bytes, 1, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, change.message);
        for answer in request(&netlink, &bytes, &change.what, |_: Message| None::<()>)? {
            match answer {
                Reply::Ack { errno: None | Some(Errno::EEXIST), .. } | Reply::Object(()) => {}
                Reply::Ack { errno: Some(errno), .. } if change.ipv6 && is_ipv6_disabled_error(errno) => {
                    routed = RoutingOutcome::WithoutIpv6;
                }
                Reply::Ack { errno: Some(errno), .. } => {
                    return Err(RouteError { what: change.what, source: errno.into() });
                }
            }
        }
    }
    Ok(routed)
}

/// Returns one line for each part of `routing` that is missing.
pub fn verify(routing: &Routing) -> Result<Vec<String>, RouteError> {
    if *routing == Routing::default() {
        return Ok(Vec::new());
    }
    let netlink = open()?;
    let mut lines = Vec::new();
    let present = listed_addresses(&netlink, |index| index == LO)?;
    for net in &routing.lo_addresses {
        if !present.contains(net) && !local::is_usable(&netlink, net)? {
            lines.push(format!("address {net} is missing on lo"));
        }
    }
    if let Some(delivery) = routing.local_delivery {
        for family in families(routing) {
            if !has_rule(&netlink, family, delivery)? {
                lines.push(format!("rule {} is missing", rule_text(family, delivery)));
            }
            if !has_route(&netlink, family, delivery.table)? {
                lines.push(format!("route {} is missing", route_text(family, delivery)));
            }
        }
    }
    Ok(lines)
}

/// A change, as a message and as text for errors.
struct RouteChange {
    what: String,
    ipv6: bool,
    message: Message,
}

fn changes(netlink: &Netlink, routing: &Routing) -> Result<Vec<RouteChange>, RouteError> {
    let mut changes = Vec::new();
    let is_down = !routing.lo_addresses.is_empty() && local::is_loopback_down(netlink)?;
    for net in &routing.lo_addresses {
        if is_down && let Some(instead) = local::changes(net) {
            changes.extend(instead);
            continue;
        }
        changes.push(RouteChange {
            what: format!("add address {net} to lo"),
            ipv6: net.addr().is_ipv6(),
            message: Message::NewAddress(address(net)),
        });
    }
    let Some(delivery) = routing.local_delivery else { return Ok(changes) };
    for family in families(routing) {
        let ipv6 = family == AddressFamily::Inet6;
        // Some kernels would add an equal rule with another priority.
        if !has_rule(netlink, family, delivery)? {
            let message = Message::NewRule(rule(family, delivery));
            changes.push(RouteChange { what: format!("add rule {}", rule_text(family, delivery)), ipv6, message });
        }
        let message = Message::NewRoute(route(family, delivery.table));
        changes.push(RouteChange { what: format!("add route {}", route_text(family, delivery)), ipv6, message });
    }
    Ok(changes)
}

fn families(routing: &Routing) -> Vec<AddressFamily> {
    let mut families = vec![AddressFamily::Inet];
    if routing.lo_addresses.iter().any(|net| net.addr().is_ipv6()) {
        families.push(AddressFamily::Inet6);
    }
    families
}

/// Returns whether the error means that IPv6 is disabled on the interface (net/ipv6/addrconf.c) or missing from the kernel.
fn is_ipv6_disabled_error(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
}

fn address(net: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = LO;
    // Without it, an IPv6 address is tentative, and sockets cannot bind to it, until a work queue of the kernel has run (addrconf.c).
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}

fn rule(family: AddressFamily, delivery: LocalDelivery) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.table = TABLE_IN_ATTRIBUTE;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::FwMark(delivery.mark), RuleAttribute::Table(delivery.table)];
    message
}

fn route(family: AddressFamily, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = TABLE_IN_ATTRIBUTE;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Oif(LO)];
    message
}

fn open() -> Result<Netlink, RouteError> {
    Netlink::open(NETLINK_ROUTE).map_err(|source| RouteError { what: "open an rtnetlink socket".to_owned(), source })
}

/// Returns the addresses in the namespace of the calling thread, without those of the loopback networks.
pub fn addresses() -> Result<Vec<IpAddr>, RouteError> {
    let all = listed_addresses(&open()?, |_| true)?;
    Ok(all.iter().map(IpNet::addr).filter(|address| !address.is_loopback()).collect())
}

/// Returns the marks whose packets are delivered locally in the namespace of the calling thread.
pub fn local_deliveries() -> Result<Vec<LocalDelivery>, RouteError> {
    let netlink = open()?;
    let mut delivered = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for delivery in rules(&netlink, family)? {
            if !delivered.contains(&delivery) && has_route(&netlink, family, delivery.table)? {
                delivered.push(delivery);
            }
        }
    }
    Ok(delivered)
}

fn listed_addresses(netlink: &Netlink, wanted: fn(u32) -> bool) -> Result<Vec<IpNet>, RouteError> {
    list(netlink, "addresses", Message::GetAddress(AddressMessage::default()), |answer| match answer {
        Message::NewAddress(message) if wanted(message.header.index) => {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })?;
            IpNet::new(address, message.header.prefix_len).ok()
        }
        _ => None,
    })
}

fn has_rule(netlink: &Netlink, family: AddressFamily, delivery: LocalDelivery) -> Result<bool, RouteError> {
    Ok(rules(netlink, family)?.contains(&delivery))
}

/// Returns the routing rules that match a mark and nothing else.
fn rules(netlink: &Netlink, family: AddressFamily) -> Result<Vec<LocalDelivery>, RouteError> {
    let mut request = RuleMessage::default();
    request.header.family = family;
    list(netlink, "rules", Message::GetRule(request), |answer| match answer {
        Message::NewRule(message) if message.header.action == RuleAction::ToTable => {
            let (mut mark, mut table) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::FwMark(value) => mark = Some(*value),
                    RuleAttribute::Table(value) => table = Some(*value),
                    RuleAttribute::FwMask(bits) if *bits != u32::MAX => return None,
                    RuleAttribute::Source(_)
                    | RuleAttribute::Destination(_)
                    | RuleAttribute::Iifname(_)
                    | RuleAttribute::Oifname(_)
                    | RuleAttribute::UidRange(_)
                    | RuleAttribute::IpProtocol(_) => return None,
                    _ => {}
                }
            }
            Some(LocalDelivery { mark: mark?, table: table? })
        }
        _ => None,
    })
}

fn has_route(netlink: &Netlink, family: AddressFamily, table: u32) -> Result<bool, RouteError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let wanted = ListedRoute { kind: RouteType::Local.into(), prefix: 0, table, interface: Some(LO) };
    let found =
        list(netlink, "routes", Message::GetRoute(request), |route: ListedRoute| (route == wanted).then_some(()))?;
    Ok(!found.is_empty())
}

/// Sends a message and returns the replies.
fn request<M: NetlinkDeserializable, T>(
    netlink: &Netlink,
    bytes: &[u8],
    what: &str,
    decode: impl FnMut(M) -> Option<T>,
) -> Result<Vec<Reply<T>>, RouteError> {
    netlink.exchange(bytes, decode).map_err(|source| RouteError { what: what.to_owned(), source })
}

fn list<M: NetlinkDeserializable, T>(
    netlink: &Netlink,
    what: &str,
    request: Message,
    mut decode: impl FnMut(M) -> Option<T>,
) -> Result<Vec<T>, RouteError> {
    let failed = |source: io::Error| RouteError { what: format!("list {what}"), source };
    let mut bytes = Vec::with_capacity(64);
    append(&mut bytes, 1, NLM_F_DUMP, request);
    for _ in 0..MAX_DUMP_ATTEMPTS {
        match netlink.dump(&bytes, &mut decode).map_err(failed)? {
            DumpResult::Complete(items) => return Ok(items),
            DumpResult::Interrupted => {}
            // A kernel without IPv6 cannot list IPv6 rules or routes.
            DumpResult::Failed(errno) if is_ipv6_disabled_error(errno) => return Ok(Vec::new()),
            DumpResult::Failed(errno) => return Err(failed(errno.into())),
        }
    }
    Err(failed(io::Error::other("they kept changing")))
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn rule_text(family: AddressFamily, delivery: LocalDelivery) -> String {
    format!("{}fwmark {} lookup {}", flag(family), delivery.mark, delivery.table)
}

fn route_text(family: AddressFamily, delivery: LocalDelivery) -> String {
    format!("{}local default dev lo table {}", flag(family), delivery.table)
}

fn flag(family: AddressFamily) -> &'static str {
    if family == AddressFamily::Inet6 { "-6 " } else { "" }
}

#[cfg(test)]
mod tests;
