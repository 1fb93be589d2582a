use serde_json::json;

use super::*;

const ON: MetricsMergeOptions = MetricsMergeOptions { enabled: true, status_port: 15020 };

fn pod(annotations: &Value) -> Value {
    json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy"}]}})
}

fn merged(annotations: &Value) -> Value {
    let mut pod = pod(annotations);
    assert_eq!(merge_metrics(&mut pod, ON), Ok(vec![]));
    pod
}

fn recorded(pod: &Value) -> Option<&str> {
    pod["spec"]["containers"][1]["env"][0]["value"].as_str()
}

fn ours() -> Value {
    json!({"prometheus.io/path": "/stats/prometheus", "prometheus.io/port": "15020", "prometheus.io/scrape": "true"})
}

#[test]
fn pod_without_annotations_is_scraped_at_the_agent() {
    let pod = merged(&Value::Null);
    assert_eq!(pod["metadata"]["annotations"], ours());
    assert_eq!(recorded(&pod), None);
}

#[test]
fn annotations_are_recorded_for_the_agent() {
    let pod = merged(
        &json!({"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/m", "other": "x"}),
    );
    assert_eq!(recorded(&pod), Some(r#"{"scrape":"true","path":"/m","port":"8080"}"#));
    assert_eq!(pod["metadata"]["annotations"]["other"], "x");
    assert_eq!(pod["metadata"]["annotations"][PORT], "15020");
    assert_eq!(pod["spec"]["containers"][0], json!({"name": "app"}));
}

#[test]
fn first_target_is_also_recorded_for_older_agents() {
    let pod = merged(
        &json!({"prometheus.io/scrape": "true", "prometheus.io/port": "1", "prometheus.istio.io/scrape-targets": "8080, 9100:/custom-metrics"}),
    );
    assert_eq!(
        recorded(&pod),
        Some(
            r#"{"scrape":"true","path":"/metrics","port":"8080","targets":[{"port":"8080","path":"/metrics"},{"port":"9100","path":"/custom-metrics"}]}"#
        )
    );
    assert_eq!(pod["metadata"]["annotations"], ours());
}

#[test]
fn equivalent_annotations_are_read_and_removed() {
    let pod = merged(&json!({"prometheus.io.port": "81", "prometheus_io_path": "/p", "prometheus-io/port": "82"}));
    assert_eq!(recorded(&pod), Some(r#"{"scrape":"","path":"/p","port":"82"}"#));
    assert_eq!(pod["metadata"]["annotations"], ours());
    let pod = merged(&json!({"prometheus.io.port": "81", "prometheus.io/port": "80"}));
    assert_eq!(recorded(&pod), Some(r#"{"scrape":"","path":"","port":"80"}"#));
}

#[test]
fn pod_that_is_not_scraped_or_not_merged_is_unchanged() {
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
    assert_eq!(merge_metrics(&mut off, MetricsMergeOptions { enabled: false, ..ON }), Ok(vec![]));
    assert_eq!(off, same);
}

#[test]
fn annotation_turns_on_merging_that_the_mesh_turns_off() {
    let mut pod = pod(&json!({"prometheus.istio.io/merge-metrics": "true"}));
    assert_eq!(merge_metrics(&mut pod, MetricsMergeOptions { enabled: false, ..ON }), Ok(vec![]));
    assert_eq!(pod["metadata"]["annotations"][PORT], "15020");
}

#[test]
fn invalid_scrape_value_does_not_turn_scraping_off() {
    let pod = merged(&json!({"prometheus.io/scrape": "no"}));
    assert_eq!(recorded(&pod), Some(r#"{"scrape":"no","path":"","port":""}"#));
}

#[test]
fn merging_is_idempotent() {
    let mut pod = merged(&json!({"prometheus.io/port": "80"}));
    let once = pod.clone();
    assert_eq!(merge_metrics(&mut pod, ON), Ok(vec![]));
    assert_eq!(pod, once);
}

#[test]
fn annotations_are_set_even_without_a_proxy() {
    let mut pod = json!({"spec": {"containers": [{"name": "app"}]}});
    assert_eq!(merge_metrics(&mut pod, ON), Ok(vec![]));
    assert_eq!(pod, json!({"spec": {"containers": [{"name": "app"}]}, "metadata": {"annotations": ours()}}));
}

#[test]
fn all_ports_that_cannot_be_scraped_are_reported() {
    let mut pod =
        pod(&json!({"prometheus.io/port": "web", "prometheus.istio.io/scrape-targets": "8080,15090:/x,0,70000,16000"}));
    let same = pod.clone();
    let denials = merge_metrics(&mut pod, MetricsMergeOptions { enabled: true, status_port: 16000 }).unwrap_err();
    let targets = "invalid value '8080,15090:/x,0,70000,16000' for annotation 'prometheus.istio.io/scrape-targets': ";
    assert_eq!(
        denials,
        [
            "invalid value 'web' for annotation 'prometheus.io/port': 'web' is not a valid port (1-65535)".to_owned(),
            format!("{targets}port 15090 is reserved for the sidecar"),
            format!("{targets}'0' is not a valid port (1-65535)"),
            format!("{targets}'70000' is not a valid port (1-65535)"),
            format!("{targets}port 16000 is the agent's own; it would scrape itself"),
        ]
    );
    assert_eq!(pod, same);
}

#[test]
fn sidecar_ports_are_reserved() {
    for port in RESERVED {
        assert!(check_scrape_port(&port.to_string(), 1).is_err(), "{port}");
    }
    assert_eq!(check_scrape_port("+80", 1), Err("'+80' is not a valid port (1-65535)".to_owned()));
}

#[test]
fn targets_with_an_empty_port_are_ignored_with_a_warning() {
    let mut pod = pod(&json!({"prometheus.io/port": "80", "prometheus.istio.io/scrape-targets": "8080,:/x"}));
    let warnings = merge_metrics(&mut pod, ON).unwrap();
    assert_eq!(
        warnings,
        ["annotation 'prometheus.istio.io/scrape-targets' is ignored: an entry of '8080,:/x' has no port"]
    );
    assert_eq!(recorded(&pod), Some(r#"{"scrape":"","path":"","port":"80"}"#));
    assert_eq!(pod["metadata"]["annotations"], ours());
}

#[test]
fn secure_port_is_announced_once() {
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
