//! What is captured: the init container that programs or checks the rules, and the annotations for a CNI plugin.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::super::annotations as name;
use super::super::context::Context;
use super::{env, object, proxy};

/// Inbound ports of the proxy itself, never captured.
const PROXY_PORTS: &str = "15090,15021";
/// Network that makes Multus run the plugin.
const MULTUS_NETWORK: (&str, &str) = ("default", "istio-cni");

/// The captured traffic as text: annotation, else value.
struct Traffic<'a> {
    include_ranges: &'a str,
    exclude_ranges: &'a str,
    include_inbound: &'a str,
    exclude_inbound: Cow<'a, str>,
    /// Only where someone asks for it.
    include_outbound: Option<&'a str>,
    exclude_outbound: Option<&'a str>,
}

impl<'a> Traffic<'a> {
    fn of(context: &'a Context<'_>) -> Self {
        let values = &context.settings.values.proxy;
        let asked_for =
            |key: &str, value: &'a str| context.annotations.get(key).or((!value.is_empty()).then_some(value));
        let exclude_inbound = context.annotation_or(name::EXCLUDE_INBOUND_PORTS, &values.exclude_inbound_ports);
        Self {
            include_ranges: context.annotation_or(name::INCLUDE_OUTBOUND_RANGES, &values.include_ip_ranges),
            exclude_ranges: context.annotation_or(name::EXCLUDE_OUTBOUND_RANGES, &values.exclude_ip_ranges),
            include_inbound: context.annotation_or(name::INCLUDE_INBOUND_PORTS, &values.include_inbound_ports),
            exclude_inbound: with_port(exclude_inbound, &context.status_port),
            include_outbound: asked_for(name::INCLUDE_OUTBOUND_PORTS, &values.include_outbound_ports),
            exclude_outbound: asked_for(name::EXCLUDE_OUTBOUND_PORTS, &values.exclude_outbound_ports),
        }
    }
}

/// `istio-init`, which programs the rules, or in CNI mode `istio-validation`, which checks that they work.
pub(super) fn init_container(context: &Context<'_>) -> Option<Value> {
    if context.mode == "NONE" {
        return None;
    }
    let values = &context.settings.values;
    let cni = values.pilot.cni_enabled;
    let tproxy = context.mode == "TPROXY";
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

fn arguments(context: &Context<'_>, uid: u32) -> Vec<String> {
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
    option("-m", context.mode);
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

/// In CNI mode, what the plugin has to know.
pub(super) fn annotations(context: &Context<'_>) -> Map<String, Value> {
    let mut annotations = Map::new();
    let pilot = &context.settings.values.pilot;
    if !pilot.cni_enabled {
        return annotations;
    }
    if pilot.cni_provider == "multus" {
        let existing = context.annotations.get(name::MULTUS_NETWORKS).unwrap_or_default();
        let (namespace, network) = MULTUS_NETWORK;
        annotations.insert(name::MULTUS_NETWORKS.to_owned(), with_network(existing, namespace, network).into());
    }
    let traffic = Traffic::of(context);
    let not_empty = |text: &'static str, value| (text, Some(value).filter(|value: &&str| !value.is_empty()));
    let own = |key: &'static str| (key, context.annotations.get(key));
    let written = [
        (name::INTERCEPTION_MODE, Some(context.mode)),
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

/// The list with the port at its end, unless it has it, or the port is none.
pub(crate) fn with_port<'a>(list: &'a str, port: &str) -> Cow<'a, str> {
    let port = port.trim();
    let entries = || list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    if port.is_empty() || port == "0" || entries().any(|entry| entry == port) {
        return Cow::Borrowed(list);
    }
    Cow::Owned(entries().chain([port]).collect::<Vec<_>>().join(","))
}

/// The value of Multus' annotation with a network in it.
pub(crate) fn with_network(existing: &str, namespace: &str, network: &str) -> String {
    let flat = if namespace.is_empty() { network.to_owned() } else { format!("{namespace}/{network}") };
    if existing.trim().is_empty() {
        return flat;
    }
    let Some(end) = existing.rfind(']') else {
        if existing.split(',').any(|entry| entry.trim() == flat) {
            return existing.to_owned();
        }
        return format!("{existing}, {flat}");
    };
    match serde_json::from_str::<Vec<Value>>(existing) {
        Ok(list) if !list.iter().any(|entry| entry["name"] == network && entry["namespace"] == namespace) => {
            let separator = if list.is_empty() { "" } else { ", " };
            let entry = format!(r#"{separator}{{"name": "{network}", "namespace": "{namespace}"}}"#);
            format!("{}{entry}{}", &existing[..end], &existing[end..])
        }
        _ => existing.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_the_status_port_once() {
        assert_eq!(with_port("", "15020"), "15020");
        assert_eq!(with_port(" 4, 5,", "15020"), "4,5,15020");
        assert_eq!(with_port("15020, 4", "15020"), "15020, 4");
        assert_eq!(with_port("4, 5", "0"), "4, 5");
    }

    #[test]
    fn adds_the_network_to_both_forms_of_the_annotation_of_multus() {
        let with_multus_network = |existing| with_network(existing, MULTUS_NETWORK.0, MULTUS_NETWORK.1);
        assert_eq!(with_multus_network(""), "default/istio-cni");
        assert_eq!(with_multus_network("a"), "a, default/istio-cni");
        assert_eq!(with_multus_network("a, default/istio-cni"), "a, default/istio-cni");
        assert_eq!(
            with_multus_network(r#"[{"name": "a"}]"#),
            r#"[{"name": "a"}, {"name": "istio-cni", "namespace": "default"}]"#
        );
        let there = r#"[{"name":"istio-cni","namespace":"default"}]"#;
        assert_eq!(with_multus_network(there), there);
        assert_eq!(with_multus_network("[broken]"), "[broken]");
    }
}
