//! Environment of the proxy container, in the order in which Istio has it.

use serde_json::{Map, Value, json};

use super::super::annotations as name;
use super::super::context::Context;

/// A literal variable.
pub(super) fn variable(name: &str, value: &str) -> Value {
    let fields = [("name".to_owned(), name.into()), ("value".to_owned(), value.into())];
    Value::Object(Map::from_iter(fields))
}

/// A variable with a value from the pod itself.
pub(super) fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn resource(name: &str, resource: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": "1"}}})
}

/// Environment of a sidecar.
pub(super) fn sidecar(context: &Context<'_>) -> Vec<Value> {
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
    env.push(variable("ISTIO_META_INTERCEPTION_MODE", context.mode));
    env.extend(network(context));
    let workload = context.labels.first(&["service.istio.io/workload-name"]).unwrap_or(&context.workload.name);
    env.extend(workload_name(workload));
    env.extend(owner(context));
    env.extend(bootstrap(context));
    env.extend(mesh(context));
    env.extend(datadog(context));
    env.extend(opentelemetry(context));
    env.extend(metadata(context));
    env
}

/// Environment of a gateway.
pub(super) fn gateway(context: &Context<'_>) -> Vec<Value> {
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

/// Environment of the agent of a gRPC application.
pub(super) fn grpc_agent(context: &Context<'_>) -> Vec<Value> {
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

fn localhost_probes(context: &Context<'_>) -> Option<Value> {
    let localhost = context.settings.mesh.inbound_localhost;
    localhost.then(|| variable("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true"))
}

/// Who issues certificates, and who the pod is.
fn identity(context: &Context<'_>) -> impl Iterator<Item = Value> {
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

fn proxy_config(context: &Context<'_>) -> Value {
    variable("PROXY_CONFIG", &context.proxy_config.to_env())
}

/// Ports of all containers as JSON, one a line. Those of a proxy that the user wrote himself stand last, so that the text
/// does not depend on where he wrote it.
fn pod_ports(context: &Context<'_>) -> Value {
    let mut text = String::from("[");
    let containers = context.applications.iter().copied().chain(context.own_proxy);
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

fn app_containers(context: &Context<'_>) -> Value {
    let names: Vec<&str> = context.applications.iter().filter_map(|container| container["name"].as_str()).collect();
    variable("ISTIO_META_APP_CONTAINERS", &names.join(","))
}

fn compliance(context: &Context<'_>) -> impl Iterator<Item = Value> {
    let policy = context.settings.compliance_policy.as_str();
    let set = (!policy.is_empty()).then(|| variable("COMPLIANCE_POLICY", policy));
    let go = (policy == "fips-140-3").then(|| variable("GODEBUG", "fips140=only"));
    set.into_iter().chain(go)
}

fn cluster_id(context: &Context<'_>) -> Value {
    let cluster = context.settings.values.global.cluster_name.as_str();
    variable("ISTIO_META_CLUSTER_ID", if cluster.is_empty() { "Kubernetes" } else { cluster })
}

fn node_name() -> Value {
    field("ISTIO_META_NODE_NAME", "spec.nodeName")
}

fn network(context: &Context<'_>) -> Option<Value> {
    let network = context.settings.values.global.network.as_str();
    (!network.is_empty()).then(|| variable("ISTIO_META_NETWORK", network))
}

fn workload_name(name: &str) -> Option<Value> {
    (!name.is_empty()).then(|| variable("ISTIO_META_WORKLOAD_NAME", name))
}

fn owner(context: &Context<'_>) -> Option<Value> {
    let workload = &context.workload;
    if workload.api_version.is_empty() || workload.name.is_empty() {
        return None;
    }
    let namespace = namespace(context);
    let kind = workload.kind.to_lowercase();
    let owner = format!("kubernetes://apis/{}/namespaces/{namespace}/{kind}s/{}", workload.api_version, workload.name);
    Some(variable("ISTIO_META_OWNER", &owner))
}

fn namespace<'a>(context: &'a Context<'_>) -> &'a str {
    if context.workload.namespace.is_empty() { "default" } else { &context.workload.namespace }
}

fn bootstrap(context: &Context<'_>) -> Option<Value> {
    let path = "/etc/istio/custom-bootstrap/custom_bootstrap.json";
    context.annotations.get(name::BOOTSTRAP_OVERRIDE).map(|_| variable("ISTIO_BOOTSTRAP_OVERRIDE", path))
}

/// Variables of the proxy's configuration.
pub(super) fn metadata(context: &Context<'_>) -> Vec<Value> {
    context.proxy_config.metadata().into_iter().map(|(name, value)| variable(name, value)).collect()
}

/// Mesh id and trust domain, where they are known.
fn mesh(context: &Context<'_>) -> impl Iterator<Item = Value> {
    let global = &context.settings.values.global;
    let trust_domain = &context.settings.mesh.trust_domain;
    let id = if global.mesh_id.is_empty() { trust_domain } else { &global.mesh_id };
    let domain =
        if trust_domain.is_empty() { global.trust_domain.as_deref().unwrap_or_default() } else { trust_domain };
    let known = |name: &str, value: &str| (!value.is_empty()).then(|| variable(name, value));
    known("ISTIO_META_MESH_ID", id).into_iter().chain(known("TRUST_DOMAIN", domain))
}

/// Datadog's own variables, where its tracer is used; the annotation has been validated.
fn datadog(context: &Context<'_>) -> Vec<Value> {
    let text = context.annotations.get(name::DATADOG_ENV).filter(|_| context.settings.values.proxy.tracer == "datadog");
    let variables: Map<String, Value> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut names: Vec<&String> = variables.keys().collect();
    names.sort_unstable();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    names.into_iter().map(|name| variable(name, &text(&variables[name]))).collect()
}

/// `OTEL_RESOURCE_ATTRIBUTES` by OpenTelemetry's conventions for services.
fn opentelemetry(context: &Context<'_>) -> Option<Value> {
    if !context.settings.mesh.otel_semantic_conventions {
        return None;
    }
    let field = |name: &str| context.applications.first().and_then(|first| first[name].as_str()).map(str::to_owned);
    let service = Service {
        namespace: namespace(context),
        annotated: &|key| context.annotations.get(key).map(str::to_owned),
        version_label: context.labels.get("app.kubernetes.io/version").map(str::to_owned),
        first_container: field("name"),
        only_image: field("image").filter(|_| context.applications.len() == 1),
    };
    let text = service.attributes();
    (!text.is_empty()).then(|| variable("OTEL_RESOURCE_ATTRIBUTES", &text))
}

/// What OpenTelemetry's conventions want to know of a service.
pub(crate) struct Service<'a> {
    /// Namespace of the workload.
    pub(crate) namespace: &'a str,
    /// Annotations of the pod.
    pub(crate) annotated: &'a dyn Fn(&str) -> Option<String>,
    /// Label `app.kubernetes.io/version`.
    pub(crate) version_label: Option<String>,
    /// Name of the first container.
    pub(crate) first_container: Option<String>,
    /// Image of the container, where there is one only.
    pub(crate) only_image: Option<String>,
}

impl Service<'_> {
    /// `service.namespace`, `service.version` and `service.instance.id`, as far as they are known.
    pub(crate) fn attributes(self) -> String {
        let annotated = |name: &str| (self.annotated)(&format!("resource.opentelemetry.io/{name}"));
        let namespace = self.namespace;
        let version = annotated("service.version")
            .or(self.version_label)
            .or_else(|| self.only_image.as_deref().and_then(version_of_image));
        let instance = annotated("service.instance.id")
            .or_else(|| Some(format!("{namespace}.$(POD_NAME).{}", self.first_container?)));
        let attributes = [
            ("service.namespace", annotated("service.namespace").or_else(|| Some(namespace.to_owned()))),
            ("service.version", version),
            ("service.instance.id", instance),
        ];
        let known =
            attributes.into_iter().filter_map(|(key, value)| Some((key, value.filter(|value| !value.is_empty())?)));
        known.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }
}

/// `tag@digest`, or the one of the two that an image reference has.
fn version_of_image(image: &str) -> Option<String> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match (tag, digest) {
        (Some(tag), Some(digest)) => Some(format!("{tag}@{digest}")),
        (one, other) => one.or(other).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_of_an_image_but_not_the_port_of_its_registry() {
        assert_eq!(version_of_image("r:5000/a/b:1.0"), Some("1.0".to_owned()));
        assert_eq!(version_of_image("r:5000/a/b"), None);
        assert_eq!(version_of_image("b@sha256:0f"), Some("sha256:0f".to_owned()));
        assert_eq!(version_of_image("b:1@sha256:0f"), Some("1@sha256:0f".to_owned()));
    }
}
