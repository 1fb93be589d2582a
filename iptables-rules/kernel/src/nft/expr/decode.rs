//! Decodes kernel expressions into tests and effects; the inverse of [`super::encode`].

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta, MetaKey,
    Operator, Payload, Register, Verdict, VerdictAttribute,
};

use super::{
    CT_DREG, CT_KEY, CT_MARK, CT_SREG, CT_STATE, CT_ZONE, LOOKUP_INVERTED, NAME_LENGTH, NETWORK, NF_ACCEPT, NF_DROP,
    REDIR_PORT_MAX, REDIR_PORT_MIN, TPROXY_ADDRESS, TPROXY_FAMILY, TPROXY_PORT, TRANSPORT, destination_offset, length,
    source_offset,
};
use crate::nft::program::{Expr, IpFamily, Name, RuleDef, Test};

/// Decodes a list of kernel expressions.
pub(in crate::nft) fn decode(attributes: &[ListAttribute<ExpressionAttribute>]) -> RuleDef {
    let steps: Vec<Step<'_>> = attributes.iter().map(step).collect();
    let mut exprs = Vec::new();
    let mut rest = steps.as_slice();
    while !rest.is_empty() {
        let (expr, taken) = decode_one(rest).unwrap_or_else(|| (Expr::Other(rest[0].name().to_owned()), 1));
        exprs.push(expr);
        rest = &rest[taken..];
    }
    RuleDef { exprs }
}

