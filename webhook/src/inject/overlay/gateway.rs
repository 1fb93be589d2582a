//! The template `gateway`: a proxy of its own, without an application to capture.

use serde_json::{Value, json};

use super::super::context::{Context, PROXY};
use super::{env, metadata, proxy, pull_secrets, volumes};

/// A proxy that routes traffic from outside.
pub(super) fn render(context: &Context<'_>) -> Value {
    let values = &context.settings.values;
    let security = &values.gateway_security_context;
    let security = if security.is_empty() {
        json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]})
    } else {
        Value::Object(security.clone())
    };
    let mut container = json!({
        "name": PROXY,
        "image": context.proxy_image(),
        "ports": [proxy::metrics_port()],
        "args": proxy::arguments(context, "router"),
        "env": env::gateway(context),
        "securityContext": {"runAsUser": context.uid, "runAsGroup": context.gid},
        "readinessProbe": proxy::configured_readiness_probe(context),
        "volumeMounts": volumes::gateway_mounts(context),
    });
    if let Some(policy) = proxy::pull_policy(context) {
        container["imagePullPolicy"] = policy;
    }
    if let Some(lifecycle) = &values.proxy.lifecycle {
        container["lifecycle"] = lifecycle.clone();
    }
    let mut spec =
        json!({"securityContext": security, "containers": [container], "volumes": volumes::gateway(context)});
    pull_secrets(&mut spec, context);
    json!({
        "metadata": {"labels": metadata::canonical_labels(context), "annotations": metadata::annotations(context)},
        "spec": spec,
    })
}
