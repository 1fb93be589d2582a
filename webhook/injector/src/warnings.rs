//! Warnings about injected pods: settings that do not do what they seem to.

use iptables_rules::names::annotation::IPV6;
use iptables_rules::names::variable::DUAL_STACK;
use iptables_rules::text::parse_bool;
use serde_json::Value;

use crate::annotation_typos;
use crate::annotations as name;
use crate::builtin_template::BuiltinTemplate;
use crate::conflicts;
use crate::containers::{self, ContainerList, PROXY_CONTAINER};
use crate::context::InjectContext;

/// Directory of the token with which the proxy authenticates to the control plane.
const TOKENS: &str = "/var/run/secrets/tokens";

/// Collects the warnings. `pod` is the original pod, `injected` the pod with its sidecar.
pub(crate) fn collect(
    pod: &Value,
    injected: &Value,
    templates: &[BuiltinTemplate],
    context: &InjectContext<'_>,
) -> Vec<String> {
    let has = |template: BuiltinTemplate| templates.contains(&template);
    let mut warnings = annotation_typos::warnings(context.annotations);
    warnings.extend(ignored_annotations(context));
    if let Some(policy) = pod["spec"]["dnsPolicy"].as_str().filter(|policy| !matches!(*policy, "ClusterFirst" | "")) {
        warnings.push(format!(
            "with dnsPolicy {policy:?} the proxy may be unable to resolve the control plane; ClusterFirst is expected"
        ));
    }
    if has(BuiltinTemplate::Sidecar) && context.proxy_is_only_container {
        warnings.push("the pod has no container but the proxy, so the proxy is not a native sidecar".to_owned());
    }
    let beside_application = !context.applications.is_empty();
    let classic = (has(BuiltinTemplate::Sidecar) && !context.native) || has(BuiltinTemplate::GrpcAgent);
    if classic && beside_application {
        warnings.extend(never_finishes(pod, has(BuiltinTemplate::GrpcAgent), context));
    }
    if has(BuiltinTemplate::Sidecar) && !context.native && beside_application && context.interception_mode != "NONE" {
        warnings.extend(init_before_proxy(pod, injected, context));
    }
    if has(BuiltinTemplate::Sidecar) && context.interception_mode != "NONE" {
        warnings.extend(ipv6_without_dual_stack(context));
    }
    warnings.extend(shared_pod_resources(
        pod,
        has(BuiltinTemplate::Sidecar) || has(BuiltinTemplate::GrpcAgent),
        context,
    ));
    warnings.extend(missing_token(injected));
    warnings
}

/// Warns about annotations whose values have no effect.
fn ignored_annotations(context: &InjectContext<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(image) = context.annotations.get(name::PROXY_IMAGE).filter(|image| !image.contains('/')) {
        warnings.push(format!(
            "annotation '{}' has no effect: {image:?} is not a full image reference such as registry/path/name:tag",
            name::PROXY_IMAGE
        ));
    }
    for key in [name::NATIVE_SIDECAR, name::CAP_NET_BIND_SERVICE] {
        if let Some(value) = context.annotations.get(key).filter(|value| !matches!(*value, "true" | "false")) {
            warnings.push(format!("annotation '{key}' is ignored: {value:?} is neither \"true\" nor \"false\""));
        }
    }
    let rewrite = context.annotations.get(name::REWRITE_PROBES);
    if let Some(value) = rewrite.filter(|value| parse_bool(value).is_none()) {
        let key = name::REWRITE_PROBES;
        warnings.push(format!("annotation '{key}' is ignored: {value:?} is neither \"true\" nor \"false\""));
    }
    warnings
}

/// Warns about pods whose IPv6 traffic bypasses the mesh, or reaches a proxy that accepts IPv4 only. The addresses of the pod are not
/// known yet.
fn ipv6_without_dual_stack(context: &InjectContext<'_>) -> Option<String> {
    let policy = context.annotations.get(IPV6);
    let dual_stack = context.proxy_config.metadata_value(DUAL_STACK).and_then(parse_bool);
    if dual_stack == Some(true) || policy == Some("leave") {
        return None;
    }
    let dual_stack = format!("{DUAL_STACK}=true for the control plane and in the proxyMetadata");
    if policy == Some("capture") {
        return Some(format!(
            "annotation '{IPV6}' captures IPv6, but the proxy of a pod with an IPv4 address accepts no IPv6, so such connections \
             fail; set {dual_stack}, or annotation '{IPV6}' to \"leave\" to let them bypass the mesh"
        ));
    }
    let ranges = [name::INCLUDE_OUTBOUND_RANGES, name::EXCLUDE_OUTBOUND_RANGES];
    let has_ipv6 = |key: &&&str| context.annotations.get(key).is_some_and(|ranges| ranges.contains(':'));
    if !context.settings.nodes.is_dual_stack() && !ranges.iter().any(|key| has_ipv6(&key)) {
        return None;
    }
    Some(format!(
        "IPv6 traffic of a pod that also has an IPv4 address bypasses the mesh, because its proxy accepts IPv4 only; set {dual_stack} \
         to capture it, or annotation '{IPV6}' to \"leave\" to accept that"
    ))
}

