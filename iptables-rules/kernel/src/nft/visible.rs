//! The rules as `iptables-save` shows them: written over netlink into the tables of iptables-nft, with its expressions.
//!
//! For pods in which people look with iptables, or tools do. No program of iptables is needed; the price is some 50 microseconds, no sets,
//! and a kernel with nft_compat. From outside of a pod with a user namespace of its own (`hostUsers: false`) the kernel refuses conditions
//! on users written this way.
//!
//! The tables belong to everybody. Chains of ours are ours as a whole; in built-in chains our rules carry the comment that the backend
//! `iptables` gives them, and only they are touched. Everything happens in one transaction for both families, and a replacement refills
//! the chains that are there, as in [`super`]. Never a native expression in these tables: iptables would refuse them altogether.

mod encode;
mod held;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use nix::errno::Errno;

use self::held::Held;
use super::attributes::Attributes;
use super::encode::{BATCH_BEGIN, BATCH_GENID, RULE_EXPRESSIONS, SUBSYSTEM, new_chain_in};
use super::kernel::Kernel;
use super::program::TableFamily;
use super::{ATTEMPTS, Applied, NftError, lower};
use crate::netlink::append;
use iptables_rules::RuleSet;
use iptables_rules::names::chain;
use iptables_rules::restore::{self, RestoreFamily};
use iptables_rules::ruleset::{Position, Table};

/// `NFTA_RULE_COMPAT_PROTO`, `NFTA_RULE_COMPAT_FLAGS`, linux/netfilter/nf_tables.h.
const COMPAT_PROTOCOL: u16 = 1;
const COMPAT_FLAGS: u16 = 2;
/// `NFNL_SUBSYS_NFT_COMPAT`, linux/netfilter/nfnetlink.h; `enum nft_compat_attributes`, linux/netfilter/nf_tables_compat.h.
const COMPAT_SUBSYSTEM: u8 = 11;
const COMPAT_NAME: u16 = 1;
const COMPAT_REVISION: u16 = 2;
const COMPAT_TYPE: u16 = 3;

/// One table of one family: what is planned for it, and what it holds.
struct Section {
    family: RestoreFamily,
    table: Table,
    chains: Vec<Planned>,
    held: Held,
}

/// A chain, and what is to be in it.
struct Planned {
    name: &'static str,
    rules: Vec<PlannedRule>,
}

struct PlannedRule {
    /// Before all others, also those of somebody else.
    first: bool,
    protocol: u32,
    expressions: Attributes,
    /// As iptables would be told, for messages.
    text: String,
}

/// Installs the rules; nothing is sent where exactly these are in place, unless they are to be written `anew`. An empty rule set removes
/// what is there.
///
/// # Errors
/// See [`NftError`]; in every case the kernel holds what it held before.
pub fn apply(rules: &RuleSet, anew: bool) -> Result<Applied, NftError> {
    let kernel = Kernel::open()?;
    for _ in 0..ATTEMPTS {
        // First the number, then the look: whatever changes in between makes the kernel refuse the transaction.
        let generation = kernel.generation()?;
        let sections = sections_of(&kernel, rules)?;
        let had_some = sections.iter().any(|section| section.held.has_ours());
        let same = sections.iter().all(|section| section.differences().is_empty());
        if (same && !anew) || (rules.is_empty() && !had_some) {
            return Ok(Applied::Unchanged);
        }
        if !rules.is_empty() {
            check_kernel(&kernel)?;
        }
        let transaction = Transaction::new(generation, &sections);
        match kernel.transact(&transaction.bytes)? {
            None if sections_of(&kernel, rules)?.iter().all(|section| section.differences().is_empty()) => {
                return Ok(if had_some { Applied::Replaced } else { Applied::Created });
            }
            None => return Err(NftError::NotCommitted),
            Some((_, Errno::ERESTART | Errno::EINTR | Errno::EAGAIN)) => {}
            Some((sequence, errno)) => {
                let mut what = transaction.describe(sequence);
                if errno == Errno::EINVAL && what.contains("-m owner") {
                    what += " (in a pod with hostUsers: false this takes visibility nft)";
                }
                return Err(NftError::Refused { what, source: errno.into() });
            }
        }
    }
    Err(NftError::Contended)
}

/// Removes our rules and chains from the tables of iptables; `false` if there were none.
///
/// # Errors
/// See [`NftError`].
pub fn remove() -> Result<bool, NftError> {
    Ok(apply(&RuleSet::default(), false)? != Applied::Unchanged)
}

/// Compares the kernel's rules with the expected ones: one line per difference, empty when they are equal.
///
/// # Errors
/// See [`NftError`].
pub fn verify(expected: &RuleSet) -> Result<Vec<String>, NftError> {
    Ok(sections_of(&Kernel::open()?, expected)?.iter().flat_map(Section::differences).collect())
}

