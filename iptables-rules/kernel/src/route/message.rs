//! The rtnetlink messages that are spoken here: addresses, rules, routes.
//!
//! The enum of `netlink-packet-route` would do as well, but whoever parses it links every message of rtnetlink: links and traffic
//! control alone are half a megabyte of the plugin. Routes are read by hand for the same reason: of their forty attributes, tunnels
//! and all, two are asked for.

use netlink_packet_core::{
    DecodeError, Emitable as _, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
    NlasIterator, Parseable as _,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;

// linux/rtnetlink.h
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;

/// One message.
#[derive(Debug)]
pub(super) enum Message {
    NewAddress(AddressMessage),
    GetAddress(AddressMessage),
    NewRoute(RouteMessage),
    GetRoute(RouteMessage),
    NewRule(RuleMessage),
    GetRule(RuleMessage),
}

/// What is asked of a route that the kernel lists.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedRoute {
    /// `RTN_*`.
    pub(super) kind: u8,
    /// Length of the destination's prefix; 0 is the default route.
    pub(super) prefix: u8,
    /// Routing table.
    pub(super) table: u32,
    /// Index of the interface it leads to.
    pub(super) interface: Option<u32>,
}

impl ListedRoute {
    /// Reads `struct rtmsg` and the attributes behind it (linux/rtnetlink.h).
    fn parse(payload: &[u8]) -> Option<Self> {
        const HEADER: usize = 12;
        const RTA_OIF: u16 = 4;
        const RTA_TABLE: u16 = 15;
        let &[_, prefix, _, _, table, _, _, kind, ..] = payload else { return None };
        let mut route = Self { kind, prefix, table: table.into(), interface: None };
        for attribute in NlasIterator::new(payload.get(HEADER..)?) {
            let attribute = attribute.ok()?;
            let number = || attribute.value().try_into().ok().map(u32::from_ne_bytes);
            match attribute.kind() {
                RTA_TABLE => route.table = number()?,
                RTA_OIF => route.interface = Some(number()?),
                _ => {}
            }
        }
        Some(route)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::NewAddress(_) => RTM_NEWADDR,
            Self::GetAddress(_) => RTM_GETADDR,
            Self::NewRoute(_) => RTM_NEWROUTE,
            Self::GetRoute(_) => RTM_GETROUTE,
            Self::NewRule(_) => RTM_NEWRULE,
            Self::GetRule(_) => RTM_GETRULE,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::NewAddress(message) | Self::GetAddress(message) => message.buffer_len(),
            Self::NewRoute(message) | Self::GetRoute(message) => message.buffer_len(),
            Self::NewRule(message) | Self::GetRule(message) => message.buffer_len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::NewAddress(message) | Self::GetAddress(message) => message.emit(buffer),
            Self::NewRoute(message) | Self::GetRoute(message) => message.emit(buffer),
            Self::NewRule(message) | Self::GetRule(message) => message.emit(buffer),
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            RTM_NEWADDR => Ok(Self::NewAddress(AddressMessage::parse(payload)?)),
            RTM_NEWRULE => Ok(Self::NewRule(RuleMessage::parse(payload)?)),
            other => Err(format!("message type {other} was not asked for").into()),
        }
    }
}

impl NetlinkDeserializable for ListedRoute {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            RTM_NEWROUTE => Self::parse(payload).ok_or_else(|| "a route is cut off".into()),
            other => Err(format!("message type {other} was not asked for").into()),
        }
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}
