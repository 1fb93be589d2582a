use serde_json::{Value, json};

use super::{ProbeRewriteOptions, VARIABLE, restore_probes, rewrite_probes};

const FRESH: ProbeRewriteOptions = ProbeRewriteOptions { enabled: true, status_port: 15020, lifecycle: true };

fn pod(app: &Value) -> Value {
    json!({"spec": {"containers": [app, {"name": "istio-proxy"}]}})
}

fn rewritten(app: &Value) -> Value {
    let mut pod = pod(app);
    assert_eq!(rewrite_probes(&mut pod, FRESH), Vec::<String>::new());
    pod
}

fn recorded(pod: &Value) -> Option<&str> {
    let env = pod["spec"]["containers"].as_array().unwrap().last().unwrap()["env"].as_array()?;
    env.iter().rfind(|variable| variable["name"] == VARIABLE)?["value"].as_str()
}

fn app(pod: &Value) -> &Value {
    &pod["spec"]["containers"][0]
}

#[test]
fn all_handlers_are_rewritten_and_recorded_as_sorted_json() {
    let mut pod = json!({"spec": {
        "initContainers": [{"name": "side", "startupProbe": {"httpGet": {"port": 1}}}],
        "containers": [
            {"name": "hello", "livenessProbe": {"httpGet": {"port": 80}}, "readinessProbe": {"httpGet": {"port": 3333}},
             "lifecycle": {"preStop": {"httpGet": {"port": 91}}, "postStart": {"tcpSocket": {"port": 93}}}},
            {"name": "istio-proxy", "readinessProbe": {"httpGet": {"port": 15021}}}]}});
    assert_eq!(rewrite_probes(&mut pod, FRESH), Vec::<String>::new());
    assert_eq!(
        recorded(&pod).unwrap(),
        r#"{"/app-health/hello/livez":{"httpGet":{"port":80}},"/app-health/hello/readyz":{"httpGet":{"port":3333}},"/app-health/side/startupz":{"httpGet":{"port":1}},"/app-lifecycle/hello/poststartz":{"tcpSocket":{"port":93}},"/app-lifecycle/hello/prestopz":{"httpGet":{"port":91}}}"#
    );
    assert_eq!(
        pod["spec"]["initContainers"][0]["startupProbe"],
        json!({"httpGet": {"port": 15020, "path": "/app-health/side/startupz"}})
    );
    assert_eq!(
        app(&pod)["lifecycle"],
        json!({"preStop": {"httpGet": {"port": 15020, "path": "/app-lifecycle/hello/prestopz"}},
               "postStart": {"httpGet": {"path": "/app-lifecycle/hello/poststartz", "port": 15020}}})
    );
    assert_eq!(pod["spec"]["containers"][1]["readinessProbe"], json!({"httpGet": {"port": 15021}}));
}

