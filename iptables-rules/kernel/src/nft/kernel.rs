//! What the kernel is asked and told about our tables.

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
use super::encode::{Batch, Existing, STAMP_PREFIX};
use super::program::{ChainDef, Program, RuleDef, SetDef, TableDef, TableFamily};
use super::{NftError, TABLE};
use crate::netlink::{Answer, DUMPS_AT_MOST, Dumped, Netlink, append};

/// The nf_tables of one network namespace.
pub(super) struct Kernel {
    netlink: Netlink,
}

/// Which tables of ours there are, and whether they carry the fingerprint asked for.
#[derive(Debug)]
pub(super) struct Probe {
    /// Families in which there is a table called [`TABLE`].
    pub(super) tables: Vec<TableFamily>,
    /// Whether every table of the program carries the fingerprint, and no other table is there.
    pub(super) same: bool,
}

/// Why a transaction was not committed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Somebody else committed since we looked.
    Overtaken,
    /// Anything else.
    Error(NftError),
}

impl Kernel {
    pub(super) fn open() -> Result<Self, NftError> {
        match Netlink::open(NETLINK_NETFILTER) {
            Ok(netlink) => Ok(Self { netlink }),
            Err(error) => Err(NftError::from_io(error)),
        }
    }

    /// Looks for our tables, and for the fingerprint in those of the program; one round trip.
    pub(super) fn probe(&self, program: &Program, stamp: &str) -> Result<Probe, NftError> {
        let mut bytes = Vec::with_capacity(256);
        for (n, family) in (1..).zip(TableFamily::ALL) {
            let attributes = vec![TableAttribute::Name(TABLE.into())];
            append(&mut bytes, n, 0, message(family, NfTablesMessage::GetTable(TableMessage { attributes })));
        }
        for (n, table) in (4..).zip(&program.tables) {
            let attributes = vec![ChainAttribute::Table(TABLE.into()), ChainAttribute::Name(stamp.to_owned())];
            append(&mut bytes, n, 0, message(table.family, NfTablesMessage::GetChain(ChainMessage { attributes })));
        }
        let mut tables = Vec::new();
        let mut stamped = Vec::new();
        let answers = self.netlink.exchange(&bytes, |answer: NetfilterMessage| {
            let family = family_of(answer.header.family)?;
            match answer.inner {
                NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(_)) => tables.push(family),
                NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(_)) => stamped.push(family),
                _ => {}
            }
            None::<()>
        })?;
        for answer in answers {
            let Answer::Verdict { sequence, errno: Some(errno) } = answer else { continue };
            // A family that the program does not use may be missing from the kernel.
            let used = sequence > 3
                || TableFamily::ALL
                    .get(sequence as usize - 1)
                    .is_some_and(|f| program.tables.iter().any(|t| t.family == *f));
            if errno == Errno::EPERM || (errno != Errno::ENOENT && used) {
                return Err(NftError::Unavailable(errno.into()));
            }
        }
        let same =
            tables.len() == program.tables.len() && program.tables.iter().all(|table| stamped.contains(&table.family));
        Ok(Probe { tables, same })
    }

    /// Sends a transaction. Success means: nothing was refused; see [`Self::probe`] for the proof.
    pub(super) fn commit(&self, batch: &Batch, program: &Program) -> Result<(), Failure> {
        match self.transact(&batch.bytes).map_err(|e| Failure::Error(NftError::from_io(e)))? {
            None => Ok(()),
            Some((_, Errno::ERESTART | Errno::EINTR | Errno::EAGAIN)) => Err(Failure::Overtaken),
            Some((sequence, Errno::EEXIST)) if batch.is_table(sequence) => Err(Failure::Overtaken),
            Some((sequence, Errno::ENOENT)) if batch.is_removal(sequence) => Err(Failure::Overtaken),
            // The first message carries the verdict on the transaction as a whole.
            Some((1, errno)) => Err(Failure::Error(NftError::Unavailable(errno.into()))),
            Some((sequence, errno)) => {
                Err(Failure::Error(NftError::Refused { what: batch.describe(sequence, program), source: errno.into() }))
            }
        }
    }

    /// Sends messages; the first that is refused, by its sequence number.
    pub(super) fn transact(&self, messages: &[u8]) -> io::Result<Option<(u32, Errno)>> {
        let answers = self.netlink.exchange(messages, |_: RawMessage| None::<()>)?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            Answer::Verdict { sequence, errno: Some(errno) } => Some((sequence, errno)),
            _ => None,
        }))
    }

    /// Number of the last transaction that was committed in this namespace.
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
            Some(refused @ Answer::Verdict { errno: Some(_), .. }) => Err(NftError::Unavailable(verdict(refused))),
            _ => id.ok_or_else(|| NftError::Protocol("no generation number".to_owned())),
        }
    }

    /// Our tables with their chains and sets, without rules and elements.
    pub(super) fn existing(&self) -> Result<Vec<Existing>, NftError> {
        self.each_table(|family, flags| {
            let (chains, stamp) = self.chains(family)?;
            let sets = self.sets(family)?;
            Ok(Existing { table: TableDef { family, flags, sets, chains }, stamp })
        })
    }

    /// Our tables with everything in them, but for the chains that carry the fingerprints.
    pub(super) fn read(&self) -> Result<Program, NftError> {
        let tables = self.each_table(|family, flags| {
            let (mut chains, _) = self.chains(family)?;
            let mut sets = self.sets(family)?;
            for (chain, rule) in self.rules(family)? {
                match chains.iter_mut().find(|c| c.name == chain) {
                    Some(chain) => chain.rules.push(rule),
                    // A rule in a chain that carries a fingerprint, which is empty if it is ours.
                    None => chains.push(ChainDef { name: chain.into(), hook: None, rules: vec![rule] }),
                }
            }
            for set in &mut sets {
                self.elements(family, set)?;
            }
            Ok(TableDef { family, flags, sets, chains })
        })?;
        Ok(Program { tables }.in_order())
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
                    Answer::Verdict { errno: Some(Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP), .. }
                        if family == TableFamily::Inet =>
                    {
                        return Err(NftError::Unavailable(verdict(&answer)));
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

    /// The chains of a table, without the one that carries the fingerprint, and that one's name.
    fn chains(&self, family: TableFamily) -> Result<(Vec<ChainDef>, Option<String>), NftError> {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let mut chains = self.dump(family, request, |answer| match answer {
            NfTablesMessage::NewChain(chain) => decode::chain(&chain),
            _ => None,
        })?;
        let stamp = chains.iter().position(|c: &ChainDef| c.hook.is_none() && c.name.starts_with(STAMP_PREFIX));
        let stamp = stamp.map(|at| chains.remove(at).name.into_owned());
        Ok((chains, stamp))
    }

    /// Tables, but for ours, that have a chain with such a name.
    pub(super) fn tables_with(&self, named: impl Fn(&str) -> bool) -> Result<Vec<String>, NftError> {
        let mut found = Vec::new();
        for family in TableFamily::ALL {
            let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
            let name = match family {
                TableFamily::Inet => "inet",
                TableFamily::Ip => "ip",
                TableFamily::Ip6 => "ip6",
            };
            found.extend(self.dump(family, request, |answer| {
                let NfTablesMessage::NewChain(chain) = answer else { return None };
                let mut table = None;
                let mut fits = false;
                for attribute in &chain.attributes {
                    match attribute {
                        ChainAttribute::Table(name) => table = Some(name.clone()),
                        ChainAttribute::Name(name) => fits = named(name),
                        _ => {}
                    }
                }
                table.filter(|table| fits && table != TABLE).map(|table| format!("{name} {table}"))
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
        append(&mut bytes, 1, NLM_F_DUMP, message(family, request));
        for _ in 0..DUMPS_AT_MOST {
            match self.netlink.dump(&bytes, &mut decode)? {
                Dumped::Complete(items) => return Ok(items),
                Dumped::Disturbed => {}
                Dumped::Refused(errno) => return Err(NftError::Socket(errno.into())),
            }
        }
        Err(NftError::Protocol("the rules keep changing while they are read".to_owned()))
    }
}

fn message(family: TableFamily, inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family.into(), 0, 0), inner)
}

fn family_of(family: NetfilterProtoFamily) -> Option<TableFamily> {
    TableFamily::ALL.into_iter().find(|ours| NetfilterProtoFamily::from(*ours) == family)
}

fn verdict(answer: &Answer<()>) -> io::Error {
    match answer {
        Answer::Verdict { errno: Some(errno), .. } => (*errno).into(),
        _ => io::Error::other("no verdict"),
    }
}
