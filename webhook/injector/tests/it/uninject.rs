//! Undoing injections, and injecting again, case by case. Properties of all pods are in `properties.rs`.

use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, Settings};
use weir_injector::uninject::{RECORD_MAX_BYTES, UninjectError, uninject};
use weir_injector::{InjectOutcome, InjectRequest, SkipReason, inject};

fn settings(cni: bool) -> Settings {
    let values = json!({"global": {"hub": "h", "tag": "t"}, "pilot": {"cni": {"enabled": cni}}});
    Settings::from_values_and_mesh(Some(&values), None).unwrap()
}

fn outcome(pod: &Value, settings: &Settings) -> InjectOutcome {
    inject(&InjectRequest { pod: pod.clone(), ..InjectRequest::default() }, settings).unwrap()
}

fn injected(pod: &Value, settings: &Settings) -> Value {
    match outcome(pod, settings) {
        InjectOutcome::Injected { pod, .. } => pod,
        InjectOutcome::Skipped { reason, .. } => panic!("skipped: {reason:?}"),
    }
}

fn web() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web"}, "annotations": {"prometheus.io/port": "8080"}},
        "spec": {"containers": [{
            "name": "app", "image": "i", "ports": [{"name": "http", "containerPort": 80}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}},
        }]},
    })
}

const RECORD: &str = "weir.dev/original";

/// Returns the record without the fingerprint.
fn record(injected: &Value) -> Value {
    let mut record: Value =
        serde_json::from_str(injected["metadata"]["annotations"][RECORD].as_str().unwrap()).unwrap();
    let hash = record.as_object_mut().unwrap().shift_remove("hash").unwrap();
    assert_eq!(hash.as_str().unwrap().len(), 16);
    record
}

#[test]
fn record_of_a_typical_pod_has_only_a_version_and_a_fingerprint() {
    for cni in [false, true] {
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            let mut settings = settings(cni);
            settings.native_sidecars = native;
            let injected = injected(&web(), &settings);
            assert_eq!(record(&injected), json!({"v": 1}), "cni {cni}, {native:?}");
            assert_eq!(uninject(&injected).unwrap().unwrap().pod.to_string(), web().to_string());
        }
    }
}

#[test]
fn only_what_cannot_be_derived_is_recorded() {
    let mut pod = web();
    pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] = "http".into();
    pod["metadata"]["labels"]["security.istio.io/tlsMode"] = "istio".into();
    let injected = injected(&pod, &settings(true));
    assert_eq!(
        record(&injected),
        json!({"v": 1,
            ".metadata": {".labels": {"+": {"security.istio.io/tlsMode": "istio"}}},
            ".spec": {".containers": {".app": {".readinessProbe": {".httpGet": {"=": {"port": "http"}}}}}}})
    );
}

#[test]
fn edits_of_the_application_after_injection_are_kept() {
    let mut edited = injected(&web(), &settings(true));
    edited["spec"]["containers"][0]["image"] = "i:2".into();
    edited["metadata"]["labels"]["team"] = "a".into();
    let mut want = web();
    want["spec"]["containers"][0]["image"] = "i:2".into();
    want["metadata"]["labels"]["team"] = "a".into();
    assert_eq!(uninject(&edited).unwrap().unwrap().pod, want);
}

#[test]
fn additions_to_an_empty_list_are_kept() {
    let mut pod = web();
    pod["metadata"]["annotations"]["inject.istio.io/templates"] = "grpc-agent".into();
    pod["spec"]["containers"][0]["env"] = json!([]);
    let mut once = injected(&pod, &settings(true));
    assert_eq!(uninject(&once).unwrap().unwrap().pod.to_string(), pod.to_string());
    let tracer = json!({"name": "TRACER", "value": "on"});
    once["spec"]["containers"][0]["env"].as_array_mut().unwrap().push(tracer.clone());
    let twice = injected(&once, &settings(true));
    assert!(twice["spec"]["containers"][0]["env"].as_array().unwrap().contains(&tracer));
    assert_eq!(uninject(&twice).unwrap().unwrap().pod["spec"]["containers"][0]["env"], json!([tracer]));
}

