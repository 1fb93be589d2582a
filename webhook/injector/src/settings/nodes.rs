//! What is known of the cluster's nodes: whether their kubelets run native sidecars.

use std::collections::BTreeMap;
use std::sync::Arc;

/// First minor version of Kubernetes 1 on whose kubelets Istio makes sidecars native by itself.
const FIRST_MINOR: u32 = 33;

/// Nodes by name, made of the versions of their kubelets (`v1.33.1`, as in `status.nodeInfo.kubeletVersion`). Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Whether each runs native sidecars.
    capable: Arc<BTreeMap<String, bool>>,
    /// How many do not; thousands of nodes are not gone through for each pod.
    too_old: usize,
}

impl Nodes {
    /// Whether a pod gets a native sidecar: its own node decides where it names one that is known, else all nodes have to
    /// be able to run it. A cluster without nodes has none that could not.
    ///
    /// A version that cannot be read counts as too old. Only the minor number is looked at.
    pub fn run_native_sidecars(&self, node: Option<&str>) -> bool {
        node.and_then(|name| self.capable.get(name)).copied().unwrap_or(self.too_old == 0)
    }
}

impl<N: Into<String>, V: AsRef<str>> FromIterator<(N, V)> for Nodes {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(nodes: I) -> Self {
        let capable = nodes.into_iter().map(|(name, version)| (name.into(), is_new_enough(version.as_ref())));
        let capable: BTreeMap<String, bool> = capable.collect();
        Self { too_old: capable.values().filter(|capable| !**capable).count(), capable: Arc::new(capable) }
    }
}

fn is_new_enough(version: &str) -> bool {
    minor(version).is_some_and(|minor| minor >= FIRST_MINOR)
}

/// The second number of `v1.33.0-eks-1a2b`; some distributions write `1.33+`.
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
    fn all_nodes_have_to_be_able_where_the_pod_names_none() {
        assert!(nodes(&["v1.33.0", "v1.34.2-gke.100", "1.40+"]).run_native_sidecars(None));
        assert!(!nodes(&["v1.33.0", "v1.28.0"]).run_native_sidecars(None));
        assert!(!nodes(&["v1.33.0", "v1.32.9"]).run_native_sidecars(Some("unknown")));
        assert!(nodes(&[]).run_native_sidecars(None));
    }

    #[test]
    fn the_node_that_the_pod_names_decides_alone() {
        let nodes = nodes(&["v1.33.0", "v1.28.0"]);
        assert!(nodes.run_native_sidecars(Some("node-0")));
        assert!(!nodes.run_native_sidecars(Some("node-1")));
    }

    #[test]
    fn a_version_that_cannot_be_read_is_too_old() {
        for version in ["", "v1", "latest", "v1.x", "v.33", "one.33"] {
            assert!(!nodes(&["v1.33.0", version]).run_native_sidecars(None), "{version:?}");
        }
    }
}
