//! Conflicts of an application with its sidecar: containers that run as the proxy's user, and ports that the sidecar needs.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use crate::builtin_template::BuiltinTemplate;
use crate::containers::{self, ContainerList, PROXY_CONTAINER};
use crate::context::InjectContext;
use crate::pod_capture::security_id;

/// Fixed ports of the agent and of Envoy.
const AGENT_DEBUG: u16 = 15004;
const TUNNEL: u16 = 15008;
const HEALTH: u16 = 15021;
const DNS: u16 = 15053;
const METRICS: u16 = 15090;

#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    /// Conflicts that make the pod useless or impossible to start.
    pub(crate) denials: Vec<String>,
    /// Conflicts that may be intended.
    pub(crate) warnings: Vec<String>,
}

/// Finds the conflicts in an injected pod.
pub(crate) fn find(pod: &Value, templates: &[BuiltinTemplate], context: &InjectContext<'_>) -> Conflicts {
    let mut conflicts = Conflicts::default();
    let has = |template: BuiltinTemplate| templates.contains(&template);
    if has(BuiltinTemplate::Sidecar) && context.interception_mode != "NONE" {
        find_user_conflicts(pod, &mut conflicts);
    }
    find_port_conflicts(pod, &sidecar_ports(&has, context), &mut conflicts);
    find_host_port_conflicts(pod, &mut conflicts);
    conflicts
}

/// Iterates over the containers that run beside the proxy, with their names.
fn application_containers(pod: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let native =
        ContainerList::InitContainers.of(pod).iter().filter(|container| container["restartPolicy"] == "Always");
    let all = ContainerList::Containers.of(pod).iter().chain(native);
    all.filter_map(|container| Some((container["name"].as_str()?, container)))
        .filter(|(name, _)| *name != PROXY_CONTAINER)
}

/// Returns the proxy's user and group, whose connections the capture rules exempt.
pub(crate) fn proxy_ids(pod: &Value) -> Option<(i64, i64)> {
    let init = |name: &str| ContainerList::InitContainers.find(pod, name);
    let validation = init("istio-validation");
    let args = validation.or_else(|| init("istio-init"))?["args"].as_array()?;
    let flag = args.iter().position(|arg| arg == "-u")?;
    let user = args.get(flag + 1)?.as_str()?.parse().ok()?;
    // The CNI plugin exempts the proxy's group; the init container uses the user's id as the group.
    let group = match validation.and_then(|_| containers::find(pod, PROXY_CONTAINER)) {
        Some(proxy) => proxy["securityContext"]["runAsGroup"].as_i64().filter(|group| *group != 0).unwrap_or(1337),
        None => user,
    };
    Some((user, group))
}

/// Returns why the capture rules exempt a container's connections, as a clause without subject.
pub(crate) fn why_exempt(pod: &Value, container: &Value, (user, group): (i64, i64)) -> Option<String> {
    let id = |field: &str| security_id(pod, container, field);
    if id("runAsUser") == Some(user) {
        return Some(format!("runs as user {user}"));
    }
    (id("runAsGroup") == Some(group)).then(|| format!("runs as group {group}"))
}

fn find_user_conflicts(pod: &Value, conflicts: &mut Conflicts) {
    let Some(ids) = proxy_ids(pod) else { return };
    let mut captured = 0;
    let mut found = Vec::new();
    for (name, container) in application_containers(pod) {
        match why_exempt(pod, container, ids) {
            None => captured += 1,
            Some(reason) => found.push(format!(
                "container '{name}' {reason} like the proxy, so its outgoing connections bypass the mesh, without mTLS and \
                 policy; set another securityContext.runAsUser and runAsGroup, or, to bypass the mesh only for some destinations, \
                 use the annotations traffic.sidecar.istio.io/excludeOutboundIPRanges and excludeOutboundPorts"
            )),
        }
    }
    // One container among others may bypass the mesh on purpose; a sidecar that captures no container is a mistake.
    if captured == 0 { &mut conflicts.denials } else { &mut conflicts.warnings }.append(&mut found);
}

/// Returns the ports on which the sidecar listens, with their purpose.
fn sidecar_ports(has: &dyn Fn(BuiltinTemplate) -> bool, context: &InjectContext<'_>) -> BTreeMap<u16, &'static str> {
    let mesh = &context.settings.mesh;
    let config = &context.proxy_config;
    let enabled = |variable: &str| config.metadata_value(variable) == Some("true");
    let mut ports = BTreeMap::new();
    let (sidecar, gateway) = (has(BuiltinTemplate::Sidecar), has(BuiltinTemplate::Gateway));
    if sidecar || gateway || has(BuiltinTemplate::GrpcAgent) {
        ports.extend([(config.status_port(), "the agent's status server"), (AGENT_DEBUG, "the agent's debug server")]);
    }
    if sidecar || gateway {
        ports.extend([
            (config.admin_port(), "Envoy's admin interface"),
            (HEALTH, "health checks"),
            (METRICS, "Envoy's metrics"),
        ]);
    }
    if sidecar && context.interception_mode != "NONE" {
        ports.extend([(mesh.proxy_port, "captured outbound traffic"), (mesh.inbound_port, "captured inbound traffic")]);
    }
    if sidecar && enabled("ISTIO_META_ENABLE_HBONE") {
        ports.insert(TUNNEL, "HBONE");
    }
    if sidecar && enabled("ISTIO_META_DNS_CAPTURE") {
        ports.insert(DNS, "captured DNS");
    }
    ports
}

fn find_port_conflicts(pod: &Value, sidecar_ports: &BTreeMap<u16, &'static str>, conflicts: &mut Conflicts) {
    for (name, container) in application_containers(pod) {
        for port in container["ports"].as_array().into_iter().flatten() {
            let number = port["containerPort"].as_u64().and_then(|number| u16::try_from(number).ok());
            let Some((number, purpose)) = number.and_then(|number| sidecar_ports.get_key_value(&number)) else {
                continue;
            };
            let tcp = port["protocol"].as_str().is_none_or(|protocol| matches!(protocol, "TCP" | ""));
            if tcp || (*number == DNS && port["protocol"] == "UDP") {
                conflicts.warnings.push(format!(
                    "container '{name}' declares port {number}, on which the sidecar listens for {purpose}; \
                     let the application listen on another port"
                ));
            }
        }
    }
}

/// Finds host ports that both a container and the proxy as the user declared it request.
fn find_host_port_conflicts(pod: &Value, conflicts: &mut Conflicts) {
    let requested = |container: &Value| -> Vec<(u64, String, String)> {
        let text = |port: &Value, key: &str, default: &str| {
            port[key].as_str().filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
        };
        let ports = container["ports"].as_array().into_iter().flatten();
        let ports = ports.filter_map(|port| Some((port["hostPort"].as_u64().filter(|port| *port != 0)?, port)));
        ports.map(|(number, port)| (number, text(port, "protocol", "TCP"), text(port, "hostIP", "0.0.0.0"))).collect()
    };
    let proxy: HashSet<_> = containers::find(pod, PROXY_CONTAINER).map(requested).into_iter().flatten().collect();
    if proxy.is_empty() {
        return;
    }
    for (name, container) in application_containers(pod) {
        for (number, protocol, address) in requested(container).into_iter().filter(|port| proxy.contains(port)) {
            conflicts.denials.push(format!(
                "container '{name}' and the proxy both request host port {number}/{protocol} on {address}; change one of them"
            ));
        }
    }
}
