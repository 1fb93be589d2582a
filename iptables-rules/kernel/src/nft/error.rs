use std::io;

use nix::errno::Errno;

use crate::read_limits::ExceededLimit;

/// Attempts at a transaction while other programs change nf_tables.
pub(super) const MAX_COMMIT_ATTEMPTS: usize = 8;

/// Error returned when nf_tables cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel has no nf_tables, or does not allow access to it.
    #[error("nf_tables is not available: {0}")]
    Unavailable(io::Error),
    /// The kernel rejected the transaction; nothing was changed.
    #[error("nf_tables rejected {what}: {source}")]
    Refused {
        /// The rejected table, chain, set or rule.
        what: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The kernel reported no error, but the rules are not there.
    #[error("nf_tables did not commit the transaction")]
    NotCommitted,
    /// Every attempt met changes by other programs; nothing was changed.
    #[error("cannot commit to nf_tables: other programs changed it during all {MAX_COMMIT_ATTEMPTS} attempts")]
    Contended,
    /// nf_tables holds more than is read (see [`crate::ReadLimits`]).
    #[error("nf_tables is not read completely: {what}: {limit}")]
    TooLarge {
        /// Objects that were read: `rules of family inet`.
        what: String,
        /// The exceeded limit.
        limit: ExceededLimit,
    },
    /// Reading took longer than allowed (see [`crate::ReadLimits`]).
    #[error("nf_tables is not read completely: {what}: {limit}")]
    Timeout {
        /// Objects that were read.
        what: String,
        /// The exceeded limit.
        limit: ExceededLimit,
    },
    /// A socket call failed.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel sent an unexpected answer.
    #[error("netlink: {0}")]
    Protocol(String),
    /// The rule set needs something that this backend does not support.
    #[error("{0}")]
    Unsupported(String),
}

impl NftError {
    /// Returns the error for a dump that failed.
    pub(super) fn from_dump(error: io::Error, what: impl FnOnce() -> String) -> Self {
        match ExceededLimit::of(&error) {
            Some(limit @ ExceededLimit::Time(_)) => Self::Timeout { what: what(), limit },
            Some(limit) => Self::TooLarge { what: what(), limit },
            None => Self::Socket(error),
        }
    }

    /// Returns whether a limit was exceeded.
    pub const fn is_over_limit(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Timeout { .. })
    }

    pub(super) fn from_io(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => Self::Unavailable(error),
            _ => Self::Socket(error),
        }
    }
}
