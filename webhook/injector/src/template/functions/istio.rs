//! The functions of Istio's injector.

use std::sync::Arc;

use gotmpl::{TemplateError, Value as Data};

use super::encoding::json;
use super::{Args, Function, FunctionResult, VARIADIC, entries, flag, limits, owned, strval, text};
use crate::annotation_values::{append_multus_network, append_port};
use crate::containers::PROXY_CONTAINER;
use crate::otel::ServiceAttributes;

pub(super) const ALL: [Function; 18] = [
    ("annotation", 3, 3, |args| {
        let found = args.values[0].field("Annotations").and_then(|annotations| annotations.field(args.text(1).ok()?));
        Ok(found.cloned().unwrap_or_else(|| owned(strval(&args.values[2]))))
    }),
    ("isset", 2, 2, |args| flag(args.map(0)?.contains_key(args.text(1)?))),
    ("valueOrDefault", 2, 2, |args| {
        let missing = matches!(&args.values[0], Data::Nil) || args.values[0] == text("");
        Ok(args.values[usize::from(missing)].clone())
    }),
    ("excludeInboundPort", 2, 2, |args| Ok(text(&append_port(&strval(&args.values[1]), &strval(&args.values[0]))))),
    ("includeInboundPorts", 1, 1, |args| container_ports(args, |_| true)),
    ("applicationPorts", 1, 1, |args| container_ports(args, |name| name != PROXY_CONTAINER)),
    ("kubevirtInterfaces", 1, 1, |args| args.text(0).map(text)),
    ("excludeInterfaces", 1, 1, |args| args.text(0).map(text)),
    ("indent", 2, 2, |args| {
        let pad = format!("\n{}", " ".repeat(args.size(0)?.min(limits::MAX_VALUE_BYTES)));
        let whole = args.text(1)?;
        limits::check_size(whole.len().saturating_add(whole.matches('\n').count().saturating_mul(pad.len())))?;
        Ok(owned(whole.replace('\n', &pad)))
    }),
    ("protoToJSON", 1, 1, |args| Ok(owned(proxy_config(args)?))),
    ("appendMultusNetwork", 2, 2, |args| {
        let network = args.text(1)?;
        // Before 1.22 Istio took the namespace for a part of the name.
        let parts = network.split_once('/').filter(|_| !limits::options().before_1_22);
        let (namespace, name) = parts.unwrap_or(("", network));
        Ok(owned(append_multus_network(args.text(0)?, namespace, name)))
    }),
    ("directory", 1, 1, |args| {
        let path = args.text(0)?;
        Ok(text(path.rfind('/').map_or("", |slash| &path[..=slash])))
    }),
    ("otelResourceAttributes", 5, 5, otel_attributes),
    ("strdict", 0, VARIADIC, |args| {
        let pairs: Result<Vec<_>, TemplateError> = (0..args.values.len())
            .step_by(2)
            .map(|index| {
                let value = if index + 1 < args.values.len() { args.text(index + 1)? } else { "" };
                Ok((Arc::from(args.text(index)?), text(value)))
            })
            .collect();
        entries(pairs?)
    }),
    ("mergeMaps", 0, VARIADIC, merged),
    ("toJsonMap", 0, VARIADIC, |args| Ok(owned(json(&merged(args)?).to_string()))),
    ("formatDuration", 1, 1, |args| match &args.values[0] {
        Data::Nil => Ok(text("0s")),
        Data::String(seconds) => {
            go_duration(seconds).map(owned).ok_or_else(|| args.mismatch(0, "a duration in seconds"))
        }
        _ => Err(args.mismatch(0, "a duration in seconds")),
    }),
    // Istio returns a variable of its controller. The environment of this process is not available to pods, but native sidecars
    // have a setting.
    ("env", 2, 2, |args| match args.text(0)? {
        "ENABLE_NATIVE_SIDECARS" => Ok(text(if limits::options().native_sidecars { "true" } else { "false" })),
        _ => args.text(1).map(text),
    }),
];

fn merged(args: &Args<'_>) -> FunctionResult {
    let mut all = std::collections::BTreeMap::new();
    for index in 0..args.values.len() {
        all.extend(args.map(index)?.iter().map(|(key, value)| (Arc::clone(key), value.clone())));
    }
    entries(all)
}

