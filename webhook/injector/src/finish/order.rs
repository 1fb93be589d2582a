//! The start order of containers.

use serde_json::Value;

use super::{PROXY_CONTAINER, is_proxy};

/// The first init containers of a pod with a native proxy, in this order; all others follow.
const FIRST_WITH_NATIVE: [&str; 4] = ["istio-init", "istio-validation", PROXY_CONTAINER, "enable-core-dump"];

/// Puts the containers in order.
///
/// A classic proxy is last, or first if the application waits for it (`hold_application`). With a native proxy, the init
/// containers of the mesh come before all others. Otherwise validation comes first, so that a pod without rules fails early,
/// and `istio-init` last, so that the user's init containers have the network without capture. All other containers keep
/// their order.
pub fn order_containers(pod: &mut Value, hold_application: bool) {
    if let Some(containers) = list(pod, "containers") {
        containers.sort_by_key(|container| is_proxy(container) != hold_application);
    }
    let Some(containers) = list(pod, "initContainers") else { return };
    if containers.iter().any(is_proxy) {
        containers.sort_by_key(|container| {
            let name = container["name"].as_str();
            FIRST_WITH_NATIVE.iter().position(|first| name == Some(first)).unwrap_or(FIRST_WITH_NATIVE.len())
        });
    } else {
        containers.sort_by_key(|container| match container["name"].as_str() {
            Some("istio-validation") => 0,
            Some("istio-init") => 2,
            Some("enable-core-dump") => 3,
            _ => 1,
        });
    }
}

fn list<'a>(pod: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    pod.get_mut("spec")?.get_mut(field)?.as_array_mut()
}

#[cfg(test)]
mod tests;
