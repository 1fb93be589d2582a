//! Environment of the proxy container, in the order of Istio's templates.

use serde_json::{Map, Value, json};

use crate::annotations as name;
use crate::context::InjectContext;
use crate::otel::ServiceAttributes;

/// Returns a variable with a literal value.
pub(super) fn variable(name: &str, value: &str) -> Value {
    let fields = [("name".to_owned(), name.into()), ("value".to_owned(), value.into())];
    Value::Object(Map::from_iter(fields))
}

/// Returns a variable with the value of a field of the pod.
pub(super) fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn resource(name: &str, resource: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": "1"}}})
}

pub(super) fn sidecar(context: &InjectContext<'_>) -> Vec<Value> {
    let mut env = Vec::with_capacity(32);
    env.extend(localhost_probes(context));
    env.extend(identity(context));
    env.push(resource("ISTIO_CPU_LIMIT", "limits.cpu"));
    env.push(proxy_config(context));
    env.push(pod_ports(context));
    env.push(app_containers(context));
    env.push(resource("GOMEMLIMIT", "limits.memory"));
    env.extend(compliance(context));
    env.push(cluster_id(context));
    env.push(node_name());
    env.push(variable("ISTIO_META_INTERCEPTION_MODE", context.interception_mode));
    env.extend(network(context));
    let workload =
        context.labels.first_non_empty(&["service.istio.io/workload-name"]).unwrap_or(&context.workload.name);
    env.extend(workload_name(workload));
    env.extend(owner(context));
    env.extend(bootstrap(context));
    env.extend(mesh(context));
    env.extend(datadog(context));
    env.extend(opentelemetry(context));
    env.extend(metadata(context));
    env
}

pub(super) fn gateway(context: &InjectContext<'_>) -> Vec<Value> {
    let mut env: Vec<Value> = identity(context).collect();
    env.push(resource("ISTIO_CPU_LIMIT", "limits.cpu"));
    env.push(proxy_config(context));
    env.push(pod_ports(context));
    env.push(resource("GOMEMLIMIT", "limits.memory"));
    env.extend(compliance(context));
    env.push(app_containers(context));
    env.push(cluster_id(context));
    env.push(node_name());
    env.push(variable("ISTIO_META_INTERCEPTION_MODE", context.proxy_config.interception_mode()));
    env.extend(network(context));
    env.extend(workload_name(&context.workload.name));
    env.extend(owner(context));
    env.extend(bootstrap(context));
    env.extend(mesh(context));
    env.extend(metadata(context));
    env
}

pub(super) fn grpc_agent(context: &InjectContext<'_>) -> Vec<Value> {
    let mut env = vec![variable("ISTIO_META_GENERATOR", "grpc"), variable("OUTPUT_CERTS", "/var/lib/istio/data")];
    env.extend(localhost_probes(context));
    env.extend(identity(context));
    env.push(proxy_config(context));
    env.push(pod_ports(context));
    env.push(app_containers(context));
    env.push(cluster_id(context));
    env.push(node_name());
    env.extend(network(context));
    env.extend(workload_name(&context.workload.name));
    env.extend(owner(context));
    env.extend(mesh(context));
    env.extend(metadata(context));
    env.push(variable("ISTIO_META_DNS_CAPTURE", "false"));
    env.push(variable("DISABLE_ENVOY", "true"));
    env
}

fn localhost_probes(context: &InjectContext<'_>) -> Option<Value> {
    let localhost = context.settings.mesh.inbound_localhost;
    localhost.then(|| variable("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true"))
}

/// Returns the CA that issues certificates, and the identity of the pod.
fn identity(context: &InjectContext<'_>) -> impl Iterator<Item = Value> {
    let values = &context.settings.values;
    let global = &values.global;
    let authority = if global.ca_address.is_empty() {
        let revision = if values.revision.is_empty() { String::new() } else { format!("-{}", values.revision) };
        format!("istiod{revision}.{}.svc:15012", global.istio_namespace)
    } else {
        global.ca_address.clone()
    };
    [
        variable("PILOT_CERT_PROVIDER", &global.pilot_cert_provider),
        variable("CA_ADDR", &authority),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
    ]
    .into_iter()
}

fn proxy_config(context: &InjectContext<'_>) -> Value {
    variable("PROXY_CONFIG", &context.proxy_config.to_env())
}

/// Returns the ports of all containers as JSON, one a line. Those of a proxy that the user declared are last, so that the text
/// does not depend on where it was declared.
fn pod_ports(context: &InjectContext<'_>) -> Value {
    let mut text = String::from("[");
    let containers = context.applications.iter().copied().chain(context.user_proxy);
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    for (index, port) in ports.enumerate() {
        let mut entry = Map::new();
        for key in ["name", "hostPort", "containerPort", "protocol", "hostIP"] {
            let value = &port[key];
            let empty = value.is_null() || value == "" || (value == 0 && key != "containerPort");
            if !empty {
                entry.insert(key.to_owned(), value.clone());
            }
        }
        text.push_str("\n    ");
        text.push_str(if index == 0 { "" } else { "," });
        text.push_str(&Value::Object(entry).to_string());
    }
    text.push_str("\n]");
    variable("ISTIO_META_POD_PORTS", &text)
}

