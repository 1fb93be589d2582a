//! Merges the metrics of application and proxy under one port: Prometheus scrapes the agent, and the agent scrapes both.

use iptables_rules::text::truncate;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{annotate, annotation, parse_bool, proxy_mut, set_variable, string_map_mut, variable};
use crate::annotations::MERGE_METRICS;

/// Options of [`merge_metrics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsMergeOptions {
    /// `enablePrometheusMerge` of the mesh; the pod's `prometheus.istio.io/merge-metrics` overrides it.
    pub enabled: bool,
    /// Port of the agent, `defaultConfig.statusPort` of the mesh.
    pub status_port: u16,
}

const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const TARGETS: &str = "prometheus.istio.io/scrape-targets";
const SECURE_PORT: &str = "prometheus.istio.io/secure-port";
const SECURE_PORT_VARIABLE: &str = "ENVOY_SECURE_MERGED_METRICS_PORT";

/// Maximum number of scrape targets that are reported.
const MAX_DENIALS: usize = 50;

/// Ports of the proxy and its agent, which the agent must not scrape as those of the application.
const RESERVED: [u16; 9] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// Limit of the entries of [`TARGETS`]: each becomes 30 bytes of the variable.
const MAX_TARGETS: usize = 1000;
/// Variable that tells the agent where the application's metrics are.
pub const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";

/// The pod's annotations as the agent reads them, with the keys in this order.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct ScrapeConfiguration<'a> {
    scrape: &'a str,
    path: &'a str,
    port: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    targets: Vec<Target<'a>>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Target<'a> {
    port: &'a str,
    path: &'a str,
}

/// Returns whether [`merge_metrics`] or [`announce_secure_port`] may write or remove an annotation.
pub(crate) fn is_metrics_annotation(name: &str) -> bool {
    name == SECURE_PORT || [SCRAPE, PORT, PATH, TARGETS].iter().any(|known| is_same_label_name(name, known))
}

/// Points Prometheus at the agent, and the agent at the application's metrics; returns warnings.
///
/// Does nothing if the pod or the mesh has turned it off, or if the pod already points to the agent.
///
/// # Errors
/// Returns every port that cannot be scraped, with its annotation; the pod is then unchanged.
pub fn merge_metrics(pod: &mut Value, options: MetricsMergeOptions) -> Result<Vec<String>, Vec<String>> {
    let scraped =
        equivalent_annotations(pod, SCRAPE).into_iter().find_map(|(_, value)| parse_bool(value)).unwrap_or(true);
    let merged = annotation(pod, MERGE_METRICS).and_then(parse_bool).unwrap_or(options.enabled);
    let own = options.status_port.to_string();
    let first = |name: &str| equivalent_annotations(pod, name).first().map(|(_, value)| *value);
    if !scraped || !merged || first(PORT) == Some(own.as_str()) {
        return Ok(Vec::new());
    }

    let mut warnings = Vec::new();
    let mut denials = Vec::new();
    let mut scrape_configuration = ScrapeConfiguration {
        scrape: first(SCRAPE).unwrap_or_default(),
        path: first(PATH).unwrap_or_default(),
        port: first(PORT).unwrap_or_default(),
        targets: Vec::new(),
    };
    if !scrape_configuration.port.is_empty()
        && let Err(reason) = check_scrape_port(scrape_configuration.port, options.status_port)
    {
        denials.push(denial(PORT, scrape_configuration.port, &reason));
    }
    if let Some(text) = first(TARGETS) {
        let count = text.split(',').count();
        if count > MAX_TARGETS {
            denials.push(denial(TARGETS, text, &format!("has {count} targets; the limit is {MAX_TARGETS}")));
        } else if let Some(targets) = targets(text) {
            let bad = targets.iter().filter_map(|target| check_scrape_port(target.port, options.status_port).err());
            // Each denial repeats part of the annotation.
            denials.extend(bad.take(MAX_DENIALS).map(|reason| denial(TARGETS, text, &reason)));
            scrape_configuration.targets = targets;
        } else {
            warnings.push(format!("annotation '{TARGETS}' is ignored: an entry of '{}' has no port", truncate(text)));
        }
    }
    if !denials.is_empty() {
        return Err(denials);
    }
    if let Some(target) = scrape_configuration.targets.first() {
        (scrape_configuration.port, scrape_configuration.path) = (target.port, target.path);
    }
    // Strings can always be serialized.
    let variable = (scrape_configuration != ScrapeConfiguration::default())
        .then(|| serde_json::to_string(&scrape_configuration).unwrap_or_default());

    if let (Some(text), Some(proxy)) = (variable, proxy_mut(pod)) {
        set_variable(proxy, VARIABLE, &text);
    }
    if let Some(annotations) = string_map_mut(pod, "annotations") {
        // Those that are set below keep their position.
        let is_set_below = |name: &str| [SCRAPE, PORT, PATH].contains(&name);
        let known = [SCRAPE, PORT, PATH, TARGETS];
        annotations.retain(|name, _| is_set_below(name) || !known.iter().any(|known| is_same_label_name(name, known)));
    }
    for (name, value) in [(PATH, "/stats/prometheus"), (PORT, &own), (SCRAPE, "true")] {
        annotate(pod, name, value);
    }
    Ok(warnings)
}

