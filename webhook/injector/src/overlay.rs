//! The built-in templates: each renders what it adds to a pod as a partial pod for the strategic merge.
//!
//! Overlays are built as JSON values; user-supplied text is never spliced into a document.

mod capture;
mod env;
mod gateway;
mod grpc;
mod grpc_simple;
mod metadata;
mod proxy;
mod sidecar;
mod volumes;

use serde_json::{Map, Value, json};

use crate::builtin_template::BuiltinTemplate;
use crate::context::InjectContext;
pub(crate) use metadata::label_value;

/// Returns what a template adds to the pod.
pub(crate) fn render(template: BuiltinTemplate, context: &InjectContext<'_>) -> Value {
    match template {
        BuiltinTemplate::Sidecar => sidecar::render(context),
        BuiltinTemplate::Gateway => gateway::render(context),
        BuiltinTemplate::GrpcAgent => grpc::render(context),
        BuiltinTemplate::GrpcSimple => grpc_simple::render(context),
    }
}

/// Builds an object from values that are moved into it; `json!` would copy each of them.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Builds a pod that has only what a template adds.
fn partial_pod(labels: Map<String, Value>, annotations: Map<String, Value>, spec: Map<String, Value>) -> Value {
    let metadata = object([("labels", Value::Object(labels)), ("annotations", Value::Object(annotations))]);
    Value::Object(object([("metadata", Value::Object(metadata)), ("spec", Value::Object(spec))]))
}

/// Adds the configured image pull secrets to the spec of a pod.
fn pull_secrets(spec: &mut Map<String, Value>, context: &InjectContext<'_>) {
    let secrets = &context.settings.values.global.image_pull_secrets;
    if !secrets.is_empty() {
        let secrets = secrets.iter().map(|name| json!({"name": name})).collect();
        spec.insert("imagePullSecrets".to_owned(), secrets);
    }
}
