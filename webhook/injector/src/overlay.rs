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

use crate::context::InjectContext;
pub(crate) use metadata::label_value;

/// A built-in template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BuiltinTemplate {
    /// A proxy beside the application, and the capture of its traffic.
    Sidecar,
    /// A standalone proxy.
    Gateway,
    /// An agent beside an application that speaks xDS itself (proxyless gRPC).
    GrpcAgent,
    /// An application that speaks xDS itself, without an agent.
    GrpcSimple,
}

impl BuiltinTemplate {
    const ALL: [(&'static str, Self); 4] = [
        ("sidecar", Self::Sidecar),
        ("gateway", Self::Gateway),
        ("grpc-agent", Self::GrpcAgent),
        ("grpc-simple", Self::GrpcSimple),
    ];

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, template)| *template)
    }

    pub(crate) fn names() -> [&'static str; Self::ALL.len()] {
        Self::ALL.map(|(name, _)| name)
    }

    /// Returns what the template adds to the pod.
    pub(crate) fn render(self, context: &InjectContext<'_>) -> Value {
        match self {
            Self::Sidecar => sidecar::render(context),
            Self::Gateway => gateway::render(context),
            Self::GrpcAgent => grpc::render(context),
            Self::GrpcSimple => grpc_simple::render(context),
        }
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
