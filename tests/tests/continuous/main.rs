//! Pods are created and deleted without a pause while the agent is installed, upgraded, killed, fought with, rebooted and uninstalled.
//! No meshed pod may be without its rules, and no other pod may notice.
//!
//! ```text
//! script.rs ── what happens to the node ──▶ node.rs (containerd, agent) ◀── what a kubelet asks ── worker.rs
//!     │                                                                                              │
//!     └── what is promised from now on ──▶ ledger.rs ◀── how each pod fared, and when ───────────────┘
//! ```
//!
//! `WEIR_CONTINUOUS_SECONDS` makes it longer: after every transition has been seen once, they go on in an order drawn from
//! `WEIR_CONTINUOUS_SEED` (printed) until the time is over.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod ledger;
mod node;
mod script;
mod worker;

use weir_tests::runtime::Release;

fn pods_without_a_pause(release: Release) {
    if !release.available_or_skip() {
        return;
    }
    let report = script::run(release);
    eprintln!("{release:?}: {report}");
    assert_eq!(report.findings, Vec::<String>::new(), "{report}");
    assert!(report.meshed > 10 && report.unmeshed > 10, "hardly any pod was created: {report}");
}

#[test]
fn no_pod_on_the_machines_containerd_is_outside_the_mesh_or_in_trouble_because_of_it() {
    pods_without_a_pause(Release::Installed);
}

#[test]
fn no_pod_on_containerd_1_7_is_outside_the_mesh_or_in_trouble_because_of_it() {
    pods_without_a_pause(Release::V1_7);
}

#[test]
fn no_pod_on_containerd_2_1_is_outside_the_mesh_or_in_trouble_because_of_it() {
    pods_without_a_pause(Release::V2_1);
}
