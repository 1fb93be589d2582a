//! Where an application and its sidecar get into each other's way: users whose traffic is taken for the proxy's, and ports that
//! the sidecar needs itself.

use std::collections::BTreeMap;

use serde_json::Value;

use super::containers::{self, List};
use super::context::{Context, PROXY};
use super::overlay::Template;

/// Ports of the agent and of Envoy that no setting moves.
const AGENT_DEBUG: u16 = 15004;
const TUNNEL: u16 = 15008;
const HEALTH: u16 = 15021;
const DNS: u16 = 15053;
const METRICS: u16 = 15090;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    /// What makes the sidecar useless.
    pub(super) denials: Vec<String>,
    /// What may be meant.
    pub(super) warnings: Vec<String>,
}

/// All conflicts in an injected pod.
pub(super) fn of(pod: &Value, templates: &[Template], context: &Context<'_>) -> Conflicts {
    let mut conflicts = Conflicts::default();
    let has = |wanted: Template| templates.contains(&wanted);
    if has(Template::Sidecar) && context.mode != "NONE" {
        users(pod, &mut conflicts);
    }
    ports(pod, &ports_of_sidecar(&has, context), &mut conflicts);
    conflicts
}

/// Containers of the application: those that run beside the proxy.
fn applications(pod: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let native = List::InitContainers.of(pod).iter().filter(|container| container["restartPolicy"] == "Always");
    let all = List::Containers.of(pod).iter().chain(native);
    all.filter_map(|container| Some((container["name"].as_str()?, container))).filter(|(name, _)| *name != PROXY)
}

/// User and group whose connections the rules let pass, being the proxy's own.
pub(super) fn exempt(pod: &Value) -> Option<(i64, i64)> {
    let init = |name: &str| List::InitContainers.find(pod, name);
    let validation = init("istio-validation");
    let args = validation.or_else(|| init("istio-init"))?["args"].as_array()?;
    let flag = args.iter().position(|arg| arg == "-u")?;
    let user = args.get(flag + 1)?.as_str()?.parse().ok()?;
    // The plugin knows the proxy's group; the init container takes the user's number for it.
    let group = match validation.and_then(|_| containers::find(pod, PROXY)) {
        Some(proxy) => proxy["securityContext"]["runAsGroup"].as_i64().filter(|group| *group != 0).unwrap_or(1337),
        None => user,
    };
    Some((user, group))
}

/// Why a container's connections pass for the proxy's, in half a sentence.
pub(super) fn passes_for_proxy(pod: &Value, container: &Value, exempt: (i64, i64)) -> Option<String> {
    let id = |field: &str| {
        let own = container["securityContext"][field].as_i64();
        own.or_else(|| pod["spec"]["securityContext"][field].as_i64())
    };
    if id("runAsUser") == Some(exempt.0) {
        return Some(format!("runs as user {}", exempt.0));
    }
    (id("runAsGroup") == Some(exempt.1)).then(|| format!("runs as group {}", exempt.1))
}

fn users(pod: &Value, conflicts: &mut Conflicts) {
    let Some(exempt) = exempt(pod) else { return };
    let mut captured = 0;
    let mut found = Vec::new();
    for (name, container) in applications(pod) {
        match passes_for_proxy(pod, container, exempt) {
            None => captured += 1,
            Some(reason) => found.push(format!(
                "container '{name}' {reason} like the proxy, so its outgoing connections bypass the mesh, without mTLS and \
                 without policy; give it another securityContext.runAsUser and runAsGroup (to keep only some destinations out of the \
                 mesh there are the annotations traffic.sidecar.istio.io/excludeOutboundIPRanges and excludeOutboundPorts)"
            )),
        }
    }
    // One container beside others may be meant so; a sidecar that captures nobody is not.
    if captured == 0 { &mut conflicts.denials } else { &mut conflicts.warnings }.append(&mut found);
}

/// The ports on which the sidecar listens, and for what.
fn ports_of_sidecar(has: &dyn Fn(Template) -> bool, context: &Context<'_>) -> BTreeMap<u16, &'static str> {
    let mesh = &context.settings.mesh;
    let config = &context.proxy_config;
    let enabled = |variable: &str| config.metadata_value(variable) == Some("true");
    let mut ports = BTreeMap::new();
    let (sidecar, gateway) = (has(Template::Sidecar), has(Template::Gateway));
    if sidecar || gateway || has(Template::GrpcAgent) {
        ports.extend([(config.status_port(), "the agent's status"), (AGENT_DEBUG, "the agent's debugging")]);
    }
    if sidecar || gateway {
        ports.extend([
            (config.admin_port(), "Envoy's administration"),
            (HEALTH, "health"),
            (METRICS, "Envoy's metrics"),
        ]);
    }
    if sidecar && context.mode != "NONE" {
        ports
            .extend([(mesh.proxy_port, "captured outgoing traffic"), (mesh.inbound_port, "captured incoming traffic")]);
    }
    if sidecar && enabled("ISTIO_META_ENABLE_HBONE") {
        ports.insert(TUNNEL, "the mesh's tunnel");
    }
    if sidecar && enabled("ISTIO_META_DNS_CAPTURE") {
        ports.insert(DNS, "captured DNS");
    }
    ports
}

fn ports(pod: &Value, taken: &BTreeMap<u16, &'static str>, conflicts: &mut Conflicts) {
    for (name, container) in applications(pod) {
        for port in container["ports"].as_array().into_iter().flatten() {
            let number = port["containerPort"].as_u64().and_then(|number| u16::try_from(number).ok());
            let Some((number, purpose)) = number.and_then(|number| taken.get_key_value(&number)) else { continue };
            let tcp = port["protocol"].as_str().is_none_or(|protocol| matches!(protocol, "TCP" | ""));
            if tcp || (*number == DNS && port["protocol"] == "UDP") {
                conflicts.warnings.push(format!(
                    "container '{name}' declares port {number}, on which the sidecar listens for {purpose}; \
                     only one of them can, so let the application listen on another port"
                ));
            }
        }
    }
    host_ports(pod, conflicts);
}

/// Two containers that want one port of the node, one of them the proxy as the user wrote it.
fn host_ports(pod: &Value, conflicts: &mut Conflicts) {
    let wanted = |container: &Value| -> Vec<(u64, String, String)> {
        let text = |port: &Value, key: &str, default: &str| {
            port[key].as_str().filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
        };
        let ports = container["ports"].as_array().into_iter().flatten();
        let ports = ports.filter_map(|port| Some((port["hostPort"].as_u64().filter(|port| *port != 0)?, port)));
        ports.map(|(number, port)| (number, text(port, "protocol", "TCP"), text(port, "hostIP", "0.0.0.0"))).collect()
    };
    let Some(proxy) = containers::find(pod, PROXY).map(wanted).filter(|ports| !ports.is_empty()) else { return };
    for (name, container) in applications(pod) {
        for (number, protocol, address) in wanted(container).into_iter().filter(|port| proxy.contains(port)) {
            conflicts.denials.push(format!(
                "container '{name}' and the proxy both want host port {number}/{protocol} at {address}; give one of them another"
            ));
        }
    }
}
