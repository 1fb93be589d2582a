//! Rules, addresses and routes in the namespace of the calling thread, by whichever backend there is: all of them or none.
//!
//! ```text
//! Method ─┬─ nft       ─▶ nft.rs            table inet weir, native expressions
//!         ├─ nft, visible ▶ nft/visible.rs  tables ip and ip6 nat, mangle, raw: what iptables-nft would have written
//!         └─ iptables  ─▶ restore/apply.rs  the programs of iptables
//! ```

mod places;

use std::fs;
use std::io;

pub use self::places::Place;
pub(crate) use self::places::legacy_tables;
use crate::iptables::{self as restore, RestoreError, Variant};
use crate::nft::{self, Applied, NftError, visible};
use crate::route::{self, RouteError, Routed};
use iptables_rules::RuleSet;
pub use iptables_rules::backend::{Backend, Visibility};

/// A backend with what can be said about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Method {
    /// The backend.
    pub backend: Backend,
    /// Whose rules those of nf_tables look like. The backend `iptables` is visible by itself.
    pub visibility: Visibility,
    /// Which programs the backend `iptables` runs; without it, those that are found.
    pub variant: Option<Variant>,
}

impl From<Backend> for Method {
    fn from(backend: Backend) -> Self {
        Self { backend, ..Self::default() }
    }
}

/// Why a namespace is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
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
    Route(#[from] RouteError),
    /// A later step failed, and the rules could not be taken away again.
    #[error("{cause}; the rules that were added before it could not be removed: {undo}")]
    NotUndone {
        /// What failed first.
        cause: Box<BackendError>,
        /// Why they are still there.
        undo: Box<BackendError>,
    },
}

/// Makes the rules and what they rely on hold. Equal ones are left alone, others of ours are replaced; with `anew`, equal ones are
/// written again too.
///
/// # Errors
/// See [`BackendError`]; rules that this call added are gone then.
pub fn install(rules: &RuleSet, method: Method, anew: bool) -> Result<(Applied, Routed), BackendError> {
    all_or_nothing(
        || {
            by(
                method,
                || match (method.visibility, anew) {
                    (Visibility::Nft, false) => nft::apply(rules),
                    (Visibility::Nft, true) => nft::apply_anew(rules),
                    (Visibility::Iptables, _) => visible::apply(rules, anew),
                },
                |variant| restore::apply(rules, variant, anew),
            )
        },
        || Ok(route::apply(&rules.routing)?),
        || remove(method).map(drop),
    )
}

/// What differs between the namespace and the plan, one line each: rules, and addresses and routes that they rely on.
///
/// # Errors
/// See [`BackendError`].
pub fn differences(rules: &RuleSet, method: Method) -> Result<Vec<String>, BackendError> {
    let by_nft = || match method.visibility {
        Visibility::Nft => nft::verify(rules),
        Visibility::Iptables => visible::verify(rules),
    };
    let mut differences = by(method, by_nft, |variant| restore::verify(rules, variant))?;
    let mut routing = rules.routing.clone();
    if ipv6_is_off() {
        routing.lo_addresses.retain(|net| net.addr().is_ipv4());
    }
    differences.extend(route::verify(&routing)?);
    Ok(differences)
}

/// Removes the rules of this method; `false` where there were none. Addresses and routes stay: they do nothing by themselves.
///
/// # Errors
/// See [`BackendError`].
pub fn remove(method: Method) -> Result<bool, BackendError> {
    let by_nft = || match method.visibility {
        Visibility::Nft => nft::remove(),
        Visibility::Iptables => visible::remove(),
    };
    by(method, by_nft, restore::remove)
}

/// Whether the backend answers, asked in the namespace of the caller; nothing is changed.
///
/// # Errors
/// What it said instead.
pub fn available(method: Method) -> Result<(), BackendError> {
    let nothing = RuleSet::default();
    let by_nft = || match method.visibility {
        Visibility::Nft => nft::verify(&nothing).map(drop),
        Visibility::Iptables => visible::available(),
    };
    by(method, by_nft, |variant| restore::verify(&nothing, variant).map(drop))
}

