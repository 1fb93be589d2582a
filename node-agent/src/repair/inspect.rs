//! Inspects and repairs a pod's rules in its network namespace, after checking that the namespace is the pod's.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use iptables_rules::RuleSet;
use iptables_rules::backend::Backend;
use weir_kernel::backend::{self as rules_backend, BackendError};
use weir_kernel::netns::{self, NetnsError};
use weir_kernel::{legacy, nft};

/// Network namespaces that are never changed: those of the node and of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProtectedNetns(HashSet<(u64, u64)>);

impl ProtectedNetns {
    /// Finds them. Without access to the host's process 1 only our own is known; then the check for the pod's addresses protects the node's.
    pub fn discover(host_proc: &Path) -> Self {
        let paths = [host_proc.join("1/ns/net"), PathBuf::from("/proc/self/ns/net")];
        Self(
            paths.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|meta| (meta.dev(), meta.ino())).collect(),
        )
    }
}

/// Status of the rules in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesStatus {
    /// They are in place.
    InPlace,
    /// There are none.
    Missing,
    /// They differ, one line each.
    Drifted(Vec<String>),
    /// There are only rules of another installer, in these tables.
    Foreign(Vec<String>),
}

/// Result of an inspection.
#[derive(Debug, PartialEq, Eq)]
pub enum Inspection {
    /// The path is not the pod's network namespace.
    OtherNetns,
    /// The rules have this status, and were not changed.
    Found(RulesStatus),
    /// The rules had this status, and were restored.
    Repaired(RulesStatus),
    /// The rules have this status, and cannot be restored.
    RepairFailed(RulesStatus, String),
    /// The rules cannot be read.
    Unreadable(String),
}

/// Inspects the rules in a network namespace and restores them where `may_repair` allows it; it is called inside, right before a change.
pub fn inspect_and_repair(
    path: &Path,
    protected: &ProtectedNetns,
    ips: &[IpAddr],
    (rules, backend): (&RuleSet, Backend),
    may_repair: impl Fn() -> bool + Send + Sync,
) -> Inspection {
    let Ok(namespace) = File::open(path) else { return Inspection::OtherNetns };
    if namespace.metadata().map_or(true, |meta| protected.0.contains(&(meta.dev(), meta.ino()))) {
        return Inspection::OtherNetns;
    }
    // Entered by its descriptor: the name may be bound to another namespace in the meantime.
    let held = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
    let inside = || {
        if !has_all_addresses(ips) {
            return Inspection::OtherNetns;
        }
        match rules_status(rules, backend) {
            Err(error) => Inspection::Unreadable(error.to_string()),
            Ok(status @ (RulesStatus::InPlace | RulesStatus::Foreign(_))) => Inspection::Found(status),
            Ok(status) if !may_repair() => Inspection::Found(status),
            Ok(status) => match rules_backend::install(rules, backend, false) {
                Ok(_) => Inspection::Repaired(status),
                Err(error) => Inspection::RepairFailed(status, error.to_string()),
            },
        }
    };
    match netns::run_in(&held, inside) {
        Ok(inspection) => inspection,
        Err(NetnsError::Enter { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            Inspection::Unreadable(source.to_string())
        }
        // Not a network namespace.
        Err(_) => Inspection::OtherNetns,
    }
}

/// Whether the current network namespace has all these addresses.
fn has_all_addresses(ips: &[IpAddr]) -> bool {
    let present = addresses();
    !ips.is_empty() && ips.iter().all(|ip| present.contains(ip))
}

/// Returns the addresses in the current network namespace; none where they cannot be read.
pub(super) fn addresses() -> HashSet<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return HashSet::new() };
    interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .collect()
}

fn rules_status(rules: &RuleSet, backend: Backend) -> Result<RulesStatus, BackendError> {
    let differences = rules_backend::differences(rules, backend)?;
    if differences.is_empty() {
        return Ok(RulesStatus::InPlace);
    }
    // Of the iptables backend, our rules cannot be told from foreign ones.
    let ours = backend == Backend::Iptables || nft::read_back().is_ok_and(|program| !program.tables.is_empty());
    if ours {
        return Ok(RulesStatus::Drifted(differences));
    }
    // An unreadable backend counts as having no foreign tables: then a repair fails as well.
    let others = [nft::foreign_tables().unwrap_or_default(), legacy::foreign_tables().unwrap_or_default()].concat();
    Ok(if others.is_empty() { RulesStatus::Missing } else { RulesStatus::Foreign(others) })
}
