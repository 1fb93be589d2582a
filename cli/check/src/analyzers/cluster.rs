//! The cluster as a whole: what could not be read, version, control plane.

use super::view::ClusterView;
use crate::fault;
use crate::finding::{FindingObject, Findings};

/// Oldest minor version of Kubernetes 1 that the manifests support.
const OLDEST_MINOR: u32 = 25;

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    let snapshot = view.snapshot;
    for failure in &snapshot.read_failures {
        let object = FindingObject::cluster_scoped(&failure.what, "");
        findings.add(&fault::NOT_READ, object, format!("not read: {}", failure.reason));
    }
    let version = &snapshot.server_version;
    if minor_version(version).is_some_and(|minor| minor < OLDEST_MINOR) {
        let text = format!("version {version} is older than 1.{OLDEST_MINOR}");
        findings.add(&fault::KUBERNETES_TOO_OLD, FindingObject::cluster_scoped("API server", ""), text);
    }
    let is_istiod = |name: &str| name == "istiod" || name.starts_with("istiod-");
    if let Some(services) = &snapshot.istio_services
        && !services.iter().any(|service| is_istiod(&service.metadata.name))
    {
        let object = FindingObject::cluster_scoped("Namespace", &snapshot.install_namespaces.istio);
        findings.add(&fault::CONTROL_PLANE_MISSING, object, "has no Service istiod or istiod-REVISION");
    }
}

/// Returns the minor number of a version such as `v1.33.0-eks-1a2b`.
pub(super) fn minor_version(version: &str) -> Option<u32> {
    let (_, rest) = version.trim_start_matches('v').split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}
