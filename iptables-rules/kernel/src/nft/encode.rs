//! Encodes a [`Program`] as one netlink batch, and remembers the subject of each message for errors.

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage, SetAttribute, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute, TableFlags,
    TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::attributes::{Attributes, LIST_ELEMENT};
use super::expr;
use super::program::{ChainDef, Elements, Hook, Name, Program, SetDef, TABLE, TableDef, TableFamily};
use crate::netlink::append;

/// Data types of set keys (nft's datatype.h); the kernel only stores them.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_IPV6_ADDR: u32 = 8;
const TYPE_INET_SERVICE: u32 = 13;
/// `NFNL_SUBSYS_NFTABLES`, linux/netfilter/nfnetlink.h.
pub(super) const SUBSYSTEM: u16 = 10;
/// `NFNL_BATCH_GENID`, linux/netfilter/nfnetlink.h: commit only in this generation.
pub(super) const BATCH_GENID: u16 = 1;
/// `NFNL_MSG_BATCH_BEGIN`, linux/netfilter/nfnetlink.h.
pub(super) const BATCH_BEGIN: u8 = 16;
/// `enum nft_rule_attributes`, `nft_list_attributes`, `nft_set_elem_list_attributes`, `nft_set_elem_attributes`,
/// `nft_data_attributes` and `nft_set_elem_flags`, linux/netfilter/nf_tables.h.
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const ELEMENTS: u16 = 3;
pub(super) const KEY: u16 = 1;
pub(super) const FLAGS: u16 = 3;
pub(super) const VALUE: u16 = 1;
pub(super) const INTERVAL_END: u32 = 1;
/// Elements per message: an attribute is shorter than 64 KiB, and a range of IPv6 addresses takes 64 bytes.
const ELEMENTS_PER_MESSAGE: usize = 800;
/// Prefix of the empty chain whose name carries the fingerprint of the rules.
pub(super) const FINGERPRINT_PREFIX: &str = "rules-";

/// A transaction that is ready to be sent.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The messages in wire format.
    pub(super) bytes: Vec<u8>,
    /// Subject of the message with the sequence number index + 1.
    origins: Vec<Origin>,
}

/// Subject of a message, with indices into the program; formatted only when the kernel rejects it.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Begin,
    DropTable(TableFamily),
    Flush(TableFamily),
    DropSet(TableFamily),
    DropChain(TableFamily),
    Table(usize),
    Chain(usize, usize),
    Set(usize, usize),
    Rule(usize, usize, usize),
    Fingerprint(usize),
    End,
}

/// A table of ours that exists before a transaction.
#[derive(Debug)]
pub(super) struct OwnTable {
    pub(super) table: TableDef,
    /// Name of the fingerprint chain; a table without one is not ours.
    pub(super) fingerprint: Option<String>,
}

impl Batch {
    /// Builds a transaction that creates the tables of a program, and fails if one exists. Also returns the name of the fingerprint chain,
    /// a 64-bit hash of the messages.
    ///
    /// Userdata of the table would be the obvious place for the fingerprint, but the kernel does not update it in existing tables, and has
    /// none before 5.10.
    pub(super) fn create(program: &Program) -> (Self, String) {
        let mut batch = Self::begin(None);
        for (t, table) in program.tables.iter().enumerate() {
            batch.new_table(t, table, NLM_F_CREATE | NLM_F_EXCL);
            batch.chains(t, table, |_| true);
            batch.content(t, table, None);
        }
        let fingerprint = format!("{FINGERPRINT_PREFIX}{:016x}", hash(&batch.bytes));
        batch.push_fingerprints(program, &fingerprint);
        (batch.end(), fingerprint)
    }