/// Whether the kernel can take such rules; nothing is changed.
///
/// # Errors
/// [`NftError::Unsupported`] where it has no nft_compat.
pub fn available() -> Result<(), NftError> {
    let kernel = Kernel::open()?;
    kernel.generation()?;
    check_kernel(&kernel)
}

/// Asks for the two modules that no plan goes without, as iptables-nft does.
fn check_kernel(kernel: &Kernel) -> Result<(), NftError> {
    let mut missing = Vec::new();
    for (name, revision, kind) in [("owner", 1_u32, 0_u32), ("REDIRECT", 0, 1)] {
        let attributes = vec![
            DefaultNla::new(COMPAT_NAME, [name.as_bytes(), b"\0"].concat()),
            DefaultNla::new(COMPAT_REVISION, revision.to_be_bytes().to_vec()),
            DefaultNla::new(COMPAT_TYPE, kind.to_be_bytes().to_vec()),
        ];
        let inner = NetfilterMessageInner::Other { subsys: COMPAT_SUBSYSTEM.into(), message_type: 0, attributes };
        let mut bytes = Vec::with_capacity(64);
        append(&mut bytes, 1, 0, NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), inner));
        if kernel.transact(&bytes)?.is_some() {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(NftError::Unsupported(format!(
        "visibility iptables: the kernel has no nft_compat for {}; use visibility nft",
        missing.join(", ")
    )))
}

/// All tables, with what is planned and what there is.
fn sections_of(kernel: &Kernel, rules: &RuleSet) -> Result<Vec<Section>, NftError> {
    let (mut sections, mut problems) = (Vec::new(), Vec::new());
    for family in RestoreFamily::ALL {
        for table in Table::ALL {
            let chains = planned(rules, family, table, &mut problems);
            sections.push(Section { family, table, chains, held: Held::read(kernel, of(family), table)? });
        }
    }
    problems.dedup();
    if problems.is_empty() { Ok(sections) } else { Err(NftError::Unsupported(problems.join("; "))) }
}

fn planned(rules: &RuleSet, family: RestoreFamily, table: Table, problems: &mut Vec<String>) -> Vec<Planned> {
    let of_table = restore::rules_of(rules, table, family);
    let built_in = [chain::PREROUTING, chain::BUILTIN_OUTPUT].into_iter();
    let used = built_in.filter(|name| of_table.iter().any(|rule| rule.chain == *name));
    let mut chains = Vec::new();
    for name in used.chain(restore::own_chains(&of_table)) {
        let own = chain::ALL.contains(&name);
        let mut planned = Planned { name, rules: Vec::new() };
        for rule in rules.chain_rules(table, name, family.any_address()) {
            match encode::encode(rule, family, !own) {
                Ok((expressions, protocol)) => planned.rules.push(PlannedRule {
                    first: !own && rule.position != Position::Append,
                    protocol,
                    expressions,
                    text: restore::rule_line(rule),
                }),
                Err(problem) => problems.push(format!("a rule of chain {name} in table {}: {problem}", table.name())),
            }
        }
        chains.push(planned);
    }
    chains
}

const fn of(family: RestoreFamily) -> TableFamily {
    match family {
        RestoreFamily::V4 => TableFamily::Ip,
        RestoreFamily::V6 => TableFamily::Ip6,
    }
}

impl Section {
    fn planned(&self, name: &str) -> Option<&Planned> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// One line for each chain that is not as planned.
    fn differences(&self) -> Vec<String> {
        let place = |name: &str| format!("{} {} {name}", self.family.tool(), self.table.name());
        let mut lines = Vec::new();
        for chain in &self.chains {
            let Some(held) = self.held.chain(chain.name) else {
                lines.push(format!("{}: is missing", place(chain.name)));
                continue;
            };
            let held: Vec<_> = held.own_rules().collect();
            let wrong = (0..held.len().max(chain.rules.len())).find(|&at| match (held.get(at), chain.rules.get(at)) {
                (Some(held), Some(planned)) => !held.does_the_same_as(planned.expressions.as_bytes()),
                _ => true,
            });
            lines.extend(wrong.map(|at| format!("{}: rule {} is not the planned one", place(chain.name), at + 1)));
        }
        for held in self.held.chains.iter().filter(|held| self.planned(&held.name).is_none()) {
            if held.is_ours() {
                lines.push(format!("{}: is left over", place(&held.name)));
            } else if held.own_rules().next().is_some() {
                lines.push(format!("{}: rule 1 is not the planned one", place(&held.name)));
            }
        }
        lines
    }
}

