//! The data that a user template is rendered with for a pod: Istio's `SidecarTemplateData`.

use std::sync::Arc;

use gotmpl::Value as Data;
use serde_json::Value;

use crate::context::InjectContext;
use crate::template::SharedTemplateData;
use crate::template::data::{object_meta, pod_spec, proxy_config, text};

/// Returns the data for `pod`, which must be without an injection.
pub(crate) fn for_pod(context: &InjectContext<'_>, pod: &Value, shared: &SharedTemplateData) -> Data {
    let settings = context.settings;
    let workload = &context.workload;
    let localhost = settings.mesh.inbound_localhost;
    map([
        ("TypeMeta", map([("APIVersion", text(&workload.api_version)), ("Kind", text(&workload.kind))])),
        ("DeploymentMeta", map([("Name", text(&workload.name)), ("Namespace", text(&workload.namespace))])),
        ("ObjectMeta", object_meta(pod.get("metadata"))),
        ("Spec", pod_spec(pod.get("spec"))),
        ("ProxyConfig", proxy_config(&context.proxy_config)),
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
    ])
}

fn map<const N: usize>(fields: [(&str, Data); N]) -> Data {
    Data::Map(Arc::new(fields.into_iter().map(|(name, value)| (name.into(), value)).collect()))
}
