//! What is wrong in a cluster: a function of its [`Snapshot`].
//!
//! ```text
//! Snapshot ─▶ View (installations, their settings, who injects) ─▶ one module for each part of the cluster ─▶ Findings
//! ```
//!
//! A cause comes before its symptoms, and symptoms that it explains are left out.

mod certificates;
mod cluster;
mod entries;
mod flags;
mod hop;
mod namespaces;
mod nodes;
mod outdated;
mod overlap;
mod pod_security;
mod reach;
mod refusals;
mod replicas;
mod rights;
mod settings;
mod view;
mod workloads;

use super::finding::Findings;
use super::snapshot::Snapshot;
pub(crate) use flags::flags;
use view::View;

/// Judges a cluster.
pub(crate) fn judge(snapshot: &Snapshot) -> Findings {
    let view = View::of(snapshot);
    let mut findings = Findings::default();
    cluster::unread(&view, &mut findings);
    cluster::versions(&view, &mut findings);
    cluster::control_plane(&view, &mut findings);
    nodes::platform(&view, &mut findings);
    overlap::judge(&view, &mut findings);
    if snapshot.before.is_some() {
        namespaces::judge(&view, &mut findings);
        rights::user(&view, &mut findings);
        return findings;
    }
    settings::judge(&view, &mut findings);
    entries::judge(&view, &mut findings);
    namespaces::judge(&view, &mut findings);
    replicas::judge(&view, &mut findings);
    certificates::judge(&view, &mut findings);
    reach::judge(&view, &mut findings);
    rights::accounts(&view, &mut findings);
    nodes::agents(&view, &mut findings);
    pod_security::judge(&view, &mut findings);
    refusals::judge(&view, &mut findings);
    workloads::judge(&view, &mut findings);
    findings
}
