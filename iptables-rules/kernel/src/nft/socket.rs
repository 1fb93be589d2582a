//! Netlink socket that reads and writes nf_tables.

use std::collections::HashMap;
use std::io;

use netlink_packet_core::{NLM_F_DUMP, NetlinkDeserializable};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenAttribute, GenMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute,
    SetElementList, SetElementMessage, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::decode::{self, RawMessage};
use super::encode::{Batch, FINGERPRINT_PREFIX, OwnTable};
use super::error::NftError;
use super::program::{ChainDef, Program, RuleDef, SetDef, TABLE, TableDef, TableFamily};
use crate::netlink::{DumpResult, MAX_DUMP_ATTEMPTS, Netlink, Reply, append};

/// Socket to the nf_tables of a network namespace.
pub(super) struct NftSocket {
    netlink: Netlink,
}

/// Tables of ours, and whether they have the expected fingerprint.
#[derive(Debug)]
pub(super) struct Probe {
    /// Families that have a table called [`TABLE`].
    pub(super) tables: Vec<TableFamily>,
    /// Whether every table of the program has the fingerprint, and there is no other table.
    pub(super) matches: bool,
}

/// Reason for which a transaction was not committed.
#[derive(Debug)]
pub(super) enum CommitError {
    /// Another program has committed in the meantime.
    Conflict,
    /// Anything else.
    Other(NftError),
}

impl NftSocket {
    pub(super) fn open() -> Result<Self, NftError> {
        match Netlink::open(NETLINK_NETFILTER) {
            Ok(netlink) => Ok(Self { netlink }),
            Err(error) => Err(NftError::from_io(error)),
        }
    }

