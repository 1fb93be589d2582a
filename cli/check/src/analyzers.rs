//! Finds what is wrong in a cluster: a function of its [`Snapshot`].
//!
//! ```text
//! Snapshot ─▶ ClusterView (revisions, their settings, all injectors) ─▶ one analyzer for each part of the cluster ─▶ findings
//! ```
//!
//! Causes are analyzed before their symptoms, and symptoms of a cause that was found are left out.

mod call_error;
mod certificates;
mod cluster;
mod failed_creates;
mod namespaces;
mod nodes;
mod outdated;
mod overlap;
mod permissions;
mod pod_health;
mod pod_security;
mod policies;
mod reachability;
mod replicas;
mod selection;
mod settings;
mod view;
mod webhook_entries;
mod workloads;

use crate::finding::{Finding, Findings};
use crate::snapshot::Snapshot;
use view::ClusterView;

/// Returns the findings of a cluster by descending severity, then by code and object.
pub fn analyze(snapshot: &Snapshot) -> Vec<Finding> {
    let view = ClusterView::new(snapshot);
    let mut findings = Findings::default();
    cluster::analyze(&view, &mut findings);
    nodes::analyze_platform(&view, &mut findings);
    overlap::analyze(&view, &mut findings);
    if snapshot.pre_install_revision.is_some() {
        namespaces::analyze(&view, &mut findings);
        permissions::analyze_user(&view, &mut findings);
        return findings.into_sorted();
    }
    view.report_settings_problems(&mut findings);
    webhook_entries::analyze(&view, &mut findings);
    policies::analyze(&view, &mut findings);
    namespaces::analyze(&view, &mut findings);
    replicas::analyze(&view, &mut findings);
    certificates::analyze(&view, &mut findings);
    reachability::analyze(&view, &mut findings);
    permissions::analyze_service_accounts(&view, &mut findings);
    nodes::analyze_agents(&view, &mut findings);
    pod_security::analyze(&view, &mut findings);
    failed_creates::analyze(&view, &mut findings);
    workloads::analyze(&view, &mut findings);
    findings.into_sorted()
}
