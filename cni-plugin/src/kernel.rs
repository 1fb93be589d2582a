//! The effect: rules and addresses in the pod's network namespace, all of them or none. The process has one thread and ends with the
//! call, so that thread enters the namespace and stays.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use iptables_rules::RuleSet;
use iptables_rules::netns::{self, NetnsError};
use iptables_rules::nft::{self, Applied, NftError};
use iptables_rules::restore::apply as restore;
use iptables_rules::restore::apply::RestoreError;
use iptables_rules::route::{self, Routed};

/// How rules get into the kernel (configuration key `backend`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables, and iptables where the kernel has no nf_tables.
    #[default]
    Auto,
    /// nf_tables over netlink.
    Nft,
    /// The host's `iptables-restore` and `ip6tables-restore`.
    Iptables,
}

impl Backend {
    /// The names, in the order of the variants.
    pub const NAMES: [&str; 3] = ["auto", "nft", "iptables"];

    /// The backend of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Auto, Self::Nft, Self::Iptables].into_iter().find(|backend| backend.name() == name)
    }

    /// As it stands in the configuration.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Why the namespace is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The path is the namespace that the plugin runs in: the host's. Rules there would cut off the node.
    #[error("network namespace {0} is the plugin's own")]
    OwnNamespace(String),
    /// nf_tables refused, or is not there.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// iptables refused, or is not there.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// nf_tables is not there, and iptables did not do either.
    #[error("{nft}, and {iptables}")]
    Neither {
        /// What nf_tables said.
        nft: NftError,
        /// What iptables said.
        iptables: RestoreError,
    },
    /// An address or a route was refused.
    #[error(transparent)]
    Route(#[from] route::RouteError),
    /// A later step failed, and the rules could not be taken away again.
    #[error("{cause}; the rules that were added before it could not be removed: {undo}")]
    NotUndone {
        /// What failed first.
        cause: Box<KernelError>,
        /// Why they are still there.
        undo: Box<KernelError>,
    },
}

/// Makes the rules and what they rely on hold in the namespace at `path`. The calling thread stays there.
///
/// # Errors
/// See [`KernelError`]; rules that this call added are gone then.
pub fn install(path: &Path, rules: &RuleSet, backend: Backend) -> Result<(Applied, Routed), KernelError> {
    refuse_own_namespace(path)?;
    netns::enter(path)?;
    install_here(rules, backend)
}

/// [`install`] in the namespace of the calling thread, for callers that know where they are.
///
/// # Errors
/// As [`install`].
pub fn install_here(rules: &RuleSet, backend: Backend) -> Result<(Applied, Routed), KernelError> {
    all_or_nothing(
        || with_backend(backend, || nft::apply(rules), || restore::apply(rules)),
        || Ok(route::apply(&rules.routing)?),
        || with_backend(backend, nft::remove, restore::remove).map(drop),
    )
}

/// Applies, then does the rest; when that fails, undoes what was applied. Rules that were there before this call stay: a pod of the
/// mesh is never without.
fn all_or_nothing<T>(
    apply: impl FnOnce() -> Result<Applied, KernelError>,
    rest: impl FnOnce() -> Result<T, KernelError>,
    undo: impl FnOnce() -> Result<(), KernelError>,
) -> Result<(Applied, T), KernelError> {
    let applied = apply()?;
    match rest() {
        Ok(rest) => Ok((applied, rest)),
        Err(cause) if applied == Applied::Created => match undo() {
            Ok(()) => Err(cause),
            Err(undo) => Err(KernelError::NotUndone { cause: Box::new(cause), undo: Box::new(undo) }),
        },
        Err(cause) => Err(cause),
    }
}

/// What differs between the namespace and the plan, one line each: rules, and addresses that they rely on. The calling thread stays
/// in the namespace.
///
/// # Errors
/// See [`KernelError`].
pub fn differences(path: &Path, rules: &RuleSet, backend: Backend) -> Result<Vec<String>, KernelError> {
    refuse_own_namespace(path)?;
    netns::enter(path)?;
    differences_here(rules, backend)
}

/// [`differences`] in the namespace of the calling thread.
///
/// # Errors
/// As [`differences`].
pub fn differences_here(rules: &RuleSet, backend: Backend) -> Result<Vec<String>, KernelError> {
    let mut differences = with_backend(backend, || nft::verify(rules), || restore::verify(rules))?;
    let mut routing = rules.routing.clone();
    if ipv6_is_off() {
        routing.lo_addresses.retain(|net| net.addr().is_ipv4());
    }
    differences.extend(route::verify(&routing)?);
    Ok(differences)
}