/// A kernel expression, as far as we use it.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    LoadMeta(MetaKey),
    StoreMeta(MetaKey),
    LoadCt(u32),
    StoreCt(u32),
    Load { base: u32, offset: u32, length: u32 },
    Mask(&'a [u8]),
    Compare { negated: bool, value: &'a [u8] },
    Lookup { set: &'a str, negated: bool },
    Value(&'a [u8]),
    Verdict(Verdict, Option<&'a str>),
    Redirect,
    Tproxy(Option<IpFamily>),
    Other(&'a str),
}

impl Step<'_> {
    fn name(&self) -> &str {
        match self {
            Self::LoadMeta(_) | Self::StoreMeta(_) => "meta",
            Self::LoadCt(_) | Self::StoreCt(_) => "ct",
            Self::Load { .. } => "payload",
            Self::Mask(_) => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Value(_) | Self::Verdict(..) => "immediate",
            Self::Redirect => "redir",
            Self::Tproxy(_) => "tproxy",
            Self::Other(name) => name,
        }
    }
}

fn decode_one(steps: &[Step<'_>]) -> Option<(Expr, usize)> {
    let test = |test: Test, negated: bool, taken: usize| Some((Expr::Test { test, negated }, taken));
    match *steps {
        [Step::LoadMeta(key), Step::Compare { negated, value }, ..] => test(meta_test(key, value)?, negated, 2),
        [Step::LoadCt(CT_MARK), Step::Compare { negated, value }, ..] => {
            test(Test::ConnectionMark(host(value)?), negated, 2)
        }
        [Step::LoadCt(CT_STATE), Step::Mask(bits), Step::Compare { negated, value: [0, 0, 0, 0] }, ..] => {
            test(Test::ConnectionState(host(bits)?), !negated, 3)
        }
        [Step::LoadCt(CT_MARK), Step::StoreMeta(MetaKey::Mark), ..] => Some((Expr::RestoreMark, 2)),
        [Step::LoadMeta(MetaKey::Mark), Step::StoreCt(CT_MARK), ..] => Some((Expr::SaveMark, 2)),
        [Step::Load { base: NETWORK, offset, length }, Step::Mask(mask), Step::Compare { negated, value }, ..] => {
            test(network_test(offset, length, Some(mask), value)?, negated, 3)
        }
        [Step::Load { base: NETWORK, offset, length }, Step::Compare { negated, value }, ..] => {
            test(network_test(offset, length, None, value)?, negated, 2)
        }
        [Step::Load { base: NETWORK, offset, length }, Step::Lookup { set, negated }, ..] => {
            let family = [IpFamily::V4, IpFamily::V6]
                .into_iter()
                .find(|&f| (destination_offset(f), self::length(f)) == (offset, length))?;
            test(Test::DestinationIn(family, owned(set)), negated, 2)
        }
        [Step::Load { base: TRANSPORT, offset, length: 2 }, Step::Compare { negated, value: &[a, b] }, ..] => {
            let port = u16::from_be_bytes([a, b]);
            let port_test = match offset {
                0 => Test::SourcePort(port),
                2 => Test::DestinationPort(port),
                _ => return None,
            };
            test(port_test, negated, 2)
        }
        [Step::Load { base: TRANSPORT, offset: 2, length: 2 }, Step::Lookup { set, negated }, ..] => {
            test(Test::DestinationPortIn(owned(set)), negated, 2)
        }
        [Step::Value(&[a, b]), Step::Redirect, ..] => Some((Expr::Redirect(u16::from_be_bytes([a, b])), 2)),
        [Step::Value(&[a, b]), Step::Tproxy(family), ..] => {
            Some((Expr::Tproxy { family, port: u16::from_be_bytes([a, b]) }, 2))
        }
        [Step::Value(&[a, b]), Step::StoreCt(CT_ZONE), ..] => Some((Expr::SetZone(u16::from_ne_bytes([a, b])), 2)),
        [Step::Value(mark), Step::StoreMeta(MetaKey::Mark), ..] => Some((Expr::SetMark(host(mark)?), 2)),
        [Step::Verdict(verdict, chain), ..] => {
            let expr = match (verdict, chain) {
                (Verdict::Jump, Some(chain)) => Expr::Jump(owned(chain)),
                (Verdict::Goto, Some(chain)) => Expr::Goto(owned(chain)),
                (Verdict::Return, None) => Expr::Return,
                (Verdict::Other(NF_ACCEPT), None) => Expr::Accept,
                (Verdict::Other(NF_DROP), None) => Expr::Drop,
                _ => return None,
            };
            Some((expr, 1))
        }
        _ => None,
    }
}

fn meta_test(key: MetaKey, value: &[u8]) -> Option<Test> {
    Some(match (key, value) {
        (MetaKey::Nfproto, [2]) => Test::Family(IpFamily::V4),
        (MetaKey::Nfproto, [10]) => Test::Family(IpFamily::V6),
        (MetaKey::L4Proto, &[protocol]) => Test::Protocol(protocol),
        (MetaKey::Iif, value) => Test::InIndex(host(value)?),
        (MetaKey::Oif, value) => Test::OutIndex(host(value)?),
        (MetaKey::Iifname, value) => Test::InName(interface(value)?),
        (MetaKey::Oifname, value) => Test::OutName(interface(value)?),
        (MetaKey::Mark, value) => Test::Mark(host(value)?),
        (MetaKey::SocketUserId, value) => Test::Uid(host(value)?),
        (MetaKey::SocketGroupId, value) => Test::Gid(host(value)?),
        _ => return None,
    })
}

fn network_test(offset: u32, loaded: u32, mask: Option<&[u8]>, value: &[u8]) -> Option<Test> {
    let families = [IpFamily::V4, IpFamily::V6];
    // Source and destination do not overlap between the families: bytes 12 and 16 against 8 and 24.
    let (family, source) = families.into_iter().find_map(|family| match offset {
        o if o == source_offset(family) => Some((family, true)),
        o if o == destination_offset(family) => Some((family, false)),
        _ => None,
    })?;
    let mut bytes = [0; 16];
    let prefix = match mask {
        None => loaded * 8,
        Some(mask) => prefix_of(mask)?,
    };
    if value.len() != loaded as usize || loaded > length(family) {
        return None;
    }
    bytes[..value.len()].copy_from_slice(value);
    let address = match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(bytes)),
    };
    let net = IpNet::new(address, u8::try_from(prefix).ok()?).ok()?;
    Some(if source { Test::Source(net) } else { Test::Destination(net) })
}

/// Returns the prefix length of a mask; `None` if it is not a prefix.
fn prefix_of(mask: &[u8]) -> Option<u32> {
    let ones = mask.iter().map(|byte| byte.count_ones()).sum();
    let leading = mask.iter().take_while(|&&byte| byte == 0xff).count();
    let partial = mask.get(leading).map_or(0, |byte| byte.leading_ones());
    (u32::try_from(leading).ok()? * 8 + partial == ones).then_some(ones)
}

fn step(attribute: &ListAttribute<ExpressionAttribute>) -> Step<'_> {
    let ListAttribute::Element(parts) = attribute else { return Step::Other("?") };
    let name = parts.iter().find_map(|part| match part {
        ExpressionAttribute::Name(name) => Some(name.as_str()),
        _ => None,
    });
    let data = parts.iter().find_map(|part| match part {
        ExpressionAttribute::Data(data) => Some(data),
        _ => None,
    });
    let known = match data {
        Some(Expressions::Meta(attributes)) => meta_step(attributes),
        Some(Expressions::Payload(attributes)) => payload_step(attributes),
        Some(Expressions::Bitwise(attributes)) => mask_step(attributes),
        Some(Expressions::Cmp(attributes)) => compare_step(attributes),
        Some(Expressions::Lookup(attributes)) => lookup_step(attributes),
        Some(Expressions::Immediate(attributes)) => immediate_step(attributes),
        Some(Expressions::Other { expression_type, attributes }) => other_step(expression_type, attributes),
        _ => None,
    };
    known.unwrap_or(Step::Other(name.unwrap_or("?")))
}

fn meta_step(attributes: &[Meta]) -> Option<Step<'_>> {
    match *attributes {
        [Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]
        | [Meta::DestinationRegister(Register::Reg1), Meta::Key(key)] => Some(Step::LoadMeta(key)),
        [Meta::Key(key), Meta::SourceRegister(Register::Reg1)]
        | [Meta::SourceRegister(Register::Reg1), Meta::Key(key)] => Some(Step::StoreMeta(key)),
        _ => None,
    }
}

fn payload_step(attributes: &[Payload]) -> Option<Step<'_>> {
    let (mut base, mut offset, mut length) = (None, None, None);
    for attribute in attributes {
        match attribute {
            Payload::DestinationRegister(Register::Reg1) => {}
            Payload::Base(value) => base = Some(*value),
            Payload::Offset(value) => offset = Some(*value),
            Payload::Len(value) => length = Some(*value),
            _ => return None,
        }
    }
    Some(Step::Load { base: base?, offset: offset?, length: length? })
}

