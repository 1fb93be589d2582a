//! The template `gateway`: a standalone proxy that routes traffic into the mesh.

use serde_json::{Value, json};

use super::{env, metadata, object, partial_pod, proxy, pull_secrets, volumes};
use crate::containers::PROXY_CONTAINER;
use crate::context::InjectContext;

pub(super) fn render(context: &InjectContext<'_>) -> Value {
    let values = &context.settings.values;
    let security = &values.gateway_security_context;
    let security = if security.is_empty() {
        json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]})
    } else {
        Value::Object(security.clone())
    };
    let mut container = object([
        ("name", PROXY_CONTAINER.into()),
        ("image", context.proxy_image().into()),
        ("ports", vec![proxy::metrics_port()].into()),
        ("args", proxy::arguments(context, "router").into()),
        ("env", env::gateway(context).into()),
        ("securityContext", json!({"runAsUser": context.uid, "runAsGroup": context.gid})),
        ("readinessProbe", proxy::configured_readiness_probe(context)),
        ("volumeMounts", volumes::gateway_mounts(context).into()),
    ]);
    if let Some(policy) = proxy::pull_policy(context) {
        container.insert("imagePullPolicy".to_owned(), policy);
    }
    if let Some(lifecycle) = &values.proxy.lifecycle {
        container.insert("lifecycle".to_owned(), lifecycle.clone());
    }
    let mut spec = object([
        ("securityContext", security),
        ("containers", vec![Value::Object(container)].into()),
        ("volumes", volumes::gateway(context).into()),
    ]);
    pull_secrets(&mut spec, context);
    partial_pod(metadata::canonical_labels(context), metadata::annotations(context), spec)
}
