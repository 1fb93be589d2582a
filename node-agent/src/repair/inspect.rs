//! In a pod's namespace: is it the pod's, are its rules as they should be, and if not, mend them in the same breath.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use iptables_rules::RuleSet;
use weir_kernel::namespace::{self, Backend, KernelError};
use weir_kernel::netns::{self, NetnsError};
use weir_kernel::{nft, xtables};

/// The namespaces that are never entered: the node's, and our own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forbidden(HashSet<(u64, u64)>);

impl Forbidden {
    /// Looks which ones they are. Without the permission to look at the host's first process only our own is known; then it is the pod's
    /// address alone that tells, and a node does not carry it.
    pub fn find(host_proc: &Path) -> Self {
        let paths = [host_proc.join("1/ns/net"), PathBuf::from("/proc/self/ns/net")];
        Self(
            paths.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|meta| (meta.dev(), meta.ino())).collect(),
        )
    }
}

/// How the rules are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// As they should be.
    InPlace,
    /// There are none.
    Missing,
    /// They differ, one line each.
    Drifted(Vec<String>),
    /// There are none of ours, but those of another installer, in these tables.
    Foreign(Vec<String>),
}

/// What came of a visit.
#[derive(Debug, PartialEq, Eq)]
pub enum Visit {
    /// It is not the pod's namespace, or no namespace at all.
    NotTheirs,
    /// It is, and this is how it was found.
    Seen(Condition),
    /// It was not as it should be, and now is.
    Mended(Condition),
    /// It was not as it should be, and could not be mended.
    Failed(Condition, String),
    /// It could not be looked at.
    Unreadable(String),
}

/// Visits a namespace. `mend` is asked right before anything is changed, inside: is the pod still the one that was decided about?
pub fn visit(
    path: &Path,
    forbidden: &Forbidden,
    ips: &[IpAddr],
    (rules, backend): (&RuleSet, Backend),
    mend: impl Fn() -> bool + Send + Sync,
) -> Visit {
    let Ok(namespace) = File::open(path) else { return Visit::NotTheirs };
    if namespace.metadata().map_or(true, |meta| forbidden.0.contains(&(meta.dev(), meta.ino()))) {
        return Visit::NotTheirs;
    }
    // By descriptor: what was looked at is what is entered, whoever binds another namespace to the name meanwhile.
    let held = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
    let inside = || {
        if !owns(ips) {
            return Visit::NotTheirs;
        }
        match condition(rules, backend) {
            Err(error) => Visit::Unreadable(error.to_string()),
            Ok(condition @ (Condition::InPlace | Condition::Foreign(_))) => Visit::Seen(condition),
            Ok(condition) if !mend() => Visit::Seen(condition),
            Ok(condition) => match namespace::install_here(rules, backend) {
                Ok(_) => Visit::Mended(condition),
                Err(error) => Visit::Failed(condition, error.to_string()),
            },
        }
    };
    match netns::within(&held, inside) {
        Ok(visit) => visit,
        Err(NetnsError::Enter { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            Visit::Unreadable(source.to_string())
        }
        // A name that is no namespace is nobody's.
        Err(_) => Visit::NotTheirs,
    }
}

/// Whether all these addresses are on interfaces of the calling thread's namespace.
fn owns(ips: &[IpAddr]) -> bool {
    let present = addresses();
    !ips.is_empty() && ips.iter().all(|ip| present.contains(ip))
}

/// The addresses on interfaces of the calling thread's namespace; none where they cannot be read.
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

fn condition(rules: &RuleSet, backend: Backend) -> Result<Condition, KernelError> {
    let differences = namespace::differences_here(rules, backend)?;
    if differences.is_empty() {
        return Ok(Condition::InPlace);
    }
    // With another backend than nf_tables nothing tells the two apart, and nothing has to.
    let ours = backend == Backend::Iptables || nft::read_back().is_ok_and(|program| !program.tables.is_empty());
    if ours {
        return Ok(Condition::Drifted(differences));
    }
    // Where neither can be asked there are no such tables, or nothing could be mended either.
    let others =
        [nft::tables_of_others().unwrap_or_default(), xtables::tables_of_others().unwrap_or_default()].concat();
    Ok(if others.is_empty() { Condition::Missing } else { Condition::Foreign(others) })
}
