//! Makes an IPv6 address usable where `lo` is still down, without an address on `lo`.
//!
//! containerd attaches `lo` and the pod's network at the same time, and the loopback plugin fails if it finds an address of another network
//! on `lo`. It does not look at routes: a local route delivers to the address, and `net.ipv6.ip_nonlocal_bind` lets sockets bind to it
//! (`__inet6_bind` in net/ipv6/af_inet6.c asks for an address, not for a route). The route needs `lo` up, which is all that the loopback
//! plugin would change.

use std::fs;

use ipnet::IpNet;
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};

use super::message::{Link, ListedRoute, Message};
use super::{LO, RouteChange, RouteError, family_of, request};
use crate::netlink::{Netlink, Reply, append};

/// Lets sockets of the namespace bind to any IPv6 address. `/proc/sys/net` shows the namespace of the reading thread.
const NONLOCAL_BIND: &str = "/proc/sys/net/ipv6/ip_nonlocal_bind";
/// `RT_TABLE_LOCAL`, linux/rtnetlink.h.
const TABLE_LOCAL: u8 = 255;

/// Returns whether `lo` is down.
pub(super) fn is_loopback_down(netlink: &Netlink) -> Result<bool, RouteError> {
    let mut bytes = Vec::with_capacity(32);
    append(&mut bytes, 1, 0, Message::GetLink(LO));
    let replies = request(netlink, &bytes, "read the state of lo", |link: Link| Some(link.is_up))?;
    Ok(replies.iter().any(|reply| matches!(reply, Reply::Object(false))))
}

/// Returns the changes that bring `lo` up and deliver to `net`, or nothing where sockets cannot be allowed to bind to it.
pub(super) fn changes(net: &IpNet) -> Option<[RouteChange; 2]> {
    if net.addr().is_ipv4() || fs::write(NONLOCAL_BIND, "1").is_err() {
        return None;
    }
    let up = RouteChange { what: "bring lo up".to_owned(), ipv6: false, message: Message::SetUp(LO) };
    let what = format!("add route -6 local {net} dev lo table local");
    Some([up, RouteChange { what, ipv6: true, message: Message::NewRoute(route(net)) }])
}

/// Returns whether packets to `net` are delivered locally, and sockets can bind to it without an address.
pub(super) fn is_usable(netlink: &Netlink, net: &IpNet) -> Result<bool, RouteError> {
    let allowed = net.addr().is_ipv6() && fs::read(NONLOCAL_BIND).is_ok_and(|value| value.starts_with(b"1"));
    if !allowed {
        return Ok(false);
    }
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(net.addr());
    message.header.destination_prefix_length = net.prefix_len();
    message.attributes = vec![RouteAttribute::Destination(destination(net))];
    let mut bytes = Vec::with_capacity(64);
    append(&mut bytes, 1, NLM_F_ACK, Message::GetRoute(message));
    let local = u8::from(RouteType::Local);
    let replies =
        request(netlink, &bytes, "look up a route", |route: ListedRoute| (route.kind == local).then_some(()))?;
    Ok(replies.iter().any(|reply| matches!(reply, Reply::Object(()))))
}

fn route(net: &IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(net.addr());
    message.header.destination_prefix_length = net.prefix_len();
    message.header.table = TABLE_LOCAL;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Destination(destination(net)), RouteAttribute::Oif(LO)];
    message
}

fn destination(net: &IpNet) -> RouteAddress {
    net.addr().into()
}
