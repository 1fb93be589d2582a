//! Validates the pod and its annotations before anything is built, and collects every finding.

pub(crate) mod limits;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::ProxySpec;
use iptables_rules::text::parse_bool;
use serde_json::{Map, Value};

use crate::annotation_values::parse_named;
use crate::annotations::{self as name, StringMap};
use crate::capture::capture_annotations;
use crate::findings::type_name;
use crate::name_rules::{is_dns_label, is_dns_subdomain, is_env_var_name};
use crate::quantity::Quantity;

/// Checks the value of an annotation; the error is the reason as a clause.
type Check = fn(&str) -> Result<(), String>;

/// The checks of all annotations but those that choose the captured traffic.
const CHECKS: [(&str, Check); 17] = [
    (name::STATUS_PORT, port),
    (name::BOOTSTRAP_OVERRIDE, object_name),
    (name::READINESS_INITIAL_DELAY, unsigned),
    (name::READINESS_PERIOD, unsigned),
    (name::READINESS_FAILURES, unsigned),
    (name::PROXY_CPU, quantity),
    (name::PROXY_MEMORY, quantity),
    (name::PROXY_CPU_LIMIT, quantity),
    (name::PROXY_MEMORY_LIMIT, quantity),
    (name::MERGE_METRICS, boolean),
    (name::USER_VOLUME, volumes),
    (name::USER_VOLUME_MOUNT, mounts),
    (name::DATADOG_ENV, variables),
    (name::LOG_LEVEL, no_control_characters),
    (name::COMPONENT_LOG_LEVEL, no_control_characters),
    (name::AGENT_LOG_LEVEL, no_control_characters),
    (name::PROXY_IMAGE, no_control_characters),
];

/// Returns every invalid annotation of a pod, with its name, value and reason.
pub(crate) fn findings(annotations: StringMap<'_>) -> Vec<String> {
    let mut findings = Vec::new();
    for (key, check) in CHECKS {
        if let Some(value) = annotations.get(key)
            && let Err(reason) = check(value)
        {
            findings.push(finding(key, value, &reason));
        }
    }
    findings.extend(traffic(annotations));
    findings
}

/// Maximum length of the name of a container or a volume (a DNS label): paths, variables and messages contain it.
const MAX_NAME: usize = 63;

/// Returns every field of a pod that has a wrong type for the merge. Merging replaces a value of another type by the template's,
/// which would hide the mistake from the API server.
pub(crate) fn type_errors(pod: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    for path in ["metadata", "metadata.labels", "metadata.annotations"] {
        let value = path.split('.').fold(pod, |at, key| &at[key]);
        if !value.is_null() && !value.is_object() {
            findings.push(format!("{path} must be an object, found {}", type_name(value)));
        }
    }
    let spec = &pod["spec"];
    if !spec.is_object() {
        findings.push(if spec.is_null() {
            "the pod has no spec".to_owned()
        } else {
            format!("spec must be an object, found {}", type_name(spec))
        });
    }
    for field in ["containers", "initContainers", "volumes", "imagePullSecrets"] {
        match &spec[field] {
            Value::Null => {}
            Value::Array(items) => {
                let long = items.iter().enumerate().find_map(|(index, item)| {
                    let length = item["name"].as_str().map_or(0, str::len);
                    (length > MAX_NAME && field != "imagePullSecrets").then_some((index, length))
                });
                findings.extend(long.map(|(index, length)| {
                    format!("spec.{field}[{index}].name has {length} bytes; the limit is {MAX_NAME}")
                }));
                let bad = items.iter().enumerate().find(|(_, item)| !item.is_object());
                findings.extend(bad.map(|(index, item)| {
                    format!("spec.{field}[{index}] must be an object, found {}", type_name(item))
                }));
            }
            other => findings.push(format!("spec.{field} must be a list, found {}", type_name(other))),
        }
    }
    findings
}

