//! Volumes of the injected pod, and mounts of the proxy.

use serde_json::{Map, Value, json};

use crate::annotation_values::parse_named;
use crate::annotations as name;
use crate::context::InjectContext;

/// Lifetime of the token for the control plane, in seconds.
const TOKEN_SECONDS: u32 = 43_200;

pub(super) fn sidecar(context: &InjectContext<'_>) -> Vec<Value> {
    let mut volumes = vec![without_source("workload-socket"), without_source("credential-socket")];
    volumes.push(if uses_gke(context) { gke_certificates() } else { without_source("workload-certs") });
    volumes.extend(bootstrap(context));
    volumes.push(in_memory("istio-envoy"));
    volumes.extend(common_volumes(context));
    volumes.extend(root_certificate(context));
    let revoked = &context.settings.values.pilot.crl_config_map;
    volumes.push(json!({"name": "istio-ca-crl", "configMap": {"name": revoked, "optional": true}}));
    volumes.extend(mesh_certificates(context));
    volumes.extend(from_annotation(context, name::USER_VOLUME));
    if traces_with_tls(context) {
        volumes
            .push(json!({"name": "lightstep-certs", "secret": {"optional": true, "secretName": "lightstep.cacert"}}));
    }
    volumes
}

pub(super) fn gateway(context: &InjectContext<'_>) -> Vec<Value> {
    let mut volumes = vec![without_source("workload-socket"), empty("credential-socket")];
    volumes.push(if uses_gke(context) { gke_certificates() } else { empty("workload-certs") });
    volumes.extend(bootstrap(context));
    volumes.push(in_memory("istio-envoy"));
    volumes.extend(common_volumes(context));
    volumes.extend(root_certificate(context));
    volumes.extend(mesh_certificates(context));
    volumes
}

pub(super) fn grpc_agent(context: &InjectContext<'_>) -> Vec<Value> {
    let mut volumes = vec![without_source("workload-socket")];
    volumes.push(if uses_gke(context) { gke_certificates() } else { without_source("workload-certs") });
    volumes.extend(bootstrap(context));
    volumes.push(in_memory("istio-xds"));
    volumes.extend(common_volumes(context));
    volumes.extend(root_certificate(context));
    volumes.extend(mesh_certificates(context));
    volumes.extend(from_annotation(context, name::USER_VOLUME));
    volumes
}

pub(super) fn sidecar_mounts(context: &InjectContext<'_>) -> Vec<Value> {
    let mut mounts = vec![workload_socket(), credential_socket(), workload_certificates(context)];
    mounts.extend(root_mount(context));
    if uses_istiod_ca(context) {
        mounts.push(mount("/var/run/secrets/istio/crl", "istio-ca-crl"));
    }
    mounts.push(data_mount());
    mounts.extend(bootstrap_mount(context));
    mounts.push(mount("/etc/istio/proxy", "istio-envoy"));
    mounts.extend(late_mounts(context));
    if traces_with_tls(context)
        && let Some(file) = context.proxy_config.tracing_ca()
    {
        let directory = &file[..file.rfind('/').map_or(0, |slash| slash + 1)];
        mounts.push(json!({"mountPath": directory, "name": "lightstep-certs", "readOnly": true}));
    }
    mounts.extend(from_annotation(context, name::USER_VOLUME_MOUNT));
    mounts
}

pub(super) fn gateway_mounts(context: &InjectContext<'_>) -> Vec<Value> {
    let mut mounts = vec![workload_socket(), credential_socket(), workload_certificates(context)];
    mounts.extend(root_mount(context));
    mounts.push(data_mount());
    mounts.extend(bootstrap_mount(context));
    mounts.push(mount("/etc/istio/proxy", "istio-envoy"));
    mounts.extend(late_mounts(context));
    mounts
}

pub(super) fn grpc_agent_mounts(context: &InjectContext<'_>) -> Vec<Value> {
    let mut mounts = vec![workload_socket(), workload_certificates(context)];
    mounts.extend(root_mount(context));
    mounts.push(data_mount());
    mounts.push(mount("/etc/istio/proxy", "istio-xds"));
    mounts.extend(late_mounts(context));
    mounts.extend(from_annotation(context, name::USER_VOLUME_MOUNT));
    mounts
}

/// Returns the mounts of an application that speaks xDS itself.
pub(super) fn grpc_application_mounts(context: &InjectContext<'_>) -> Vec<Value> {
    vec![data_mount(), mount("/etc/istio/proxy", "istio-xds"), workload_certificates(context)]
}

fn workload_socket() -> Value {
    mount("/var/run/secrets/workload-spiffe-uds", "workload-socket")
}

fn credential_socket() -> Value {
    mount("/var/run/secrets/credential-uds", "credential-socket")
}

fn data_mount() -> Value {
    mount("/var/lib/istio/data", "istio-data")
}

fn root_mount(context: &InjectContext<'_>) -> Option<Value> {
    uses_istiod_ca(context).then(|| mount("/var/run/secrets/istio", "istiod-ca-cert"))
}

