//! What a user should hear although his pod is injected: settings that do not do what they seem to.

use serde_json::Value;

use super::annotations as name;
use super::containers::List;
use super::context::Context;

/// All of them, each a whole sentence.
pub(super) fn of(pod: &Value, context: &Context<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(image) = context.annotations.get(name::PROXY_IMAGE).filter(|image| !image.contains('/')) {
        warnings.push(format!(
            "annotation '{}' has no effect: {image:?} is not a whole image reference such as registry/path/name:tag",
            name::PROXY_IMAGE
        ));
    }
    if let Some(value) =
        context.annotations.get(name::NATIVE_SIDECAR).filter(|value| !matches!(*value, "true" | "false"))
    {
        warnings.push(format!(
            "annotation '{}' is ignored: {value:?} is neither \"true\" nor \"false\"",
            name::NATIVE_SIDECAR
        ));
    }
    if let Some(policy) = pod["spec"]["dnsPolicy"].as_str().filter(|policy| !matches!(*policy, "ClusterFirst" | "")) {
        warnings.push(format!(
            "dnsPolicy {policy:?} may keep the proxy from finding the control plane; ClusterFirst is expected"
        ));
    }
    if context.native {
        return warnings;
    }
    if context.only_proxy {
        warnings.push("the pod has no container but the proxy, which therefore stays an ordinary container".to_owned());
        return warnings;
    }
    let kind = context.workload.kind.as_str();
    if matches!(kind, "Job" | "CronJob") {
        warnings.push(format!(
            "the {kind} will not finish by itself while its sidecar is an ordinary container; \
             set annotation '{}' to \"true\" on Kubernetes 1.29 and later",
            name::NATIVE_SIDECAR
        ));
    }
    let ours = ["istio-init", "istio-validation", "istio-proxy"];
    let early = List::InitContainers.of(pod).iter().filter_map(|container| container["name"].as_str());
    let early: Vec<&str> = early.filter(|name| !ours.contains(name)).collect();
    if !early.is_empty() && context.mode != "NONE" {
        warnings.push(format!(
            "init containers have no network before the proxy runs as an ordinary container: {}; \
             set annotation '{}' to \"true\" on Kubernetes 1.29 and later",
            early.join(", "),
            name::NATIVE_SIDECAR
        ));
    }
    warnings
}
