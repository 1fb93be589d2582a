//! A rule's tests and effects as kernel expressions, and back.
//!
//! Every test loads a field into register 1 and compares it there, so a decoder has to look at two or three expressions at a time.
//! Numbers that travel on the wire are big endian; what the kernel loads from its own variables (ids, marks, interface indices,
//! states, zones) is in the byte order of the machine.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta, MetaKey,
    Operator, Payload, Register, Verdict, VerdictAttribute,
};

use super::attributes::Attributes;
use super::encode::{LIST_ELEMENT, address, whole_bytes};
use super::program::{Expr, IpFamily, RuleDef, Test};

/// `enum nft_expr_attributes`, linux/netfilter/nf_tables.h.
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
/// `NF_DROP` and `NF_ACCEPT`, linux/netfilter.h.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`, linux/netfilter/nf_tables.h.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `enum nft_ct_keys` and `enum nft_ct_attributes`, linux/netfilter/nf_tables.h.
const CT_STATE: u32 = 0;
const CT_MARK: u32 = 3;
const CT_ZONE: u32 = 17;
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const CT_SREG: u16 = 4;
/// `enum nft_redir_attributes`, linux/netfilter/nf_tables.h.
const REDIR_PORT_MIN: u16 = 1;
const REDIR_PORT_MAX: u16 = 2;
/// `enum nft_tproxy_attributes`, linux/netfilter/nf_tables.h.
const TPROXY_FAMILY: u16 = 1;
const TPROXY_ADDRESS: u16 = 2;
const TPROXY_PORT: u16 = 3;
/// `NFT_LOOKUP_F_INV`, linux/netfilter/nf_tables.h.
const LOOKUP_INVERTED: u32 = 1;
/// `IFNAMSIZ`, linux/if.h.
const NAME_LENGTH: usize = 16;

/// Most rules take less than this as kernel expressions.
const USUAL_BYTES: usize = 768;

/// The kernel expressions of a rule.
pub(super) fn encode(rule: &RuleDef) -> Attributes {
    let mut encoder = Encoder { out: Attributes::with_capacity(USUAL_BYTES) };
    for expr in &rule.exprs {
        encoder.expr(expr);
    }
    encoder.out
}

struct Encoder {
    out: Attributes,
}

