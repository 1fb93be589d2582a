//! The template `sidecar`.

use serde_json::{Value, json};

use super::super::context::Context;
use super::{capture, metadata, proxy, pull_secrets, volumes};

/// The proxy beside an application, and the capture of its traffic.
pub(super) fn render(context: &Context<'_>) -> Value {
    let mut init_containers: Vec<Value> = capture::init_container(context).into_iter().collect();
    let mut containers = Vec::new();
    let proxy = proxy::sidecar(context);
    if context.native { &mut init_containers } else { &mut containers }.push(proxy);
    let mut annotations = metadata::annotations(context);
    annotations.append(&mut capture::annotations(context));
    let mut spec = json!({
        "initContainers": init_containers,
        "containers": containers,
        "volumes": volumes::sidecar(context),
    });
    pull_secrets(&mut spec, context);
    json!({"metadata": {"labels": metadata::sidecar_labels(context), "annotations": annotations}, "spec": spec})
}
