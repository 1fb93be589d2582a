//! Inspects and repairs a pod's rules in its network namespace, after checking that the namespace is the pod's.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iptables_rules::RuleSet;
use iptables_rules::backend::Backend;
use iptables_rules::limits::MAX_RULES;
use nix::fcntl::OFlag;
use weir_kernel::backend::{self as rules_backend, BackendError};
use weir_kernel::connections::ConnectionMonitor;
use weir_kernel::netns::{self, NetnsError};
use weir_kernel::nft::{self, NftError, NftState};
use weir_kernel::{ReadLimits, legacy, route};

use super::subscription::{NetnsId, Subscription};
use super::verified::VerifiedAt;

/// Limits of reading one network namespace: the rules of the largest accepted pod, and some more. Several are read at the same time, and
/// together they have to fit into the agent's memory.
pub(crate) const READ_LIMITS: ReadLimits =
    ReadLimits { objects: MAX_RULES + (MAX_RULES >> 1), bytes: 12 << 20, time: Duration::from_secs(3) };

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

    /// Returns whether an open namespace is one of them.
    ///
    /// # Errors
    /// Its identity cannot be read.
    pub fn contains(&self, namespace: &File) -> io::Result<bool> {
        namespace.metadata().map(|meta| self.0.contains(&(meta.dev(), meta.ino())))
    }
}

/// The rules that a pod should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedRules {
    /// The rules; `None` where neither the annotations nor an earlier inspection tell them.
    pub rules: Option<RuleSet>,
    /// Whether the pod was started with these rules for sure. Otherwise intact rules of ours count more.
    pub is_known: bool,
    /// Backend of the plugin.
    pub backend: Backend,
    /// Where and when an inspection has found these rules in place.
    pub(crate) verified: Option<VerifiedAt>,
}

/// Status of the rules in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesStatus {
    /// They are in place.
    InPlace,
    /// Other rules of ours are in place, as they were installed.
    OtherInPlace,
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
    /// The network namespace holds more than is read.
    OverLimit(String),
}

/// Result of an inspection, and what the next one builds on.
#[derive(Debug)]
pub struct Visited {
    /// Result of the inspection.
    pub inspection: Inspection,
    /// The network namespace, if it is the pod's.
    pub(super) netns: Option<NetnsId>,
    /// Subscription to its changes, where one was wanted.
    pub(super) subscription: Option<io::Result<Subscription>>,
    /// Generation of nf_tables up to which the inspection has seen every transaction.
    pub(super) generation: Option<u32>,
    /// Where and when the rules were found in place, if nf_tables tells the next inspection whether they changed since.
    pub(super) verified: Option<VerifiedAt>,
}

impl From<Inspection> for Visited {
    fn from(inspection: Inspection) -> Self {
        Self { inspection, netns: None, subscription: None, generation: None, verified: None }
    }
}

/// Inspects the rules in a network namespace and restores them where `may_repair` allows it; it is called inside, right before a change.
/// `is_monitor_wanted` tells whether to subscribe to changes of the namespace. The calling thread enters the namespace and stays there: for
/// threads that end with the visit.
pub fn inspect_and_repair(
    path: &Path,
    protected: &ProtectedNetns,
    ips: &[IpAddr],
    expected: &ExpectedRules,
    may_repair: impl Fn() -> bool,
    is_monitor_wanted: impl Fn(NetnsId) -> bool,
) -> Visited {
    let Some((namespace, id)) = open_unprotected(path, protected) else { return Inspection::OtherNetns.into() };
    let inspect = || {
        match has_all_addresses(ips) {
            Ok(true) => {}
            Ok(false) => return Inspection::OtherNetns.into(),
            Err(error) => return unreadable(&error).into(),
        }
        // Before anything is read, so that no later change is missed.
        let subscription = is_monitor_wanted(id).then(Subscription::open);
        let before = nft::generation().ok();
        let verified_before = expected.verified.filter(|verified| verified.netns == id);
        let (status, generation) = rules_status(expected, verified_before.map(|verified| verified.generation))
            .map_or_else(|error| (Err(error), None), |(status, generation)| (Ok(status), generation));
        let verified = generation.map(|generation| VerifiedAt { netns: id, generation });
        let inspection = match (status, &expected.rules) {
            (Err(error), _) => unreadable(&error),
            (Ok(status), Some(rules)) if is_repairable(&status) && may_repair() => {
                match rules_backend::install(rules, expected.backend, false) {
                    Ok(_) => Inspection::Repaired(status),
                    Err(error) => Inspection::RepairFailed(status, error.to_string()),
                }
            }
            (Ok(status), _) => Inspection::Found(status),
        };
        let generation = before.map(|before| seen_generation(before, &inspection));
        Visited { inspection, netns: Some(id), subscription, generation, verified }
    };
    // By its descriptor: the name may be bound to another namespace in the meantime.
    match netns::enter_opened(&namespace, path) {
        Ok(()) => READ_LIMITS.within(inspect),
        Err(NetnsError::Enter { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            Inspection::Unreadable(source.to_string()).into()
        }
        // Not a network namespace.
        Err(_) => Inspection::OtherNetns.into(),
    }
}

/// Opens a namespace that is not a protected one, and returns its identity.
fn open_unprotected(path: &Path, protected: &ProtectedNetns) -> Option<(File, NetnsId)> {
    // O_NONBLOCK: does not wait for the writer of a pipe; the path may be under the control of a pod.
    let namespace = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).ok()?;
    let id = namespace.metadata().map(|meta| (meta.dev(), meta.ino())).ok()?;
    (!protected.0.contains(&id)).then_some((namespace, id))
}

