//! Backend `nft`: a [`RuleSet`] as one nf_tables transaction over netlink, in the table `inet weir` of the current namespace.
//! All functions act on the network namespace of the calling thread (see [`crate::netns`]).
//!
//! ```text
//! RuleSet ──lower.rs──▶ Program ──encode.rs + expr.rs──▶ Batch ──kernel.rs──▶ nf_tables
//!            lists.rs      │ ▲                                                  │
//!             (sets)       │ └───────────── decode.rs + expr.rs ◀──────────────┘  read_back, verify (diff.rs)
//!                          └─▶ text.rs: describe
//! ```
//!
//! A fresh namespace costs one look and one transaction that only adds: a transaction that deletes anything, also one that fails, waits
//! for a grace period of the kernel, some ten milliseconds. Beside the rules it adds an empty chain whose name carries a fingerprint of
//! them. Finding that chain again is the proof of commit; an acknowledgement proves nothing, the kernel sends it for a transaction that
//! failed, too. On the next call it says that the rules were the same once. Whether they still are takes a reading of all of them: a few
//! hundred microseconds, which only a namespace that is programmed again has to pay, and without which somebody's `flush chain` would
//! pass for a captured pod.
//!
//! [`visible`] is the other way to write the same rules over netlink: as iptables-nft writes them, for eyes that know `iptables-save`.

mod attributes;
mod chains;
mod decode;
mod diff;
mod encode;
mod expr;
mod inspect;
mod kernel;
mod lists;
mod lower;
mod program;
mod text;
pub mod visible;

use std::io;

use nix::errno::Errno;

pub use self::chains::chains;
use self::encode::Batch;
pub use self::inspect::{Inspected, inspect};
use self::kernel::{Failure, Kernel};
use self::lower::{Layout, lower};
pub use self::program::{
    ChainDef, Elements, Expr, Hook, IpFamily, Name, Program, RuleDef, SetDef, TableDef, TableFamily, Test,
};
use iptables_rules::{RuleSet, names};

/// Name of our table.
pub const TABLE: &str = "weir";

/// Attempts of a transaction that somebody else's overtakes.
const ATTEMPTS: usize = 8;

/// What an application of rules did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// There were none; now they are in place.
    Created,
    /// The same rules were there already; nothing was sent.
    Unchanged,
    /// Other rules of ours were there; they were replaced in one transaction.
    Replaced,
}

/// Why nf_tables could not be programmed or read.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel has no nf_tables, or not for us.
    #[error("nf_tables is not available: {0}")]
    Unavailable(io::Error),
    /// The kernel refused the transaction; nothing was changed.
    #[error("nf_tables refused {what}: {source}")]
    Refused {
        /// The table, chain, set or rule that was refused.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No error, but the proof of commit is missing.
    #[error("nf_tables did not commit the transaction")]
    NotCommitted,
    /// Other programs kept changing nf_tables in the namespace, and overtook every attempt; nothing was changed.
    #[error("nf_tables is being changed by somebody else all the time")]
    Contended,
    /// A socket call failed.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// An answer could not be understood.
    #[error("netlink: {0}")]
    Protocol(String),
    /// The rule set holds something this backend does not carry out.
    #[error("{0}")]
    Unsupported(String),
}

impl NftError {
    fn from_io(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => Self::Unavailable(error),
            _ => Self::Socket(error),
        }
    }
}

/// Installs the rules: nothing is sent if exactly these are in place, anything else in tables called [`TABLE`] is replaced. An empty
/// rule set removes what is there.
///
/// # Errors
/// See [`NftError`]; in every case the kernel holds what it held before.
pub fn apply(rules: &RuleSet) -> Result<Applied, NftError> {
    apply_as(rules, layout(), false)
}

/// Installs the rules, also where exactly these are in place already.
///
/// # Errors
/// As [`apply`].
pub fn apply_anew(rules: &RuleSet) -> Result<Applied, NftError> {
    apply_as(rules, layout(), true)
}

/// Whether the kernel has nf_tables, and lets us use it; nothing is changed.
pub(crate) fn answers() -> bool {
    Kernel::open().and_then(|kernel| kernel.generation()).is_ok()
}

