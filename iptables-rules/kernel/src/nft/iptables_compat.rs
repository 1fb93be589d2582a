//! Writes rules that `iptables-save` shows: over netlink, to the tables of iptables-nft, with its expressions.
//!
//! This is for people and tools that inspect pods with iptables. It needs no programs of iptables, but a kernel with nft_compat, takes some
//! 50 microseconds longer and has no sets. For a pod with its own user namespace (`hostUsers: false`) the kernel rejects the owner match in
//! this form.
//!
//! The tables are shared. Chains of the mesh are ours as a whole; in built-in chains our rules have the comment that the backend `iptables`
//! gives them, and only they are changed. One transaction changes both families, and a replacement refills existing chains, as in
//! [`super`]. These tables must not contain native expressions: iptables would reject the whole table.

mod encode;
mod kernel_state;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use nix::errno::Errno;

use self::kernel_state::KernelTable;
use super::attributes::Attributes;
use super::encode::{BATCH_BEGIN, BATCH_GENID, RULE_EXPRESSIONS, SUBSYSTEM, new_chain_in};
use super::error::{MAX_COMMIT_ATTEMPTS, NftError};
use super::lower;
use super::program::TableFamily;
use super::socket::NftSocket;
use crate::netlink::append;
use crate::outcome::ApplyOutcome;
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

/// Plan and current content of one table of one family.
struct TablePlan {
    family: RestoreFamily,
    table: Table,
    chains: Vec<PlannedChain>,
    found: KernelTable,
}

/// A chain with its planned rules.
struct PlannedChain {
    name: &'static str,
    rules: Vec<PlannedRule>,
}

struct PlannedRule {
    /// Whether it precedes all other rules, including foreign ones.
    first: bool,
    protocol: u32,
    expressions: Attributes,
    /// The rule in the syntax of iptables, for errors.
    text: String,
}

/// Installs the rules. Nothing is written if exactly these are in place, unless `force` is set. An empty rule set removes our rules.
///
/// # Errors
/// See [`NftError`]; the kernel is unchanged then.
pub fn apply(rules: &RuleSet, force: bool) -> Result<ApplyOutcome, NftError> {
    let socket = NftSocket::open()?;
    for _ in 0..MAX_COMMIT_ATTEMPTS {
        // The generation first: the kernel rejects the transaction if anything changes after it.
        let generation = socket.generation()?;
        let plans = table_plans(rules)?;
        let had_some = plans.iter().any(|plan| plan.found.has_own_rules());
        let same = plans.iter().all(|plan| plan.differences().is_empty());
        if (same && !force) || (rules.is_empty() && !had_some) {
            return Ok(ApplyOutcome::Unchanged);
        }
        if !rules.is_empty() {
            check_kernel(&socket)?;
        }
        let transaction = Transaction::new(generation, &plans);
        match socket.transact(&transaction.bytes)? {
            None if table_plans(rules)?.iter().all(|plan| plan.differences().is_empty()) => {
                return Ok(if had_some { ApplyOutcome::Replaced } else { ApplyOutcome::Created });
            }
            None => return Err(NftError::NotCommitted),
            Some((_, Errno::ERESTART | Errno::EINTR | Errno::EAGAIN)) => {}
            Some((sequence, errno)) => {
                let mut what = transaction.describe(sequence);
                if errno == Errno::EINVAL && what.contains("-m owner") {
                    what += " (a pod with hostUsers: false needs visibility nft)";
                }
                return Err(NftError::Refused { what, source: errno.into() });
            }
        }
    }
    Err(NftError::Contended)
}

/// Removes our rules and chains from the tables of iptables; `false` if there were none.
pub fn remove() -> Result<bool, NftError> {
    Ok(apply(&RuleSet::default(), false)? != ApplyOutcome::Unchanged)
}

/// Compares the rules in the kernel with the expected ones: one line per difference.
pub fn verify(expected: &RuleSet) -> Result<Vec<String>, NftError> {
    Ok(table_plans(expected)?.iter().flat_map(TablePlan::differences).collect())
}

/// Checks that the kernel supports such rules. Changes nothing.
///
/// # Errors
/// Returns [`NftError::Unsupported`] for a kernel without nft_compat.
pub fn check_available() -> Result<(), NftError> {
    let socket = NftSocket::open()?;
    socket.generation()?;
    check_kernel(&socket)
}

