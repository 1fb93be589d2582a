//! The data that a user template is rendered with for a pod: Istio's `SidecarTemplateData`.

use std::sync::Arc;

use gotmpl::Value as Data;
use serde_json::Value;

use crate::annotations;
use crate::context::InjectContext;
use crate::quantity::Quantity;
use crate::template::SharedTemplateData;
use crate::template::data::{object_meta, pod_spec, proxy_config};
use crate::template::value::{COMPLETE_KEY, text};

/// Returns the data for `pod`, which must be without an injection.
pub(crate) fn for_pod(context: &InjectContext<'_>, pod: &Value, shared: &SharedTemplateData) -> Data {
    let settings = context.settings;
    let workload = &context.workload;
    let localhost = settings.mesh.inbound_localhost;
    let is_default = context.proxy_config == settings.mesh.default_config;
    let effective_config = if is_default { shared.default_config.clone() } else { proxy_config(&context.proxy_config) };
    map([
        (COMPLETE_KEY, Data::Bool(true)),
        ("TypeMeta", map([("APIVersion", text(&workload.api_version)), ("Kind", text(&workload.kind))])),
        ("DeploymentMeta", map([("Name", text(&workload.name)), ("Namespace", text(&workload.namespace))])),
        ("ObjectMeta", object_meta(pod.get("metadata"))),
        ("Spec", pod_spec(pod.get("spec"))),
        ("ProxyConfig", effective_config),
        ("MeshConfig", shared.mesh.clone()),
        ("Values", shared.values.clone()),
        ("Revision", text(&settings.revision)),
        ("NativeSidecars", Data::Bool(context.native)),
        ("ProxyImage", text(&context.proxy_image())),
        ("ProxyInitImage", text(&context.init_image())),
        ("ProxyUID", Data::Int(context.uid.into())),
        ("ProxyGID", Data::Int(context.gid.into())),
        ("InboundTrafficPolicyMode", text(if localhost { "localhost" } else { "passthrough" })),
        ("CompliancePolicy", text(&settings.compliance_policy)),
        ("EstimatedConcurrency", Data::Int(estimated_concurrency(context))),
    ])
}

/// Returns the number of the proxy's worker threads as Istio up to 1.18 estimates it: `concurrency` of its configuration; if that
/// is 0, the processors that it may use; else 2.
pub(crate) fn estimated_concurrency(context: &InjectContext<'_>) -> i64 {
    const DEFAULT: i64 = 2;
    match context.proxy_config.concurrency() {
        None => return DEFAULT,
        Some(0) => {}
        Some(threads) => return threads,
    }
    let resources = &context.settings.values.proxy.resources;
    let annotated = [annotations::PROXY_CPU_LIMIT, annotations::PROXY_CPU];
    let processors = match annotated.iter().find_map(|name| context.annotations.get(name)) {
        Some(cpu) => Quantity::parse(cpu),
        None => ["limits", "requests"].iter().find_map(|kind| Quantity::of(resources.get(*kind)?.get("cpu")?)),
    };
    processors.map_or(DEFAULT, Quantity::ceil)
}

fn map<const N: usize>(fields: [(&str, Data); N]) -> Data {
    Data::Map(Arc::new(fields.into_iter().map(|(name, value)| (name.into(), value)).collect()))
}
