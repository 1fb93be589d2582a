//! Traffic capture: the init container that installs or verifies the rules, and the annotations for a CNI plugin.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::{env, object, proxy};
use crate::annotation_values::{append_multus_network, append_port};
use crate::annotations as name;
use crate::context::InjectContext;

/// Inbound ports of the proxy itself, never captured.
const PROXY_PORTS: &str = "15090,15021";
/// Namespace and name of the network that makes Multus run the plugin.
const MULTUS_NETWORK: (&str, &str) = ("default", "istio-cni");

/// Which traffic is captured, from the annotations, else the values.
struct Traffic<'a> {
    include_ranges: &'a str,
    exclude_ranges: &'a str,
    include_inbound: &'a str,
    exclude_inbound: Cow<'a, str>,
    /// `None` if neither the pod nor the values set it.
    include_outbound: Option<&'a str>,
    exclude_outbound: Option<&'a str>,
}

impl<'a> Traffic<'a> {
    fn of(context: &'a InjectContext<'_>) -> Self {
        let values = &context.settings.values.proxy;
        let if_set = |key: &str, value: &'a str| context.annotations.get(key).or((!value.is_empty()).then_some(value));
        let exclude_inbound = context.annotation_or(name::EXCLUDE_INBOUND_PORTS, &values.exclude_inbound_ports);
        Self {
            include_ranges: context.annotation_or(name::INCLUDE_OUTBOUND_RANGES, &values.include_ip_ranges),
            exclude_ranges: context.annotation_or(name::EXCLUDE_OUTBOUND_RANGES, &values.exclude_ip_ranges),
            include_inbound: context.annotation_or(name::INCLUDE_INBOUND_PORTS, &values.include_inbound_ports),
            exclude_inbound: append_port(exclude_inbound, &context.status_port),
            include_outbound: if_set(name::INCLUDE_OUTBOUND_PORTS, &values.include_outbound_ports),
            exclude_outbound: if_set(name::EXCLUDE_OUTBOUND_PORTS, &values.exclude_outbound_ports),
        }
    }
}

