//! Probes of the application go through the agent: the kubelet cannot speak mTLS and its connections would be captured.
//!
//! Each handler is replaced by an HTTP request to the agent's port under a path of its own, and the agent learns from a
//! variable of the proxy what to ask the application when that path is asked for.

mod handler;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{PROXY, annotation, is_proxy, parse_bool, proxy_mut, set_variable, variable};
use handler::{Action, Place};

/// What the rewrite needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSettings {
    /// `sidecarInjectorWebhook.rewriteAppHTTPProbe`; the pod's `sidecar.istio.io/rewriteAppHTTPProbers` beats it.
    pub enabled: bool,
    /// Port of the agent, `defaultConfig.statusPort` of the mesh; the pod's `status.sidecar.istio.io/port` beats it.
    pub status_port: u16,
}

/// Variable by which the agent learns of the application's own handlers.
pub const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";

const REWRITE: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
const STATUS_PORT: &str = "status.sidecar.istio.io/port";

/// Sends probes and lifecycle handlers of the application through the agent. Gives back warnings.
///
/// Left alone are commands, handlers that ask another host, those with a port name that the container does not have (with
/// a warning: only the user can tell what was meant), and those that an injection has rewritten already.
pub fn rewrite_probes(pod: &mut Value, settings: ProbeSettings) -> Vec<String> {
    let mut warnings = Vec::new();
    if !annotation(pod, REWRITE).and_then(parse_bool).unwrap_or(settings.enabled) {
        return warnings;
    }
    let own_port =
        annotation(pod, STATUS_PORT).and_then(|text| text.trim().parse::<u16>().ok()).filter(|port| *port != 0);
    if proxy_mut(pod).is_none() {
        return warnings;
    }
    let agent = Agent { port: own_port.unwrap_or(settings.status_port), mesh_port: settings.status_port };

    let mut found = BTreeMap::new();
    for list in ["initContainers", "containers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|container| !is_proxy(container)) {
            if let Some(container) = container.as_object_mut() {
                rewrite_container(container, &agent, &mut found, &mut warnings);
            }
        }
    }
    if found.is_empty() {
        return warnings;
    }
    // A map of texts to JSON always has a JSON form.
    let text = serde_json::to_string(&found).unwrap_or_default();
    if let Some(proxy) = proxy_mut(pod) {
        set_variable(proxy, VARIABLE, &text);
    }
    warnings
}

/// Gives probes and lifecycle handlers back what they asked before [`rewrite_probes`], as far as `proxy` still knows it.
/// Ports that had a name come back as numbers.
pub(crate) fn restore_probes(pod: &mut Value, proxy: &Map<String, Value>) {
    let known: BTreeMap<String, Value> =
        variable(proxy, VARIABLE).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    for list in ["initContainers", "containers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for place in Place::ALL {
                let path = place.path(&name);
                if let (Some(entry), Some(handler)) = (known.get(&path), place.find_mut(container))
                    && Action::of(handler, place).is_some_and(|action| action.path() == Some(path.as_str()))
                {
                    Action::restore(handler, entry);
                }
            }
        }
    }
}

/// Where the agent listens.
struct Agent {
    port: u16,
    mesh_port: u16,
}

impl Agent {
    /// The handler already asks the agent under the path that it would get.
    fn answers(&self, action: &Action, path: &str) -> bool {
        action.path() == Some(path) && action.port().is_some_and(|port| port == self.port || port == self.mesh_port)
    }
}

fn rewrite_container(
    container: &mut Map<String, Value>,
    agent: &Agent,
    found: &mut BTreeMap<String, Value>,
    warnings: &mut Vec<String>,
) {
    let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    debug_assert_ne!(name, PROXY);
    for place in Place::ALL {
        let Some(handler) = place.find(container) else { continue };
        let Some(action) = Action::of(handler, place) else { continue };
        let path = place.path(&name);
        if agent.answers(&action, &path) {
            // The agent's port may have changed since.
            if let Some(handler) = place.find_mut(container) {
                Action::move_to(handler, agent.port);
            }
            continue;
        }
        if action.asks_another_host() {
            continue;
        }
        let entry = match action.entry(container, place) {
            Ok(entry) => entry,
            Err(port) => {
                warnings.push(format!(
                    "{} of container '{name}' is left alone: '{port}' is none of the container's ports",
                    place.name()
                ));
                continue;
            }
        };
        if let Some(handler) = place.find_mut(container) {
            Action::redirect(handler, &path, agent.port);
            found.insert(path, entry);
        }
    }
}

#[cfg(test)]
mod tests;
