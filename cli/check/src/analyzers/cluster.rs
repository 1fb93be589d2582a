//! The cluster as a whole: what could not be read, version, control plane.

use weir_injector::settings::Release;

use super::view::ClusterView;
use crate::fault;
use crate::finding::{FindingObject, Findings};

/// Oldest minor version of Kubernetes 1 that the manifests support.
const OLDEST_MINOR: u32 = 29;

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
    let deployments = snapshot.istio_deployments.iter().flatten();
    let deployments: Vec<_> = deployments.filter(|item| is_istiod(&item.metadata.name)).collect();
    // Without any, the control plane is elsewhere, behind the Service.
    if let Some(first) = deployments.first()
        && !deployments.iter().any(|deployment| deployment.has_ready_replica())
    {
        let object = FindingObject::new("Deployment", &first.metadata.namespace, &first.metadata.name);
        findings.add(&fault::CONTROL_PLANE_MISSING, object, "has no ready replica");
    }
    for deployment in deployments {
        let mut images = deployment.spec.template.spec.containers.iter().map(|container| container.image.as_str());
        let unsupported = |image| Some((image, Release::of_image(image)?.unsupported_reason()?));
        if let Some((image, reason)) = images.find_map(unsupported) {
            let object = FindingObject::new("Deployment", &deployment.metadata.namespace, &deployment.metadata.name);
            findings.add(&fault::CONTROL_PLANE_UNSUPPORTED, object, format!("the release of image {image} {reason}"));
        }
    }
}

/// Returns the minor number of a version such as `v1.33.0-eks-1a2b`.
pub(super) fn minor_version(version: &str) -> Option<u32> {
    let (_, rest) = version.trim_start_matches('v').split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_version_is_that_of_the_manifests() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/");
        let contains = |file: &str, text: String| {
            let content = std::fs::read_to_string(format!("{root}{file}")).unwrap();
            assert!(content.contains(&text), "{file}: {text}");
        };
        contains("README.md", format!("Kubernetes 1.{OLDEST_MINOR} or later"));
        contains("validate.sh", format!("versions=(1.{OLDEST_MINOR} "));
        let oldest = format!("is older than 1.{OLDEST_MINOR},");
        assert!(fault::KUBERNETES_TOO_OLD.meaning.contains(&oldest), "{}", fault::KUBERNETES_TOO_OLD.meaning);
    }
}