    /// Builds a transaction that turns the existing tables into the program. Base chains that stay are not recreated, only their rules
    /// change, so every packet meets either all old rules or all new ones.
    pub(super) fn replace(program: &Program, fingerprint: &str, existing: &[OwnTable], generation: u32) -> Self {
        let mut batch = Self::begin(Some(generation));
        // Tables that are not ours or are dormant are dropped as a whole: the kernel does not accept new base chains for a table in the
        // transaction that activates it.
        let kept = |family| {
            existing.iter().find(|old| old.table.family == family && old.fingerprint.is_some() && old.table.flags == 0)
        };
        for old in existing {
            let family = old.table.family;
            if kept(family).is_none() || program.tables.iter().all(|table| table.family != family) {
                batch.drop_table(family);
            }
        }
        for (t, table) in program.tables.iter().enumerate() {
            let family = table.family;
            let Some(OwnTable { table: old, fingerprint: old_fingerprint }) = kept(family) else {
                batch.new_table(t, table, NLM_F_CREATE | NLM_F_EXCL);
                batch.chains(t, table, |_| true);
                batch.content(t, table, None);
                continue;
            };
            batch.push(
                Origin::Flush(family),
                family,
                NfTablesMessage::DeleteRule(RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.into())] }),
                0,
            );
            for set in &old.sets {
                batch.drop_set(family, &set.name);
            }
            let stays = |chain: &ChainDef| old.chains.iter().any(|c| c.name == chain.name && c.hook == chain.hook);
            let goes = |chain: &&ChainDef| !table.chains.iter().any(|c| c.name == chain.name && c.hook == chain.hook);
            for chain in old.chains.iter().filter(goes) {
                batch.drop_chain(family, &chain.name);
            }
            if let Some(old_fingerprint) = old_fingerprint {
                batch.drop_chain(family, old_fingerprint);
            }
            batch.chains(t, table, |chain| !stays(chain));
            batch.content(t, table, None);
        }
        batch.push_fingerprints(program, fingerprint);
        batch.end()
    }

    /// Builds a transaction that only adds what `found` lacks of the program; `None` if something has to be changed or removed. Unlike a
    /// replacement it waits for no grace period of the kernel.
    pub(super) fn complete(program: &Program, found: &Program, generation: u32) -> Option<Self> {
        let mut batch = Self::begin(Some(generation));
        for (t, table) in program.tables.iter().enumerate() {
            let present =
                found.tables.iter().find(|other| other.family == table.family && other.flags == table.flags)?;
            let named = |name: &Name| table.chains.iter().find(|chain| chain.name == *name);
            let is_kept = |old: &ChainDef| {
                named(&old.name).is_some_and(|new| new.hook == old.hook && new.rules.starts_with(&old.rules))
            };
            if !present.chains.iter().all(is_kept) || !present.sets.iter().all(|set| table.sets.contains(set)) {
                return None;
            }
            batch.chains(t, table, |chain| present.chains.iter().all(|old| old.name != chain.name));
            batch.content(t, table, Some(present));
        }
        Some(batch.end())
    }

    /// Builds a transaction that removes our tables of these families.
    pub(super) fn remove(families: &[TableFamily]) -> Self {
        let mut batch = Self::begin(None);
        for &family in families {
            batch.drop_table(family);
        }
        batch.end()
    }

    /// Describes the subject of the message with this sequence number.
    pub(super) fn describe(&self, sequence: u32, program: &Program) -> String {
        let origin = self.origin(sequence);
        let table = |t: usize| program.tables.get(t);
        let name = |family: TableFamily| format!("{} {TABLE}", family.name());
        let described = origin.and_then(|origin| {
            Some(match *origin {
                Origin::Begin => "the transaction".to_owned(),
                Origin::End => "the end of the transaction".to_owned(),
                Origin::DropTable(family) => format!("the removal of table {}", name(family)),
                Origin::Flush(family) => format!("the removal of the rules of table {}", name(family)),
                Origin::DropSet(family) => format!("the removal of a set of table {}", name(family)),
                Origin::DropChain(family) => format!("the removal of a chain of table {}", name(family)),
                Origin::Table(t) => format!("table {}", name(table(t)?.family)),
                Origin::Fingerprint(t) => format!("the fingerprint of table {}", name(table(t)?.family)),
                Origin::Chain(t, c) => {
                    format!("chain {} of table {}", table(t)?.chains.get(c)?.name, name(table(t)?.family))
                }
                Origin::Set(t, s) => format!("set {} of table {}", table(t)?.sets.get(s)?.name, name(table(t)?.family)),
                Origin::Rule(t, c, r) => {
                    let chain = table(t)?.chains.get(c)?;
                    format!(
                        "rule {} of chain {} of table {} ({})",
                        r + 1,
                        chain.name,
                        name(table(t)?.family),
                        chain.rules.get(r)?
                    )
                }
            })
        });
        described.unwrap_or_else(|| format!("message {sequence}"))
    }

    /// Returns whether the message creates a table.
    pub(super) fn is_table(&self, sequence: u32) -> bool {
        matches!(self.origin(sequence), Some(Origin::Table(_)))
    }

    /// Returns whether the message removes something.
    pub(super) fn is_removal(&self, sequence: u32) -> bool {
        matches!(
            self.origin(sequence),
            Some(Origin::DropTable(_) | Origin::Flush(_) | Origin::DropSet(_) | Origin::DropChain(_))
        )
    }

    fn origin(&self, sequence: u32) -> Option<&Origin> {
        (sequence as usize).checked_sub(1).and_then(|n| self.origins.get(n))
    }

    /// Returns the sequence number of the last message.
    pub(super) fn last(&self) -> u32 {
        u32::try_from(self.origins.len()).unwrap_or(u32::MAX)
    }

    fn begin(generation: Option<u32>) -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(16 * 1024), origins: Vec::with_capacity(64) };
        let begin = generation.map_or(ControlMessage::BatchBegin, |generation| ControlMessage::Other {
            message_type: BATCH_BEGIN,
            attributes: vec![DefaultNla::new(BATCH_GENID, generation.to_be_bytes().to_vec())],
        });
        batch.push_control(Origin::Begin, begin, 0);
        batch
    }

    /// Ends the batch. Only the last message requests an acknowledgement: one per message overflows the socket (google/nftables #103).
    fn end(mut self) -> Self {
        self.push_control(Origin::End, ControlMessage::BatchEnd, NLM_F_ACK);
        self
    }

    fn new_table(&mut self, t: usize, table: &TableDef, flags: u16) {
        let attributes =
            vec![TableAttribute::Name(TABLE.into()), TableAttribute::Flags(TableFlags::from_bits_retain(table.flags))];
        self.push(Origin::Table(t), table.family, NfTablesMessage::NewTable(TableMessage { attributes }), flags);
    }

    fn chains(&mut self, t: usize, table: &TableDef, wanted: impl Fn(&ChainDef) -> bool) {
        for (c, chain) in table.chains.iter().enumerate().filter(|(_, chain)| wanted(chain)) {
            self.push(Origin::Chain(t, c), table.family, NfTablesMessage::NewChain(new_chain(chain)), NLM_F_CREATE);
        }
    }

    /// Adds the sets and rules of a table, without those of `present`: whole sets, and rules at the head of a chain.
    fn content(&mut self, t: usize, table: &TableDef, present: Option<&TableDef>) {
        let has_set = |set: &SetDef| present.is_some_and(|present| present.sets.iter().any(|s| s.name == set.name));
        let rules_of = |chain: &ChainDef| {
            let found = present.and_then(|present| present.chains.iter().find(|c| c.name == chain.name));
            found.map_or(0, |found| found.rules.len())
        };
        for (s, set) in table.sets.iter().enumerate().filter(|(_, set)| !has_set(set)) {
            let number = u32::try_from(s + 1).unwrap_or(u32::MAX);
            self.push(Origin::Set(t, s), table.family, NfTablesMessage::NewSet(new_set(set, number)), NLM_F_CREATE);
            for attributes in elements(set, number) {
                let message = NfTablesMessage::NewSetElement(SetElementMessage { attributes });
                self.push(Origin::Set(t, s), table.family, message, NLM_F_CREATE);
            }
        }
        for (c, chain) in table.chains.iter().enumerate() {
            for (r, rule) in chain.rules.iter().enumerate().skip(rules_of(chain)) {
                let attributes = vec![
                    RuleAttribute::Table(TABLE.into()),
                    RuleAttribute::Chain(chain.name.to_string()),
                    RuleAttribute::Other(expr::encode(rule).into_nested(RULE_EXPRESSIONS)),
                ];
                let message = NfTablesMessage::NewRule(RuleMessage { attributes });
                self.push(Origin::Rule(t, c, r), table.family, message, NLM_F_CREATE | NLM_F_APPEND);
            }
        }
    }

    fn push_fingerprints(&mut self, program: &Program, fingerprint: &str) {
        for (t, table) in program.tables.iter().enumerate() {
            let attributes = vec![ChainAttribute::Table(TABLE.into()), ChainAttribute::Name(fingerprint.to_owned())];
            self.push(
                Origin::Fingerprint(t),
                table.family,
                NfTablesMessage::NewChain(ChainMessage { attributes }),
                NLM_F_CREATE,
            );
        }
    }

    fn drop_table(&mut self, family: TableFamily) {
        let attributes = vec![TableAttribute::Name(TABLE.into())];
        self.push(Origin::DropTable(family), family, NfTablesMessage::DeleteTable(TableMessage { attributes }), 0);
    }

    fn drop_set(&mut self, family: TableFamily, name: &Name) {
        let attributes = vec![SetAttribute::Table(TABLE.into()), SetAttribute::Name(name.to_string())];
        self.push(Origin::DropSet(family), family, NfTablesMessage::DeleteSet(SetMessage { attributes }), 0);
    }

    fn drop_chain(&mut self, family: TableFamily, name: &str) {
        let attributes = vec![ChainAttribute::Table(TABLE.into()), ChainAttribute::Name(name.to_owned())];
        self.push(Origin::DropChain(family), family, NfTablesMessage::DeleteChain(ChainMessage { attributes }), 0);
    }

    fn push(&mut self, origin: Origin, family: TableFamily, message: NfTablesMessage, flags: u16) {
        self.push_inner(origin, NetfilterHeader::new(family.into(), 0, 0), message.into(), flags);
    }

    fn push_control(&mut self, origin: Origin, message: ControlMessage, flags: u16) {
        self.push_inner(
            origin,
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM),
            message.into(),
            flags,
        );
    }

    fn push_inner(&mut self, origin: Origin, header: NetfilterHeader, inner: NetfilterMessageInner, flags: u16) {
        self.origins.push(origin);
        let sequence = self.last();
        append(&mut self.bytes, sequence, flags, NetfilterMessage::new(header, inner));
    }
}

