//! The built-in templates: what each adds to a pod, as a piece of a pod for the strategic merge.
//!
//! Everything is built as values; no text of a user or an administrator is ever spliced into a document.

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

use super::context::Context;
pub(super) use metadata::label_value;

pub(crate) use capture::{with_network, with_port};
pub(crate) use env::Service;

/// A template that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Template {
    /// The proxy beside an application, and the capture of its traffic.
    Sidecar,
    /// A proxy of its own.
    Gateway,
    /// An agent beside an application that speaks xDS itself.
    GrpcAgent,
    /// An application that speaks xDS itself, without an agent.
    GrpcSimple,
}

impl Template {
    /// All of them, by name.
    const ALL: [(&'static str, Self); 4] = [
        ("sidecar", Self::Sidecar),
        ("gateway", Self::Gateway),
        ("grpc-agent", Self::GrpcAgent),
        ("grpc-simple", Self::GrpcSimple),
    ];

    /// The template of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, template)| *template)
    }

    /// The names of all.
    pub(crate) fn names() -> [&'static str; Self::ALL.len()] {
        Self::ALL.map(|(name, _)| name)
    }

    /// What the template adds to the pod.
    pub(crate) fn render(self, context: &Context<'_>) -> Value {
        match self {
            Self::Sidecar => sidecar::render(context),
            Self::Gateway => gateway::render(context),
            Self::GrpcAgent => grpc::render(context),
            Self::GrpcSimple => grpc_simple::render(context),
        }
    }
}

/// An object of parts that are moved into it; `json!` would copy each of them whole.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A piece of a pod.
fn piece(labels: Map<String, Value>, annotations: Map<String, Value>, spec: Map<String, Value>) -> Value {
    let metadata = object([("labels", Value::Object(labels)), ("annotations", Value::Object(annotations))]);
    Value::Object(object([("metadata", Value::Object(metadata)), ("spec", Value::Object(spec))]))
}

/// Adds the configured pull secrets to the spec of a pod.
fn pull_secrets(spec: &mut Map<String, Value>, context: &Context<'_>) {
    let secrets = &context.settings.values.global.image_pull_secrets;
    if !secrets.is_empty() {
        let secrets = secrets.iter().map(|name| json!({"name": name})).collect();
        spec.insert("imagePullSecrets".to_owned(), secrets);
    }
}