/// Joins the TCP ports of the containers whose names match.
fn container_ports(args: &Args<'_>, matches: fn(&str) -> bool) -> FunctionResult {
    let mut ports = Vec::new();
    for container in args.list(0)? {
        let name = container.field("Name").map(strval).unwrap_or_default();
        let Some(Data::List(from_container)) = container.field("Ports").filter(|_| matches(&name)) else { continue };
        for port in from_container.iter() {
            let protocol = port.field("Protocol").map(strval).unwrap_or_default();
            if protocol.is_empty() || protocol == "TCP" {
                ports.extend(port.field("ContainerPort").map(strval));
            }
        }
    }
    Ok(owned(ports.join(",")))
}

/// Prints a proxy configuration as the value of `PROXY_CONFIG`, and any other message as JSON.
fn proxy_config(args: &Args<'_>) -> Result<String, TemplateError> {
    let value = json(&args.values[0]);
    let serde_json::Value::Object(fields) = &value else { return Err(args.mismatch(0, "a message")) };
    let env = crate::proxy_config::ProxyConfig::env_from_fields(fields, limits::options().before_1_22);
    Ok(env.map_or_else(|| value.to_string(), |text| text.trim_end().to_owned()))
}

fn otel_attributes(args: &Args<'_>) -> FunctionResult {
    let wanted = |provider: &Data| {
        let enrichment = provider.field("Opentelemetry").and_then(|otel| otel.field("ServiceAttributeEnrichment"));
        enrichment.is_some_and(|value| *value == text("OTEL_SEMANTIC_CONVENTIONS"))
    };
    let providers = args.values[0].field("ExtensionProviders");
    if !matches!(providers, Some(Data::List(providers)) if providers.iter().any(wanted)) {
        return Ok(text(""));
    }
    let (annotations, labels, namespace) = (args.map(1)?, args.map(2)?, args.text(3)?);
    let get = |map: &super::Entries, key: &str| map.get(key).map(strval);
    let containers = args.list(4)?;
    let field = |name: &str| containers.first().and_then(|container| container.field(name)).map(strval);
    let service = ServiceAttributes {
        namespace,
        annotated: &|key| get(&annotations, key),
        version_label: get(&labels, "app.kubernetes.io/version"),
        first_container: field("Name"),
        only_image: field("Image").filter(|_| containers.len() == 1),
    };
    Ok(owned(service.to_text()))
}

/// Prints a duration of protobuf as Go does: `90.500s` as `1m30.5s`.
fn go_duration(text: &str) -> Option<String> {
    let number = text.strip_suffix('s')?;
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |number| ("-", number));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let seconds: u64 = whole.parse().ok()?;
    let digits = fraction.trim_end_matches('0');
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || digits.len() > 9 {
        return None;
    }
    let nanos: u32 = if digits.is_empty() { 0 } else { format!("{digits:0<9}").parse().ok()? };
    if seconds == 0 && nanos > 0 {
        let (unit, scale) = match nanos {
            1_000_000.. => ("ms", 1_000_000),
            1_000.. => ("µs", 1_000),
            _ => ("ns", 1),
        };
        let rest = format!("{:0width$}", nanos % scale, width = scale.ilog10() as usize);
        let rest = if scale == 1 { "" } else { rest.trim_end_matches('0') };
        let point = if rest.is_empty() { "" } else { "." };
        return Some(format!("{sign}{}{point}{rest}{unit}", nanos / scale));
    }
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let hours_text = if hours > 0 { format!("{hours}h") } else { String::new() };
    let minutes_text = if hours > 0 || minutes > 0 { format!("{minutes}m") } else { String::new() };
    let point = if digits.is_empty() { "" } else { "." };
    Some(format!("{sign}{hours_text}{minutes_text}{seconds}{point}{digits}s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_in_go() {
        for (proto, go) in [
            ("45s", "45s"),
            ("0s", "0s"),
            ("90s", "1m30s"),
            ("3600s", "1h0m0s"),
            ("1.500s", "1.5s"),
            ("0.250s", "250ms"),
            ("0.000001500s", "1.5µs"),
            ("0.000000007s", "7ns"),
            ("-90s", "-1m30s"),
        ] {
            assert_eq!(go_duration(proto).as_deref(), Some(go), "{proto}");
        }
        for text in ["", "s", "1", "1m", "1.s2", "x"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