/// Hashes bytes. Unlike the hash of the standard library, the result is the same in every release.
fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    hash
}

impl From<TableFamily> for NetfilterProtoFamily {
    fn from(family: TableFamily) -> Self {
        match family {
            TableFamily::Inet => Self::Inet,
            TableFamily::Ip => Self::IPv4,
            TableFamily::Ip6 => Self::IPv6,
        }
    }
}

fn new_chain(chain: &ChainDef) -> ChainMessage {
    new_chain_in(TABLE, &chain.name, chain.hook.as_ref())
}

/// Builds the message that creates a chain.
pub(super) fn new_chain_in(table: &str, name: &str, hook: Option<&Hook>) -> ChainMessage {
    let mut attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(name.to_owned())];
    if let Some(hook) = hook {
        attributes.extend([
            ChainAttribute::Hook(vec![
                HookAttribute::Number(HookNumber::Inet(InetHookNumber::from(hook.number))),
                HookAttribute::Priority(hook.priority.cast_unsigned()),
            ]),
            ChainAttribute::Policy(u32::from(hook.accepts)), // NF_ACCEPT is 1, NF_DROP 0
            ChainAttribute::Type(hook.kind.to_string()),
        ]);
    }
    ChainMessage { attributes }
}

fn new_set(set: &SetDef, number: u32) -> SetMessage {
    let (key_type, key_len, flags) = match &set.elements {
        Elements::V4(_) => (TYPE_IPV4_ADDR, 4, SetFlags::Interval),
        Elements::V6(_) => (TYPE_IPV6_ADDR, 16, SetFlags::Interval),
        Elements::Ports(_) | Elements::Other(_) => (TYPE_INET_SERVICE, 2, SetFlags::empty()),
    };
    SetMessage {
        attributes: vec![
            SetAttribute::Table(TABLE.into()),
            SetAttribute::Name(set.name.to_string()),
            SetAttribute::Flags(flags),
            SetAttribute::KeyType(key_type),
            SetAttribute::KeyLen(key_len),
            SetAttribute::Id(number),
        ],
    }
}

