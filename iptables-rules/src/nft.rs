//! Backend `nft`: a [`RuleSet`] as one nf_tables transaction over netlink, in the table `inet weir` of the current namespace.
//! All functions act on the network namespace of the calling thread (see [`crate::netns`]).

use crate::RuleSet;

/// Name of our table.
pub const TABLE: &str = "weir";

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
    Unavailable(std::io::Error),
    /// The kernel refused the transaction; nothing was changed.
    #[error("nf_tables refused {what}: {source}")]
    Refused {
        /// The table, chain, set or rule that was refused.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// No error, but the proof of commit is missing.
    #[error("nf_tables did not commit the transaction")]
    NotCommitted,
    /// A socket call failed.
    #[error("netlink: {0}")]
    Socket(#[from] std::io::Error),
    /// An answer could not be understood.
    #[error("netlink: {0}")]
    Protocol(String),
    /// The rule set holds something this backend does not carry out.
    #[error("{0}")]
    Unsupported(String),
}

/// Installs the rules: nothing is sent if the same ones are in place.
///
/// # Errors
/// See [`NftError`]; in every case the kernel holds what it held before.
pub fn apply(rules: &RuleSet) -> Result<Applied, NftError> {
    let _ = rules;
    Err(NftError::NotCommitted)
}

/// Removes our table; `false` if there was none.
///
/// # Errors
/// See [`NftError`].
pub fn remove() -> Result<bool, NftError> {
    Err(NftError::NotCommitted)
}

/// Compares the kernel's rules with the expected ones: one line per difference, empty when they are equal.
///
/// # Errors
/// See [`NftError`].
pub fn verify(expected: &RuleSet) -> Result<Vec<String>, NftError> {
    let _ = expected;
    Err(NftError::NotCommitted)
}
