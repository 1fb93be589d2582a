//! Reads everything that nf_tables contains in a namespace, ours and foreign. Changes nothing.

use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableMessage};

use super::encode::Batch;
use super::error::NftError;
use super::lower::{TableLayout, lower};
use super::program::{Program, TABLE, TableFamily};
use super::socket::NftSocket;
use iptables_rules::RuleSet;

/// Content of nf_tables in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NftState {
    /// Our tables.
    pub program: Program,
    /// Fingerprint of the rules that were installed.
    pub fingerprint: Option<String>,
    /// Foreign tables.
    pub others: Vec<(TableFamily, String)>,
}

/// Reads the state of nf_tables.
pub fn inspect() -> Result<NftState, NftError> {
    let socket = NftSocket::open()?;
    let program = socket.read_program()?;
    let fingerprint = NftSocket::open()?.own_tables()?.into_iter().find_map(|table| table.fingerprint);
    let mut others = Vec::new();
    for family in TableFamily::ALL {
        let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
        let names = socket.dump(family, request, |answer| match answer {
            NfTablesMessage::NewTable(table) => table.attributes.into_iter().find_map(|attribute| match attribute {
                TableAttribute::Name(name) => Some(name),
                _ => None,
            }),
            _ => None,
        })?;
        others.extend(names.into_iter().filter(|name| name != TABLE).map(|name| (family, name)));
    }
    Ok(NftState { program, fingerprint, others })
}

impl NftState {
    /// Returns whether the rules are those that were installed; `None` without a fingerprint.
    pub fn is_intact(&self) -> Option<bool> {
        self.fingerprint.as_ref().map(|fingerprint| Batch::create(&self.program).1 == *fingerprint)
    }

    /// Returns whether these rules were installed, whether or not they have been changed since.
    pub fn was_installed_from(&self, rules: &RuleSet) -> bool {
        let planned = lower(rules, TableLayout::of_running_kernel()).map(|program| Batch::create(&program).1);
        self.fingerprint.is_some() && planned.ok() == self.fingerprint
    }
}
