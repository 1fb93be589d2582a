//! Installs, compares and removes the capture rules of a network namespace, with the addresses and routes they rely on: all of them or none.
//!
//! ```text
//! BackendOptions ─┬─ nft, visibility nft ───────▶ nft.rs                  table inet weir, native expressions
//!                 ├─ nft, visibility iptables ──▶ nft/iptables_compat.rs  tables nat, mangle and raw, as iptables-nft writes them
//!                 └─ iptables ──────────────────▶ iptables.rs             runs iptables-restore and ip6tables-restore
//! ```
//!
//! [`install_in`] and [`differences_in`] enter a namespace by its path; the other functions act on the namespace of the calling thread.

mod stores;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use iptables_rules::RuleSet;
use iptables_rules::backend::{Backend, Visibility};

pub use self::stores::RuleStore;
use crate::iptables::{self, IptablesError, IptablesVariant};
use crate::netns::{self, NetnsError};
use crate::nft::{self, NftError, iptables_compat};
use crate::outcome::ApplyOutcome;
use crate::route::{self, RouteError, RoutingOutcome};

/// Which backend writes the rules, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackendOptions {
    /// The backend.
    pub backend: Backend,
    /// Which tools see the rules of the backend `nft`. Those of the backend `iptables` are always visible to iptables.
    pub visibility: Visibility,
    /// Which programs the backend `iptables` runs; without it, those that fit the namespace.
    pub variant: Option<IptablesVariant>,
}

impl From<Backend> for BackendOptions {
    fn from(backend: Backend) -> Self {
        Self { backend, ..Self::default() }
    }
}

/// Error returned when the rules of a namespace cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The path leads to the namespace of this process, the host's. Rules there would cut off the node.
    #[error("network namespace {0} is the plugin's own")]
    OwnNetns(String),
    /// nf_tables failed.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// iptables failed.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// Neither nf_tables nor iptables works.
    #[error("{nft}; {iptables}")]
    NoBackend {
        /// Fault of nf_tables.
        nft: NftError,
        /// Fault of iptables.
        iptables: IptablesError,
    },
    /// An address or a route cannot be set or read.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A later step failed, and the rules that were added before it are still there.
    #[error("{cause}; rollback failed: {rollback}")]
    RollbackFailed {
        /// The first error.
        cause: Box<BackendError>,
        /// Fault of the removal.
        rollback: Box<BackendError>,
    },
}

impl BackendError {
    /// Returns whether the namespace holds more than is read of it (see [`crate::ReadLimits`]).
    pub fn is_over_limit(&self) -> bool {
        match self {
            Self::Nft(error) => error.is_over_limit(),
            Self::Iptables(error) => matches!(error, IptablesError::TooLarge { .. } | IptablesError::Timeout { .. }),
            Self::Route(error) => error.is_over_limit(),
            Self::RollbackFailed { cause, .. } => cause.is_over_limit(),
            Self::Netns(_) | Self::OwnNetns(_) | Self::NoBackend { .. } => false,
        }
    }
}

/// Installs the rules in the namespace at `netns`. The calling thread enters the namespace and stays there: for processes that have one
/// thread and end with the call.
///
/// # Errors
/// See [`BackendError`]; rules that this call added are removed then.
pub fn install_in(
    netns: &Path,
    rules: &RuleSet,
    options: impl Into<BackendOptions>,
) -> Result<(ApplyOutcome, RoutingOutcome), BackendError> {
    enter_foreign(netns)?;
    install(rules, options, false)
}

/// Compares the namespace at `netns` with the rules; see [`differences`]. The calling thread enters the namespace and stays there.
pub fn differences_in(
    netns: &Path,
    rules: &RuleSet,
    options: impl Into<BackendOptions>,
) -> Result<Vec<String>, BackendError> {
    enter_foreign(netns)?;
    differences(rules, options)
}

/// Installs the rules and what they rely on. Equal rules are left alone, unless `force` is set; other rules of ours are replaced.
///
/// # Errors
/// See [`BackendError`]; rules that this call added are removed then.
pub fn install(
    rules: &RuleSet,
    options: impl Into<BackendOptions>,
    force: bool,
) -> Result<(ApplyOutcome, RoutingOutcome), BackendError> {
    let options = options.into();
    all_or_nothing(
        || {
            dispatch(
                options,
                || match (options.visibility, force) {
                    (Visibility::Nft, false) => nft::apply(rules),
                    (Visibility::Nft, true) => nft::reapply(rules),
                    (Visibility::Iptables, _) => iptables_compat::apply(rules, force),
                },
                |variant| iptables::apply(rules, variant, force),
            )
        },
        || Ok(route::apply(&rules.routing)?),
        || remove(options).map(drop),
    )
}

/// Compares the rules, and the addresses and routes they rely on, with what the kernel holds: one line per difference.
pub fn differences(rules: &RuleSet, options: impl Into<BackendOptions>) -> Result<Vec<String>, BackendError> {
    differences_since(rules, options, None).map(|(lines, _)| lines)
}

