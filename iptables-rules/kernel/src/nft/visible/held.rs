//! What the tables of iptables-nft hold, ours and others', as far as we have to know it.

use netlink_packet_core::NLA_HEADER_SIZE;
use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage};

use crate::iptables::OWNER;
use crate::nft::NftError;
use crate::nft::decode::{RawMessage, attribute, nested};
use crate::nft::encode::{LIST_ELEMENT, RULE_EXPRESSIONS};
use crate::nft::expr::{EXPR_DATA, EXPR_NAME};
use crate::nft::kernel::Kernel;
use crate::nft::program::TableFamily;
use iptables_rules::names::chain;
use iptables_rules::ruleset::Table;

/// Attributes of a chain and of a rule (`enum nft_chain_attributes`, `nft_rule_attributes`, linux/netfilter/nf_tables.h).
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
/// Of the expressions `immediate` (its data, a verdict, the verdict's chain) and `match` (name, structure).
const IMMEDIATE_DATA: u16 = 2;
const VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

/// One table.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) chains: Vec<HeldChain>,
}

/// One chain.
#[derive(Debug)]
pub(super) struct HeldChain {
    pub(super) name: String,
    pub(super) rules: Vec<HeldRule>,
}

/// One rule.
#[derive(Debug)]
pub(super) struct HeldRule {
    pub(super) handle: u64,
    /// The list of its expressions, in wire format.
    pub(super) expressions: Vec<u8>,
}

impl Held {
    /// Reads a table; an empty value where there is none.
    pub(super) fn read(kernel: &Kernel, family: TableFamily, table: Table) -> Result<Self, NftError> {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let chains = kernel.dump_as(family, request, |answer: RawMessage| {
            let of_table = text(answer.attributes(), CHAIN_TABLE)? == table.name();
            let name = text(answer.attributes(), CHAIN_NAME)?.to_owned();
            of_table.then_some(HeldChain { name, rules: Vec::new() })
        })?;
        let mut held = Self { chains };
        if held.chains.is_empty() {
            return Ok(held);
        }
        let attributes = vec![RuleAttribute::Table(table.name().to_owned())];
        let rules =
            kernel.dump_as(family, NfTablesMessage::GetRule(RuleMessage { attributes }), |answer: RawMessage| {
                let attributes = answer.attributes();
                let handle = u64::from_be_bytes(attribute(attributes, RULE_HANDLE)?.try_into().ok()?);
                let expressions = attribute(attributes, RULE_EXPRESSIONS).unwrap_or_default().to_vec();
                Some((text(attributes, RULE_CHAIN)?.to_owned(), HeldRule { handle, expressions }))
            })?;
        for (name, rule) in rules {
            if let Some(chain) = held.chains.iter_mut().find(|chain| chain.name == name) {
                chain.rules.push(rule);
            }
        }
        Ok(held)
    }

    pub(super) fn chain(&self, name: &str) -> Option<&HeldChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// Whether anything in it is ours.
    pub(super) fn has_ours(&self) -> bool {
        self.chains.iter().any(|chain| chain.is_ours() || chain.own_rules().next().is_some())
    }
}

impl HeldChain {
    /// Whether the chain is ours as a whole.
    pub(super) fn is_ours(&self) -> bool {
        chain::ALL.contains(&self.name.as_str())
    }

    /// The rules that are ours: all of a chain of ours; in another one those with our comment, and those that lead to a chain of ours.
    pub(super) fn own_rules(&self) -> impl Iterator<Item = &HeldRule> {
        self.rules.iter().filter(|rule| self.is_ours() || rule.is_ours())
    }
}

impl HeldRule {
    fn is_ours(&self) -> bool {
        expressions(&self.expressions).any(|(name, data)| match name {
            "immediate" => {
                let verdict = attribute(data, IMMEDIATE_DATA).and_then(|data| attribute(data, VERDICT));
                verdict.and_then(|verdict| text(verdict, VERDICT_CHAIN)).is_some_and(|name| chain::ALL.contains(&name))
            }
            "match" => text(data, MATCH_NAME) == Some("comment") && text(data, MATCH_INFO) == Some(OWNER),
            _ => false,
        })
    }

    /// Whether the kernel would do the same for the planned expressions: all of them are here, in order, with every attribute that was
    /// planned. It may list more of them than it was told; counters count.
    pub(super) fn does_the_same_as(&self, planned: &[u8]) -> bool {
        let held: Vec<_> = expressions(&self.expressions).collect();
        let planned: Vec<_> = expressions(planned).collect();
        held.len() == planned.len()
            && held.iter().zip(planned).all(|(&(name, held), (wanted, planned))| {
                name == wanted
                    && (name == "counter"
                        || nested(planned)
                            .all(|(kind, planned)| attribute(held, kind).is_some_and(|held| equal(held, planned, 0))))
            })
    }
}

/// Names and data of the expressions in a list.
fn expressions(list: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    nested(list)
        .filter(|&(kind, _)| kind == LIST_ELEMENT)
        .filter_map(|(_, element)| Some((text(element, EXPR_NAME)?, attribute(element, EXPR_DATA).unwrap_or_default())))
}

/// A text that ends with a zero byte, which may be followed by padding.
fn text(attributes: &[u8], kind: u16) -> Option<&str> {
    std::str::from_utf8(attribute(attributes, kind)?.split(|&byte| byte == 0).next()?).ok()
}

/// Whether two values are equal; the kernel marks attributes that hold others, or not, as it likes.
fn equal(a: &[u8], b: &[u8], depth: u8) -> bool {
    /// Deeper than any value of a rule.
    const DEEPEST: u8 = 4;
    let covered = |bytes: &[u8]| {
        let lengths = nested(bytes).map(|(_, value)| (NLA_HEADER_SIZE + value.len()).next_multiple_of(4));
        lengths.sum::<usize>() == bytes.len().next_multiple_of(4)
    };
    a == b
        || (depth < DEEPEST
            && covered(a)
            && covered(b)
            && nested(a).count() == nested(b).count()
            && nested(a).zip(nested(b)).all(|((kind, a), (other, b))| kind == other && equal(a, b, depth + 1)))
}
