//! Metrics of application and proxy under one port: Prometheus is pointed at the agent, which is told where the
//! application has its own.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{annotate, annotation, parse_bool, proxy_mut, set_variable, texts_mut, variable};

/// What the merge needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrometheusSettings {
    /// `enablePrometheusMerge` of the mesh; the pod's `prometheus.istio.io/merge-metrics` beats it.
    pub enabled: bool,
    /// Port of the agent, `defaultConfig.statusPort` of the mesh.
    pub status_port: u16,
}

const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const TARGETS: &str = "prometheus.istio.io/scrape-targets";
const MERGE: &str = "prometheus.istio.io/merge-metrics";
const SECURE_PORT: &str = "prometheus.istio.io/secure-port";
const SECURE_PORT_VARIABLE: &str = "ENVOY_SECURE_MERGED_METRICS_PORT";

/// Ports of the proxy and its agent: scraping them would scrape the sidecar, or the agent itself in a circle.
const RESERVED: [u16; 9] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// Variable by which the agent learns where the application's metrics are.
pub const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";

/// The agent's view of the pod's annotations; the keys in this order, `targets` only where there are some.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Told<'a> {
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

/// Points Prometheus at the agent, and the agent at the application's metrics.
///
/// Nothing happens where the pod or the mesh does not want it, or where it was done before. Gives back warnings.
///
/// # Errors
/// Ports that cannot be scraped, each with its annotation; the pod is unchanged then.
pub fn merge_metrics(pod: &mut Value, settings: PrometheusSettings) -> Result<Vec<String>, Vec<String>> {
    let scraped = spellings(pod, SCRAPE).into_iter().find_map(|(_, value)| parse_bool(value)).unwrap_or(true);
    let merged = annotation(pod, MERGE).and_then(parse_bool).unwrap_or(settings.enabled);
    let own = settings.status_port.to_string();
    let first = |name: &str| spellings(pod, name).first().map(|(_, value)| *value);
    if !scraped || !merged || first(PORT) == Some(own.as_str()) {
        return Ok(Vec::new());
    }

    let mut warnings = Vec::new();
    let mut denials = Vec::new();
    let mut found = Told {
        scrape: first(SCRAPE).unwrap_or_default(),
        path: first(PATH).unwrap_or_default(),
        port: first(PORT).unwrap_or_default(),
        targets: Vec::new(),
    };
    if !found.port.is_empty()
        && let Err(reason) = scrapable(found.port, settings.status_port)
    {
        denials.push(denial(PORT, found.port, &reason));
    }
    if let Some(text) = first(TARGETS) {
        if let Some(targets) = targets(text) {
            for target in &targets {
                if let Err(reason) = scrapable(target.port, settings.status_port) {
                    denials.push(denial(TARGETS, text, &reason));
                }
            }
            found.targets = targets;
        } else {
            warnings.push(format!("annotation '{TARGETS}' is ignored: an entry of '{text}' has no port"));
        }
    }
    if !denials.is_empty() {
        return Err(denials);
    }
    if let Some(target) = found.targets.first() {
        (found.port, found.path) = (target.port, target.path);
    }
    // Texts always have a JSON form.
    let variable = (found != Told::default()).then(|| serde_json::to_string(&found).unwrap_or_default());

    if let (Some(text), Some(proxy)) = (variable, proxy_mut(pod)) {
        set_variable(proxy, VARIABLE, &text);
    }
    if let Some(annotations) = texts_mut(pod, "annotations") {
        // Those that are set below stay where the user wrote them.
        let stays = |name: &str| [SCRAPE, PORT, PATH].contains(&name);
        let known = [SCRAPE, PORT, PATH, TARGETS];
        annotations.retain(|name, _| stays(name) || !known.iter().any(|known| same(name, known)));
    }
    for (name, value) in [(PATH, "/stats/prometheus"), (PORT, &own), (SCRAPE, "true")] {
        annotate(pod, name, value);
    }
    Ok(warnings)
}

