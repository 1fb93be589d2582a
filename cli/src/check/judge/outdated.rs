//! Whether a sidecar is what the pod would get today: the pod is injected again, which first takes it back to what its user wrote.

use std::collections::BTreeMap;

use serde_json::Value;
use weir_injector::inject::{InjectRequest, Outcome, inject};
use weir_injector::settings::Settings;

use super::view::View;

/// Containers that an injection adds.
const INJECTED: [&str; 3] = ["istio-proxy", "istio-init", "istio-validation"];
const CAPTURE: &str = "weir.dev/capture";
const ORIGINAL: &str = "weir.dev/original";

/// What of a pod's sidecar would be different; `None` where nothing would, or it is not one of ours.
pub(super) fn differences(view: &View<'_>, namespace: &str, whole: &str, settings: &Settings) -> Option<String> {
    let pod: Value = serde_json::from_str(whole).ok()?;
    // Istio's own injector has settings of its own.
    pod["metadata"]["annotations"].get(ORIGINAL)?;
    let found = view.snapshot.namespaces.iter().flatten().find(|object| object["metadata"]["name"] == namespace);
    let annotations = found.and_then(|object| object["metadata"]["annotations"].as_object()).into_iter().flatten();
    let namespace_annotations: BTreeMap<String, String> =
        annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    let request = InjectRequest {
        pod: pod.clone(),
        namespace: Some(namespace.to_owned()),
        namespace_annotations,
        ..InjectRequest::default()
    };
    let today = match inject(&request, settings) {
        Ok(Outcome::Injected { pod, .. }) => pod,
        Ok(Outcome::Skipped { reason, .. }) => return Some(format!("today it would get none: {}", reason.explain())),
        Err(error) => return Some(format!("today it would be denied: {error}")),
    };
    let mut found = Vec::new();
    for name in INJECTED {
        match (container(&pod, name), container(&today, name)) {
            (None, None) => {}
            (Some(_), None) => found.push(format!("{name} would be gone")),
            (None, Some(_)) => found.push(format!("{name} would be there")),
            (Some((list, old)), Some((new_list, new))) => {
                if list != new_list {
                    found.push(format!("{name} would be one of {new_list}"));
                }
                let image = |container: &Value| container["image"].as_str().unwrap_or_default().to_owned();
                if image(old) != image(new) {
                    found.push(format!("{name} has image {}, and would have {}", image(old), image(new)));
                }
                if old["args"] != new["args"] {
                    found.push(format!("{name} would have other arguments"));
                }
            }
        }
    }
    if pod["metadata"]["annotations"].get(CAPTURE) != today["metadata"]["annotations"].get(CAPTURE) {
        found.push("other traffic would be captured".to_owned());
    }
    (!found.is_empty()).then(|| found.join("; "))
}

/// A container of a pod, and the list that it is in.
fn container<'a>(pod: &'a Value, name: &str) -> Option<(&'static str, &'a Value)> {
    ["initContainers", "containers"].into_iter().find_map(|list| {
        let found = pod["spec"][list].as_array()?.iter().find(|container| container["name"] == name)?;
        Some((list, found))
    })
}