/// Does something by one backend; `Auto` turns to iptables only where there is no nf_tables at all.
fn by<T>(
    method: Method,
    by_nft: impl FnOnce() -> Result<T, NftError>,
    by_iptables: impl FnOnce(Option<Variant>) -> Result<T, RestoreError>,
) -> Result<T, BackendError> {
    match method.backend {
        Backend::Nft => Ok(by_nft()?),
        Backend::Iptables => Ok(by_iptables(method.variant)?),
        Backend::Auto => match by_nft() {
            Err(nft @ NftError::Unavailable(_)) => {
                by_iptables(method.variant).map_err(|iptables| BackendError::Neither { nft, iptables })
            }
            result => Ok(result?),
        },
    }
}

/// Applies, then does the rest; when that fails, undoes what was applied. Rules that were there before this call stay: a pod of the
/// mesh is never without.
fn all_or_nothing<T>(
    apply: impl FnOnce() -> Result<Applied, BackendError>,
    rest: impl FnOnce() -> Result<T, BackendError>,
    undo: impl FnOnce() -> Result<(), BackendError>,
) -> Result<(Applied, T), BackendError> {
    let applied = apply()?;
    match rest() {
        Ok(rest) => Ok((applied, rest)),
        Err(cause) if applied == Applied::Created => match undo() {
            Ok(()) => Err(cause),
            Err(undo) => Err(BackendError::NotUndone { cause: Box::new(cause), undo: Box::new(undo) }),
        },
        Err(cause) => Err(cause),
    }
}

/// Whether `lo` takes no IPv6 address in this namespace (`/proc/sys/net` is that of the reading thread).
pub fn ipv6_is_off() -> bool {
    match fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Ok(value) => value.trim() != "0",
        Err(error) => error.kind() == io::ErrorKind::NotFound, // a kernel without IPv6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_to_iptables_only_where_there_is_no_nf_tables() {
        let missing = || Err(NftError::Unavailable(io::Error::other("none")));
        let refused = || Err(NftError::NotCommitted);
        let iptables = |_| Ok("iptables");
        let choose = |backend: Backend| Method::from(backend);
        assert_eq!(by(choose(Backend::Auto), missing, iptables).unwrap(), "iptables");
        assert_eq!(by(choose(Backend::Auto), || Ok("nft"), iptables).unwrap(), "nft");
        assert!(by(choose(Backend::Auto), refused, iptables).is_err());
        assert!(by(choose(Backend::Nft), missing, iptables).is_err());
        assert_eq!(by(choose(Backend::Iptables), || Ok("nft"), iptables).unwrap(), "iptables");
        let gone = |_| -> Result<&str, RestoreError> {
            Err(RestoreError::NoPrograms { wanted: "iptables-restore".to_owned() })
        };
        let text = by(choose(Backend::Auto), missing, gone).unwrap_err().to_string();
        assert!(text.contains("nf_tables is not available") && text.contains("iptables-restore"), "{text}");
    }

    #[test]
    fn undoes_what_it_created_and_nothing_else_when_the_rest_fails() {
        let fails = || Err::<(), _>(BackendError::Nft(NftError::NotCommitted));
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
        let fails = || Err::<(), _>(BackendError::Nft(NftError::NotCommitted));
        let error = all_or_nothing(|| Ok(Applied::Created), fails, || Err(NftError::Contended.into())).unwrap_err();
        let (first, second) = (NftError::NotCommitted.to_string(), NftError::Contended.to_string());
        let text = error.to_string();
        assert!(text.starts_with(&first) && text.ends_with(&second), "{text}");
    }

    #[test]
    fn knows_its_names() {
        assert!(Backend::NAMES.iter().all(|name| Backend::parse(name).is_some_and(|found| found.name() == *name)));
        assert!(
            Visibility::NAMES.iter().all(|name| Visibility::parse(name).is_some_and(|found| found.name() == *name))
        );
        assert_eq!(Backend::parse("ipset"), None);
    }
}
