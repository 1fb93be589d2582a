//! Annotations of a pod, checked before anything is built: every finding, in one answer.

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::ProxySpec;
use serde_json::{Map, Value};

use super::annotations::{self as name, Texts};
use super::capture::settings_of;
use super::names::{is_dns_label, is_dns_subdomain, is_variable};
use super::quantity::Quantity;

/// Checks the value of one annotation; the error is the reason in a half sentence.
type Check = fn(&str) -> Result<(), String>;

/// Every annotation that has to have a certain form, but for those that choose the captured traffic.
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

/// Everything that is wrong with the annotations of a pod, each as a whole sentence with name and value.
pub(crate) fn findings(annotations: Texts<'_>) -> Vec<String> {
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

/// Most containers that a pod may have in one of its lists. No node runs as many, and a template that adds to every container
/// makes many times of what was sent: one pod must not take the memory of all others.
const MAX_CONTAINERS: usize = 1000;
/// Longest name of a container or a volume (a DNS label), for the same reason: it stands in paths, variables and messages.
const MAX_NAME: usize = 63;

/// What in a pod is not of the type that the sidecar is merged into. Merging takes a template's value over one of another type,
/// which would hide the mistake from the API server.
pub(crate) fn shape(pod: &Value) -> Vec<String> {
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
                if field.ends_with("ontainers") && items.len() > MAX_CONTAINERS {
                    let number = items.len();
                    findings
                        .push(format!("spec.{field} has {number} containers, at most {MAX_CONTAINERS} are injected"));
                }
                let long = items.iter().enumerate().find_map(|(index, item)| {
                    let length = item["name"].as_str().map_or(0, str::len);
                    (length > MAX_NAME && field != "imagePullSecrets").then_some((index, length))
                });
                findings.extend(long.map(|(index, length)| {
                    format!("spec.{field}[{index}].name has {length} bytes, at most {MAX_NAME} are allowed")
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

const fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The traffic annotations: the grammar is that of the rules, so that what is admitted can be programmed.
fn traffic(annotations: Texts<'_>) -> Vec<String> {
    let settings = settings_of(annotations);
    let Err(errors) = CaptureConfig::from_annotations(&settings, &ProxySpec::default()) else { return Vec::new() };
    // Istio names the setting as well as the annotation, and tools look for that name.
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

/// The text of one finding; long values are cut.
pub(crate) fn finding(key: &str, value: &str, reason: &str) -> String {
    let mut chars = value.chars();
    let shown: String = chars.by_ref().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let dots = if chars.next().is_some() { "..." } else { "" };
    format!("invalid value '{shown}{dots}' for annotation '{key}': {reason}")
}

fn port(value: &str) -> Result<(), String> {
    if is_port(value.trim()) { Ok(()) } else { Err("is not a port (0 to 65535)".to_owned()) }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn unsigned(value: &str) -> Result<(), String> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if digits && value.parse::<u32>().is_ok() {
        Ok(())
    } else {
        Err("is not a whole number (0 to 4294967295)".to_owned())
    }
}

fn boolean(value: &str) -> Result<(), String> {
    parse_bool(value).map(drop).ok_or_else(|| "must be true or false".to_owned())
}

/// The spellings that Go's `strconv.ParseBool` takes.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn quantity(value: &str) -> Result<(), String> {
    match Quantity::parse(value) {
        None => Err("is not a quantity such as 100m or 128Mi".to_owned()),
        Some(amount) if amount.is_negative() => Err("is less than nothing".to_owned()),
        Some(_) => Ok(()),
    }
}

/// Name of a ConfigMap.
fn object_name(value: &str) -> Result<(), String> {
    if is_dns_subdomain(value) { Ok(()) } else { Err("is no name of a ConfigMap".to_owned()) }
}

fn no_control_characters(value: &str) -> Result<(), String> {
    if value.chars().any(char::is_control) { Err("has control characters".to_owned()) } else { Ok(()) }
}

fn object(value: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(value).map_err(|error| format!("is not a JSON object: {error}"))
}

/// A JSON object of entries that all pass; `what` says what each has to be.
fn entries(value: &str, passes: impl Fn(&str, &Value) -> bool, what: &str) -> Result<(), String> {
    let object = object(value)?;
    let bad: Vec<&str> =
        object.iter().filter(|(key, value)| !passes(key, value)).map(|(key, _)| key.as_str()).collect();
    if bad.is_empty() { Ok(()) } else { Err(format!("{} is not {what}", quoted(&bad))) }
}

fn volumes(value: &str) -> Result<(), String> {
    entries(value, |name, source| is_dns_label(name) && source.is_object(), "the name of a volume with a JSON object")
}

fn mounts(value: &str) -> Result<(), String> {
    let is_mount = |mount: &Value| mount["mountPath"].as_str().is_some_and(|path| !path.is_empty());
    entries(
        value,
        |name, mount| is_dns_label(name) && is_mount(mount),
        "the name of a volume with a JSON object that has a mountPath",
    )
}

fn variables(value: &str) -> Result<(), String> {
    entries(value, |name, _| is_variable(name), "a name for a variable")
}

fn quoted(entries: &[&str]) -> String {
    entries.iter().map(|entry| format!("{entry:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(annotations: &Value) -> Vec<String> {
        let pod = json!({"metadata": {"annotations": annotations}});
        findings(Texts::of(&pod, "annotations"))
    }

    #[test]
    fn takes_every_form_that_the_documentation_allows() {
        let annotations = json!({
            name::INTERCEPTION_MODE: "NONE",
            name::INCLUDE_OUTBOUND_RANGES: "*",
            name::EXCLUDE_OUTBOUND_RANGES: "10.96.0.2/24,fd00::1/64",
            name::INCLUDE_INBOUND_PORTS: "",
            name::EXCLUDE_INBOUND_PORTS: "0, 80 ,65535",
            name::INCLUDE_OUTBOUND_PORTS: "1,2",
            name::EXCLUDE_INTERFACES: "eth0, net1.5",
            name::STATUS_PORT: "0",
            name::READINESS_PERIOD: "4294967295",
            name::PROXY_CPU: "1.5e3",
            name::PROXY_MEMORY: ".5Gi",
            name::MERGE_METRICS: "T",
            name::USER_VOLUME: "{\"a\":{\"emptyDir\":{}}}",
        });
        assert_eq!(of(&annotations), Vec::<String>::new());
    }

    #[test]
    fn refuses_each_in_one_answer_with_name_value_and_reason() {
        let bad = [
            (name::INTERCEPTION_MODE, "redirect"),
            (name::INCLUDE_OUTBOUND_RANGES, "10.0.0.0"),
            (name::EXCLUDE_OUTBOUND_RANGES, "*"),
            (name::INCLUDE_INBOUND_PORTS, "*,80"),
            (name::EXCLUDE_INBOUND_PORTS, "80,+90"),
            (name::INCLUDE_OUTBOUND_PORTS, "1 --x"),
            (name::EXCLUDE_OUTBOUND_PORTS, "65536"),
            (name::EXCLUDE_INTERFACES, "eth0,0eth"),
            (name::KUBEVIRT_INTERFACES, "abcdefghijklmnop"),
            (name::STATUS_PORT, ""),
            (name::READINESS_PERIOD, "-1"),
            (name::PROXY_CPU, "1 2"),
            (name::PROXY_MEMORY, "lots"),
            (name::MERGE_METRICS, "yes"),
            (name::USER_VOLUME, "[]"),
            (name::USER_VOLUME_MOUNT, "{\"a\":1}"),
        ];
        let annotations = bad.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
        let findings = of(&Value::Object(annotations));
        assert_eq!(findings.len(), bad.len(), "{findings:#?}");
        for (key, value) in bad {
            let start = format!("invalid value '{value}' for annotation '{key}': ");
            assert!(findings.iter().any(|found| found.starts_with(&start)), "{start}: {findings:#?}");
        }
    }

    #[test]
    fn names_every_part_of_a_pod_that_is_of_another_type() {
        let pod = json!({
            "metadata": {"labels": [], "annotations": null},
            "spec": {"containers": [{}, null], "initContainers": 7, "volumes": "x", "imagePullSecrets": null},
        });
        assert_eq!(
            shape(&pod),
            [
                "metadata.labels must be an object, found a list",
                "spec.containers[1] must be an object, found null",
                "spec.initContainers must be a list, found a number",
                "spec.volumes must be a list, found a string",
            ]
        );
        assert_eq!(
            shape(&json!({"metadata": 1})),
            ["metadata must be an object, found a number", "the pod has no spec"]
        );
        assert_eq!(shape(&json!({"spec": []})), ["spec must be an object, found a list"]);
        assert_eq!(shape(&json!({"spec": {}})), Vec::<String>::new());
    }

    #[test]
    fn bounds_the_number_of_containers() {
        let of =
            |number: usize| json!({"spec": {"containers": vec![json!({}); number], "volumes": vec![json!({}); 5000]}});
        assert_eq!(shape(&of(MAX_CONTAINERS)), Vec::<String>::new());
        assert_eq!(shape(&of(1001)), ["spec.containers has 1001 containers, at most 1000 are injected"]);
    }

    #[test]
    fn cuts_long_values() {
        let finding = &of(&json!({name::STATUS_PORT: "9".repeat(5000)}))[0];
        assert!(finding.len() < 300, "{finding}");
    }
}