#[test]
fn lifecycle_handlers_stay_where_the_agent_cannot_answer_them() {
    let handlers = json!({"preStop": {"httpGet": {"port": 91}}, "postStart": {"tcpSocket": {"port": 93}}});
    let mut pod = pod(&json!({"name": "a", "livenessProbe": {"httpGet": {"port": 80}}, "lifecycle": handlers}));
    rewrite_probes(&mut pod, ProbeRewriteOptions { lifecycle: false, ..FRESH });
    assert_eq!(app(&pod)["lifecycle"], handlers);
    assert_eq!(recorded(&pod), Some(r#"{"/app-health/a/livez":{"httpGet":{"port":80}}}"#));
}

#[test]
fn http_request_keeps_its_other_fields_but_not_tls() {
    let probe = json!({"periodSeconds": 7, "timeoutSeconds": 3, "httpGet": {
        "httpHeaders": [{"name": "A", "value": "b"}], "scheme": "HTTPS", "host": "localhost", "port": 443, "path": "/h", "newer": 1}});
    let pod = rewritten(&json!({"name": "a", "readinessProbe": probe}));
    assert_eq!(
        recorded(&pod).unwrap(),
        r#"{"/app-health/a/readyz":{"httpGet":{"path":"/h","port":443,"host":"localhost","scheme":"HTTPS","httpHeaders":[{"name":"A","value":"b"}],"newer":1},"timeoutSeconds":3}}"#
    );
    assert_eq!(
        app(&pod)["readinessProbe"],
        json!({"periodSeconds": 7, "timeoutSeconds": 3, "httpGet": {"httpHeaders": [{"name": "A", "value": "b"}],
               "scheme": "HTTP", "host": "localhost", "port": 15020, "path": "/app-health/a/readyz", "newer": 1}})
    );
}

#[test]
fn grpc_probe_becomes_http_and_its_service_is_recorded() {
    let pod =
        rewritten(&json!({"name": "a", "livenessProbe": {"grpc": {"port": 9, "service": "s"}, "failureThreshold": 2},
                               "readinessProbe": {"grpc": {"port": 9}, "timeoutSeconds": 0}}));
    assert_eq!(
        recorded(&pod).unwrap(),
        r#"{"/app-health/a/livez":{"grpc":{"port":9,"service":"s"}},"/app-health/a/readyz":{"grpc":{"port":9,"service":null}}}"#
    );
    assert_eq!(
        app(&pod)["livenessProbe"],
        json!({"failureThreshold": 2, "httpGet": {"path": "/app-health/a/livez", "port": 15020}})
    );
}

#[test]
fn commands_and_grpc_lifecycle_handlers_are_unchanged() {
    let container = json!({"name": "a", "livenessProbe": {"exec": {"command": ["x"]}},
                           "lifecycle": {"preStop": {"sleep": {"seconds": 1}}, "postStart": {"grpc": {"port": 1}}}});
    assert_eq!(rewritten(&container), pod(&container));
}

#[test]
fn named_port_is_recorded_as_its_number() {
    let pod = rewritten(
        &json!({"name": "a", "ports": [{"name": "admin", "containerPort": 1}, {"name": "http", "containerPort": 80}],
                               "readinessProbe": {"tcpSocket": {"port": "http"}}}),
    );
    assert_eq!(recorded(&pod).unwrap(), r#"{"/app-health/a/readyz":{"tcpSocket":{"port":80}}}"#);
}

#[test]
fn unknown_port_name_is_not_rewritten_with_a_warning() {
    let mut pod = pod(
        &json!({"name": "a", "readinessProbe": {"httpGet": {"port": "http"}}, "livenessProbe": {"tcpSocket": {"port": 1}}}),
    );
    let warnings = rewrite_probes(&mut pod, FRESH);
    assert_eq!(warnings, ["readinessProbe of container 'a' is not rewritten: the container has no port named 'http'"]);
    assert_eq!(app(&pod)["readinessProbe"], json!({"httpGet": {"port": "http"}}));
    assert_eq!(recorded(&pod).unwrap(), r#"{"/app-health/a/livez":{"tcpSocket":{"port":1}}}"#);
}

#[test]
fn handler_for_another_host_is_unchanged() {
    let container = json!({"name": "a", "readinessProbe": {"httpGet": {"port": 80, "host": "example.com"}},
                           "livenessProbe": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}});
    assert_eq!(rewritten(&container), pod(&container));
}

#[test]
fn annotation_overrides_the_setting() {
    let probe = || json!({"name": "a", "readinessProbe": {"httpGet": {"port": 80}}});
    for (annotation, enabled, done) in [
        (Some("false"), true, false),
        (Some("F"), true, false),
        (Some("true"), false, true),
        (Some("maybe"), true, true),
        (Some("maybe"), false, false),
        (None, false, false),
        (None, true, true),
    ] {
        let mut pod = pod(&probe());
        if let Some(annotation) = annotation {
            pod["metadata"]["annotations"]["sidecar.istio.io/rewriteAppHTTPProbers"] = annotation.into();
        }
        assert!(rewrite_probes(&mut pod, ProbeRewriteOptions { enabled, ..FRESH }).is_empty());
        assert_eq!(recorded(&pod).is_some(), done, "{annotation:?} {enabled}");
    }
}

#[test]
fn pod_without_proxy_is_unchanged() {
    let mut pod = json!({"spec": {"containers": [{"name": "a", "readinessProbe": {"httpGet": {"port": 80}}}]}});
    let same = pod.clone();
    assert!(rewrite_probes(&mut pod, FRESH).is_empty());
    assert_eq!(pod, same);
}

#[test]
fn native_proxy_gets_the_record() {
    let mut pod = json!({"spec": {"initContainers": [{"name": "istio-proxy"}],
                                  "containers": [{"name": "a", "readinessProbe": {"httpGet": {"port": 80}}}]}});
    assert!(rewrite_probes(&mut pod, FRESH).is_empty());
    assert_eq!(pod["spec"]["initContainers"][0]["env"][0]["name"], VARIABLE);
}

#[test]
fn rewriting_again_changes_nothing() {
    for port in [None, Some("16000")] {
        let mut pod = pod(
            &json!({"name": "a", "readinessProbe": {"httpGet": {"port": 80, "path": "/x"}}, "livenessProbe": {"grpc": {"port": 1}}}),
        );
        if let Some(port) = port {
            pod["metadata"]["annotations"]["status.sidecar.istio.io/port"] = port.into();
        }
        assert!(rewrite_probes(&mut pod, FRESH).is_empty());
        let expected: u16 = port.map_or(15020, |port| port.parse().unwrap());
        assert_eq!(app(&pod)["readinessProbe"]["httpGet"]["port"], expected);
        let once = pod.clone();
        assert!(rewrite_probes(&mut pod, FRESH).is_empty());
        assert_eq!(pod, once);
    }
}

#[test]
fn rewriting_again_follows_a_new_port_of_the_agent() {
    let mut pod = rewritten(&json!({"name": "a", "readinessProbe": {"httpGet": {"port": 80}}}));
    let map = recorded(&pod).unwrap().to_owned();
    pod["metadata"]["annotations"]["status.sidecar.istio.io/port"] = "17000".into();
    assert!(rewrite_probes(&mut pod, FRESH).is_empty());
    assert_eq!(app(&pod)["readinessProbe"]["httpGet"]["port"], 17000);
    assert_eq!(recorded(&pod), Some(map.as_str()));
}

#[test]
fn restored_handlers_are_the_original_ones() {
    for app in [
        json!({"name": "a", "readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "X", "value": "1"}]}, "periodSeconds": 3}}),
        json!({"name": "a", "livenessProbe": {"httpGet": {"scheme": "HTTPS", "path": "/l", "port": 81, "host": "localhost"}}}),
        json!({"name": "a", "startupProbe": {"grpc": {"port": 82, "service": "s"}, "timeoutSeconds": 4}}),
        json!({"name": "a", "startupProbe": {"timeoutSeconds": 4, "grpc": {"port": 82}, "newer": 1}}),
        json!({"name": "a", "lifecycle": {"postStart": {"tcpSocket": {"port": 83}}, "preStop": {"exec": {"command": ["x"]}}}}),
    ] {
        let mut pod = rewritten(&app);
        let injected = pod.clone();
        restore_probes(&mut pod, super::super::proxy(&injected).unwrap());
        assert_eq!(self::app(&pod).to_string(), app.to_string());
    }
}

#[test]
fn status_port_zero_counts_as_unset() {
    let mut pod = pod(&json!({"name": "a", "readinessProbe": {"httpGet": {"port": 80}}}));
    pod["metadata"]["annotations"]["status.sidecar.istio.io/port"] = "0".into();
    assert!(rewrite_probes(&mut pod, FRESH).is_empty());
    assert_eq!(app(&pod)["readinessProbe"]["httpGet"]["port"], 15020);
}
