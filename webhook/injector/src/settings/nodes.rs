//! Which of the cluster's nodes support native sidecars, and which addresses their pods have.

use std::collections::BTreeMap;
use std::sync::Arc;

/// First Kubernetes 1.x release on which Istio makes sidecars native by default.
const FIRST_MINOR: u32 = 33;

/// Nodes by name, collected from `status.nodeInfo.kubeletVersion` (`v1.33.1`). Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Whether each node supports native sidecars.
    capable: Arc<BTreeMap<String, bool>>,
    /// Number of nodes that do not, counted once so that a pod does not cost a walk over thousands of nodes.
    too_old: usize,
    /// Whether pods get addresses of both families.
    is_dual_stack: bool,
}

impl Nodes {
    /// Returns whether a native sidecar can run on `node`, or, if that node is not known, on every node of the cluster; true for a
    /// cluster without nodes. A node whose version cannot be parsed does not support it.
    pub fn can_run_native_sidecars(&self, node: Option<&str>) -> bool {
        node.and_then(|name| self.capable.get(name)).copied().unwrap_or(self.too_old == 0)
    }

    /// Sets the networks of the pods, one item per node (`spec.podCIDRs`).
    #[must_use]
    pub fn with_pod_cidrs<S: AsRef<str>>(mut self, nodes: impl IntoIterator<Item = impl AsRef<[S]>>) -> Self {
        self.is_dual_stack = nodes.into_iter().any(|cidrs| {
            let of_family = |is_v6: bool| cidrs.as_ref().iter().any(|cidr| cidr.as_ref().contains(':') == is_v6);
            of_family(true) && of_family(false)
        });
        self
    }

    /// Returns whether pods are known to get addresses of both families.
    pub fn is_dual_stack(&self) -> bool {
        self.is_dual_stack
    }
}

impl<N: Into<String>, V: AsRef<str>> FromIterator<(N, V)> for Nodes {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(nodes: I) -> Self {
        let capable = nodes.into_iter().map(|(name, version)| (name.into(), is_new_enough(version.as_ref())));
        let capable: BTreeMap<String, bool> = capable.collect();
        Self {
            too_old: capable.values().filter(|capable| !**capable).count(),
            capable: Arc::new(capable),
            is_dual_stack: false,
        }
    }
}

fn is_new_enough(version: &str) -> bool {
    minor(version).is_some_and(|minor| minor >= FIRST_MINOR)
}

/// Parses the minor version of `v1.33.0-eks-1a2b`, or of `1.33+` as some distributions write it.
fn minor(version: &str) -> Option<u32> {
    let (major, rest) = version.strip_prefix('v').unwrap_or(version).split_once('.')?;
    major.parse::<u32>().ok()?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(versions: &[&str]) -> Nodes {
        versions.iter().enumerate().map(|(number, version)| (format!("node-{number}"), *version)).collect()
    }

    #[test]
    fn every_node_must_be_capable_if_the_pod_has_no_node_name() {
        assert!(nodes(&["v1.33.0", "v1.34.2-gke.100", "1.40+"]).can_run_native_sidecars(None));
        assert!(!nodes(&["v1.33.0", "v1.28.0"]).can_run_native_sidecars(None));
        assert!(!nodes(&["v1.33.0", "v1.32.9"]).can_run_native_sidecars(Some("unknown")));
        assert!(nodes(&[]).can_run_native_sidecars(None));
    }

    #[test]
    fn a_known_node_decides_alone() {
        let nodes = nodes(&["v1.33.0", "v1.28.0"]);
        assert!(nodes.can_run_native_sidecars(Some("node-0")));
        assert!(!nodes.can_run_native_sidecars(Some("node-1")));
    }

    #[test]
    fn networks_of_both_families_on_a_node_are_dual_stack() {
        let is_dual_stack =
            |cidrs: &[&[&str]]| nodes(&["v1.33.0"]).with_pod_cidrs(cidrs.iter().copied()).is_dual_stack();
        assert!(is_dual_stack(&[&["10.1.0.0/24"], &["10.2.0.0/24", "fd00:2::/64"]]));
        assert!(!is_dual_stack(&[&["10.1.0.0/24"], &["fd00:2::/64"], &[]]));
        assert!(!nodes(&["v1.33.0"]).is_dual_stack());
    }

    #[test]
    fn an_unparsable_version_is_too_old() {
        for version in ["", "v1", "latest", "v1.x", "v.33", "one.33"] {
            assert!(!nodes(&["v1.33.0", version]).can_run_native_sidecars(None), "{version:?}");
        }
    }
}