/// One transaction, with what each message is about.
struct Transaction {
    bytes: Vec<u8>,
    origins: Vec<String>,
}

impl Transaction {
    /// What turns the tables into what is planned for them.
    fn new(generation: u32, sections: &[Section]) -> Self {
        let mut transaction = Self { bytes: Vec::with_capacity(16 * 1024), origins: Vec::new() };
        transaction.control(
            "the transaction",
            ControlMessage::Other {
                message_type: BATCH_BEGIN,
                attributes: vec![DefaultNla::new(BATCH_GENID, generation.to_be_bytes().to_vec())],
            },
            0,
        );
        for section in sections {
            transaction.take_away(section);
        }
        for section in sections.iter().filter(|section| !section.chains.is_empty()) {
            transaction.put_in_place(section);
        }
        transaction.control("the end of the transaction", ControlMessage::BatchEnd, NLM_F_ACK);
        transaction
    }

    /// Our rules first, since they lead to the chains; then the chains that nobody needs any more.
    fn take_away(&mut self, section: &Section) {
        let table = || RuleAttribute::Table(section.table.name().to_owned());
        for chain in &section.held.chains {
            let of_chain = || RuleAttribute::Chain(chain.name.clone());
            if chain.is_ours() && !chain.rules.is_empty() {
                let message = RuleMessage { attributes: vec![table(), of_chain()] };
                self.push(section, &chain.name, NfTablesMessage::DeleteRule(message), 0);
            } else if !chain.is_ours() {
                for rule in chain.own_rules() {
                    let attributes = vec![table(), of_chain(), RuleAttribute::Handle(rule.handle)];
                    self.push(section, &chain.name, NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0);
                }
            }
        }
        for chain in section.held.chains.iter().filter(|chain| chain.is_ours()) {
            if section.planned(&chain.name).is_none() {
                let attributes = vec![
                    ChainAttribute::Table(section.table.name().to_owned()),
                    ChainAttribute::Name(chain.name.clone()),
                ];
                self.push(section, &chain.name, NfTablesMessage::DeleteChain(ChainMessage { attributes }), 0);
            }
        }
    }

    fn put_in_place(&mut self, section: &Section) {
        let table = section.table.name();
        let attributes = vec![TableAttribute::Name(table.to_owned())];
        self.push(section, "", NfTablesMessage::NewTable(TableMessage { attributes }), NLM_F_CREATE);
        // What is there stays as it is: its policy may be somebody's.
        for chain in section.chains.iter().filter(|chain| section.held.chain(chain.name).is_none()) {
            let message = new_chain_in(table, chain.name, lower::hook(section.table, chain.name).as_ref());
            self.push(section, chain.name, NfTablesMessage::NewChain(message), NLM_F_CREATE);
        }
        for chain in &section.chains {
            // Each goes to the very front, so the last one first.
            let (first, rest): (Vec<_>, Vec<_>) = chain.rules.iter().partition(|rule| rule.first);
            let ordered =
                first.into_iter().rev().map(|rule| (rule, 0)).chain(rest.into_iter().map(|rule| (rule, NLM_F_APPEND)));
            for (rule, flag) in ordered {
                let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
                let attributes = vec![
                    RuleAttribute::Table(table.to_owned()),
                    RuleAttribute::Chain(chain.name.to_owned()),
                    RuleAttribute::Other(rule.expressions.clone().into_nested(RULE_EXPRESSIONS)),
                    RuleAttribute::Compat(vec![number(COMPAT_PROTOCOL, rule.protocol), number(COMPAT_FLAGS, 0)]),
                ];
                let message = NfTablesMessage::NewRule(RuleMessage { attributes });
                self.push(section, &rule.text, message, NLM_F_CREATE | flag);
            }
        }
    }

    fn push(&mut self, section: &Section, what: &str, message: NfTablesMessage, flags: u16) {
        self.origins.push(format!("{} {}: {what}", section.family.tool(), section.table.name()));
        let header = NetfilterHeader::new(of(section.family).into(), 0, 0);
        let sequence = self.last();
        append(&mut self.bytes, sequence, flags, NetfilterMessage::new(header, message));
    }

    fn control(&mut self, what: &str, message: ControlMessage, flags: u16) {
        self.origins.push(what.to_owned());
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
        let sequence = self.last();
        append(&mut self.bytes, sequence, flags, NetfilterMessage::new(header, message));
    }

    fn last(&self) -> u32 {
        u32::try_from(self.origins.len()).unwrap_or(u32::MAX)
    }

    fn describe(&self, sequence: u32) -> String {
        let origin = (sequence as usize).checked_sub(1).and_then(|at| self.origins.get(at));
        origin.cloned().unwrap_or_else(|| format!("message {sequence}"))
    }
}

#[cfg(test)]
mod tests;