/// Returns `istio-init`, which installs the rules, or in CNI mode `istio-validation`, which verifies them.
pub(super) fn init_container(context: &InjectContext<'_>) -> Option<Value> {
    if context.interception_mode == "NONE" {
        return None;
    }
    let values = &context.settings.values;
    let cni = values.pilot.cni_enabled;
    let tproxy = context.interception_mode == "TPROXY";
    let (uid, gid) = if tproxy { (1337, 1337) } else { (context.uid, context.gid) };
    let mut capabilities = json!({"drop": ["ALL"]});
    if !cni {
        capabilities = json!({"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]});
    }
    let mut security = json!({
        "allowPrivilegeEscalation": values.proxy.privileged,
        "privileged": values.proxy.privileged,
        "capabilities": capabilities,
        "readOnlyRootFilesystem": cni,
        "runAsGroup": if cni { gid } else { 0 },
        "runAsUser": if cni { uid } else { 0 },
        "runAsNonRoot": cni,
    });
    if !values.proxy.seccomp_profile.is_empty() {
        security["seccompProfile"] = Value::Object(values.proxy.seccomp_profile.clone());
    }
    let mut container = object([
        ("name", if cni { "istio-validation" } else { "istio-init" }.into()),
        ("image", context.init_image().into()),
        ("args", arguments(context, uid).into()),
        ("securityContext", security),
    ]);
    if let Some(policy) = proxy::pull_policy(context) {
        container.insert("imagePullPolicy".to_owned(), policy);
    }
    if let Some(resources) = proxy::resources(context) {
        container.insert("resources".to_owned(), resources);
    }
    let metadata = env::metadata(context);
    if !metadata.is_empty() {
        container.insert("env".to_owned(), Value::Array(metadata));
    }
    Some(Value::Object(container))
}

fn arguments(context: &InjectContext<'_>, uid: u32) -> Vec<String> {
    let values = &context.settings.values;
    let traffic = Traffic::of(context);
    let mut args: Vec<String> = Vec::with_capacity(32);
    let mut option = |flag: &str, value: &str| args.extend([flag.to_owned(), value.to_owned()]);
    let exclude_inbound = match traffic.exclude_inbound.as_ref() {
        "" => PROXY_PORTS.to_owned(),
        ports => format!("{PROXY_PORTS},{ports}"),
    };
    option("-p", &context.settings.mesh.proxy_port.to_string());
    option("-z", &context.settings.mesh.inbound_port.to_string());
    option("-u", &uid.to_string());
    option("-m", context.interception_mode);
    option("-i", traffic.include_ranges);
    option("-x", traffic.exclude_ranges);
    option("-b", traffic.include_inbound);
    option("-d", &exclude_inbound);
    let interfaces = context.annotations.get(name::REROUTE_INTERFACES);
    let interfaces = interfaces.or_else(|| context.annotations.get(name::KUBEVIRT_INTERFACES));
    let excluded_interfaces = context.annotations.get(name::EXCLUDE_INTERFACES);
    let optional = [
        ("-q", traffic.include_outbound),
        ("-o", traffic.exclude_outbound),
        ("-k", interfaces),
        ("-c", excluded_interfaces),
    ];
    for (flag, value) in optional {
        if let Some(value) = value {
            option(flag, value);
        }
    }
    args.insert(0, "istio-iptables".to_owned());
    args.push(proxy::agent_log_level(context));
    let cni = values.pilot.cni_enabled;
    let switches = [
        ("--log_as_json", values.global.log_as_json),
        ("--run-validation", cni),
        ("--skip-rule-apply", cni),
        ("--force-apply", !cni && values.proxy_init.force_apply),
        ("--native-nftables", values.global.native_nftables),
    ];
    args.extend(switches.iter().filter(|(_, on)| *on).map(|(flag, _)| (*flag).to_owned()));
    args
}

/// Returns what a CNI plugin needs to know, in CNI mode.
pub(super) fn annotations(context: &InjectContext<'_>) -> Map<String, Value> {
    let mut annotations = Map::new();
    let pilot = &context.settings.values.pilot;
    if !pilot.cni_enabled {
        return annotations;
    }
    if pilot.cni_provider == "multus" {
        let existing = context.annotations.get(name::MULTUS_NETWORKS).unwrap_or_default();
        let (namespace, network) = MULTUS_NETWORK;
        annotations
            .insert(name::MULTUS_NETWORKS.to_owned(), append_multus_network(existing, namespace, network).into());
    }
    let traffic = Traffic::of(context);
    let not_empty = |text: &'static str, value| (text, Some(value).filter(|value: &&str| !value.is_empty()));
    let own = |key: &'static str| (key, context.annotations.get(key));
    let written = [
        (name::INTERCEPTION_MODE, Some(context.interception_mode)),
        not_empty(name::INCLUDE_OUTBOUND_RANGES, traffic.include_ranges),
        not_empty(name::EXCLUDE_OUTBOUND_RANGES, traffic.exclude_ranges),
        (name::INCLUDE_INBOUND_PORTS, Some(traffic.include_inbound)),
        (name::EXCLUDE_INBOUND_PORTS, Some(traffic.exclude_inbound.as_ref())),
        (name::INCLUDE_OUTBOUND_PORTS, traffic.include_outbound),
        (name::EXCLUDE_OUTBOUND_PORTS, traffic.exclude_outbound),
        own(name::KUBEVIRT_INTERFACES),
        own(name::REROUTE_INTERFACES),
        own(name::EXCLUDE_INTERFACES),
    ];
    for (key, value) in written {
        if let Some(value) = value {
            annotations.insert(key.to_owned(), value.into());
        }
    }
    annotations
}