/// Compares like [`differences`], without reading the rules if nf_tables still has the generation `verified`, in which a comparison with
/// equal arguments found no differing rule. Also returns the generation for the next call; `None` if the rules are not in nf_tables, whose
/// generation then says nothing about them.
pub fn differences_since(
    rules: &RuleSet,
    options: impl Into<BackendOptions>,
    verified: Option<u32>,
) -> Result<(Vec<String>, Option<u32>), BackendError> {
    let options = options.into();
    let by_nft = || {
        // First, so that a later change has a later generation.
        let generation = Some(nft::generation()?);
        let lines = match options.visibility {
            _ if verified == generation => Vec::new(),
            Visibility::Nft => nft::verify(rules)?,
            Visibility::Iptables => iptables_compat::verify(rules)?,
        };
        Ok((lines, generation))
    };
    let by_iptables = |variant| iptables::verify(rules, variant).map(|lines| (lines, None));
    let (mut lines, generation) = dispatch(options, by_nft, by_iptables)?;
    let generation = generation.filter(|_| lines.is_empty());
    let mut missing = route::verify(&rules.routing)?;
    if !missing.is_empty() && is_ipv6_disabled() {
        let mut routing = rules.routing.clone();
        routing.lo_addresses.retain(|net| net.addr().is_ipv4());
        missing = route::verify(&routing)?;
    }
    lines.extend(missing);
    Ok((lines, generation))
}

/// Removes the rules that these options write; `false` where there were none. Addresses and routes stay: they do nothing by themselves.
pub fn remove(options: impl Into<BackendOptions>) -> Result<bool, BackendError> {
    let options = options.into();
    let by_nft = || match options.visibility {
        Visibility::Nft => nft::remove(),
        Visibility::Iptables => iptables_compat::remove(),
    };
    dispatch(options, by_nft, iptables::remove)
}

/// Checks that the backend works in the namespace of the calling thread. Changes nothing.
pub fn check_available(options: impl Into<BackendOptions>) -> Result<(), BackendError> {
    let options = options.into();
    let nothing = RuleSet::default();
    let by_nft = || match options.visibility {
        Visibility::Nft => nft::verify(&nothing).map(drop),
        Visibility::Iptables => iptables_compat::check_available(),
    };
    dispatch(options, by_nft, |variant| iptables::verify(&nothing, variant).map(drop))
}

/// Returns whether `lo` takes no IPv6 address in the namespace of the calling thread, to which `/proc/sys/net` belongs.
pub fn is_ipv6_disabled() -> bool {
    match fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Ok(value) => value.trim() != "0",
        Err(error) => error.kind() == io::ErrorKind::NotFound, // a kernel without IPv6
    }
}

/// Enters the namespace at `netns`, unless the thread is in it already. Two paths are one namespace when device and inode agree
/// (`namespaces(7)`).
fn enter_foreign(netns: &Path) -> Result<(), BackendError> {
    let id = |path: &Path| -> io::Result<(u64, u64)> { fs::metadata(path).map(|meta| (meta.dev(), meta.ino())) };
    // `netns::enter` reports a path that does not exist.
    if let (Ok(theirs), Ok(ours)) = (id(netns), id(Path::new("/proc/self/ns/net")))
        && theirs == ours
    {
        return Err(BackendError::OwnNetns(netns.display().to_string()));
    }
    Ok(netns::enter(netns)?)
}

/// Calls the function of the backend; `Auto` falls back to iptables only where the kernel has no nf_tables.
fn dispatch<T>(
    options: BackendOptions,
    by_nft: impl FnOnce() -> Result<T, NftError>,
    by_iptables: impl FnOnce(Option<IptablesVariant>) -> Result<T, IptablesError>,
) -> Result<T, BackendError> {
    match options.backend {
        Backend::Nft => Ok(by_nft()?),
        Backend::Iptables => Ok(by_iptables(options.variant)?),
        Backend::Auto => match by_nft() {
            Err(nft @ NftError::Unavailable(_)) => {
                by_iptables(options.variant).map_err(|iptables| BackendError::NoBackend { nft, iptables })
            }
            result => Ok(result?),
        },
    }
}

/// Applies rules, then runs the rest; rolls back where the rest fails. Rules that were there before this call stay: a meshed pod must
/// never be without rules.
fn all_or_nothing<T>(
    apply: impl FnOnce() -> Result<ApplyOutcome, BackendError>,
    rest: impl FnOnce() -> Result<T, BackendError>,
    rollback: impl FnOnce() -> Result<(), BackendError>,
) -> Result<(ApplyOutcome, T), BackendError> {
    let applied = apply()?;
    match rest() {
        Ok(rest) => Ok((applied, rest)),
        Err(cause) if applied == ApplyOutcome::Created => match rollback() {
            Ok(()) => Err(cause),
            Err(rollback) => Err(BackendError::RollbackFailed { cause: Box::new(cause), rollback: Box::new(rollback) }),
        },
        Err(cause) => Err(cause),
    }
}

#[cfg(test)]
mod tests;