/// Warns about pods that should complete, but whose proxy keeps running.
fn never_finishes(pod: &Value, agent: bool, context: &InjectContext<'_>) -> Option<String> {
    let kind = context.workload.kind.as_str();
    let policy = pod["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    let subject = match kind {
        "Job" | "CronJob" => kind.to_owned(),
        _ if matches!(policy, "Never" | "OnFailure") => format!("pod with restartPolicy {policy}"),
        _ => return None,
    };
    let fix = if agent {
        "let the application stop the agent when it is done (POST to localhost:15020/quitquitquit)".to_owned()
    } else {
        format!("set annotation '{}' to \"true\" on Kubernetes 1.29 and later", name::NATIVE_SIDECAR)
    };
    Some(format!("the {subject} cannot complete, because its sidecar keeps running; {fix}"))
}

/// Warns about init containers that run before the proxy.
fn init_before_proxy(pod: &Value, injected: &Value, context: &InjectContext<'_>) -> Option<String> {
    let ids = conflicts::proxy_ids(injected);
    let injected = ["istio-init", "istio-validation", PROXY_CONTAINER];
    let early = ContainerList::InitContainers.of(pod).iter().filter(|container| {
        let passes = ids.and_then(|ids| conflicts::why_exempt(pod, container, ids));
        container["name"].as_str().is_some_and(|name| !injected.contains(&name)) && passes.is_none()
    });
    let names: Vec<&str> = early.filter_map(|container| container["name"].as_str()).collect();
    if names.is_empty() {
        return None;
    }
    let (names, fix) = (names.join(", "), name::NATIVE_SIDECAR);
    let problem = if context.settings.values.pilot.cni_enabled {
        format!("init containers have no network until the proxy runs: {names}")
    } else {
        format!("init containers run before the proxy, so their connections bypass the mesh: {names}")
    };
    Some(format!("{problem}; set annotation '{fix}' to \"true\" on Kubernetes 1.29 and later"))
}

/// Warns about `spec.resources` of the pod, which the sidecar now shares.
fn shared_pod_resources(pod: &Value, with_resources: bool, context: &InjectContext<'_>) -> Option<String> {
    let requests = pod["spec"]["resources"]["requests"].as_object()?;
    let configured = context.settings.values.proxy.resources.get("requests").and_then(Value::as_object)?;
    if !with_resources || context.has_resource_annotations() {
        return None;
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let shared = configured.iter().filter(|(resource, _)| requests.contains_key(*resource));
    let shared: Vec<String> = shared.map(|(resource, amount)| format!("{} {resource}", text(amount))).collect();
    (!shared.is_empty()).then(|| {
        format!(
            "the sidecar shares the pod's spec.resources and adds no requests of its own; reserve {} for it",
            shared.join(" and ")
        )
    })
}

/// Warns about a proxy without the token for the control plane. `automountServiceAccountToken: false` does not matter: the token
/// has its own projected volume.
fn missing_token(injected: &Value) -> Option<String> {
    let proxy = containers::find(injected, PROXY_CONTAINER)?;
    let mounts = proxy["volumeMounts"].as_array()?;
    let volume = mounts.iter().find(|mount| mount["mountPath"] == TOKENS)?["name"].as_str()?;
    let volumes = injected["spec"]["volumes"].as_array()?;
    let sources = volumes.iter().find(|it| it["name"] == volume)?["projected"]["sources"].as_array();
    let projected = sources.into_iter().flatten().any(|source| source["serviceAccountToken"]["path"] == "istio-token");
    (!projected).then(|| {
        format!(
            "volume '{volume}', which the proxy mounts at {TOKENS}, has no service account token with path istio-token; \
             without it the proxy gets no certificate"
        )
    })
}
