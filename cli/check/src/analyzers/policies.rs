//! Admission policies that protect annotations about traffic capture.

use std::collections::BTreeSet;

use super::view::ClusterView;
use crate::fault;
use crate::finding::{FindingObject, Findings};

/// Names of the policies, before the suffix of their revision.
const POLICIES: [&str; 2] = ["weir-frozen-annotations", "weir-injector-annotations"];

/// Checks that policies are complete. An installation without any has switched them off.
pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    let (Some(policies), Some(bound)) = (&view.snapshot.policies, &view.snapshot.bound_policies) else { return };
    let suffix = |name| POLICIES.iter().find_map(|policy| str::strip_prefix(name, policy));
    let suffixes: BTreeSet<&str> = policies.iter().chain(bound).filter_map(|name| suffix(name)).collect();
    for name in suffixes.into_iter().flat_map(|suffix| POLICIES.map(|policy| format!("{policy}{suffix}"))) {
        let text = match (policies.contains(&name), bound.contains(&name)) {
            (true, true) => continue,
            (true, false) => "has no ValidatingAdmissionPolicyBinding, so it has no effect",
            (false, _) => "does not exist, but the rest of the policies does",
        };
        let object = FindingObject::cluster_scoped("ValidatingAdmissionPolicy", &name);
        findings.add(&fault::ADMISSION_POLICY_INCOMPLETE, object, text);
    }
}
