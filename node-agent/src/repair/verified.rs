//! Remembers which rules an inspection has found in place, so that the next one reads them only if nf_tables has changed since.
//!
//! The generation of nf_tables counts the transactions of a network namespace, so an equal one means equal rules. It says nothing about
//! addresses, routes and legacy tables of iptables, which are read every time.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use iptables_rules::CaptureConfig;

use super::subscription::NetnsId;

/// Namespace and generation of nf_tables in which rules were found in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VerifiedAt {
    pub(super) netns: NetnsId,
    pub(super) generation: u32,
}

/// Configurations whose rules were found in place, by pod uid.
type ByUid = HashMap<String, (Arc<CaptureConfig>, VerifiedAt)>;

/// What the last inspection of each pod has found in place; clones share it.
#[derive(Debug, Clone, Default)]
pub struct VerifiedRules(Arc<Mutex<ByUid>>);

impl VerifiedRules {
    /// Returns where the rules of this configuration were found in place.
    pub(super) fn get(&self, uid: &str, config: &Arc<CaptureConfig>) -> Option<VerifiedAt> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The same value, which is kept here: nothing else has its address.
        all.get(uid).filter(|(known, _)| Arc::ptr_eq(known, config)).map(|(_, at)| *at)
    }

    /// Records the result of an inspection.
    pub(super) fn record(&self, uid: &str, config: Option<&Arc<CaptureConfig>>, found: Option<VerifiedAt>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match config.zip(found) {
            Some((config, at)) => drop(all.insert(uid.to_owned(), (Arc::clone(config), at))),
            None => drop(all.remove(uid)),
        }
    }

    /// Forgets pods with other uids.
    pub(super) fn retain(&self, uids: &HashSet<&str>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| uids.contains(uid.as_str()));
    }
}