/// Removes our tables; `false` if there was none.
///
/// # Errors
/// See [`NftError`].
pub fn remove() -> Result<bool, NftError> {
    let kernel = Kernel::open()?;
    let nothing = Program::default();
    for _ in 0..ATTEMPTS {
        let found = kernel.probe(&nothing, "")?.tables;
        if found.is_empty() {
            return Ok(false);
        }
        match kernel.commit(&Batch::remove(&found), &nothing) {
            Ok(()) if kernel.probe(&nothing, "")?.tables.is_empty() => return Ok(true),
            Ok(()) => return Err(NftError::NotCommitted),
            Err(Failure::Overtaken) => {}
            Err(Failure::Error(error)) => return Err(error),
        }
    }
    Err(NftError::Contended)
}

/// Compares the kernel's rules with the expected ones: one line per difference, empty when they are equal.
///
/// # Errors
/// See [`NftError`].
pub fn verify(expected: &RuleSet) -> Result<Vec<String>, NftError> {
    let expected = lower(expected, layout())?;
    Ok(diff::differences(&expected, &read_back()?))
}

/// What the kernel holds for us, in the form in which [`program`] plans it.
///
/// # Errors
/// See [`NftError`].
pub fn read_back() -> Result<Program, NftError> {
    Kernel::open()?.read()
}

/// Tables of others that hold chains by Istio's names, as `FAMILY NAME`: what Istio's own CNI plugin or init container left, by way of
/// nf_tables. Legacy tables of iptables: [`crate::xtables::tables_of_others`].
///
/// # Errors
/// See [`NftError`].
pub fn tables_of_others() -> Result<Vec<String>, NftError> {
    Kernel::open()?.tables_with(|chain| names::chain::ALL.contains(&chain))
}

/// The tables, chains, sets and rules that [`apply`] installs on this kernel.
///
/// # Errors
/// [`NftError::Unsupported`].
pub fn program(rules: &RuleSet) -> Result<Program, NftError> {
    lower(rules, layout())
}

/// The rules in the syntax of `nft -f`, as on a kernel of this decade (5.2 and newer).
///
/// # Errors
/// [`NftError::Unsupported`].
pub fn describe(rules: &RuleSet) -> Result<String, NftError> {
    Ok(lower(rules, Layout::Inet)?.to_string())
}

fn layout() -> Layout {
    nix::sys::utsname::uname().map_or(Layout::Inet, |names| Layout::of_release(&names.release().to_string_lossy()))
}

fn apply_as(rules: &RuleSet, layout: Layout, anew: bool) -> Result<Applied, NftError> {
    let program = lower(rules, layout)?;
    if program.tables.is_empty() {
        return Ok(if remove()? { Applied::Replaced } else { Applied::Unchanged });
    }
    let kernel = Kernel::open()?;
    let (create, stamp) = Batch::create(&program);
    for _ in 0..ATTEMPTS {
        let found = kernel.probe(&program, &stamp)?;
        // What somebody changes while it is read is not the same; should it be his last word, the next look says so.
        if !anew && found.same && kernel.read().is_ok_and(|held| held == program) {
            return Ok(Applied::Unchanged);
        }
        let (sent, applied) = if found.tables.is_empty() {
            (kernel.commit(&create, &program), Applied::Created)
        } else {
            // First the number, then the look: whatever changes in between makes the kernel refuse the transaction.
            let generation = kernel.generation()?;
            let existing = kernel.existing()?;
            (kernel.commit(&Batch::replace(&program, &stamp, &existing, generation), &program), Applied::Replaced)
        };
        match sent {
            Ok(()) if kernel.probe(&program, &stamp)?.same => return Ok(applied),
            Ok(()) => return Err(NftError::NotCommitted),
            Err(Failure::Overtaken) => {}
            Err(Failure::Error(error)) => return Err(error),
        }
    }
    Err(NftError::Contended)
}

/// Reads bytes as the kernel's answer to a listing of elements, for sets of every kind.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(answer: &[u8]) {
    let _ = crate::netlink::messages(answer, |_, message| {
        let Some(listed) = crate::netlink::object(message)? else { return Ok(()) };
        for elements in [Elements::V4(Vec::new()), Elements::V6(Vec::new()), Elements::Ports(Vec::new())] {
            let mut set = SetDef { name: "set".into(), elements };
            decode::fill(&mut set, decode::keys(&listed).into_iter());
            assert!(!set.to_string().is_empty());
        }
        Ok(())
    });
}

/// The messages of the transaction that installs some rules.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_messages(rules: &RuleSet) -> Result<Vec<u8>, NftError> {
    Ok(Batch::create(&lower(rules, Layout::Inet)?).0.bytes)
}

#[cfg(test)]
mod tests;
