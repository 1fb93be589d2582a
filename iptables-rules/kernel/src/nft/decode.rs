//! Decodes messages of the kernel into the parts of a [`Program`](super::program::Program).

use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader, NlaBuffer, NlasIterator};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, RuleAttribute, RuleMessage, SetAttribute,
    SetFlags, SetMessage, TableAttribute, TableMessage,
};

use super::encode::{ELEMENTS, FLAGS, INTERVAL_END, KEY, VALUE};
use super::expr;
use super::program::{ChainDef, Elements, Hook, RuleDef, SetDef, TABLE};

pub(super) fn table_flags(table: &TableMessage) -> u32 {
    let flags = table.attributes.iter().find_map(|attribute| match attribute {
        TableAttribute::Flags(flags) => Some(flags.bits()),
        _ => None,
    });
    flags.unwrap_or(0)
}

/// Decodes a chain of our table.
pub(super) fn chain(message: &ChainMessage) -> Option<ChainDef> {
    let (mut ours, mut name, mut kind, mut accepts, mut point) = (false, None, None, true, None);
    for attribute in &message.attributes {
        match attribute {
            ChainAttribute::Table(table) => ours = table == TABLE,
            ChainAttribute::Name(value) => name = Some(value.clone()),
            ChainAttribute::Type(value) => kind = Some(value.clone()),
            ChainAttribute::Policy(value) => accepts = *value == 1,
            ChainAttribute::Hook(hook) => {
                let number = hook.iter().find_map(|h| match h {
                    HookAttribute::Number(HookNumber::Inet(number)) => Some(u32::from(*number)),
                    _ => None,
                });
                let priority = hook.iter().find_map(|h| match h {
                    HookAttribute::Priority(priority) => Some(priority.cast_signed()),
                    _ => None,
                });
                point = number.zip(priority);
            }
            _ => {}
        }
    }
    let hook =
        point.map(|(number, priority)| Hook { kind: kind.unwrap_or_default().into(), number, priority, accepts });
    Some(ChainDef { name: name.filter(|_| ours)?.into(), hook, rules: Vec::new() })
}

/// Decodes a named set of our table, without elements. Anonymous sets belong to the rule that uses them.
pub(super) fn set(message: &SetMessage) -> Option<SetDef> {
    let (mut ours, mut name, mut flags, mut key) = (false, None, SetFlags::empty(), (0, 0));
    for attribute in &message.attributes {
        match attribute {
            SetAttribute::Table(table) => ours = table == TABLE,
            SetAttribute::Name(value) => name = Some(value.clone()),
            SetAttribute::Flags(value) => flags = *value,
            SetAttribute::KeyType(value) => key.0 = *value,
            SetAttribute::KeyLen(value) => key.1 = *value,
            _ => {}
        }
    }
    let elements = match (key, flags) {
        ((7, 4), SetFlags::Interval) => Elements::V4(Vec::new()),
        ((8, 16), SetFlags::Interval) => Elements::V6(Vec::new()),
        ((13, 2), flags) if flags.is_empty() => Elements::Ports(Vec::new()),
        ((kind, length), flags) => {
            Elements::Other(format!("keys of type {kind} and {length} bytes, flags {:#x}", flags.bits()))
        }
    };
    let ours = ours && !flags.contains(SetFlags::Anonymous);
    Some(SetDef { name: name.filter(|_| ours)?.into(), elements })
}

/// Decodes a rule of our table, and the name of its chain.
pub(super) fn rule(message: &RuleMessage) -> Option<(String, RuleDef)> {
    let (mut ours, mut chain, mut rule) = (false, None, RuleDef { exprs: Vec::new() });
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(table) => ours = table == TABLE,
            RuleAttribute::Chain(name) => chain = Some(name.clone()),
            RuleAttribute::Expressions(expressions) => rule = expr::decode(expressions),
            _ => {}
        }
    }
    Some((chain.filter(|_| ours)?, rule))
}

/// Key of a set element, and whether it is the end of a range.
pub(super) type Key = (Vec<u8>, bool);