impl Encoder {
    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Test { test, negated } => self.test(test, *negated),
            Expr::Jump(chain) => self.verdict(Verdict::Jump, Some(chain)),
            Expr::Goto(chain) => self.verdict(Verdict::Goto, Some(chain)),
            Expr::Return => self.verdict(Verdict::Return, None),
            Expr::Accept => self.verdict(Verdict::Other(NF_ACCEPT), None),
            Expr::Drop => self.verdict(Verdict::Other(NF_DROP), None),
            Expr::Redirect(port) => {
                self.immediate(port.to_be_bytes().to_vec());
                self.push("redir", &[number(REDIR_PORT_MIN, 1)]);
            }
            Expr::Tproxy { family, port } => {
                let family = family.map_or(0, |family| u32::from(nfproto(family)));
                self.immediate(port.to_be_bytes().to_vec());
                self.push("tproxy", &[number(TPROXY_FAMILY, family), number(TPROXY_PORT, 1)]);
            }
            Expr::SetMark(mark) => {
                self.immediate(mark.to_ne_bytes().to_vec());
                self.push("meta", &[Meta::Key(MetaKey::Mark), Meta::SourceRegister(Register::Reg1)]);
            }
            Expr::SaveMark => {
                self.meta(MetaKey::Mark);
                self.push("ct", &[number(CT_KEY, CT_MARK), number(CT_SREG, 1)]);
            }
            Expr::RestoreMark => {
                self.ct(CT_MARK);
                self.push("meta", &[Meta::Key(MetaKey::Mark), Meta::SourceRegister(Register::Reg1)]);
            }
            Expr::SetZone(zone) => {
                self.immediate(zone.to_ne_bytes().to_vec());
                self.push("ct", &[number(CT_KEY, CT_ZONE), number(CT_SREG, 1)]);
            }
            // Only what was read back has such an expression, and that is never written.
            Expr::Other(name) => self.push::<DefaultNla>(name, &[]),
        }
    }

    fn test(&mut self, test: &Test, negated: bool) {
        match test {
            Test::Family(family) => {
                self.meta(MetaKey::Nfproto);
                self.compare(negated, vec![nfproto(*family)]);
            }
            Test::InIndex(index) => self.meta_is(MetaKey::Iif, negated, *index),
            Test::OutIndex(index) => self.meta_is(MetaKey::Oif, negated, *index),
            Test::InName(name) => self.name_is(MetaKey::Iifname, negated, name),
            Test::OutName(name) => self.name_is(MetaKey::Oifname, negated, name),
            Test::Source(net) => self.network(source_offset(family_of(net)), net, negated),
            Test::Destination(net) => self.network(destination_offset(family_of(net)), net, negated),
            Test::DestinationIn(family, set) => {
                self.payload(NETWORK, destination_offset(*family), length(*family));
                self.lookup(set, negated);
            }
            Test::Protocol(protocol) => {
                self.meta(MetaKey::L4Proto);
                self.compare(negated, vec![*protocol]);
            }
            Test::SourcePort(port) => {
                self.payload(TRANSPORT, 0, 2);
                self.compare(negated, port.to_be_bytes().to_vec());
            }
            Test::DestinationPort(port) => {
                self.payload(TRANSPORT, 2, 2);
                self.compare(negated, port.to_be_bytes().to_vec());
            }
            Test::DestinationPortIn(set) => {
                self.payload(TRANSPORT, 2, 2);
                self.lookup(set, negated);
            }
            Test::ConnectionState(bits) => {
                self.ct(CT_STATE);
                self.mask(bits.to_ne_bytes().to_vec());
                self.compare(!negated, vec![0; 4]); // "one of these bits" is "not none of them"
            }
            Test::Mark(mark) => self.meta_is(MetaKey::Mark, negated, *mark),
            Test::ConnectionMark(mark) => {
                self.ct(CT_MARK);
                self.compare(negated, mark.to_ne_bytes().to_vec());
            }
            Test::Uid(id) => self.meta_is(MetaKey::SocketUserId, negated, *id),
            Test::Gid(id) => self.meta_is(MetaKey::SocketGroupId, negated, *id),
        }
    }

    /// One kernel expression.
    fn push<T: Nla>(&mut self, name: &str, attributes: &[T]) {
        self.out.nest(LIST_ELEMENT, |expression| {
            expression.text(EXPR_NAME, name);
            expression.nest(EXPR_DATA, |data| attributes.iter().for_each(|attribute| data.put(attribute)));
        });
    }

    fn meta(&mut self, key: MetaKey) {
        self.push("meta", &[Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]);
    }

    fn meta_is(&mut self, key: MetaKey, negated: bool, value: u32) {
        self.meta(key);
        self.compare(negated, value.to_ne_bytes().to_vec());
    }

    /// The whole name with its padding, so that `eth1` is not taken for `eth10`.
    fn name_is(&mut self, key: MetaKey, negated: bool, name: &str) {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(NAME_LENGTH, 0);
        self.meta(key);
        self.compare(negated, bytes);
    }

    fn ct(&mut self, key: u32) {
        self.push("ct", &[number(CT_DREG, 1), number(CT_KEY, key)]);
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.push(
            "payload",
            &[
                Payload::DestinationRegister(Register::Reg1),
                Payload::Base(base),
                Payload::Offset(offset),
                Payload::Len(length),
            ],
        );
    }

    fn network(&mut self, offset: u32, net: &IpNet, negated: bool) {
        if let Some(bytes) = whole_bytes(net) {
            self.payload(NETWORK, offset, u32::from(net.prefix_len() / 8));
            self.compare(negated, bytes);
        } else {
            self.payload(NETWORK, offset, length(family_of(net)));
            self.mask(match net {
                IpNet::V4(net) => net.netmask().octets().to_vec(),
                IpNet::V6(net) => net.netmask().octets().to_vec(),
            });
            self.compare(negated, address(net));
        }
    }

    fn mask(&mut self, mask: Vec<u8>) {
        self.push(
            "bitwise",
            &[
                Bitwise::SourceRegister(Register::Reg1),
                Bitwise::DestinationRegister(Register::Reg1),
                Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
                Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
                Bitwise::Mask(DataAttribute::Value(mask)),
            ],
        );
    }

    fn compare(&mut self, negated: bool, value: Vec<u8>) {
        self.push(
            "cmp",
            &[
                Cmp::SourceRegister(Register::Reg1),
                Cmp::Op(if negated { Operator::NotEqual } else { Operator::Equal }),
                Cmp::Data(DataAttribute::Value(value)),
            ],
        );
    }

    fn lookup(&mut self, set: &str, negated: bool) {
        let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(Register::Reg1)];
        if negated {
            attributes.push(Lookup::Flags(LOOKUP_INVERTED));
        }
        self.push("lookup", &attributes);
    }

    fn immediate(&mut self, value: Vec<u8>) {
        self.push(
            "immediate",
            &[Immediate::DestinationRegister(Register::Reg1), Immediate::Data(DataAttribute::Value(value))],
        );
    }

    fn verdict(&mut self, verdict: Verdict, chain: Option<&str>) {
        let mut attributes = vec![VerdictAttribute::Code(verdict)];
        attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.to_owned())));
        self.push(
            "immediate",
            &[Immediate::DestinationRegister(Register::Verdict), Immediate::Data(DataAttribute::Verdict(attributes))],
        );
    }
}

