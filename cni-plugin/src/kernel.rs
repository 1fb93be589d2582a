//! The effect: rules and addresses in the pod's network namespace, all of them or none.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ipnet::IpNet;
use iptables_rules::netns::{self, NetnsError};
use iptables_rules::nft::{self, Applied, NftError};
use iptables_rules::{RuleSet, route};

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
    /// An address or a route was refused.
    #[error(transparent)]
    Route(#[from] route::RouteError),
}

/// Makes the rules and what they rely on hold in the namespace at `path`.
///
/// # Errors
/// See [`KernelError`]; rules that this call added are gone then.
pub fn install(path: &Path, rules: &RuleSet) -> Result<Applied, KernelError> {
    refuse_own_namespace(path)?;
    netns::within(path, || {
        let applied = nft::apply(rules)?;
        if let Err(error) = route::apply(&rules.routing) {
            // Rules that were there before this call stay: a pod of the mesh is never without.
            if applied == Applied::Created {
                nft::remove()?;
            }
            return Err(error.into());
        }
        Ok(applied)
    })?
}

/// What differs between the namespace and the plan, one line each: rules, and addresses that they rely on.
///
/// # Errors
/// See [`KernelError`].
pub fn differences(path: &Path, rules: &RuleSet) -> Result<Vec<String>, KernelError> {
    refuse_own_namespace(path)?;
    netns::within(path, || {
        let mut differences = nft::verify(rules)?;
        for address in rules.routing.lo_addresses.iter().map(IpNet::addr) {
            if let Err(error) = UdpSocket::bind((address, 0)) {
                differences.push(format!("address {address} on lo: the proxy could not use it: {error}"));
            }
        }
        Ok(differences)
    })?
}

/// Whether nf_tables answers, asked in the plugin's own namespace; nothing is changed.
///
/// # Errors
/// [`NftError::Unavailable`] where it is not there, others when asking failed.
pub fn available() -> Result<(), NftError> {
    nft::verify(&RuleSet::default()).map(drop)
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
        assert!(matches!(install(own, &RuleSet::default()), Err(KernelError::OwnNamespace(_))));
        assert!(matches!(differences(own, &RuleSet::default()), Err(KernelError::OwnNamespace(_))));
    }
}