/// Subscribes to the new connections of a network namespace; `None` where it is not the one with these addresses. The calling thread stays
/// in the namespace.
///
/// # Errors
/// The namespace cannot be entered or read, or the kernel reports no connections.
pub fn open_connections(
    path: &Path,
    protected: &ProtectedNetns,
    ips: &[IpAddr],
) -> Result<Option<ConnectionMonitor>, String> {
    let Some((namespace, _)) = open_unprotected(path, protected) else { return Ok(None) };
    netns::enter_opened(&namespace, path).map_err(|error| error.to_string())?;
    if !READ_LIMITS.within(|| has_all_addresses(ips)).map_err(|error| error.to_string())? {
        return Ok(None);
    }
    ConnectionMonitor::open().map(Some).map_err(|error| format!("cannot observe connections: {error}"))
}

/// Returns the generation up to which an inspection that began at `before` has seen every transaction. If a repair is the only one since
/// then, its own is seen, too.
fn seen_generation(before: u32, inspection: &Inspection) -> u32 {
    match inspection {
        Inspection::Repaired(_) => {
            nft::generation().ok().filter(|now| *now == before.wrapping_add(1)).unwrap_or(before)
        }
        _ => before,
    }
}

const fn is_repairable(status: &RulesStatus) -> bool {
    matches!(status, RulesStatus::Missing | RulesStatus::Drifted(_))
}

fn unreadable(error: &BackendError) -> Inspection {
    if error.is_over_limit() {
        Inspection::OverLimit(error.to_string())
    } else {
        Inspection::Unreadable(error.to_string())
    }
}

/// Returns whether the current network namespace has all these addresses.
fn has_all_addresses(ips: &[IpAddr]) -> Result<bool, BackendError> {
    let present: HashSet<IpAddr> = route::addresses()?.into_iter().collect();
    Ok(!ips.is_empty() && ips.iter().all(|ip| present.contains(ip)))
}

/// Returns the addresses in the current network namespace; none where they cannot be read.
pub(super) fn addresses() -> HashSet<IpAddr> {
    READ_LIMITS.within(route::addresses).unwrap_or_default().into_iter().collect()
}

/// Returns the status of the rules in the network namespace of the calling thread, and the generation of nf_tables in which they were found
/// in place. In generation `before` they were, too.
pub(crate) fn rules_status(
    expected: &ExpectedRules,
    before: Option<u32>,
) -> Result<(RulesStatus, Option<u32>), BackendError> {
    let (differences, generation) = match &expected.rules {
        Some(rules) => rules_backend::differences_since(rules, expected.backend, before)?,
        None => (vec!["rules differ from those that were installed".to_owned()], None),
    };
    let status = if differences.is_empty() { RulesStatus::InPlace } else { unexpected_status(expected, differences)? };
    Ok((status, generation))
}

/// Returns the status of rules that are not the expected ones.
fn unexpected_status(expected: &ExpectedRules, differences: Vec<String>) -> Result<RulesStatus, BackendError> {
    // Of the iptables backend, our rules cannot be told from foreign ones.
    if expected.backend == Backend::Iptables {
        return Ok(if expected.rules.is_some() { RulesStatus::Drifted(differences) } else { RulesStatus::Missing });
    }
    let state = match nft::inspect() {
        Ok(state) => state,
        Err(NftError::Unavailable(_)) => NftState::default(),
        Err(error) => return Err(error.into()),
    };
    if !state.program.tables.is_empty() {
        let is_other = expected.rules.as_ref().is_none_or(|rules| !state.was_installed_from(rules));
        let keeps = !expected.is_known && is_other && state.is_intact() == Some(true);
        return Ok(if keeps { RulesStatus::OtherInPlace } else { RulesStatus::Drifted(differences) });
    }
    // An unreadable backend counts as having no foreign tables: then a repair fails as well.
    let others = [nft::foreign_tables().unwrap_or_default(), legacy::foreign_tables().unwrap_or_default()].concat();
    Ok(if others.is_empty() { RulesStatus::Missing } else { RulesStatus::Foreign(others) })
}