/// The tests and effects that a list of kernel expressions stands for.
pub(super) fn decode(attributes: &[ListAttribute<ExpressionAttribute>]) -> RuleDef {
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

/// One kernel expression, as far as we understand it.
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

/// Length of the prefix a mask stands for; `None` where it is none.
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
    let understood = match data {
        Some(Expressions::Meta(attributes)) => meta_step(attributes),
        Some(Expressions::Payload(attributes)) => payload_step(attributes),
        Some(Expressions::Bitwise(attributes)) => mask_step(attributes),
        Some(Expressions::Cmp(attributes)) => compare_step(attributes),
        Some(Expressions::Lookup(attributes)) => lookup_step(attributes),
        Some(Expressions::Immediate(attributes)) => immediate_step(attributes),
        Some(Expressions::Other { expression_type, attributes }) => other_step(expression_type, attributes),
        _ => None,
    };
    understood.unwrap_or(Step::Other(name.unwrap_or("?")))
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

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
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

fn interface(value: &[u8]) -> Option<super::program::Name> {
    let end = value.iter().position(|&byte| byte == 0)?;
    (value.len() == NAME_LENGTH).then(|| Cow::Owned(String::from_utf8_lossy(&value[..end]).into_owned()))
}

fn owned(name: &str) -> super::program::Name {
    Cow::Owned(name.to_owned())
}

const fn nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

const fn family_of(net: &IpNet) -> IpFamily {
    match net {
        IpNet::V4(_) => IpFamily::V4,
        IpNet::V6(_) => IpFamily::V6,
    }
}

/// Bytes before the source address (RFC 791, RFC 8200).
const fn source_offset(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 12,
        IpFamily::V6 => 8,
    }
}

/// Bytes before the destination address (RFC 791, RFC 8200).
const fn destination_offset(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 16,
        IpFamily::V6 => 24,
    }
}

/// Bytes of an address.
const fn length(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 16,
    }
}
