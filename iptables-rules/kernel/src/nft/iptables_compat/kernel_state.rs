//! Reads the tables of iptables-nft, with ours and foreign rules, as far as we need them.

use std::collections::HashMap;

use netlink_packet_core::NLA_HEADER_SIZE;
use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage};

use crate::nft::attributes::LIST_ELEMENT;
use crate::nft::decode::{RawMessage, attribute, nested};
use crate::nft::encode::RULE_EXPRESSIONS;
use crate::nft::error::NftError;
use crate::nft::expr::{EXPR_DATA, EXPR_NAME};
use crate::nft::program::TableFamily;
use crate::nft::socket::NftSocket;
use iptables_rules::names::{OWNER_COMMENT, chain};
use iptables_rules::ruleset::Table;

/// Attributes of a chain and of a rule (`enum nft_chain_attributes`, `nft_rule_attributes`, linux/netfilter/nf_tables.h).
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
/// Attributes of the expressions `immediate` (data, verdict, chain of the verdict) and `match` (name, structure).
const IMMEDIATE_DATA: u16 = 2;
const VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

/// A table in the kernel.
#[derive(Debug, Default)]
pub(super) struct KernelTable {
    pub(super) chains: Vec<KernelChain>,
}

/// A chain in the kernel.
#[derive(Debug)]
pub(super) struct KernelChain {
    pub(super) name: String,
    pub(super) rules: Vec<KernelRule>,
}

/// A rule in the kernel.
#[derive(Debug)]
pub(super) struct KernelRule {
    pub(super) handle: u64,
    /// The list of expressions in wire format.
    pub(super) expressions: Vec<u8>,
}

impl KernelTable {
    /// Reads a table; it is empty if it does not exist.
    pub(super) fn read(socket: &NftSocket, family: TableFamily, table: Table) -> Result<Self, NftError> {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let chains = socket.dump_as(family, request, |answer: RawMessage| {
            let of_table = text(answer.attributes(), CHAIN_TABLE)? == table.name();
            let name = text(answer.attributes(), CHAIN_NAME)?.to_owned();
            of_table.then_some(KernelChain { name, rules: Vec::new() })
        })?;
        let mut found = Self { chains };
        if found.chains.is_empty() {
            return Ok(found);
        }
        let attributes = vec![RuleAttribute::Table(table.name().to_owned())];
        let rules =
            socket.dump_as(family, NfTablesMessage::GetRule(RuleMessage { attributes }), |answer: RawMessage| {
                let attributes = answer.attributes();
                let handle = u64::from_be_bytes(attribute(attributes, RULE_HANDLE)?.try_into().ok()?);
                let expressions = attribute(attributes, RULE_EXPRESSIONS).unwrap_or_default().to_vec();
                Some((text(attributes, RULE_CHAIN)?.to_owned(), KernelRule { handle, expressions }))
            })?;
        let indices: HashMap<String, usize> =
            found.chains.iter().enumerate().map(|(at, chain)| (chain.name.clone(), at)).collect();
        for (name, rule) in rules {
            if let Some(chain) = indices.get(&name).and_then(|&at| found.chains.get_mut(at)) {
                chain.rules.push(rule);
            }
        }
        Ok(found)
    }

    pub(super) fn chain(&self, name: &str) -> Option<&KernelChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// Returns whether the table has chains or rules of ours.
    pub(super) fn has_own_rules(&self) -> bool {
        self.chains.iter().any(|chain| chain.is_ours() || chain.own_rules().next().is_some())
    }
}

impl KernelChain {
    /// Returns whether the chain is one of the mesh, which is ours as a whole.
    pub(super) fn is_ours(&self) -> bool {
        chain::ALL.contains(&self.name.as_str())
    }

    /// Returns our rules: all of a chain of ours; in other chains those with our comment, and those that jump to a chain of ours.
    pub(super) fn own_rules(&self) -> impl Iterator<Item = &KernelRule> {
        self.rules.iter().filter(|rule| self.is_ours() || rule.is_ours())
    }
}

impl KernelRule {
    fn is_ours(&self) -> bool {
        expressions(&self.expressions).any(|(name, data)| match name {
            "immediate" => {
                let verdict = attribute(data, IMMEDIATE_DATA).and_then(|data| attribute(data, VERDICT));
                verdict.and_then(|verdict| text(verdict, VERDICT_CHAIN)).is_some_and(|name| chain::ALL.contains(&name))
            }
            "match" => text(data, MATCH_NAME) == Some("comment") && text(data, MATCH_INFO) == Some(OWNER_COMMENT),
            _ => false,
        })
    }

    /// Returns whether the rule has the planned expressions in the same order, with all planned attributes. The kernel may add attributes,
    /// and the values of counters are ignored.
    pub(super) fn is_equivalent_to(&self, planned: &[u8]) -> bool {
        let found: Vec<_> = expressions(&self.expressions).collect();
        let planned: Vec<_> = expressions(planned).collect();
        found.len() == planned.len()
            && found.iter().zip(planned).all(|(&(name, found), (wanted, planned))| {
                name == wanted
                    && (name == "counter"
                        || nested(planned).all(|(kind, planned)| {
                            attribute(found, kind).is_some_and(|found| equal(found, planned, 0))
                        }))
            })
    }
}

/// Returns names and data of the expressions in a list.
fn expressions(list: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    nested(list)
        .filter(|&(kind, _)| kind == LIST_ELEMENT)
        .filter_map(|(_, element)| Some((text(element, EXPR_NAME)?, attribute(element, EXPR_DATA).unwrap_or_default())))
}

/// Returns a zero-terminated text, which may have padding.
fn text(attributes: &[u8], kind: u16) -> Option<&str> {
    std::str::from_utf8(attribute(attributes, kind)?.split(|&byte| byte == 0).next()?).ok()
}

/// Returns whether two values are equal, apart from the flag of nested attributes, which the kernel does not always set.
fn equal(a: &[u8], b: &[u8], depth: u8) -> bool {
    /// Limit of nesting, above that of any value in a rule.
    const MAX_DEPTH: u8 = 4;
    let covered = |bytes: &[u8]| {
        let lengths = nested(bytes).map(|(_, value)| (NLA_HEADER_SIZE + value.len()).next_multiple_of(4));
        lengths.sum::<usize>() == bytes.len().next_multiple_of(4)
    };
    a == b
        || (depth < MAX_DEPTH
            && covered(a)
            && covered(b)
            && nested(a).count() == nested(b).count()
            && nested(a).zip(nested(b)).all(|((kind, a), (other, b))| kind == other && equal(a, b, depth + 1)))
}