/// A message as bytes, for messages without types in the library. It has a type for set elements, but its parser formats a text about the
/// whole list for each element, so that thousands of them take seconds.
pub(super) struct RawMessage(Vec<u8>);

impl NetlinkDeserializable for RawMessage {
    type Error = std::convert::Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(payload.to_vec()))
    }
}

impl RawMessage {
    /// Returns the attributes of the message.
    pub(super) fn attributes(&self) -> &[u8] {
        self.0.get(NETFILTER_HEADER..).unwrap_or_default()
    }
}

/// Bytes before the attributes (`struct nfgenmsg`, linux/netfilter/nfnetlink.h).
const NETFILTER_HEADER: usize = 4;

/// Decodes the keys in one message of a listing.
pub(super) fn keys(message: &RawMessage) -> Vec<Key> {
    let mut keys = Vec::new();
    for (_, list) in nested(message.attributes()).filter(|&(kind, _)| kind == ELEMENTS) {
        for (_, element) in nested(list) {
            let (mut key, mut end) = (Vec::new(), false);
            for (kind, value) in nested(element) {
                match kind {
                    KEY => key = attribute(value, VALUE).map(<[u8]>::to_vec).unwrap_or_default(),
                    FLAGS => {
                        let flags = value.try_into().map_or(0, u32::from_be_bytes);
                        end = flags & INTERVAL_END != 0;
                    }
                    _ => {}
                }
            }
            keys.push((key, end));
        }
    }
    keys
}

/// Returns kinds and values of the attributes in `bytes`, up to the first truncated one.
pub(super) fn nested(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).filter_map(|attribute: NlaBuffer<&[u8]>| {
        let (kind, length) = (attribute.kind(), attribute.value_length());
        Some((kind, attribute.into_inner().get(NLA_HEADER_SIZE..NLA_HEADER_SIZE + length)?))
    })
}

/// Returns the value of the first attribute of a kind.
pub(super) fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    nested(attributes).find(|&(found, _)| found == kind).map(|(_, value)| value)
}

/// Sets the elements of a set from the keys of a listing, which has no order.
pub(super) fn fill(set: &mut SetDef, keys: impl Iterator<Item = Key>) {
    match &mut set.elements {
        Elements::V4(ranges) => {
            let keys = keys.filter_map(|(key, end)| Some((u32::from_be_bytes(key.try_into().ok()?), end)));
            let (from, to) = (Ipv4Addr::from_bits, |after: u32| Ipv4Addr::from_bits(after.wrapping_sub(1)));
            *ranges = pair(keys.collect(), from, to, Ipv4Addr::BROADCAST);
        }
        Elements::V6(ranges) => {
            let keys = keys.filter_map(|(key, end)| Some((u128::from_be_bytes(key.try_into().ok()?), end)));
            let (from, to) = (Ipv6Addr::from_bits, |after: u128| Ipv6Addr::from_bits(after.wrapping_sub(1)));
            *ranges = pair(keys.collect(), from, to, Ipv6Addr::from_bits(u128::MAX));
        }
        Elements::Ports(ports) => {
            *ports = keys.filter_map(|(key, _)| Some(u16::from_be_bytes(key.try_into().ok()?))).collect();
            ports.sort_unstable();
        }
        Elements::Other(_) => {}
    }
}

/// Pairs starts and ends of ranges. An end without a start, which nft writes at the bottom of a set, is ignored; a start without an end
/// reaches to the last address.
fn pair<K: Ord + Copy, A>(
    mut keys: Vec<(K, bool)>,
    from: impl Fn(K) -> A,
    to: impl Fn(K) -> A,
    last: A,
) -> Vec<(A, A)> {
    keys.sort_unstable_by_key(|&(key, end)| (key, !end)); // where one range ends as the next starts, the end comes first
    let mut ranges = Vec::with_capacity(keys.len() / 2 + 1);
    let mut open = None;
    for (key, end) in keys {
        if end {
            ranges.extend(open.take().map(|start| (from(start), to(key))));
        } else {
            open = Some(key);
        }
    }
    ranges.extend(open.map(|start| (from(start), last)));
    ranges
}
