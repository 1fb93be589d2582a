//! The proxy container.

use serde_json::{Map, Value, json};

use super::super::annotations as name;
use super::super::context::{Context, PROXY};
use super::super::quantity::Quantity;
use super::{env, object, volumes};

/// Port of Envoy's health endpoint.
const HEALTH_PORT: u16 = 15021;

/// The container of a sidecar.
pub(super) fn sidecar(context: &Context<'_>) -> Value {
    let mut container = object([
        ("name", PROXY.into()),
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

/// The port at which Envoy shows its own metrics.
pub(super) fn metrics_port() -> Value {
    json!({"containerPort": 15090, "protocol": "TCP", "name": "http-envoy-prom"})
}

/// Arguments of the agent of a sidecar.
pub(super) fn sidecar_arguments(context: &Context<'_>) -> Vec<String> {
    let mut args = arguments(context, "sidecar");
    let outliers = &context.settings.values.proxy.outlier_log_path;
    if !outliers.is_empty() {
        args.push(format!("--outlierLogPath={outliers}"));
    }
    args
}

/// Arguments of the agent, for a proxy of that type.
pub(super) fn arguments(context: &Context<'_>, kind: &str) -> Vec<String> {
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

/// `--log_output_level` of the agent.
pub(super) fn agent_log_level(context: &Context<'_>) -> String {
    let level = context.annotation_or(name::AGENT_LOG_LEVEL, &context.settings.values.global.logging_level);
    format!("--log_output_level={level}")
}

/// `imagePullPolicy`, where one is configured.
pub(super) fn pull_policy(context: &Context<'_>) -> Option<Value> {
    let policy = context.settings.values.global.image_pull_policy.as_str();
    (!policy.is_empty()).then(|| policy.into())
}

fn lifecycle(context: &Context<'_>) -> Option<Value> {
    if let Some(lifecycle) = &context.settings.values.proxy.lifecycle {
        return Some(lifecycle.clone());
    }
    if context.native {
        let port = format!("--debug-port={}", context.status_port);
        return Some(json!({"preStop": {"exec": {"command": ["pilot-agent", "request", port, "POST", "drain"]}}}));
    }
    context.holds_application().then(|| json!({"postStart": {"exec": {"command": ["pilot-agent", "wait"]}}}))
}

/// Resources of the injected containers: one annotation replaces the whole configured block.
pub(super) fn resources(context: &Context<'_>) -> Option<Value> {
    let pair = |cpu: &str, memory: &str| {
        let pair = [("cpu", context.annotations.get(cpu)), ("memory", context.annotations.get(memory))];
        pair.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?)))).collect::<Map<_, _>>()
    };
    if context.asks_for_resources() {
        let requests = pair(name::PROXY_CPU, name::PROXY_MEMORY);
        let limits = pair(name::PROXY_CPU_LIMIT, name::PROXY_MEMORY_LIMIT);
        let blocks = [("requests", requests), ("limits", limits)].into_iter().filter(|(_, block)| !block.is_empty());
        return Some(Value::Object(blocks.map(|(key, block)| (key.to_owned(), Value::Object(block))).collect()));
    }
    let mut configured = context.settings.values.proxy.resources.clone();
    if let Some(budget) = context.budget {
        keep_within(&mut configured, budget);
    }
    (!configured.is_empty()).then_some(Value::Object(configured))
}

/// Makes resources live from the budget of the whole pod: what that guarantees is not requested a second time (0, since a
/// container that only has a limit requests as much), and no limit is above the pod's.
fn keep_within(resources: &mut Map<String, Value>, budget: &Map<String, Value>) {
    let of_pod = |block: &str, resource: &str| budget.get(block)?.get(resource).filter(|amount| !amount.is_null());
    for (block, amounts) in resources {
        for (resource, amount) in amounts.as_object_mut().into_iter().flatten() {
            match (block.as_str(), of_pod(block, resource)) {
                ("requests", Some(_)) => *amount = "0".into(),
                ("limits", Some(most)) if Quantity::of(most) < Quantity::of(amount) => *amount = most.clone(),
                _ => {}
            }
        }
    }
}

fn startup_probe(context: &Context<'_>) -> Option<Value> {
    let failures = context.settings.values.proxy.startup_failures?;
    Some(json!({
        "httpGet": {"path": "/healthz/ready", "port": HEALTH_PORT},
        "initialDelaySeconds": 0,
        "periodSeconds": 1,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }))
}

/// The readiness probe by the pod's annotations, else by the values.
pub(super) fn readiness_probe(context: &Context<'_>) -> Value {
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

/// The readiness probe by the values alone.
pub(super) fn configured_readiness_probe(context: &Context<'_>) -> Value {
    let values = &context.settings.values.proxy;
    json!({
        "httpGet": {"path": "/healthz/ready", "port": HEALTH_PORT},
        "initialDelaySeconds": values.readiness_initial_delay,
        "periodSeconds": values.readiness_period,
        "timeoutSeconds": 3,
        "failureThreshold": values.readiness_failures,
    })
}

fn security_context(context: &Context<'_>) -> Value {
    let values = &context.settings.values.proxy;
    let tproxy = context.mode == "TPROXY";
    let low_ports = context.binds_low_ports();
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
