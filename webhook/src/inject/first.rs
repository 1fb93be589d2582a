//! The first version of steps that get modules of their own: decision and workload.

use serde_json::Value;

use super::annotations::Texts;
use super::{InjectRequest, SkipReason, Workload};
use crate::settings::InjectionConfig;

pub(super) fn decide(request: &InjectRequest, config: &InjectionConfig) -> Option<SkipReason> {
    let pod = &request.pod;
    if pod["spec"]["hostNetwork"] == true {
        return Some(SkipReason::HostNetwork);
    }
    let namespace = pod["metadata"]["namespace"].as_str().or(request.namespace.as_deref()).unwrap_or_default();
    if ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"].contains(&namespace) {
        return Some(SkipReason::SystemNamespace);
    }
    let explicit = ["labels", "annotations"].map(|field| Texts::of(pod, field).get("sidecar.istio.io/inject"));
    match (explicit[0].or(explicit[1]), config.policy.as_str()) {
        (_, policy) if !matches!(policy, "enabled" | "disabled") => Some(SkipReason::UnknownPolicy),
        (Some("false"), _) => Some(SkipReason::ExplicitlyOff),
        (Some("true"), _) | (_, "enabled") => None,
        _ => Some(SkipReason::PolicyDisabled),
    }
}

pub(super) fn workload(request: &InjectRequest) -> Workload {
    let metadata = &request.pod["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = metadata["namespace"].as_str().or(request.namespace.as_deref()).unwrap_or_default().to_owned();
    let owner = metadata["ownerReferences"].as_array().into_iter().flatten().find(|owner| owner["controller"] == true);
    let Some(owner) = owner.filter(|_| metadata["generateName"].is_string()) else {
        return Workload {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: text(&metadata["name"]),
            namespace,
        };
    };
    let (mut kind, mut name) = (text(&owner["kind"]), text(&owner["name"]));
    if kind == "ReplicaSet"
        && let Some(hash) = metadata["labels"]["pod-template-hash"].as_str()
        && let Some(deployment) = name.strip_suffix(&format!("-{hash}")).map(str::to_owned)
    {
        (kind, name) = ("Deployment".to_owned(), deployment);
    }
    Workload { api_version: text(&owner["apiVersion"]), kind, name, namespace }
}