/// Checks for the two modules that every plan needs, as iptables-nft does.
fn check_kernel(socket: &NftSocket) -> Result<(), NftError> {
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
        if socket.transact(&bytes)?.is_some() {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(NftError::Unsupported(format!(
        "visibility iptables is not supported: the kernel has no nft_compat for {}; use visibility nft",
        missing.join(", ")
    )))
}

/// Returns all tables with their plan and current content, which is read by a socket of its own, with a full budget.
fn table_plans(rules: &RuleSet) -> Result<Vec<TablePlan>, NftError> {
    let socket = NftSocket::open()?;
    let (mut plans, mut problems) = (Vec::new(), Vec::new());
    for family in RestoreFamily::ALL {
        for table in Table::ALL {
            let chains = planned(rules, family, table, &mut problems);
            plans.push(TablePlan {
                family,
                table,
                chains,
                found: KernelTable::read(&socket, table_family(family), table)?,
            });
        }
    }
    problems.dedup();
    if problems.is_empty() { Ok(plans) } else { Err(NftError::Unsupported(problems.join("; "))) }
}

fn planned(rules: &RuleSet, family: RestoreFamily, table: Table, problems: &mut Vec<String>) -> Vec<PlannedChain> {
    let of_table = restore::rules_in_table(rules, table, family);
    let built_in = [chain::PREROUTING, chain::BUILTIN_OUTPUT].into_iter();
    let used = built_in.filter(|name| of_table.iter().any(|rule| rule.chain == *name));
    let mut chains = Vec::new();
    for name in used.chain(restore::custom_chains(&of_table)) {
        let own = chain::ALL.contains(&name);
        let mut planned = PlannedChain { name, rules: Vec::new() };
        for rule in rules.chain_rules(table, name, family.any_address()) {
            match encode::encode(rule, family, !own) {
                Ok((expressions, protocol)) => planned.rules.push(PlannedRule {
                    first: !own && rule.position != Position::Append,
                    protocol,
                    expressions,
                    text: restore::rule_line(rule),
                }),
                Err(problem) => problems.push(format!("rule of chain {name} in table {}: {problem}", table.name())),
            }
        }
        chains.push(planned);
    }
    chains
}

const fn table_family(family: RestoreFamily) -> TableFamily {
    match family {
        RestoreFamily::V4 => TableFamily::Ip,
        RestoreFamily::V6 => TableFamily::Ip6,
    }
}

impl TablePlan {
    fn planned(&self, name: &str) -> Option<&PlannedChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// Returns one line for each chain that differs.
    fn differences(&self) -> Vec<String> {
        let label = |name: &str| format!("{} {} {name}", self.family.tool(), self.table.name());
        let mut lines = Vec::new();
        for chain in &self.chains {
            let Some(found) = self.found.chain(chain.name) else {
                lines.push(format!("{}: is missing", label(chain.name)));
                continue;
            };
            let found: Vec<_> = found.own_rules().collect();
            let wrong =
                (0..found.len().max(chain.rules.len())).find(|&at| match (found.get(at), chain.rules.get(at)) {
                    (Some(found), Some(planned)) => !found.is_equivalent_to(planned.expressions.as_bytes()),
                    _ => true,
                });
            lines.extend(wrong.map(|at| format!("{}: rule {} differs", label(chain.name), at + 1)));
        }
        for found in self.found.chains.iter().filter(|found| self.planned(&found.name).is_none()) {
            if found.is_ours() {
                lines.push(format!("{}: is stale", label(&found.name)));
            } else if found.own_rules().next().is_some() {
                lines.push(format!("{}: rule 1 differs", label(&found.name)));
            }
        }
        lines
    }
}

/// A transaction, with the subject of each message.
struct Transaction {
    bytes: Vec<u8>,
    origins: Vec<String>,
}

impl Transaction {
    /// Builds the transaction that turns the tables into the planned ones.
    fn new(generation: u32, plans: &[TablePlan]) -> Self {
        let mut transaction = Self { bytes: Vec::with_capacity(16 * 1024), origins: Vec::new() };
        transaction.control(
            "the transaction",
            ControlMessage::Other {
                message_type: BATCH_BEGIN,
                attributes: vec![DefaultNla::new(BATCH_GENID, generation.to_be_bytes().to_vec())],
            },
            0,
        );
        for plan in plans {
            transaction.push_removals(plan);
        }
        for plan in plans.iter().filter(|plan| !plan.chains.is_empty()) {
            transaction.push_additions(plan);
        }
        transaction.control("the end of the transaction", ControlMessage::BatchEnd, NLM_F_ACK);
        transaction
    }

    /// Removes our rules, which may jump to our chains, then the chains that are not planned.
    fn push_removals(&mut self, plan: &TablePlan) {
        let table = || RuleAttribute::Table(plan.table.name().to_owned());
        for chain in &plan.found.chains {
            let of_chain = || RuleAttribute::Chain(chain.name.clone());
            if chain.is_ours() && !chain.rules.is_empty() {
                let message = RuleMessage { attributes: vec![table(), of_chain()] };
                self.push(plan, &chain.name, NfTablesMessage::DeleteRule(message), 0);
            } else if !chain.is_ours() {
                for rule in chain.own_rules() {
                    let attributes = vec![table(), of_chain(), RuleAttribute::Handle(rule.handle)];
                    self.push(plan, &chain.name, NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0);
                }
            }
        }
        for chain in plan.found.chains.iter().filter(|chain| chain.is_ours()) {
            if plan.planned(&chain.name).is_none() {
                let attributes =
                    vec![ChainAttribute::Table(plan.table.name().to_owned()), ChainAttribute::Name(chain.name.clone())];
                self.push(plan, &chain.name, NfTablesMessage::DeleteChain(ChainMessage { attributes }), 0);
            }
        }
    }

    fn push_additions(&mut self, plan: &TablePlan) {
        let table = plan.table.name();
        let attributes = vec![TableAttribute::Name(table.to_owned())];
        self.push(plan, "", NfTablesMessage::NewTable(TableMessage { attributes }), NLM_F_CREATE);
        // Existing chains stay: their policy may be foreign.
        for chain in plan.chains.iter().filter(|chain| plan.found.chain(chain.name).is_none()) {
            let message = new_chain_in(table, chain.name, lower::hook(plan.table, chain.name).as_ref());
            self.push(plan, chain.name, NfTablesMessage::NewChain(message), NLM_F_CREATE);
        }
        for chain in &plan.chains {
            // Each is inserted at the top, so the last one first.
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
                self.push(plan, &rule.text, message, NLM_F_CREATE | flag);
            }
        }
    }

    fn push(&mut self, plan: &TablePlan, what: &str, message: NfTablesMessage, flags: u16) {
        self.origins.push(format!("{} {}: {what}", plan.family.tool(), plan.table.name()));
        let header = NetfilterHeader::new(table_family(plan.family).into(), 0, 0);
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
