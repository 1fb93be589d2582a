//! The template `sidecar`: a proxy beside the application, and the capture of its traffic.

use serde_json::Value;

use super::{capture, metadata, object, partial_pod, proxy, pull_secrets, volumes};
use crate::context::InjectContext;

pub(super) fn render(context: &InjectContext<'_>) -> Value {
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
    partial_pod(metadata::sidecar_labels(context), annotations, spec)
}