fn app_containers(context: &InjectContext<'_>) -> Value {
    let names: Vec<&str> = context.applications.iter().filter_map(|container| container["name"].as_str()).collect();
    variable("ISTIO_META_APP_CONTAINERS", &names.join(","))
}

fn compliance(context: &InjectContext<'_>) -> impl Iterator<Item = Value> {
    let policy = context.settings.compliance_policy.as_str();
    let set = (!policy.is_empty()).then(|| variable("COMPLIANCE_POLICY", policy));
    let go = (policy == "fips-140-3").then(|| variable("GODEBUG", "fips140=only"));
    set.into_iter().chain(go)
}

fn cluster_id(context: &InjectContext<'_>) -> Value {
    let cluster = context.settings.values.global.cluster_name.as_str();
    variable("ISTIO_META_CLUSTER_ID", if cluster.is_empty() { "Kubernetes" } else { cluster })
}

fn node_name() -> Value {
    field("ISTIO_META_NODE_NAME", "spec.nodeName")
}

fn network(context: &InjectContext<'_>) -> Option<Value> {
    let network = context.settings.values.global.network.as_str();
    (!network.is_empty()).then(|| variable("ISTIO_META_NETWORK", network))
}

fn workload_name(name: &str) -> Option<Value> {
    (!name.is_empty()).then(|| variable("ISTIO_META_WORKLOAD_NAME", name))
}

fn owner(context: &InjectContext<'_>) -> Option<Value> {
    let workload = &context.workload;
    if workload.api_version.is_empty() || workload.name.is_empty() {
        return None;
    }
    let namespace = namespace(context);
    let kind = workload.kind.to_lowercase();
    let owner = format!("kubernetes://apis/{}/namespaces/{namespace}/{kind}s/{}", workload.api_version, workload.name);
    Some(variable("ISTIO_META_OWNER", &owner))
}

fn namespace<'a>(context: &'a InjectContext<'_>) -> &'a str {
    if context.workload.namespace.is_empty() { "default" } else { &context.workload.namespace }
}

fn bootstrap(context: &InjectContext<'_>) -> Option<Value> {
    let path = "/etc/istio/custom-bootstrap/custom_bootstrap.json";
    context.annotations.get(name::BOOTSTRAP_OVERRIDE).map(|_| variable("ISTIO_BOOTSTRAP_OVERRIDE", path))
}

/// Returns the proxyMetadata of the ProxyConfig.
pub(super) fn metadata(context: &InjectContext<'_>) -> Vec<Value> {
    context.proxy_config.metadata().into_iter().map(|(name, value)| variable(name, value)).collect()
}

fn mesh(context: &InjectContext<'_>) -> impl Iterator<Item = Value> {
    let global = &context.settings.values.global;
    let trust_domain = &context.settings.mesh.trust_domain;
    let id = if global.mesh_id.is_empty() { trust_domain } else { &global.mesh_id };
    let domain =
        if trust_domain.is_empty() { global.trust_domain.as_deref().unwrap_or_default() } else { trust_domain };
    let known = |name: &str, value: &str| (!value.is_empty()).then(|| variable(name, value));
    known("ISTIO_META_MESH_ID", id).into_iter().chain(known("TRUST_DOMAIN", domain))
}

/// Returns the variables of Datadog's annotation, if its tracer is used; the annotation has been validated.
fn datadog(context: &InjectContext<'_>) -> Vec<Value> {
    let text = context.annotations.get(name::DATADOG_ENV).filter(|_| context.settings.values.proxy.tracer == "datadog");
    let variables: Map<String, Value> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut names: Vec<&String> = variables.keys().collect();
    names.sort_unstable();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    names.into_iter().map(|name| variable(name, &text(&variables[name]))).collect()
}

fn opentelemetry(context: &InjectContext<'_>) -> Option<Value> {
    if !context.settings.mesh.otel_semantic_conventions {
        return None;
    }
    let field = |name: &str| context.applications.first().and_then(|first| first[name].as_str()).map(str::to_owned);
    let service = ServiceAttributes {
        namespace: namespace(context),
        annotated: &|key| context.annotations.get(key).map(str::to_owned),
        version_label: context.labels.get("app.kubernetes.io/version").map(str::to_owned),
        first_container: field("name"),
        only_image: field("image").filter(|_| context.applications.len() == 1),
    };
    let text = service.to_text();
    (!text.is_empty()).then(|| variable("OTEL_RESOURCE_ATTRIBUTES", &text))
}