/// Reverts [`merge_metrics`] and [`announce_secure_port`] from the variables of `proxy`; returns what cannot be recovered.
pub(crate) fn restore_metrics(pod: &mut Value, proxy: Option<&Map<String, Value>>) -> Vec<String> {
    let recorded = proxy.and_then(|proxy| variable(proxy, VARIABLE));
    let secure = proxy.and_then(|proxy| variable(proxy, SECURE_PORT_VARIABLE));
    let mut unrecoverable = Vec::new();
    let Some(annotations) =
        pod.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations")?.as_object_mut())
    else {
        return unrecoverable;
    };
    if secure.is_some() && annotations.get(SECURE_PORT).and_then(Value::as_str) == secure {
        annotations.shift_remove(SECURE_PORT);
        unrecoverable.push(format!("whether the pod had annotation '{SECURE_PORT}' (removed)"));
    }
    let merged = |name: &str, value: &str| annotations.get(name).is_some_and(|found| found == value);
    if !merged(PATH, "/stats/prometheus") || !merged(SCRAPE, "true") || !annotations.contains_key(PORT) {
        return unrecoverable;
    }
    let recorded: Value = recorded.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let targets = recorded["targets"].as_array();
    for (name, key) in [(SCRAPE, "scrape"), (PATH, "path"), (PORT, "port")] {
        // With targets, path and port are those of the first one.
        let value = recorded[key].as_str().filter(|value| !value.is_empty() && (targets.is_none() || key == "scrape"));
        match value {
            Some(value) => drop(annotations.insert(name.to_owned(), value.into())),
            None => drop(annotations.shift_remove(name)),
        }
    }
    if let Some(targets) = targets {
        let target = |target: &Value| Some(format!("{}:{}", target["port"].as_str()?, target["path"].as_str()?));
        let targets: Vec<String> = targets.iter().filter_map(target).collect();
        annotations.insert(TARGETS.to_owned(), targets.join(",").into());
        unrecoverable.push(format!("annotations '{PORT}' and '{PATH}' (removed), which '{TARGETS}' overrides"));
    }
    unrecoverable
}

/// Tells Prometheus the port at which the proxy serves the merged metrics over mTLS, if it has one.
pub fn announce_secure_port(pod: &mut Value) {
    if annotation(pod, SECURE_PORT).is_some() {
        return;
    }
    let port = proxy_mut(pod).and_then(|proxy| variable(proxy, SECURE_PORT_VARIABLE)).map(str::to_owned);
    if let Some(port) = port.filter(|port| !port.is_empty() && port != "0") {
        annotate(pod, SECURE_PORT, &port);
    }
}

/// Returns the pod's annotations that are the same to Prometheus: the exact one first, then by name.
fn equivalent_annotations<'a>(pod: &'a Value, name: &str) -> Vec<(&'a str, &'a str)> {
    let annotations = pod.get("metadata").and_then(|metadata| metadata.get("annotations")).and_then(Value::as_object);
    let texts = annotations.into_iter().flatten().filter(|(key, _)| is_same_label_name(key, name));
    let mut found: Vec<_> = texts.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect();
    found.sort_by_key(|(key, _)| (*key != name, *key));
    found
}

/// Returns whether Prometheus makes the same label name of both: it replaces all but letters, digits and `_` by `_`.
fn is_same_label_name(a: &str, b: &str) -> bool {
    let clean = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'_' };
    a.len() == b.len() && a.bytes().map(clean).eq(b.bytes().map(clean))
}

/// Parses `port:path,...`; returns `None` if an entry has no port.
fn targets(text: &str) -> Option<Vec<Target<'_>>> {
    text.split(',')
        .map(|entry| {
            let (port, path) = entry.trim().split_once(':').unwrap_or((entry.trim(), ""));
            let (port, path) = (port.trim(), path.trim());
            (!port.is_empty()).then_some(Target { port, path: if path.is_empty() { "/metrics" } else { path } })
        })
        .collect()
}

fn check_scrape_port(port: &str, status_port: u16) -> Result<(), String> {
    let number = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse::<u16>().ok()).flatten();
    match number {
        None | Some(0) => Err(format!("'{}' is not a valid port (1-65535)", truncate(port))),
        Some(number) if number == status_port => {
            Err(format!("port {number} is the agent's own; it would scrape itself"))
        }
        Some(number) if RESERVED.contains(&number) => Err(format!("port {number} is reserved for the sidecar")),
        Some(_) => Ok(()),
    }
}

fn denial(name: &str, value: &str, reason: &str) -> String {
    format!("invalid value '{}' for annotation '{name}': {reason}", truncate(value))
}

#[cfg(test)]
mod tests;
