//! The effect: rules and addresses in the pod's network namespace, all of them or none. The process has one thread and ends with the
//! call, so that thread enters the namespace and stays.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::backend::{self, BackendError};
pub use crate::backend::{Backend, Method, Visibility};
use crate::netns::{self, NetnsError};
use crate::nft::Applied;
use crate::route::Routed;
use iptables_rules::RuleSet;

/// Why the namespace is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The path is the namespace that the plugin runs in: the host's. Rules there would cut off the node.
    #[error("network namespace {0} is the plugin's own")]
    OwnNamespace(String),
    /// Rules, addresses or routes were refused, or cannot be read.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Makes the rules and what they rely on hold in the namespace at `path`. The calling thread stays there.
///
/// # Errors
/// See [`KernelError`]; rules that this call added are gone then.
pub fn install(path: &Path, rules: &RuleSet, method: impl Into<Method>) -> Result<(Applied, Routed), KernelError> {
    refuse_own_namespace(path)?;
    netns::enter(path)?;
    install_here(rules, method)
}

/// [`install`] in the namespace of the calling thread, for callers that know where they are.
///
/// # Errors
/// As [`install`].
pub fn install_here(rules: &RuleSet, method: impl Into<Method>) -> Result<(Applied, Routed), KernelError> {
    Ok(backend::install(rules, method.into(), false)?)
}

/// What differs between the namespace and the plan, one line each: rules, and addresses that they rely on. The calling thread stays
/// in the namespace.
///
/// # Errors
/// See [`KernelError`].
pub fn differences(path: &Path, rules: &RuleSet, method: impl Into<Method>) -> Result<Vec<String>, KernelError> {
    refuse_own_namespace(path)?;
    netns::enter(path)?;
    differences_here(rules, method)
}

/// [`differences`] in the namespace of the calling thread.
///
/// # Errors
/// As [`differences`].
pub fn differences_here(rules: &RuleSet, method: impl Into<Method>) -> Result<Vec<String>, KernelError> {
    Ok(backend::differences(rules, method.into())?)
}

/// Whether the backend answers, asked in the plugin's own namespace; nothing is changed.
///
/// # Errors
/// What it said instead.
pub fn available(method: impl Into<Method>) -> Result<(), KernelError> {
    Ok(backend::available(method.into())?)
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
        assert!(matches!(install(own, &nothing, Method::default()), Err(KernelError::OwnNamespace(_))));
        assert!(matches!(differences(own, &nothing, Method::default()), Err(KernelError::OwnNamespace(_))));
    }
}