    /// Looks for our tables, and for the fingerprint in those of the program, in one round trip.
    pub(super) fn probe(&self, program: &Program, fingerprint: &str) -> Result<Probe, NftError> {
        let mut bytes = Vec::with_capacity(256);
        for (n, family) in (1..).zip(TableFamily::ALL) {
            let attributes = vec![TableAttribute::Name(TABLE.into())];
            append(&mut bytes, n, 0, message(family, NfTablesMessage::GetTable(TableMessage { attributes })));
        }
        for (n, table) in (4..).zip(&program.tables) {
            let attributes = vec![ChainAttribute::Table(TABLE.into()), ChainAttribute::Name(fingerprint.to_owned())];
            append(&mut bytes, n, 0, message(table.family, NfTablesMessage::GetChain(ChainMessage { attributes })));
        }
        let mut tables = Vec::new();
        let mut marked = Vec::new();
        let answers = self.netlink.exchange(&bytes, |answer: NetfilterMessage| {
            let family = family_of(answer.header.family)?;
            match answer.inner {
                NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(_)) => tables.push(family),
                NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(_)) => marked.push(family),
                _ => {}
            }
            None::<()>
        })?;
        for answer in answers {
            let Reply::Ack { sequence, errno: Some(errno) } = answer else { continue };
            // The kernel may lack a family that the program does not use.
            let used = sequence > 3
                || TableFamily::ALL
                    .get(sequence as usize - 1)
                    .is_some_and(|f| program.tables.iter().any(|t| t.family == *f));
            if errno == Errno::EPERM || (errno != Errno::ENOENT && used) {
                return Err(NftError::Unavailable(errno.into()));
            }
        }
        let matches =
            tables.len() == program.tables.len() && program.tables.iter().all(|table| marked.contains(&table.family));
        Ok(Probe { tables, matches })
    }

    /// Sends a transaction. Success means that nothing was rejected; [`Self::probe`] proves the commit.
    pub(super) fn commit(&self, batch: &Batch, program: &Program) -> Result<(), CommitError> {
        match self.transact(&batch.bytes).map_err(|e| CommitError::Other(NftError::from_io(e)))? {
            None => Ok(()),
            Some((_, Errno::ERESTART | Errno::EINTR | Errno::EAGAIN)) => Err(CommitError::Conflict),
            Some((sequence, Errno::EEXIST)) if batch.is_table(sequence) => Err(CommitError::Conflict),
            Some((sequence, Errno::ENOENT)) if batch.is_removal(sequence) => Err(CommitError::Conflict),
            // The acknowledgement of the first message is about the transaction as a whole.
            Some((1, errno)) => Err(CommitError::Other(NftError::Unavailable(errno.into()))),
            Some((sequence, errno)) => Err(CommitError::Other(NftError::Refused {
                what: batch.describe(sequence, program),
                source: errno.into(),
            })),
        }
    }

    /// Sends messages, and returns the sequence number and error of the first rejected one.
    pub(super) fn transact(&self, messages: &[u8]) -> io::Result<Option<(u32, Errno)>> {
        let answers = self.netlink.exchange(messages, |_: RawMessage| None::<()>)?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            Reply::Ack { sequence, errno: Some(errno) } => Some((sequence, errno)),
            _ => None,
        }))
    }

    /// Returns the generation: the number of the last committed transaction in this namespace.
    pub(super) fn generation(&self) -> Result<u32, NftError> {
        let mut bytes = Vec::with_capacity(32);
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        append(
            &mut bytes,
            1,
            0,
            NetfilterMessage::new(header, NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() })),
        );
        let mut id = None;
        let answers = self.netlink.exchange(&bytes, |answer: NetfilterMessage| {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(generation)) = answer.inner {
                id = generation.attributes.iter().find_map(|a| match a {
                    GenAttribute::Id(id) => Some(*id),
                    _ => None,
                });
            }
            None::<()>
        })?;
        match answers.first() {
            Some(rejected @ Reply::Ack { errno: Some(_), .. }) => Err(NftError::Unavailable(ack_error(rejected))),
            _ => id.ok_or_else(|| NftError::Protocol("no generation number".to_owned())),
        }
    }

    /// Reads our tables with their chains and sets, without rules and elements.
    pub(super) fn own_tables(&self) -> Result<Vec<OwnTable>, NftError> {
        self.each_table(|family, flags| {
            let (chains, fingerprint) = self.chains(family)?;
            let sets = self.sets(family)?;
            Ok(OwnTable { table: TableDef { family, flags, sets, chains }, fingerprint })
        })
    }

    /// Reads our tables completely, without the fingerprint chains.
    pub(super) fn read_program(&self) -> Result<Program, NftError> {
        let tables = self.each_table(|family, flags| {
            let (mut chains, _) = self.chains(family)?;
            let mut sets = self.sets(family)?;
            let mut indices: HashMap<String, usize> =
                chains.iter().enumerate().map(|(at, chain)| (chain.name.to_string(), at)).collect();
            for (name, rule) in self.rules(family)? {
                // A foreign rule may be in a fingerprint chain, which is empty otherwise.
                let at = *indices.entry(name).or_insert_with_key(|name| {
                    chains.push(ChainDef { name: name.clone().into(), hook: None, rules: Vec::new() });
                    chains.len() - 1
                });
                chains[at].rules.push(rule);
            }
            for set in &mut sets {
                self.elements(family, set)?;
            }
            Ok(TableDef { family, flags, sets, chains })
        })?;
        Ok(Program { tables }.sorted())
    }

    fn each_table<T>(&self, mut read: impl FnMut(TableFamily, u32) -> Result<T, NftError>) -> Result<Vec<T>, NftError> {
        let mut found = Vec::new();
        for family in TableFamily::ALL {
            let attributes = vec![TableAttribute::Name(TABLE.into())];
            let mut bytes = Vec::with_capacity(64);
            append(&mut bytes, 1, 0, message(family, NfTablesMessage::GetTable(TableMessage { attributes })));
            let mut flags = None;
            let answers = self.netlink.exchange(&bytes, |answer: NetfilterMessage| {
                if let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = answer.inner {
                    flags = Some(decode::table_flags(&table));
                }
                None::<()>
            })?;
            for answer in answers {
                match answer {
                    Reply::Ack { errno: Some(Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP), .. }
                        if family == TableFamily::Inet =>
                    {
                        return Err(NftError::Unavailable(ack_error(&answer)));
                    }
                    _ => {}
                }
            }
            if let Some(flags) = flags {
                found.push(read(family, flags)?);
            }
        }
        Ok(found)
    }

    /// Reads the chains of our table; the name of the fingerprint chain is separate.
    fn chains(&self, family: TableFamily) -> Result<(Vec<ChainDef>, Option<String>), NftError> {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let mut chains = self.dump(family, request, |answer| match answer {
            NfTablesMessage::NewChain(chain) => decode::chain(&chain),
            _ => None,
        })?;
        let fingerprint =
            chains.iter().position(|c: &ChainDef| c.hook.is_none() && c.name.starts_with(FINGERPRINT_PREFIX));
        let fingerprint = fingerprint.map(|at| chains.remove(at).name.into_owned());
        Ok((chains, fingerprint))
    }

    /// Returns foreign tables that have a chain whose name satisfies `predicate`.
    pub(super) fn tables_with(&self, predicate: impl Fn(&str) -> bool) -> Result<Vec<String>, NftError> {
        let mut found = Vec::new();
        for family in TableFamily::ALL {
            let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
            found.extend(self.dump(family, request, |answer| {
                let NfTablesMessage::NewChain(chain) = answer else { return None };
                let mut table = None;
                let mut fits = false;
                for attribute in &chain.attributes {
                    match attribute {
                        ChainAttribute::Table(name) => table = Some(name.clone()),
                        ChainAttribute::Name(name) => fits = predicate(name),
                        _ => {}
                    }
                }
                table.filter(|table| fits && table != TABLE).map(|table| format!("{} {table}", family.name()))
            })?);
        }
        found.dedup();
        Ok(found)
    }

    fn sets(&self, family: TableFamily) -> Result<Vec<SetDef>, NftError> {
        let attributes = vec![SetAttribute::Table(TABLE.into())];
        self.dump(family, NfTablesMessage::GetSet(SetMessage { attributes }), |answer| match answer {
            NfTablesMessage::NewSet(set) => decode::set(&set),
            _ => None,
        })
    }

    fn elements(&self, family: TableFamily, set: &mut SetDef) -> Result<(), NftError> {
        let attributes = vec![SetElementList::Table(TABLE.into()), SetElementList::Set(set.name.to_string())];
        let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let pieces = self.dump_as(family, request, |answer: RawMessage| Some(decode::keys(&answer)))?;
        decode::fill(set, pieces.into_iter().flatten());
        Ok(())
    }

    fn rules(&self, family: TableFamily) -> Result<Vec<(String, RuleDef)>, NftError> {
        let attributes = vec![RuleAttribute::Table(TABLE.into())];
        self.dump(family, NfTablesMessage::GetRule(RuleMessage { attributes }), |answer| match answer {
            NfTablesMessage::NewRule(rule) => decode::rule(&rule),
            _ => None,
        })
    }

    pub(super) fn dump<T>(
        &self,
        family: TableFamily,
        request: NfTablesMessage,
        mut decode: impl FnMut(NfTablesMessage) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        self.dump_as(family, request, |answer: NetfilterMessage| match answer.inner {
            NetfilterMessageInner::NfTables(inner) => decode(inner),
            _ => None,
        })
    }

    pub(super) fn dump_as<M: NetlinkDeserializable, T>(
        &self,
        family: TableFamily,
        request: NfTablesMessage,
        mut decode: impl FnMut(M) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        let mut bytes = Vec::with_capacity(128);
        let objects = match &request {
            NfTablesMessage::GetTable(_) => "tables",
            NfTablesMessage::GetChain(_) => "chains",
            NfTablesMessage::GetSet(_) => "sets",
            NfTablesMessage::GetSetElement(_) => "set elements",
            NfTablesMessage::GetRule(_) => "rules",
            _ => "objects",
        };
        append(&mut bytes, 1, NLM_F_DUMP, message(family, request));
        for _ in 0..MAX_DUMP_ATTEMPTS {
            let what = || format!("{objects} of family {}", family.name());
            match self.netlink.dump(&bytes, &mut decode).map_err(|error| NftError::from_dump(error, what))? {
                DumpResult::Complete(items) => return Ok(items),
                DumpResult::Interrupted => {}
                DumpResult::Failed(errno) => return Err(NftError::Socket(errno.into())),
            }
        }
        Err(NftError::Protocol("rules kept changing while they were read".to_owned()))
    }
}

fn message(family: TableFamily, inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family.into(), 0, 0), inner)
}

fn family_of(family: NetfilterProtoFamily) -> Option<TableFamily> {
    TableFamily::ALL.into_iter().find(|ours| NetfilterProtoFamily::from(*ours) == family)
}

fn ack_error(answer: &Reply<()>) -> io::Error {
    match answer {
        Reply::Ack { errno: Some(errno), .. } => (*errno).into(),
        _ => io::Error::other("no error"),
    }
}
