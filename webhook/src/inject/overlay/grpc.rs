//! The template `grpc-agent`: an agent beside an application that speaks xDS itself.

use serde_json::{Value, json};

use super::super::annotations as name;
use super::super::context::{Context, PROXY};
use super::{env, metadata, proxy, pull_secrets, volumes};

/// Port of the agent, for metrics and health.
const AGENT_PORT: u16 = 15020;

/// The agent, and what every other container needs to find it. Nothing is captured.
pub(super) fn render(context: &Context<'_>) -> Value {
    let wait = ["pilot-agent", "wait", "--url=http://localhost:15020/healthz/ready"];
    let mut agent = json!({
        "name": PROXY,
        "image": context.proxy_image(),
        "ports": [{"containerPort": AGENT_PORT, "protocol": "TCP", "name": "mesh-metrics"}],
        "args": proxy::sidecar_arguments(context),
        "lifecycle": {"postStart": {"exec": {"command": wait}}},
        "env": env::grpc_agent(context),
        "volumeMounts": volumes::grpc_agent_mounts(context),
    });
    if let Some(policy) = proxy::pull_policy(context) {
        agent["imagePullPolicy"] = policy;
    }
    if let Some(resources) = proxy::resources(context) {
        agent["resources"] = resources;
    }
    if context.status_port != "0" {
        let mut probe = proxy::readiness_probe(context);
        probe["httpGet"]["port"] = AGENT_PORT.into();
        agent["readinessProbe"] = probe;
    }
    let mut containers = vec![agent];
    containers.extend(context.applications.iter().map(|application| {
        json!({
            "name": application["name"],
            "env": [
                env::variable("GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT", "true"),
                env::variable("GRPC_XDS_BOOTSTRAP", "/etc/istio/proxy/grpc-bootstrap.json"),
            ],
            "volumeMounts": volumes::grpc_application_mounts(context),
        })
    }));
    let mut annotations = metadata::annotations(context);
    annotations.insert(name::REWRITE_PROBES.to_owned(), "false".into());
    let mut spec = json!({"containers": containers, "volumes": volumes::grpc_agent(context)});
    pull_secrets(&mut spec, context);
    json!({"metadata": {"labels": metadata::canonical_labels(context), "annotations": annotations}, "spec": spec})
}