/// Checks the annotations that choose the captured traffic with the parser of the rules, so that what is admitted can be installed.
fn traffic(annotations: StringMap<'_>) -> Vec<String> {
    let settings = capture_annotations(annotations);
    let Err(errors) = CaptureConfig::from_annotations(&settings, &ProxySpec::default()) else { return Vec::new() };
    // Istio's messages name the setting as well as the annotation, and tools look for it.
    let setting = |name: &str| match name {
        name::INCLUDE_OUTBOUND_RANGES => "includeIPRanges: ",
        name::EXCLUDE_OUTBOUND_RANGES => "excludeIPRanges: ",
        _ => "",
    };
    let texts = errors
        .iter()
        .map(|error| finding(&error.name, &error.value, &(setting(&error.name).to_owned() + &error.reason)));
    texts.collect()
}

/// Formats a finding about an annotation; long values are truncated.
pub(crate) fn finding(key: &str, value: &str, reason: &str) -> String {
    let mut chars = value.chars();
    let shown: String = chars.by_ref().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let dots = if chars.next().is_some() { "..." } else { "" };
    format!("invalid value '{shown}{dots}' for annotation '{key}': {reason}")
}

fn port(value: &str) -> Result<(), String> {
    if is_port(value.trim()) { Ok(()) } else { Err("is not a port (0-65535)".to_owned()) }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn unsigned(value: &str) -> Result<(), String> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if digits && value.parse::<u32>().is_ok() { Ok(()) } else { Err("is not a whole number (0-4294967295)".to_owned()) }
}

fn boolean(value: &str) -> Result<(), String> {
    parse_bool(value).map(drop).ok_or_else(|| "must be true or false".to_owned())
}

fn quantity(value: &str) -> Result<(), String> {
    match Quantity::parse(value) {
        None => Err("is not a quantity such as 100m or 128Mi".to_owned()),
        Some(amount) if amount.is_negative() => Err("must not be negative".to_owned()),
        Some(_) => Ok(()),
    }
}

fn object_name(value: &str) -> Result<(), String> {
    if is_dns_subdomain(value) { Ok(()) } else { Err("is not a valid ConfigMap name".to_owned()) }
}

fn no_control_characters(value: &str) -> Result<(), String> {
    if value.chars().any(char::is_control) { Err("has control characters".to_owned()) } else { Ok(()) }
}

/// Checks every entry of [`parse_named`]; `expected` says what an entry must be.
fn entries(value: &str, is_valid: impl Fn(&str, &Value) -> bool, expected: &str) -> Result<(), String> {
    let entries = parse_named(value)?;
    let bad = entries.iter().filter(|(name, value)| !is_valid(name, value));
    let bad: Vec<&str> = bad.map(|(name, _)| name.as_str()).collect();
    if bad.is_empty() { Ok(()) } else { Err(format!("{} is not {expected}", quoted(&bad))) }
}

fn volumes(value: &str) -> Result<(), String> {
    entries(
        value,
        |name, source| is_dns_label(name) && source.is_object(),
        "a valid volume (a DNS label as its name, and a JSON object)",
    )
}

fn mounts(value: &str) -> Result<(), String> {
    let is_mount = |mount: &Value| mount["mountPath"].as_str().is_some_and(|path| !path.is_empty());
    entries(
        value,
        |name, mount| is_dns_label(name) && is_mount(mount),
        "a valid mount (a DNS label as the volume's name, and a JSON object with a mountPath)",
    )
}

fn variables(value: &str) -> Result<(), String> {
    let object: Map<String, Value> =
        serde_json::from_str(value).map_err(|error| format!("is not a JSON object: {error}"))?;
    let bad: Vec<&str> = object.keys().map(String::as_str).filter(|name| !is_env_var_name(name)).collect();
    if bad.is_empty() { Ok(()) } else { Err(format!("{} is not a valid environment variable name", quoted(&bad))) }
}

fn quoted(entries: &[&str]) -> String {
    entries.iter().map(|entry| format!("{entry:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
