//! The proxy container.

use serde_json::{Map, Value, json};

use super::{env, object, volumes};
use crate::annotations as name;
use crate::containers::PROXY_CONTAINER;
use crate::context::InjectContext;
use crate::quantity::Quantity;

const HEALTH_PORT: u16 = 15021;

pub(super) fn sidecar(context: &InjectContext<'_>) -> Value {
    let mut container = object([
        ("name", PROXY_CONTAINER.into()),
        ("image", context.proxy_image().into()),
        ("ports", vec![metrics_port()].into()),
        ("args", sidecar_arguments(context).into()),
        ("env", env::sidecar(context).into()),
        ("securityContext", security_context(context)),
        ("volumeMounts", volumes::sidecar_mounts(context).into()),
    ]);
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            container.insert(key.to_owned(), value);
        }
    };
    set("restartPolicy", context.native.then(|| "Always".into()));
    set("imagePullPolicy", pull_policy(context));
    set("lifecycle", lifecycle(context));
    set("resources", resources(context));
    if context.status_port != "0" {
        set("startupProbe", startup_probe(context));
        set("readinessProbe", Some(readiness_probe(context)));
    }
    Value::Object(container)
}

/// Returns the port of Envoy's own metrics.
pub(super) fn metrics_port() -> Value {
    json!({"containerPort": 15090, "protocol": "TCP", "name": "http-envoy-prom"})
}

pub(super) fn sidecar_arguments(context: &InjectContext<'_>) -> Vec<String> {
    let mut args = arguments(context, "sidecar");
    let outliers = &context.settings.values.proxy.outlier_log_path;
    if !outliers.is_empty() {
        args.push(format!("--outlierLogPath={outliers}"));
    }
    args
}

/// Returns the arguments of the agent for a proxy of type `kind` (`sidecar`, `router`).
pub(super) fn arguments(context: &InjectContext<'_>, kind: &str) -> Vec<String> {
    let values = &context.settings.values;
    let mut args = vec![
        "proxy".to_owned(),
        kind.to_owned(),
        "--domain".to_owned(),
        format!("$(POD_NAMESPACE).svc.{}", values.proxy.cluster_domain),
        format!("--proxyLogLevel={}", context.annotation_or(name::LOG_LEVEL, &values.proxy.log_level)),
        format!(
            "--proxyComponentLogLevel={}",
            context.annotation_or(name::COMPONENT_LOG_LEVEL, &values.proxy.component_log_level)
        ),
        agent_log_level(context),
    ];
    if values.global.sts_port != 0 {
        args.push(format!("--stsPort={}", values.global.sts_port));
    }
    if values.global.log_as_json {
        args.push("--log_as_json".to_owned());
    }
    args
}

pub(super) fn agent_log_level(context: &InjectContext<'_>) -> String {
    let level = context.annotation_or(name::AGENT_LOG_LEVEL, &context.settings.values.global.logging_level);
    format!("--log_output_level={level}")
}

pub(super) fn pull_policy(context: &InjectContext<'_>) -> Option<Value> {
    let policy = context.settings.values.global.image_pull_policy.as_str();
    (!policy.is_empty()).then(|| policy.into())
}

fn lifecycle(context: &InjectContext<'_>) -> Option<Value> {
    if let Some(lifecycle) = &context.settings.values.proxy.lifecycle {
        return Some(lifecycle.clone());
    }
    if context.native {
        let port = format!("--debug-port={}", context.status_port);
        return Some(json!({"preStop": {"exec": {"command": ["pilot-agent", "request", port, "POST", "drain"]}}}));
    }
    context.holds_application().then(|| json!({"postStart": {"exec": {"command": ["pilot-agent", "wait"]}}}))
}

/// Returns the resources of the injected containers. One annotation replaces all configured resources.
pub(super) fn resources(context: &InjectContext<'_>) -> Option<Value> {
    let pair = |cpu: &str, memory: &str| {
        let pair = [("cpu", context.annotations.get(cpu)), ("memory", context.annotations.get(memory))];
        pair.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?)))).collect::<Map<_, _>>()
    };
    if context.has_resource_annotations() {
        let requests = pair(name::PROXY_CPU, name::PROXY_MEMORY);
        let limits = pair(name::PROXY_CPU_LIMIT, name::PROXY_MEMORY_LIMIT);
        let blocks = [("requests", requests), ("limits", limits)].into_iter().filter(|(_, block)| !block.is_empty());
        return Some(Value::Object(blocks.map(|(key, block)| (key.to_owned(), Value::Object(block))).collect()));
    }
    let mut configured = context.settings.values.proxy.resources.clone();
    if let Some(pod_resources) = context.pod_resources {
        fit_into_pod(&mut configured, pod_resources);
    }
    (!configured.is_empty()).then_some(Value::Object(configured))
}

