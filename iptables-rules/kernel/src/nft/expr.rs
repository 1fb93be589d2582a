//! Encodes the tests and effects of a rule as kernel expressions, and decodes them.
//!
//! Every test loads a field into register 1 and compares it there, so a test is two or three expressions. Values from packets are big
//! endian; values of kernel variables (ids, marks, interface indices, states, zones) are in host byte order.

mod decode;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Immediate, Lookup, Meta, MetaKey, Operator, Payload, Register, Verdict,
    VerdictAttribute,
};

pub(super) use self::decode::decode;
use super::attributes::{Attributes, LIST_ELEMENT};
use super::program::{Expr, IpFamily, RuleDef, Test};

/// `enum nft_expr_attributes`, linux/netfilter/nf_tables.h.
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;
/// `NF_DROP` and `NF_ACCEPT`, linux/netfilter.h.
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;
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

/// Initial capacity; most rules are shorter.
const USUAL_BYTES: usize = 768;

/// Encodes a rule.
pub(super) fn encode(rule: &RuleDef) -> Attributes {
    let mut encoder = Encoder::new();
    for expr in &rule.exprs {
        encoder.expr(expr);
    }
    encoder.out
}

/// Encoder of kernel expressions.
pub(super) struct Encoder {
    pub(super) out: Attributes,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { out: Attributes::with_capacity(USUAL_BYTES) }
    }

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
            // Only rules that were read have such an expression, and they are never written.
            Expr::Other(name) => self.push::<DefaultNla>(name, &[]),
        }
    }

    pub(super) fn test(&mut self, test: &Test, negated: bool) {
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
                self.compare(!negated, vec![0; 4]); // any of these bits: not none of them
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

    /// Appends a kernel expression.
    pub(super) fn push<T: Nla>(&mut self, name: &str, attributes: &[T]) {
        self.out.nest(LIST_ELEMENT, |expression| {
            expression.text(EXPR_NAME, name);
            expression.nest(EXPR_DATA, |data| attributes.iter().for_each(|attribute| data.put(attribute)));
        });
    }

    pub(super) fn meta(&mut self, key: MetaKey) {
        self.push("meta", &[Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]);
    }

    fn meta_is(&mut self, key: MetaKey, negated: bool, value: u32) {
        self.meta(key);
        self.compare(negated, value.to_ne_bytes().to_vec());
    }

    /// Compares the whole name with its padding, so that `eth1` does not match `eth10`.
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

    pub(super) fn compare(&mut self, negated: bool, value: Vec<u8>) {
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

    pub(super) fn verdict(&mut self, verdict: Verdict, chain: Option<&str>) {
        let mut attributes = vec![VerdictAttribute::Code(verdict)];
        attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.to_owned())));
        self.push(
            "immediate",
            &[Immediate::DestinationRegister(Register::Verdict), Immediate::Data(DataAttribute::Verdict(attributes))],
        );
    }
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
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

/// Returns the prefix of a network if it consists of whole bytes: such a comparison needs no mask.
fn whole_bytes(net: &IpNet) -> Option<Vec<u8>> {
    let length = net.prefix_len();
    (length > 0 && length.is_multiple_of(8)).then(|| address(net)[..usize::from(length / 8)].to_vec())
}

/// Returns the bytes of the address of a network.
fn address(net: &IpNet) -> Vec<u8> {
    match net {
        IpNet::V4(net) => net.network().octets().to_vec(),
        IpNet::V6(net) => net.network().octets().to_vec(),
    }
}
