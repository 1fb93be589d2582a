//! Pods are created and deleted without a pause while the agent is installed, upgraded, killed and uninstalled, the node is rebooted and the
//! CNI configuration is overwritten. No meshed pod may be without its rules, and no other pod may be affected.
//!
//! ```text
//! script.rs ── transitions of the node ──▶ node.rs (containerd, agent) ◀── calls of a kubelet ── worker.rs
//!     │                                                                                             │
//!     └── what is guaranteed from now on ──▶ ledger.rs ◀── rules and failures of each pod ──────────┘
//! ```
//!
//! After every transition once, they go on in random order for `WEIR_CONTINUOUS_SECONDS` (0). `WEIR_CONTINUOUS_SEED` is the seed of that
//! order, which is printed.

mod ledger;
mod node;
mod script;
mod worker;

use weir_tests::cri_runtime::RuntimeRelease;

fn run(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let report = script::run(release);
    eprintln!("{release:?}: {report}");
    assert_eq!(report.findings, Vec::<String>::new(), "{report}");
    assert!(report.meshed > 10 && report.unmeshed > 10, "too few pods were created: {report}");
}

#[test]
fn no_bypass_or_failure_on_installed_containerd() {
    run(RuntimeRelease::Installed);
}

#[test]
fn no_bypass_or_failure_on_containerd_1_7() {
    run(RuntimeRelease::V1_7);
}

#[test]
fn no_bypass_or_failure_on_containerd_2_1() {
    run(RuntimeRelease::V2_1);
}
