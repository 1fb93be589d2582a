//! The rtnetlink messages that we use: addresses, rules, routes, and whether a link is up.
//!
//! Parsing the enum of `netlink-packet-route` would link all messages of rtnetlink: links and traffic control alone would add half a megabyte
//! to the plugin. Routes are parsed by hand for the same reason: only two of their forty attributes are needed.

use netlink_packet_core::{
    DecodeError, Emitable as _, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
    NlasIterator, Parseable as _,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;

/// Bytes of `struct ifinfomsg`: family, type, index, flags and the mask of flags to change (linux/rtnetlink.h).
const LINK_HEADER: usize = 16;
/// `IFF_UP`, linux/if.h.
const IFF_UP: u32 = 1;

/// Builds a `struct ifinfomsg` that sets `flags`.
fn link_header(index: u32, flags: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// An rtnetlink message.
#[derive(Debug)]
pub(super) enum Message {
    /// Asks for the interface with this index.
    GetLink(u32),
    /// Brings the interface with this index up.
    SetUp(u32),
    NewAddress(AddressMessage),
    GetAddress(AddressMessage),
    NewRoute(RouteMessage),
    GetRoute(RouteMessage),
    NewRule(RuleMessage),
    GetRule(RuleMessage),
}

/// State of an interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Whether the interface is administratively up.
    pub(super) is_up: bool,
}

/// Properties of a listed route that we use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedRoute {
    /// `RTN_*`.
    pub(super) kind: u8,
    /// Prefix length of the destination; 0 for the default route.
    pub(super) prefix: u8,
    /// Routing table.
    pub(super) table: u32,
    /// Index of the output interface.
    pub(super) interface: Option<u32>,
}

impl ListedRoute {
    /// Parses `struct rtmsg` and its attributes (linux/rtnetlink.h).
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
            Self::GetLink(_) => RTM_GETLINK,
            Self::SetUp(_) => RTM_SETLINK,
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
            Self::GetLink(_) | Self::SetUp(_) => LINK_HEADER,
            Self::NewAddress(message) | Self::GetAddress(message) => message.buffer_len(),
            Self::NewRoute(message) | Self::GetRoute(message) => message.buffer_len(),
            Self::NewRule(message) | Self::GetRule(message) => message.buffer_len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::GetLink(index) => buffer.copy_from_slice(&link_header(*index, 0)),
            Self::SetUp(index) => buffer.copy_from_slice(&link_header(*index, IFF_UP)),
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
            other => Err(format!("unexpected message type {other}").into()),
        }
    }
}

impl NetlinkDeserializable for Link {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match (header.message_type, payload) {
            (RTM_NEWLINK, &[_, _, _, _, _, _, _, _, a, b, c, d, ..]) => {
                Ok(Self { is_up: u32::from_ne_bytes([a, b, c, d]) & IFF_UP != 0 })
            }
            (RTM_NEWLINK, _) => Err("truncated link".into()),
            (other, _) => Err(format!("unexpected message type {other}").into()),
        }
    }
}

impl NetlinkDeserializable for ListedRoute {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            RTM_NEWROUTE => Self::parse(payload).ok_or_else(|| "truncated route".into()),
            other => Err(format!("unexpected message type {other}").into()),
        }
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}