/// Fits resources into `spec.resources` of the pod. What the pod requests is not requested a second time: the request becomes 0
/// rather than absent, because an absent one defaults to the limit. Limits are lowered to the pod's.
fn fit_into_pod(resources: &mut Map<String, Value>, pod_resources: &Map<String, Value>) {
    let of_pod =
        |block: &str, resource: &str| pod_resources.get(block)?.get(resource).filter(|amount| !amount.is_null());
    for (block, amounts) in resources {
        for (resource, amount) in amounts.as_object_mut().into_iter().flatten() {
            match (block.as_str(), of_pod(block, resource)) {
                ("requests", Some(_)) => *amount = "0".into(),
                ("limits", Some(limit)) if Quantity::of(limit) < Quantity::of(amount) => *amount = limit.clone(),
                _ => {}
            }
        }
    }
}

fn startup_probe(context: &InjectContext<'_>) -> Option<Value> {
    let failures = context.settings.values.proxy.startup_failures?;
    Some(json!({
        "httpGet": {"path": "/healthz/ready", "port": HEALTH_PORT},
        "initialDelaySeconds": 0,
        "periodSeconds": 1,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }))
}

/// Returns the readiness probe from the values, with the pod's annotations applied.
pub(super) fn readiness_probe(context: &InjectContext<'_>) -> Value {
    let mut probe = configured_readiness_probe(context);
    let annotated = [
        ("initialDelaySeconds", name::READINESS_INITIAL_DELAY),
        ("periodSeconds", name::READINESS_PERIOD),
        ("failureThreshold", name::READINESS_FAILURES),
    ];
    for (field, key) in annotated {
        if let Some(number) = context.annotations.get(key).and_then(|text| text.parse::<u32>().ok()) {
            probe[field] = number.into();
        }
    }
    probe
}

/// Returns the readiness probe from the values alone.
pub(super) fn configured_readiness_probe(context: &InjectContext<'_>) -> Value {
    let values = &context.settings.values.proxy;
    json!({
        "httpGet": {"path": "/healthz/ready", "port": HEALTH_PORT},
        "initialDelaySeconds": values.readiness_initial_delay,
        "periodSeconds": values.readiness_period,
        "timeoutSeconds": 3,
        "failureThreshold": values.readiness_failures,
    })
}

fn security_context(context: &InjectContext<'_>) -> Value {
    let values = &context.settings.values.proxy;
    let tproxy = context.interception_mode == "TPROXY";
    let low_ports = context.needs_net_bind_service();
    let trace_rules = context.proxy_config.metadata_value("IPTABLES_TRACE_LOGGING") == Some("true");
    let added: &[&str] = match (trace_rules || tproxy, low_ports && !trace_rules) {
        (true, true) => &["NET_ADMIN", "NET_BIND_SERVICE"],
        (true, false) => &["NET_ADMIN"],
        (false, true) => &["NET_BIND_SERVICE"],
        (false, false) => &[],
    };
    let capabilities = if added.is_empty() { json!({"drop": ["ALL"]}) } else { json!({"add": added, "drop": ["ALL"]}) };
    let root = trace_rules || tproxy || low_ports;
    let privileged = trace_rules || values.privileged;
    let mut security = json!({
        "allowPrivilegeEscalation": privileged,
        "privileged": privileged,
        "capabilities": capabilities,
        "readOnlyRootFilesystem": true,
        "runAsGroup": if root && !trace_rules { 1337 } else { context.gid },
        "runAsNonRoot": !root,
        "runAsUser": if root { 0 } else { context.uid },
    });
    if !values.seccomp_profile.is_empty() {
        security["seccompProfile"] = Value::Object(values.seccomp_profile.clone());
    }
    security
}