fn bootstrap_mount(context: &InjectContext<'_>) -> Option<Value> {
    context.annotations.get(name::BOOTSTRAP_OVERRIDE)?;
    Some(mount("/etc/istio/custom-bootstrap", "custom-bootstrap-volume"))
}

fn late_mounts(context: &InjectContext<'_>) -> impl Iterator<Item = Value> {
    let certificates = json!({"mountPath": "/etc/certs/", "name": "istio-certs", "readOnly": true});
    let certificates = context.settings.values.global.mount_mtls_certs.then_some(certificates);
    let token = mount("/var/run/secrets/tokens", "istio-token");
    [token].into_iter().chain(certificates).chain([mount("/etc/istio/pod", "istio-podinfo")])
}

fn common_volumes(context: &InjectContext<'_>) -> [Value; 3] {
    [empty("istio-data"), pod_info(), token(context)]
}

fn empty(name: &str) -> Value {
    json!({"name": name, "emptyDir": {}})
}

fn in_memory(name: &str) -> Value {
    json!({"name": name, "emptyDir": {"medium": "Memory"}})
}

fn mount(path: &str, volume: &str) -> Value {
    json!({"mountPath": path, "name": volume})
}

/// Returns a volume without a source: Kubernetes makes it an `emptyDir`, and a later template may set another source. The null
/// removes a source that an earlier template has set.
fn without_source(name: &str) -> Value {
    json!({"name": name, "emptyDir": null})
}

fn uses_gke(context: &InjectContext<'_>) -> bool {
    context.settings.values.global.ca_name == "GkeWorkloadCertificate"
}

fn gke_certificates() -> Value {
    json!({"name": "gke-workload-certificate", "csi": {"driver": "workloadcertificates.security.cloud.google.com"}})
}

fn workload_certificates(context: &InjectContext<'_>) -> Value {
    let path = "/var/run/secrets/workload-spiffe-credentials";
    if uses_gke(context) {
        return json!({"mountPath": path, "name": "gke-workload-certificate", "readOnly": true});
    }
    mount(path, "workload-certs")
}

fn bootstrap(context: &InjectContext<'_>) -> Option<Value> {
    let config_map = context.annotations.get(name::BOOTSTRAP_OVERRIDE)?;
    Some(json!({"name": "custom-bootstrap-volume", "configMap": {"name": config_map}}))
}

fn pod_info() -> Value {
    let item = |path: &str| json!({"path": path, "fieldRef": {"fieldPath": format!("metadata.{path}")}});
    json!({"name": "istio-podinfo", "downwardAPI": {"items": [item("labels"), item("annotations")]}})
}

/// Returns the token with which the proxy authenticates to the control plane.
fn token(context: &InjectContext<'_>) -> Value {
    let audience = &context.settings.values.global.token_audience;
    let token = json!({"path": "istio-token", "expirationSeconds": TOKEN_SECONDS, "audience": audience});
    json!({"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}})
}

fn uses_istiod_ca(context: &InjectContext<'_>) -> bool {
    context.settings.values.global.pilot_cert_provider == "istiod"
}

/// Returns the root certificate of istiod, if istiod issues the certificates.
fn root_certificate(context: &InjectContext<'_>) -> Option<Value> {
    if !uses_istiod_ca(context) {
        return None;
    }
    let bundle = context.settings.values.global.trust_bundle_name.as_deref();
    if context.settings.values.pilot.cluster_trust_bundle {
        let name = format!("istio.io:istiod-ca:{}", bundle.unwrap_or("root-cert"));
        let bundle = json!({"clusterTrustBundle": {"name": name, "path": "root-cert.pem"}});
        return Some(json!({"name": "istiod-ca-cert", "projected": {"sources": [bundle]}}));
    }
    Some(json!({"name": "istiod-ca-cert", "configMap": {"name": bundle.unwrap_or("istio-ca-root-cert")}}))
}

/// Returns the certificates in the secret of the service account.
fn mesh_certificates(context: &InjectContext<'_>) -> Option<Value> {
    if !context.settings.values.global.mount_mtls_certs {
        return None;
    }
    let account = context.service_account.filter(|account| !account.is_empty()).unwrap_or("default");
    Some(json!({"name": "istio-certs", "secret": {"optional": true, "secretName": format!("istio.{account}")}}))
}

fn traces_with_tls(context: &InjectContext<'_>) -> bool {
    context.settings.values.proxy.tracer == "lightstep" && context.proxy_config.tracing_ca().is_some()
}

/// Returns the volumes or mounts of the user's annotation `key`. The annotation has been validated.
fn from_annotation(context: &InjectContext<'_>, key: &str) -> Vec<Value> {
    let objects = parse_named(context.annotations.get(key).unwrap_or("{}")).unwrap_or_default();
    let named = objects.into_iter().filter_map(|(name, object)| {
        let Value::Object(fields) = object else { return None };
        let mut named = Map::from_iter([("name".to_owned(), Value::from(name))]);
        named.extend(fields.into_iter().filter(|(field, _)| field != "name"));
        Some(Value::Object(named))
    });
    named.collect()
}