#[test]
fn service_account_mount_of_the_proxy_survives_reinjection() {
    let mut once = injected(&web(), &settings(true));
    let mount = json!({"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    for list in ["containers", "initContainers"] {
        for container in once["spec"][list].as_array_mut().unwrap() {
            if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                mounts.push(mount.clone());
            } else {
                container["volumeMounts"] = json!([mount]);
            }
        }
    }
    once["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "kube-api-access-x"}));
    assert_eq!(injected(&once, &settings(true)), once);
}

#[test]
fn url_variable_is_removed_with_the_url() {
    let mut request = InjectRequest { pod: web(), ..InjectRequest::default() };
    request.url_env.insert("ASKED_FOR".to_owned(), "x".to_owned());
    let InjectOutcome::Injected { pod: once, .. } = inject(&request, &settings(true)).unwrap() else {
        panic!("skipped")
    };
    assert!(once.to_string().contains("ASKED_FOR"));
    assert_eq!(injected(&once, &settings(true)).to_string(), injected(&web(), &settings(true)).to_string());
}

#[test]
fn invalid_records_are_rejected_by_name() {
    let mut pod = injected(&web(), &settings(true));
    pod["metadata"]["annotations"][RECORD] = r#"{"v":2}"#.into();
    let error = uninject(&pod).unwrap_err();
    assert!(matches!(error, UninjectError::Record { .. }));
    assert_eq!(
        error.to_string(),
        "invalid value '{\"v\":2}' for annotation 'weir.dev/original': only version 1 is supported"
    );
    let denial = inject(&InjectRequest { pod: pod.clone(), ..InjectRequest::default() }, &settings(true)).unwrap_err();
    assert_eq!(denial.to_string(), error.to_string());
    pod["metadata"]["annotations"]["sidecar.istio.io/status"] = "injected".into();
    assert!(matches!(uninject(&pod), Err(UninjectError::Status(_))));
    assert!(matches!(
        outcome(&pod, &settings(true)),
        InjectOutcome::Skipped { reason: SkipReason::UnrecordedSidecar, .. }
    ));
}

#[test]
fn record_that_is_too_long_is_marked_partial() {
    let mut pod = web();
    pod["metadata"]["annotations"]["weir.dev/capture"] = "x".repeat(RECORD_MAX_BYTES).into();
    let injected = injected(&pod, &settings(true));
    assert_eq!(record(&injected), json!({"v": 1, "partial": true}));
    let back = uninject(&injected).unwrap().unwrap();
    assert_eq!(back.unrecoverable, ["changes beyond the size limit of annotation 'weir.dev/original'"]);
    assert_eq!(back.pod, web());
}

#[test]
fn record_written_by_the_author_is_ignored() {
    let mut pod = web();
    pod["metadata"]["annotations"][RECORD] = r#"{"v":1,".spec":{"-":["containers"]}}"#.into();
    let injected = injected(&pod, &settings(true));
    assert_eq!(injected["spec"]["containers"][0]["name"], "app");
    assert_eq!(uninject(&injected).unwrap().unwrap().pod.to_string(), pod.to_string());
}

#[test]
fn proxy_of_another_mesh_is_an_application_container() {
    let mut pod = web();
    let linkerd =
        json!({"name": "linkerd-proxy", "image": "l", "env": [{"name": "LINKERD2_PROXY_LOG", "value": "warn"}]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(linkerd.clone());
    let injected = injected(&pod, &settings(true));
    assert!(injected["spec"]["containers"].as_array().unwrap().contains(&linkerd));
    assert_eq!(uninject(&injected).unwrap().unwrap().pod.to_string(), pod.to_string());
}

#[test]
fn sidecar_without_status_is_not_injected_again() {
    for cni in [false, true] {
        let mut copied = injected(&web(), &settings(cni));
        copied["metadata"]["annotations"].as_object_mut().unwrap().shift_remove("sidecar.istio.io/status");
        let InjectOutcome::Skipped { reason, .. } = outcome(&copied, &settings(cni)) else { panic!("injected") };
        assert_eq!(reason, SkipReason::UnrecordedSidecar);
    }
}

/// Injects a pod with one installation and then with another; the result is that of the second alone.
fn assert_second_decides(pod: &Value, first: &Settings, second: &Settings) {
    let by_detour = injected(&injected(pod, first), second);
    assert_eq!(by_detour.to_string(), injected(pod, second).to_string());
}

#[test]
fn labels_of_a_pod_that_declares_the_proxy_itself_are_restored() {
    let mut settings = settings(true);
    settings.values.global.network = "n1".to_owned();
    let mut pod = web();
    pod["metadata"]["labels"]["topology.istio.io/network"] = "n1".into();
    pod["metadata"]["annotations"]["inject.istio.io/templates"] = "grpc-simple".into();
    let proxy = json!({"name": "istio-proxy", "image": "i", "env": [{"name": "A", "value": "b"}]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(proxy);
    let injected = injected(&pod, &settings);
    assert_eq!(uninject(&injected).unwrap().unwrap().pod.to_string(), pod.to_string());
}

#[test]
fn order_of_volumes_is_restored() {
    let mut pod = web();
    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/userVolume": r#"{"mine":{"emptyDir":{}}}"#});
    pod["spec"]["volumes"] = json!([{"name": "mine"}, {"name": "data"}, {"name": "istio-envoy"}]);
    assert_second_decides(&pod, &settings(true), &settings(true));
    assert_second_decides(&pod, &settings(true), &settings(false));
}

#[test]
fn redirected_probe_follows_the_agents_port() {
    let mut pod = web();
    pod["metadata"]["annotations"] = json!({"status.sidecar.istio.io/port": "16000"});
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"port": 15020, "path": "/app-health/app/readyz", "scheme": "HTTPS"}});
    assert_second_decides(&pod, &settings(true), &settings(true));
}

#[test]
fn metrics_variable_that_is_new_precedes_the_probes_variable() {
    let mut without_metrics = settings(true);
    without_metrics.mesh.prometheus_merge = false;
    assert_second_decides(&web(), &without_metrics, &settings(true));
}

#[test]
fn probes_of_a_declared_init_container_follow_the_second_installation() {
    let mut pod = web();
    let own = json!({"name": "istio-validation", "image": "auto", "startupProbe": {"httpGet": {"port": 80}}});
    pod["spec"]["initContainers"] = json!([own]);
    let mut without_rewriting = settings(true);
    without_rewriting.values.rewrite_probes = false;
    assert_second_decides(&pod, &settings(true), &without_rewriting);
    assert_second_decides(&pod, &without_rewriting, &settings(true));
}