/// Encodes the elements of a set, one list per message. A range is its first address, and the address after its last one, marked as end.
fn elements(set: &SetDef, number: u32) -> Vec<Vec<SetElementList>> {
    fn range<const N: usize>(list: &mut Attributes, first: [u8; N], after: Option<[u8; N]>) {
        element(list, &first, false);
        if let Some(after) = after {
            element(list, &after, true);
        }
    }
    let lists: Vec<Attributes> = match &set.elements {
        Elements::V4(ranges) => pieces(ranges, |list, (first, last)| {
            range(list, first.octets(), last.to_bits().checked_add(1).map(u32::to_be_bytes));
        }),
        Elements::V6(ranges) => pieces(ranges, |list, (first, last)| {
            range(list, first.octets(), last.to_bits().checked_add(1).map(u128::to_be_bytes));
        }),
        Elements::Ports(ports) => pieces(ports, |list, port| element(list, &port.to_be_bytes(), false)),
        Elements::Other(_) => Vec::new(),
    };
    lists
        .into_iter()
        .map(|list| {
            vec![
                SetElementList::Table(TABLE.into()),
                SetElementList::Set(set.name.to_string()),
                SetElementList::SetId(number),
                SetElementList::Other(list.into_nested(ELEMENTS)),
            ]
        })
        .collect()
}

fn pieces<T>(items: &[T], mut add: impl FnMut(&mut Attributes, &T)) -> Vec<Attributes> {
    items
        .chunks(ELEMENTS_PER_MESSAGE)
        .map(|chunk| {
            let mut list = Attributes::with_capacity(chunk.len() * 64);
            for item in chunk {
                add(&mut list, item);
            }
            list
        })
        .collect()
}

fn element(list: &mut Attributes, key: &[u8], ends_range: bool) {
    list.nest(LIST_ELEMENT, |element| {
        if ends_range {
            element.value(FLAGS, &INTERVAL_END.to_be_bytes());
        }
        element.nest(KEY, |data| data.value(VALUE, key));
    });
}