/// Takes back what [`merge_metrics`] and [`announce_secure_port`] wrote, as far as the pod and its proxy still say what it said before;
/// gives back what they do not.
pub(crate) fn restore_metrics(pod: &mut Value, proxy: Option<&Map<String, Value>>) -> Vec<String> {
    let told = proxy.and_then(|proxy| variable(proxy, VARIABLE));
    let secure = proxy.and_then(|proxy| variable(proxy, SECURE_PORT_VARIABLE));
    let mut unknown = Vec::new();
    let Some(annotations) =
        pod.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations")?.as_object_mut())
    else {
        return unknown;
    };
    if secure.is_some() && annotations.get(SECURE_PORT).and_then(Value::as_str) == secure {
        annotations.shift_remove(SECURE_PORT);
        unknown.push(format!("whether annotation '{SECURE_PORT}' was there: it is taken away"));
    }
    let merged = |name: &str, value: &str| annotations.get(name).is_some_and(|found| found == value);
    if !merged(PATH, "/stats/prometheus") || !merged(SCRAPE, "true") || !annotations.contains_key(PORT) {
        return unknown;
    }
    let told: Value = told.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let targets = told["targets"].as_array();
    for (name, key) in [(SCRAPE, "scrape"), (PATH, "path"), (PORT, "port")] {
        // Beside targets, path and port are those of the first.
        let value = told[key].as_str().filter(|value| !value.is_empty() && (targets.is_none() || key == "scrape"));
        match value {
            Some(value) => drop(annotations.insert(name.to_owned(), value.into())),
            None => drop(annotations.shift_remove(name)),
        }
    }
    if let Some(targets) = targets {
        let target = |target: &Value| Some(format!("{}:{}", target["port"].as_str()?, target["path"].as_str()?));
        let targets: Vec<String> = targets.iter().filter_map(target).collect();
        annotations.insert(TARGETS.to_owned(), targets.join(",").into());
        unknown.push(format!(
            "annotations '{PORT}' and '{PATH}': they are taken away, because '{TARGETS}' counted before them"
        ));
    }
    unknown
}

/// Tells Prometheus the port where the proxy offers the merged metrics over mTLS, where it has one.
pub fn announce_secure_port(pod: &mut Value) {
    if annotation(pod, SECURE_PORT).is_some() {
        return;
    }
    let port = proxy_mut(pod).and_then(|proxy| variable(proxy, SECURE_PORT_VARIABLE)).map(str::to_owned);
    if let Some(port) = port.filter(|port| !port.is_empty() && port != "0") {
        annotate(pod, SECURE_PORT, &port);
    }
}

/// The pod's annotations that Prometheus takes for this one, the exact one first, then by name.
fn spellings<'a>(pod: &'a Value, name: &str) -> Vec<(&'a str, &'a str)> {
    let annotations = pod.get("metadata").and_then(|metadata| metadata.get("annotations")).and_then(Value::as_object);
    let texts = annotations.into_iter().flatten().filter(|(key, _)| same(key, name));
    let mut found: Vec<_> = texts.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect();
    found.sort_by_key(|(key, _)| (*key != name, *key));
    found
}

/// Prometheus makes label names of annotations by writing `_` for all that is no letter, digit or `_`.
fn same(a: &str, b: &str) -> bool {
    let clean = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'_' };
    a.len() == b.len() && a.bytes().map(clean).eq(b.bytes().map(clean))
}

/// `port:path,...`; `None` where an entry has no port.
fn targets(text: &str) -> Option<Vec<Target<'_>>> {
    text.split(',')
        .map(|entry| {
            let (port, path) = entry.trim().split_once(':').unwrap_or((entry.trim(), ""));
            let (port, path) = (port.trim(), path.trim());
            (!port.is_empty()).then_some(Target { port, path: if path.is_empty() { "/metrics" } else { path } })
        })
        .collect()
}

