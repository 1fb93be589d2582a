//! Sidecars that differ from what their pods would get today: the pod is injected again, which first restores its original.

use serde::Deserialize;
use serde_json::Value;
use weir_injector::settings::Settings;
use weir_injector::{InjectOutcome, InjectRequest, inject};

use super::view::ClusterView;
use crate::snapshot::object::{StringMap, parse};
use crate::snapshot::pods::INJECTED_CONTAINERS;

/// A pod, as far as sidecars are compared.
#[derive(Default, Deserialize)]
#[serde(default)]
struct InjectedPod {
    metadata: InjectedMetadata,
    spec: InjectedSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InjectedMetadata {
    annotations: StringMap,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct InjectedSpec {
    init_containers: Vec<Container>,
    containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: String,
    args: Vec<String>,
}

impl InjectedPod {
    /// Returns a container, and the list that it is in.
    fn container(&self, name: &str) -> Option<(&'static str, &Container)> {
        let lists = [("initContainers", &self.spec.init_containers), ("containers", &self.spec.containers)];
        lists
            .into_iter()
            .find_map(|(list, containers)| Some((list, containers.iter().find(|container| container.name == name)?)))
    }
}

/// Returns how a pod's sidecar would differ today; `None` if it would not, or if Weir did not inject it.
pub(super) fn differences(
    view: &ClusterView<'_>,
    namespace: &str,
    full_pod: &str,
    settings: &Settings,
) -> Option<String> {
    let pod: Value = serde_json::from_str(full_pod).ok()?;
    let before: InjectedPod = parse(pod.clone()).ok()?;
    // Istio's own injector has its own settings.
    before.metadata.annotations.get("weir.dev/original")?;
    let mut namespaces = view.snapshot.namespaces.iter().flatten();
    let found = namespaces.find(|object| object.metadata.name == namespace);
    let request = InjectRequest {
        pod,
        namespace: Some(namespace.to_owned()),
        namespace_annotations: found.map(|object| object.metadata.annotations.clone()).unwrap_or_default(),
        ..InjectRequest::default()
    };
    let today = match inject(&request, settings) {
        Ok(InjectOutcome::Injected { pod, .. }) => parse(pod).ok()?,
        Ok(InjectOutcome::Skipped { reason, .. }) => {
            return Some(format!("today it would get none: {}", reason.message()));
        }
        Err(error) => return Some(format!("today it would be denied: {error}")),
    };
    let found = compare(&before, &today);
    (!found.is_empty()).then(|| found.join("; "))
}

fn compare(before: &InjectedPod, today: &InjectedPod) -> Vec<String> {
    let mut found = Vec::new();
    for name in INJECTED_CONTAINERS {
        match (before.container(name), today.container(name)) {
            (None, None) => {}
            (Some(_), None) => found.push(format!("{name} would be removed")),
            (None, Some(_)) => found.push(format!("{name} would be added")),
            (Some((list, old)), Some((new_list, new))) => {
                if list != new_list {
                    found.push(format!("{name} would move to {new_list}"));
                }
                if old.image != new.image {
                    found.push(format!("{name} has image {}, and would have {}", old.image, new.image));
                }
                if old.args != new.args {
                    found.push(format!("{name} would have other arguments"));
                }
            }
        }
    }
    let capture = |pod: &InjectedPod| pod.metadata.annotations.get("weir.dev/capture").cloned();
    if capture(before) != capture(today) {
        found.push("other traffic would be captured".to_owned());
    }
    found
}
