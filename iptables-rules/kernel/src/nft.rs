//! Backend `nft`: writes a [`RuleSet`] to the table `inet weir` in one nf_tables transaction over netlink. All functions act on the
//! network namespace of the calling thread (see [`crate::netns`]).
//!
//! ```text
//! RuleSet ──lower.rs──▶ Program ──encode.rs + expr.rs──▶ Batch ──socket.rs──▶ nf_tables
//!            lists.rs      │ ▲                                                  │
//!             (sets)       │ └───────────── decode.rs + expr.rs ◀──────────────┘  read_back, verify (diff.rs)
//!                          └─▶ text.rs: to_nft_script
//! ```
//!
//! A fresh namespace costs one query and one transaction that only adds: a transaction that deletes anything, even one that fails, waits
//! for a grace period of the kernel, about ten milliseconds. So rules that were flushed are only added again. Next to the rules it adds an
//! empty chain whose name is a fingerprint of them. Finding that chain afterwards proves the commit; an acknowledgement does not, as the
//! kernel sends one for failed transactions, too. In later calls the chain shows which rules were installed. Whether they are unchanged,
//! for example after a `flush chain`, takes reading all of them: a few hundred microseconds, paid only where rules exist already.
//!
//! [`iptables_compat`] writes the same rules over netlink as iptables-nft does, so that `iptables-save` shows them.

mod attributes;
mod chains;
mod decode;
mod diff;
mod encode;
mod error;
mod expr;
mod inspect;
pub mod iptables_compat;
mod lists;
mod lower;
mod program;
mod socket;
mod text;

pub use self::chains::chains;
use self::encode::Batch;
use self::error::MAX_COMMIT_ATTEMPTS;
pub use self::error::NftError;
pub use self::inspect::{NftState, inspect};
use self::lower::{TableLayout, lower};
pub use self::program::{
    ChainDef, Elements, Expr, Hook, IpFamily, Name, Program, RuleDef, SetDef, TABLE, TableDef, TableFamily, Test,
};
use self::socket::{CommitError, NftSocket};
use crate::outcome::ApplyOutcome;
use iptables_rules::{RuleSet, names};

/// Installs the rules. Nothing is written if exactly these are in place; anything else in tables called [`TABLE`] is replaced. An empty
/// rule set removes the tables.
///
/// # Errors
/// See [`NftError`]; the kernel is unchanged then.
pub fn apply(rules: &RuleSet) -> Result<ApplyOutcome, NftError> {
    apply_as(rules, TableLayout::of_running_kernel(), false)
}

/// Installs the rules, even if exactly these are in place.
pub fn reapply(rules: &RuleSet) -> Result<ApplyOutcome, NftError> {
    apply_as(rules, TableLayout::of_running_kernel(), true)
}

/// Returns whether nf_tables can be used. Changes nothing.
pub(crate) fn is_available() -> bool {
    NftSocket::open().and_then(|socket| socket.generation()).is_ok()
}

/// Returns the generation: the number of the last committed transaction in this namespace. It grows by one with each, and wraps around.
pub fn generation() -> Result<u32, NftError> {
    NftSocket::open()?.generation()
}

/// Removes our tables; `false` if there were none.
pub fn remove() -> Result<bool, NftError> {
    let socket = NftSocket::open()?;
    let nothing = Program::default();
    for _ in 0..MAX_COMMIT_ATTEMPTS {
        let found = socket.probe(&nothing, "")?.tables;
        if found.is_empty() {
            return Ok(false);
        }
        match socket.commit(&Batch::remove(&found), &nothing) {
            Ok(()) if socket.probe(&nothing, "")?.tables.is_empty() => return Ok(true),
            Ok(()) => return Err(NftError::NotCommitted),
            Err(CommitError::Conflict) => {}
            Err(CommitError::Other(error)) => return Err(error),
        }
    }
    Err(NftError::Contended)
}

/// Compares the rules in the kernel with the expected ones: one line per difference.
pub fn verify(expected: &RuleSet) -> Result<Vec<String>, NftError> {
    let expected = lower(expected, TableLayout::of_running_kernel())?;
    Ok(diff::differences(&expected, &read_back()?))
}

/// Reads our tables from the kernel, in the form of [`program`].
pub fn read_back() -> Result<Program, NftError> {
    NftSocket::open()?.read_program()
}

/// Returns foreign tables with chains of the mesh, as `FAMILY NAME`: rules of Istio's own CNI plugin or init container in nf_tables. For
/// legacy tables see [`crate::legacy::foreign_tables`].
pub fn foreign_tables() -> Result<Vec<String>, NftError> {
    NftSocket::open()?.tables_with(|chain| names::chain::ALL.contains(&chain))
}

/// Returns the tables, chains, sets and rules that [`apply`] installs on this kernel.
pub fn program(rules: &RuleSet) -> Result<Program, NftError> {
    lower(rules, TableLayout::of_running_kernel())
}

/// Formats the rules in the syntax of `nft -f`, as on Linux 5.2 or newer.
pub fn to_nft_script(rules: &RuleSet) -> Result<String, NftError> {
    Ok(lower(rules, TableLayout::Inet)?.to_string())
}

fn apply_as(rules: &RuleSet, layout: TableLayout, force: bool) -> Result<ApplyOutcome, NftError> {
    let program = lower(rules, layout)?;
    if program.tables.is_empty() {
        return Ok(if remove()? { ApplyOutcome::Replaced } else { ApplyOutcome::Unchanged });
    }
    let socket = NftSocket::open()?;
    let (create, fingerprint) = Batch::create(&program);
    for _ in 0..MAX_COMMIT_ATTEMPTS {
        let found = socket.probe(&program, &fingerprint)?;
        // The generation first: the kernel rejects the transaction if anything changes after it. Each read has a socket of its own, with a
        // full budget.
        let (sent, applied) = if found.tables.is_empty() {
            (socket.commit(&create, &program), ApplyOutcome::Created)
        } else {
            let generation = socket.generation()?;
            // Rules that change while they are read differ; the next probe shows whether they stay so.
            // A program that is too large to be read differs, too.
            let present = if force || !found.matches { None } else { read_back().ok() };
            if present.as_ref() == Some(&program) {
                return Ok(ApplyOutcome::Unchanged);
            }
            let completion = present.and_then(|present| Batch::complete(&program, &present, generation));
            if let Some(completion) = completion {
                match socket.commit(&completion, &program) {
                    // The fingerprint was there before, so it proves nothing.
                    Ok(()) if read_back()? == program => return Ok(ApplyOutcome::Replaced),
                    Ok(()) | Err(CommitError::Conflict) => continue,
                    Err(CommitError::Other(error)) => return Err(error),
                }
            }
            let existing = NftSocket::open()?.own_tables()?;
            let replacement = Batch::replace(&program, &fingerprint, &existing, generation);
            (socket.commit(&replacement, &program), ApplyOutcome::Replaced)
        };
        match sent {
            Ok(()) if socket.probe(&program, &fingerprint)?.matches => return Ok(applied),
            Ok(()) => return Err(NftError::NotCommitted),
            Err(CommitError::Conflict) => {}
            Err(CommitError::Other(error)) => return Err(error),
        }
    }
    Err(NftError::Contended)
}

/// Decodes bytes as a listing of set elements, for every kind of set.
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

/// Returns the messages of the transaction that installs the rules.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_messages(rules: &RuleSet) -> Result<Vec<u8>, NftError> {
    Ok(Batch::create(&lower(rules, TableLayout::Inet)?).0.bytes)
}

#[cfg(test)]
mod tests;