/// Whether `lo` takes no IPv6 address in this namespace (`/proc/sys/net` is that of the reading thread); ADD then leaves IPv6 out.
fn ipv6_is_off() -> bool {
    match fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Ok(value) => value.trim() != "0",
        Err(error) => error.kind() == io::ErrorKind::NotFound, // a kernel without IPv6
    }
}

/// Whether the backend answers, asked in the plugin's own namespace; nothing is changed.
///
/// # Errors
/// What it said instead.
pub fn available(backend: Backend) -> Result<(), KernelError> {
    let nothing = RuleSet::default();
    with_backend(backend, || nft::verify(&nothing), || restore::verify(&nothing)).map(drop)
}

/// Does something by one backend; `Auto` turns to iptables only where there is no nf_tables at all.
fn with_backend<T>(
    backend: Backend,
    by_nft: impl FnOnce() -> Result<T, NftError>,
    by_iptables: impl FnOnce() -> Result<T, RestoreError>,
) -> Result<T, KernelError> {
    match backend {
        Backend::Nft => Ok(by_nft()?),
        Backend::Iptables => Ok(by_iptables()?),
        Backend::Auto => match by_nft() {
            Err(nft @ NftError::Unavailable(_)) => {
                by_iptables().map_err(|iptables| KernelError::Neither { nft, iptables })
            }
            result => Ok(result?),
        },
    }
}

/// Two paths are one namespace when device and inode agree (`namespaces(7)`). A path that does not exist is reported by who enters it.
fn refuse_own_namespace(path: &Path) -> Result<(), KernelError> {
    let id = |path: &Path| -> io::Result<(u64, u64)> { fs::metadata(path).map(|meta| (meta.dev(), meta.ino())) };
    match (id(path), id(Path::new("/proc/self/ns/net"))) {
        (Ok(theirs), Ok(ours)) if theirs == ours => Err(KernelError::OwnNamespace(path.display().to_string())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_programs_the_namespace_it_runs_in() {
        let own = Path::new("/proc/self/ns/net");
        let nothing = RuleSet::default();
        assert!(matches!(install(own, &nothing, Backend::Auto), Err(KernelError::OwnNamespace(_))));
        assert!(matches!(differences(own, &nothing, Backend::Auto), Err(KernelError::OwnNamespace(_))));
    }

    #[test]
    fn turns_to_iptables_only_where_there_is_no_nf_tables() {
        let missing = || Err(NftError::Unavailable(io::Error::other("none")));
        let refused = || Err(NftError::NotCommitted);
        assert_eq!(with_backend(Backend::Auto, missing, || Ok("iptables")).unwrap(), "iptables");
        assert_eq!(with_backend(Backend::Auto, || Ok("nft"), || Ok("iptables")).unwrap(), "nft");
        assert!(with_backend(Backend::Auto, refused, || Ok("iptables")).is_err());
        assert!(with_backend(Backend::Nft, missing, || Ok("iptables")).is_err());
        assert_eq!(with_backend(Backend::Iptables, || Ok("nft"), || Ok("iptables")).unwrap(), "iptables");
        let gone = || -> Result<&str, RestoreError> {
            Err(RestoreError::Missing { program: "iptables-save", source: io::ErrorKind::NotFound.into() })
        };
        let text = with_backend(Backend::Auto, missing, gone).unwrap_err().to_string();
        assert!(text.contains("nf_tables is not available") && text.contains("iptables-save"), "{text}");
    }

    #[test]
    fn undoes_what_it_created_and_nothing_else_when_the_rest_fails() {
        let fails = || Err::<(), _>(KernelError::Nft(NftError::NotCommitted));
        for (applied, undone) in [(Applied::Created, true), (Applied::Unchanged, false), (Applied::Replaced, false)] {
            let mut called = false;
            let undo = || {
                called = true;
                Ok(())
            };
            assert!(all_or_nothing(|| Ok(applied), fails, undo).is_err());
            assert_eq!(called, undone, "{applied:?}");
        }
        let never = || panic!("nothing failed");
        assert!(
            all_or_nothing(|| Ok(Applied::Created), || Ok(7), never).is_ok_and(|done| done == (Applied::Created, 7))
        );
    }

    #[test]
    fn tells_what_failed_first_when_the_undoing_fails_too() {
        let fails = || Err::<(), _>(KernelError::Nft(NftError::NotCommitted));
        let error = all_or_nothing(|| Ok(Applied::Created), fails, || Err(NftError::Contended.into())).unwrap_err();
        let (first, second) = (NftError::NotCommitted.to_string(), NftError::Contended.to_string());
        let text = error.to_string();
        assert!(text.starts_with(&first) && text.ends_with(&second), "{text}");
    }

    #[test]
    fn knows_its_names() {
        for name in Backend::NAMES {
            assert!(Backend::parse(name).is_some(), "{name}");
        }
        assert_eq!(Backend::parse("ipset"), None);
    }
}