fn scrapable(port: &str, status_port: u16) -> Result<(), String> {
    let number = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse::<u16>().ok()).flatten();
    match number {
        None | Some(0) => Err(format!("'{port}' is no port between 1 and 65535")),
        Some(number) if number == status_port => {
            Err(format!("port {number} is the agent's own, it would scrape itself"))
        }
        Some(number) if RESERVED.contains(&number) => Err(format!("port {number} is reserved for the sidecar")),
        Some(_) => Ok(()),
    }
}

fn denial(name: &str, value: &str, reason: &str) -> String {
    format!("invalid value '{value}' for annotation '{name}': {reason}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ON: PrometheusSettings = PrometheusSettings { enabled: true, status_port: 15020 };

    fn pod(annotations: &Value) -> Value {
        json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy"}]}})
    }

    fn merged(annotations: &Value) -> Value {
        let mut pod = pod(annotations);
        assert_eq!(merge_metrics(&mut pod, ON), Ok(vec![]));
        pod
    }

    fn told(pod: &Value) -> Option<&str> {
        pod["spec"]["containers"][1]["env"][0]["value"].as_str()
    }

    fn ours() -> Value {
        json!({"prometheus.io/path": "/stats/prometheus", "prometheus.io/port": "15020", "prometheus.io/scrape": "true"})
    }

    #[test]
    fn a_pod_without_annotations_is_scraped_at_the_agent() {
        let pod = merged(&Value::Null);
        assert_eq!(pod["metadata"]["annotations"], ours());
        assert_eq!(told(&pod), None);
    }

    #[test]
    fn the_agent_learns_what_the_annotations_said() {
        let pod = merged(
            &json!({"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/m", "other": "x"}),
        );
        assert_eq!(told(&pod), Some(r#"{"scrape":"true","path":"/m","port":"8080"}"#));
        assert_eq!(pod["metadata"]["annotations"]["other"], "x");
        assert_eq!(pod["metadata"]["annotations"][PORT], "15020");
        assert_eq!(pod["spec"]["containers"][0], json!({"name": "app"}));
    }

    #[test]
    fn targets_are_told_and_the_first_is_the_one_for_older_agents() {
        let pod = merged(
            &json!({"prometheus.io/scrape": "true", "prometheus.io/port": "1", "prometheus.istio.io/scrape-targets": "8080, 9100:/custom-metrics"}),
        );
        assert_eq!(
            told(&pod),
            Some(
                r#"{"scrape":"true","path":"/metrics","port":"8080","targets":[{"port":"8080","path":"/metrics"},{"port":"9100","path":"/custom-metrics"}]}"#
            )
        );
        assert_eq!(pod["metadata"]["annotations"], ours());
    }

    #[test]
    fn all_spellings_count_and_all_go() {
        let pod = merged(&json!({"prometheus.io.port": "81", "prometheus_io_path": "/p", "prometheus-io/port": "82"}));
        assert_eq!(told(&pod), Some(r#"{"scrape":"","path":"/p","port":"82"}"#));
        assert_eq!(pod["metadata"]["annotations"], ours());
        let pod = merged(&json!({"prometheus.io.port": "81", "prometheus.io/port": "80"}));
        assert_eq!(told(&pod), Some(r#"{"scrape":"","path":"","port":"80"}"#));
    }

    #[test]
    fn a_pod_that_is_not_scraped_or_not_merged_is_left_alone() {
        for annotations in [
            json!({"prometheus.io/scrape": "false", "prometheus.io/port": "15001"}),
            json!({"prometheus_io_scrape": "0"}),
            json!({"prometheus.istio.io/merge-metrics": "false", "prometheus.io/port": "15001"}),
            json!({"prometheus.io/port": "15020"}),
        ] {
            assert_eq!(merged(&annotations), pod(&annotations));
        }
        let mut off = pod(&json!({"prometheus.io/port": "80"}));
        let same = off.clone();
        assert_eq!(merge_metrics(&mut off, PrometheusSettings { enabled: false, ..ON }), Ok(vec![]));
        assert_eq!(off, same);
    }

    #[test]
    fn the_annotation_turns_on_what_the_mesh_has_off() {
        let mut pod = pod(&json!({"prometheus.istio.io/merge-metrics": "true"}));
        assert_eq!(merge_metrics(&mut pod, PrometheusSettings { enabled: false, ..ON }), Ok(vec![]));
        assert_eq!(pod["metadata"]["annotations"][PORT], "15020");
    }

    #[test]
    fn a_scrape_value_that_is_no_truth_value_does_not_turn_scraping_off() {
        let pod = merged(&json!({"prometheus.io/scrape": "no"}));
        assert_eq!(told(&pod), Some(r#"{"scrape":"no","path":"","port":""}"#));
    }

    #[test]
    fn merging_twice_is_merging_once() {
        let mut pod = merged(&json!({"prometheus.io/port": "80"}));
        let once = pod.clone();
        assert_eq!(merge_metrics(&mut pod, ON), Ok(vec![]));
        assert_eq!(pod, once);
    }

    #[test]
    fn the_annotations_are_set_even_without_a_proxy() {
        let mut pod = json!({"spec": {"containers": [{"name": "app"}]}});
        assert_eq!(merge_metrics(&mut pod, ON), Ok(vec![]));
        assert_eq!(pod, json!({"spec": {"containers": [{"name": "app"}]}, "metadata": {"annotations": ours()}}));
    }

    #[test]
    fn ports_that_cannot_be_scraped_are_denied_all_at_once() {
        let mut pod = pod(
            &json!({"prometheus.io/port": "web", "prometheus.istio.io/scrape-targets": "8080,15090:/x,0,70000,16000"}),
        );
        let same = pod.clone();
        let denials = merge_metrics(&mut pod, PrometheusSettings { enabled: true, status_port: 16000 }).unwrap_err();
        let targets =
            "invalid value '8080,15090:/x,0,70000,16000' for annotation 'prometheus.istio.io/scrape-targets': ";
        assert_eq!(
            denials,
            [
                "invalid value 'web' for annotation 'prometheus.io/port': 'web' is no port between 1 and 65535"
                    .to_owned(),
                format!("{targets}port 15090 is reserved for the sidecar"),
                format!("{targets}'0' is no port between 1 and 65535"),
                format!("{targets}'70000' is no port between 1 and 65535"),
                format!("{targets}port 16000 is the agent's own, it would scrape itself"),
            ]
        );
        assert_eq!(pod, same);
    }

    #[test]
    fn every_port_of_the_sidecar_is_reserved() {
        for port in RESERVED {
            assert!(scrapable(&port.to_string(), 1).is_err(), "{port}");
        }
        assert_eq!(scrapable("+80", 1), Err("'+80' is no port between 1 and 65535".to_owned()));
    }

    #[test]
    fn targets_with_an_empty_port_are_ignored_with_a_warning() {
        let mut pod = pod(&json!({"prometheus.io/port": "80", "prometheus.istio.io/scrape-targets": "8080,:/x"}));
        let warnings = merge_metrics(&mut pod, ON).unwrap();
        assert_eq!(
            warnings,
            ["annotation 'prometheus.istio.io/scrape-targets' is ignored: an entry of '8080,:/x' has no port"]
        );
        assert_eq!(told(&pod), Some(r#"{"scrape":"","path":"","port":"80"}"#));
        assert_eq!(pod["metadata"]["annotations"], ours());
    }

    #[test]
    fn the_secure_port_is_announced_once() {
        let with = |value: &str| json!({"spec": {"initContainers": [{"name": "istio-proxy", "env": [{"name": SECURE_PORT_VARIABLE, "value": value}]}]}});
        let mut pod = with("15091");
        announce_secure_port(&mut pod);
        assert_eq!(pod["metadata"]["annotations"], json!({"prometheus.istio.io/secure-port": "15091"}));
        pod["metadata"]["annotations"][SECURE_PORT] = "1".into();
        announce_secure_port(&mut pod);
        assert_eq!(pod["metadata"]["annotations"][SECURE_PORT], "1");
        for none in ["", "0"] {
            let mut pod = with(none);
            announce_secure_port(&mut pod);
            assert_eq!(pod, with(none));
        }
    }
}
