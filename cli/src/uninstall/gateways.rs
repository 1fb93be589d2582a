//! Workloads whose pods cannot be created without the webhook.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::console::print_line;
use crate::failure::Failure;
use crate::objects::{DAEMON_SET, DEPLOYMENT, STATEFUL_SET};

/// Image of a container that the webhook replaces, as gateways have it.
const AUTO_IMAGE: &str = "auto";

/// Warns of workloads that take their image from the webhook.
///
/// # Errors
/// The output cannot be written. Workloads that may not be listed are left out.
pub(super) async fn warn(cluster: &Cluster) -> Result<(), Failure> {
    let mut names = Vec::new();
    for kind in [DEPLOYMENT, DAEMON_SET, STATEFUL_SET] {
        let workloads = cluster.objects(kind, "", "").await.unwrap_or_default();
        names.extend(workloads.iter().filter(|workload| has_auto_image(workload)).map(name));
    }
    if names.is_empty() {
        return Ok(());
    }
    print_line(&format!(
        "warning: gateways with `image: auto` get their image from the webhook; unless another injector serves them, new pods of these \
         cannot start any more: {}",
        names.join(", ")
    ))
}

fn has_auto_image(workload: &Value) -> bool {
    let containers = workload.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    containers.into_iter().flatten().any(|container| container["image"] == AUTO_IMAGE)
}

fn name(workload: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &workload["metadata"];
    format!("{} {}/{}", text(&workload["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}