fn mask_step(attributes: &[Bitwise]) -> Option<Step<'_>> {
    let mut mask = None;
    for attribute in attributes {
        match attribute {
            Bitwise::SourceRegister(Register::Reg1)
            | Bitwise::DestinationRegister(Register::Reg1)
            | Bitwise::Length(_)
            | Bitwise::Op(0) => {}
            Bitwise::Xor(DataAttribute::Value(value)) if value.iter().all(|byte| *byte == 0) => {}
            Bitwise::Mask(DataAttribute::Value(value)) => mask = Some(value),
            _ => return None,
        }
    }
    Some(Step::Mask(mask?))
}

fn compare_step(attributes: &[Cmp]) -> Option<Step<'_>> {
    let (mut negated, mut value) = (None, None);
    for attribute in attributes {
        match attribute {
            Cmp::SourceRegister(Register::Reg1) => {}
            Cmp::Op(Operator::Equal) => negated = Some(false),
            Cmp::Op(Operator::NotEqual) => negated = Some(true),
            Cmp::Data(DataAttribute::Value(bytes)) => value = Some(bytes),
            _ => return None,
        }
    }
    Some(Step::Compare { negated: negated?, value: value? })
}

fn lookup_step(attributes: &[Lookup]) -> Option<Step<'_>> {
    let (mut set, mut negated) = (None, false);
    for attribute in attributes {
        match attribute {
            Lookup::SourceRegister(Register::Reg1) | Lookup::SetId(_) => {}
            Lookup::Set(name) => set = Some(name),
            Lookup::Flags(flags) => negated = *flags & LOOKUP_INVERTED != 0,
            _ => return None,
        }
    }
    Some(Step::Lookup { set: set?, negated })
}

fn immediate_step(attributes: &[Immediate]) -> Option<Step<'_>> {
    match attributes {
        [Immediate::DestinationRegister(Register::Reg1), Immediate::Data(DataAttribute::Value(value))] => {
            Some(Step::Value(value))
        }
        [Immediate::DestinationRegister(Register::Verdict), Immediate::Data(DataAttribute::Verdict(parts))] => {
            let (mut code, mut chain) = (None, None);
            for part in parts {
                match part {
                    VerdictAttribute::Code(verdict) => code = Some(*verdict),
                    VerdictAttribute::Chain(name) => chain = Some(name.as_str()),
                    _ => return None,
                }
            }
            Some(Step::Verdict(code?, chain))
        }
        _ => None,
    }
}

fn other_step<'a>(name: &str, attributes: &[DefaultNla]) -> Option<Step<'a>> {
    let value = |kind: u16| attributes.iter().find(|a| a.kind() == kind).and_then(be32);
    match name {
        "ct" => match (value(CT_DREG), value(CT_SREG), value(CT_KEY)?) {
            (Some(1), None, key) => Some(Step::LoadCt(key)),
            (None, Some(1), key) => Some(Step::StoreCt(key)),
            _ => None,
        },
        // The kernel repeats the port as the upper end of a range.
        "redir" => (value(REDIR_PORT_MIN) == Some(1) && value(REDIR_PORT_MAX).is_none_or(|max| max == 1))
            .then_some(Step::Redirect),
        "tproxy" if value(TPROXY_PORT) == Some(1) && value(TPROXY_ADDRESS).is_none() => match value(TPROXY_FAMILY) {
            Some(0) => Some(Step::Tproxy(None)),
            Some(2) => Some(Step::Tproxy(Some(IpFamily::V4))),
            Some(10) => Some(Step::Tproxy(Some(IpFamily::V6))),
            _ => None,
        },
        _ => None,
    }
}

fn be32(attribute: &DefaultNla) -> Option<u32> {
    let mut bytes = [0; 4];
    (attribute.value_len() == 4).then(|| {
        attribute.emit_value(&mut bytes);
        u32::from_be_bytes(bytes)
    })
}

fn host(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

fn interface(value: &[u8]) -> Option<Name> {
    let end = value.iter().position(|&byte| byte == 0)?;
    (value.len() == NAME_LENGTH).then(|| Cow::Owned(String::from_utf8_lossy(&value[..end]).into_owned()))
}

fn owned(name: &str) -> Name {
    Cow::Owned(name.to_owned())
}
