//! A look at a namespace that may be anybody's. Nothing is changed.

use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableMessage};

use super::encode::Batch;
use super::kernel::Kernel;
use super::program::{Program, TableFamily};
use super::{NftError, TABLE, program};
use iptables_rules::RuleSet;

/// What nf_tables holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspected {
    /// Our tables.
    pub program: Program,
    /// The fingerprint they carry.
    pub stamp: Option<String>,
    /// Other tables.
    pub others: Vec<(TableFamily, String)>,
}

/// Reads everything.
///
/// # Errors
/// See [`NftError`].
pub fn inspect() -> Result<Inspected, NftError> {
    let kernel = Kernel::open()?;
    let program = kernel.read()?;
    let stamp = kernel.existing()?.into_iter().find_map(|table| table.stamp);
    let mut others = Vec::new();
    for family in TableFamily::ALL {
        let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
        let names = kernel.dump(family, request, |answer| match answer {
            NfTablesMessage::NewTable(table) => table.attributes.into_iter().find_map(|attribute| match attribute {
                TableAttribute::Name(name) => Some(name),
                _ => None,
            }),
            _ => None,
        })?;
        others.extend(names.into_iter().filter(|name| name != TABLE).map(|name| (family, name)));
    }
    Ok(Inspected { program, stamp, others })
}

impl Inspected {
    /// Whether the rules are still those that were installed; `None` where no fingerprint says which they were.
    pub fn intact(&self) -> Option<bool> {
        self.stamp.as_ref().map(|stamp| Batch::create(&self.program).1 == *stamp)
    }

    /// Whether these are the rules that were installed, whatever has become of them since.
    pub fn was(&self, rules: &RuleSet) -> bool {
        let planned = program(rules).map(|program| Batch::create(&program).1);
        self.stamp.is_some() && planned.ok() == self.stamp
    }
}
