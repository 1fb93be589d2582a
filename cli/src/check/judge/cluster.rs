//! The cluster as a whole.

use super::view::View;
use crate::check::fault;
use crate::check::finding::{Findings, Object};

/// Oldest minor version of Kubernetes 1 that has all that the manifests use.
const OLDEST: u32 = 25;

pub(super) fn unread(view: &View<'_>, findings: &mut Findings) {
    for unread in &view.snapshot.unread {
        let text = format!("not read: {}", unread.why);
        findings.add(&fault::NOT_READ, Object::global(&unread.what, ""), text);
    }
}

pub(super) fn versions(view: &View<'_>, findings: &mut Findings) {
    let version = view.snapshot.version["gitVersion"].as_str().unwrap_or_default();
    if minor(version).is_some_and(|minor| minor < OLDEST) {
        let text = format!("it is of version {version}; 1.{OLDEST} is the oldest one that works");
        findings.add(&fault::KUBERNETES_TOO_OLD, Object::global("API server", ""), text);
    }
}

/// The second number of `v1.33.0-eks-1a2b`.
pub(super) fn minor(version: &str) -> Option<u32> {
    let (_, rest) = version.trim_start_matches('v').split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

pub(super) fn control_plane(view: &View<'_>, findings: &mut Findings) {
    let namespace = &view.snapshot.places.istio;
    let Some(services) = &view.snapshot.istio_services else { return };
    let is_istiod = |name: &str| name == "istiod" || name.starts_with("istiod-");
    if !services.iter().any(|service| service["metadata"]["name"].as_str().is_some_and(is_istiod)) {
        let text = "it has no Service istiod or istiod-REVISION";
        findings.add(&fault::CONTROL_PLANE_MISSING, Object::global("Namespace", namespace), text);
    }
}
