//! The template `sidecar`.

use serde_json::Value;

use super::super::context::Context;
use super::{capture, metadata, object, piece, proxy, pull_secrets, volumes};

/// The proxy beside an application, and the capture of its traffic.
pub(super) fn render(context: &Context<'_>) -> Value {
    let mut init_containers: Vec<Value> = capture::init_container(context).into_iter().collect();
    let mut containers = Vec::new();
    let proxy = proxy::sidecar(context);
    if context.native { &mut init_containers } else { &mut containers }.push(proxy);
    let mut annotations = metadata::annotations(context);
    annotations.append(&mut capture::annotations(context));
    let mut spec = object([
        ("initContainers", init_containers.into()),
        ("containers", containers.into()),
        ("volumes", volumes::sidecar(context).into()),
    ]);
    pull_secrets(&mut spec, context);
    piece(metadata::sidecar_labels(context), annotations, spec)
}
