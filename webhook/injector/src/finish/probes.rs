//! Sends probes of the application through the agent: the kubelet has no mTLS, and its connections would be captured.
//!
//! Each handler is replaced by an HTTP request to the agent with a path of its own. A variable of the proxy tells the agent
//! which request to send to the application for each path.

mod handler;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{PROXY_CONTAINER, annotation, is_proxy, parse_bool, proxy_mut, set_variable, variable};
use crate::annotations::{REWRITE_PROBES, STATUS_PORT};
use handler::{HandlerField, ProbeAction};

/// Options of [`rewrite_probes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeRewriteOptions {
    /// `sidecarInjectorWebhook.rewriteAppHTTPProbe`; the pod's `sidecar.istio.io/rewriteAppHTTPProbers` overrides it.
    pub enabled: bool,
    /// Port of the agent, `defaultConfig.statusPort` of the mesh; the pod's `status.sidecar.istio.io/port` overrides it.
    pub status_port: u16,
    /// Whether the pod's agent answers lifecycle handlers, which it does since Istio 1.25. Otherwise they stay as they are.
    pub lifecycle: bool,
}

/// Variable that tells the agent the application's original handlers.
pub const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";

/// Sends probes and lifecycle handlers of the application through the agent; returns warnings.
///
/// Does not change commands, handlers for another host, handlers with a port name that the container does not have (these
/// with a warning), and handlers that are already rewritten.
pub fn rewrite_probes(pod: &mut Value, options: ProbeRewriteOptions) -> Vec<String> {
    let mut warnings = Vec::new();
    if !annotation(pod, REWRITE_PROBES).and_then(parse_bool).unwrap_or(options.enabled) {
        return warnings;
    }
    let own_port =
        annotation(pod, STATUS_PORT).and_then(|text| text.trim().parse::<u16>().ok()).filter(|port| *port != 0);
    if proxy_mut(pod).is_none() {
        return warnings;
    }
    let agent = Agent { port: own_port.unwrap_or(options.status_port), mesh_port: options.status_port };

    let mut handlers = BTreeMap::new();
    for list in ["initContainers", "containers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|container| !is_proxy(container)) {
            if let Some(container) = container.as_object_mut() {
                rewrite_container(container, &agent, options, &mut handlers, &mut warnings);
            }
        }
    }
    if handlers.is_empty() {
        return warnings;
    }
    // JSON values can always be serialized.
    let text = serde_json::to_string(&handlers).unwrap_or_default();
    if let Some(proxy) = proxy_mut(pod) {
        set_variable(proxy, VARIABLE, &text);
    }
    warnings
}

/// Restores probes and lifecycle handlers to what they were before [`rewrite_probes`], from the variable of `proxy`.
/// Named ports are restored as numbers.
pub(crate) fn restore_probes(pod: &mut Value, proxy: &Map<String, Value>) {
    let known: BTreeMap<String, Value> =
        variable(proxy, VARIABLE).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    for list in ["initContainers", "containers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for field in HandlerField::ALL {
                let path = field.path(&name);
                if let (Some(entry), Some(handler)) = (known.get(&path), field.find_mut(container))
                    && ProbeAction::of(handler, field).is_some_and(|action| action.path() == Some(path.as_str()))
                {
                    ProbeAction::restore(handler, entry);
                }
            }
        }
    }
}

/// Returns whether a handler of the pod is the redirected form of `original`; `field` is the innermost field of the handler.
pub(crate) fn is_redirected(container: &str, field: &str, handler: Option<&Value>, original: Option<&Value>) -> bool {
    let field = HandlerField::ALL.into_iter().find(|known| known.name().rsplit('.').next() == Some(field));
    let (Some(field), Some(Value::Object(handler)), Some(Value::Object(original))) = (field, handler, original) else {
        return false;
    };
    let path = field.path(container);
    let Some(action) = ProbeAction::of(handler, field).filter(|action| action.path() == Some(path.as_str())) else {
        return false;
    };
    let known = ProbeAction::of(original, field).filter(|original| !original.targets_another_host());
    let Some(port) = action.port().filter(|_| known.is_some()) else { return false };
    let mut redirected = original.clone();
    ProbeAction::redirect(&mut redirected, &path, port);
    // A handler that was redirected before has got the agent's port of today.
    let mut moved = original.clone();
    ProbeAction::set_port(&mut moved, port);
    let mut handler = handler.clone();
    for handler in [&mut redirected, &mut moved, &mut handler] {
        // The API server sets the default in the handler that it has got.
        if let Some(request) = handler.get_mut("httpGet").and_then(Value::as_object_mut)
            && request.get("scheme").is_some_and(|scheme| scheme == "HTTP" || scheme == "")
        {
            request.shift_remove("scheme");
        }
    }
    handler == redirected || handler == moved
}

/// Takes over into `container` the handlers of `fresh` that the agent serves in either of the two. Others stay as they are.
pub(crate) fn take_over_redirects(container: &mut Map<String, Value>, fresh: &Map<String, Value>) {
    let name = fresh.get("name").and_then(Value::as_str).unwrap_or_default();
    for field in HandlerField::ALL {
        let path = field.path(name);
        let is_redirected =
            |handler| ProbeAction::of(handler, field).is_some_and(|action| action.path() == Some(&path));
        let (Some(new), Some(handler)) = (field.find(fresh), field.find_mut(container)) else { continue };
        if is_redirected(new) || is_redirected(handler) {
            new.clone_into(handler);
        }
    }
}

/// The ports of the agent.
struct Agent {
    /// Port for this pod.
    port: u16,
    /// Port of the mesh configuration.
    mesh_port: u16,
}

impl Agent {
    /// Returns whether the handler is already rewritten to this path.
    fn serves(&self, action: &ProbeAction, path: &str) -> bool {
        action.path() == Some(path) && action.port().is_some_and(|port| port == self.port || port == self.mesh_port)
    }
}

fn rewrite_container(
    container: &mut Map<String, Value>,
    agent: &Agent,
    options: ProbeRewriteOptions,
    handlers: &mut BTreeMap<String, Value>,
    warnings: &mut Vec<String>,
) {
    let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    debug_assert_ne!(name, PROXY_CONTAINER);
    for field in HandlerField::ALL.into_iter().filter(|field| field.is_probe() || options.lifecycle) {
        let Some(handler) = field.find(container) else { continue };
        let Some(action) = ProbeAction::of(handler, field) else { continue };
        let path = field.path(&name);
        if agent.serves(&action, &path) {
            // The agent's port may have changed since then.
            if let Some(handler) = field.find_mut(container) {
                ProbeAction::set_port(handler, agent.port);
            }
            continue;
        }
        if action.targets_another_host() {
            continue;
        }
        let entry = match action.entry(container, field) {
            Ok(entry) => entry,
            Err(port) => {
                warnings.push(format!(
                    "{} of container '{name}' is not rewritten: the container has no port named '{port}'",
                    field.name()
                ));
                continue;
            }
        };
        if let Some(handler) = field.find_mut(container) {
            ProbeAction::redirect(handler, &path, agent.port);
            handlers.insert(path, entry);
        }
    }
}

#[cfg(test)]
mod tests;
