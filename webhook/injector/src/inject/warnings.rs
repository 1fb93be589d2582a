//! What a user should hear although his pod is injected: settings that do not do what they seem to.

use serde_json::Value;

use super::annotations as name;
use super::conflicts;
use super::containers::{self, List};
use super::context::{Context, PROXY};
use super::overlay::Template;

/// Where the proxy finds the token that it shows to the control plane.
const TOKENS: &str = "/var/run/secrets/tokens";

/// All of them, each a whole sentence. `pod` is as the user wrote it, `injected` what became of it.
pub(super) fn of(pod: &Value, injected: &Value, templates: &[Template], context: &Context<'_>) -> Vec<String> {
    let has = |wanted: Template| templates.contains(&wanted);
    let mut warnings = annotations(context);
    if let Some(policy) = pod["spec"]["dnsPolicy"].as_str().filter(|policy| !matches!(*policy, "ClusterFirst" | "")) {
        warnings.push(format!(
            "dnsPolicy {policy:?} may keep the proxy from finding the control plane; ClusterFirst is expected"
        ));
    }
    if has(Template::Sidecar) && context.only_proxy {
        warnings.push("the pod has no container but the proxy, which therefore stays an ordinary container".to_owned());
    }
    let beside_application = !context.applications.is_empty();
    let classic = (has(Template::Sidecar) && !context.native) || has(Template::GrpcAgent);
    if classic && beside_application {
        warnings.extend(never_finishes(pod, has(Template::GrpcAgent), context));
    }
    if has(Template::Sidecar) && !context.native && beside_application && context.mode != "NONE" {
        warnings.extend(early(pod, injected, context));
    }
    warnings.extend(budget(pod, has(Template::Sidecar) || has(Template::GrpcAgent), context));
    warnings.extend(token(injected));
    warnings
}

/// Annotations whose values mean nothing.
fn annotations(context: &Context<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(image) = context.annotations.get(name::PROXY_IMAGE).filter(|image| !image.contains('/')) {
        warnings.push(format!(
            "annotation '{}' has no effect: {image:?} is not a whole image reference such as registry/path/name:tag",
            name::PROXY_IMAGE
        ));
    }
    for key in [name::NATIVE_SIDECAR, name::CAP_NET_BIND_SERVICE] {
        if let Some(value) = context.annotations.get(key).filter(|value| !matches!(*value, "true" | "false")) {
            warnings.push(format!("annotation '{key}' is ignored: {value:?} is neither \"true\" nor \"false\""));
        }
    }
    let rewrite = context.annotations.get(name::REWRITE_PROBES);
    if let Some(value) = rewrite.filter(|value| super::validate::parse_bool(value).is_none()) {
        let key = name::REWRITE_PROBES;
        warnings.push(format!("annotation '{key}' is ignored: {value:?} is neither \"true\" nor \"false\""));
    }
    warnings
}

/// Pods that are to end, beside a proxy that does not.
fn never_finishes(pod: &Value, agent: bool, context: &Context<'_>) -> Option<String> {
    let kind = context.workload.kind.as_str();
    let policy = pod["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    let subject = match kind {
        "Job" | "CronJob" => kind.to_owned(),
        _ if matches!(policy, "Never" | "OnFailure") => format!("pod with restartPolicy {policy}"),
        _ => return None,
    };
    let fix = if agent {
        "let the application end the agent (POST to localhost:15020/quitquitquit) when it is done".to_owned()
    } else {
        format!("set annotation '{}' to \"true\" on Kubernetes 1.29 and later", name::NATIVE_SIDECAR)
    };
    Some(format!("the {subject} will not finish by itself while its sidecar is an ordinary container; {fix}"))
}

/// Init containers of the user before an ordinary proxy.
fn early(pod: &Value, injected: &Value, context: &Context<'_>) -> Option<String> {
    let exempt = conflicts::exempt(injected);
    let ours = ["istio-init", "istio-validation", PROXY];
    let early = List::InitContainers.of(pod).iter().filter(|container| {
        let passes = exempt.and_then(|exempt| conflicts::passes_for_proxy(pod, container, exempt));
        container["name"].as_str().is_some_and(|name| !ours.contains(&name)) && passes.is_none()
    });
    let names: Vec<&str> = early.filter_map(|container| container["name"].as_str()).collect();
    if names.is_empty() {
        return None;
    }
    let (names, fix) = (names.join(", "), name::NATIVE_SIDECAR);
    let problem = if context.settings.values.pilot.cni_enabled {
        format!("init containers have no network before the proxy runs as an ordinary container: {names}")
    } else {
        format!("init containers run before the proxy, so their connections are not in the mesh: {names}")
    };
    Some(format!("{problem}; set annotation '{fix}' to \"true\" on Kubernetes 1.29 and later"))
}

/// A budget of the whole pod, from which the sidecar now lives as well.
fn budget(pod: &Value, with_resources: bool, context: &Context<'_>) -> Option<String> {
    let requests = pod["spec"]["resources"]["requests"].as_object()?;
    let configured = context.settings.values.proxy.resources.get("requests").and_then(Value::as_object)?;
    if !with_resources || context.asks_for_resources() {
        return None;
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let shared = configured.iter().filter(|(resource, _)| requests.contains_key(*resource));
    let shared: Vec<String> = shared.map(|(resource, amount)| format!("{} {resource}", text(amount))).collect();
    (!shared.is_empty()).then(|| {
        format!(
            "the sidecar lives from the pod's own spec.resources and requests nothing beside them; plan {} for it",
            shared.join(" and ")
        )
    })
}

/// A proxy without the token that it shows to the control plane. `automountServiceAccountToken: false` is no such case: the
/// token is projected into a volume of its own.
fn token(injected: &Value) -> Option<String> {
    let proxy = containers::find(injected, PROXY)?;
    let mounts = proxy["volumeMounts"].as_array()?;
    let volume = mounts.iter().find(|mount| mount["mountPath"] == TOKENS)?["name"].as_str()?;
    let volumes = injected["spec"]["volumes"].as_array()?;
    let sources = volumes.iter().find(|it| it["name"] == volume)?["projected"]["sources"].as_array();
    let projected = sources.into_iter().flatten().any(|source| source["serviceAccountToken"]["path"] == "istio-token");
    (!projected).then(|| {
        format!(
            "volume '{volume}' at {TOKENS} of the proxy holds no service account token called istio-token; without it \
             the proxy gets no certificate"
        )
    })
}
