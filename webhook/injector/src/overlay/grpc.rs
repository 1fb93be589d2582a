//! The template `grpc-agent`: an agent beside an application that speaks xDS itself. Nothing is captured.

use serde_json::{Value, json};

use super::{env, metadata, object, partial_pod, proxy, pull_secrets, volumes};
use crate::annotations as name;
use crate::containers::PROXY_CONTAINER;
use crate::context::InjectContext;

/// The agent's port for metrics and health.
const AGENT_PORT: u16 = 15020;

pub(super) fn render(context: &InjectContext<'_>) -> Value {
    let wait = ["pilot-agent", "wait", "--url=http://localhost:15020/healthz/ready"];
    let mut agent = object([
        ("name", PROXY_CONTAINER.into()),
        ("image", context.proxy_image().into()),
        ("ports", json!([{"containerPort": AGENT_PORT, "protocol": "TCP", "name": "mesh-metrics"}])),
        ("args", proxy::sidecar_arguments(context).into()),
        ("lifecycle", json!({"postStart": {"exec": {"command": wait}}})),
        ("env", env::grpc_agent(context).into()),
        ("volumeMounts", volumes::grpc_agent_mounts(context).into()),
    ]);
    if let Some(policy) = proxy::pull_policy(context) {
        agent.insert("imagePullPolicy".to_owned(), policy);
    }
    if let Some(resources) = proxy::resources(context) {
        agent.insert("resources".to_owned(), resources);
    }
    if context.status_port != "0" {
        let mut probe = proxy::readiness_probe(context);
        probe["httpGet"]["port"] = AGENT_PORT.into();
        agent.insert("readinessProbe".to_owned(), probe);
    }
    let mut containers = vec![Value::Object(agent)];
    containers.extend(context.applications.iter().map(|application| {
        let env = vec![
            env::variable("GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT", "true"),
            env::variable("GRPC_XDS_BOOTSTRAP", "/etc/istio/proxy/grpc-bootstrap.json"),
        ];
        Value::Object(object([
            ("name", application["name"].clone()),
            ("env", env.into()),
            ("volumeMounts", volumes::grpc_application_mounts(context).into()),
        ]))
    }));
    let mut annotations = metadata::annotations(context);
    annotations.insert(name::REWRITE_PROBES.to_owned(), "false".into());
    let mut spec = object([("containers", containers.into()), ("volumes", volumes::grpc_agent(context).into())]);
    pull_secrets(&mut spec, context);
    partial_pod(metadata::canonical_labels(context), annotations, spec)
}
