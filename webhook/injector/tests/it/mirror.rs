//! A sidecar written as a custom template gives the same pod as the built-in one.

use serde_json::{Value, json};
use weir_injector::settings::{Documents, NativeSidecars, Settings};
use weir_injector::{InjectOutcome, InjectRequest, inject};
use weir_tests::conformance::{difference, normalized};

const MIRROR: &str = include_str!("mirror.gotmpl");

fn values(cni: bool) -> Value {
    json!({
        "global": {
            "hub": "h", "tag": "t", "logging": {"level": "default:info"},
            "proxy": {"statusPort": 15020, "startupProbe": {"enabled": true, "failureThreshold": 600},
                "resources": {"requests": {"cpu": "100m", "memory": null}, "limits": {"memory": "1Gi"}}},
        },
        "pilot": {"cni": {"enabled": cni}},
    })
}

fn injected(pod: &Value, cni: bool, native: NativeSidecars, config: &Value) -> Value {
    let values = values(cni);
    let mesh = json!({"defaultConfig": {"proxyMetadata": {"B": "2", "A": "one \"quoted\": #1"}, "concurrency": 2}});
    let documents = Documents { values: Some(&values), mesh: Some(&mesh), config: Some(config) };
    let mut settings = Settings::from_documents(documents).expect("the documents are valid");
    settings.native_sidecars = native;
    let request = InjectRequest { pod: pod.clone(), ..InjectRequest::default() };
    match inject(&request, &settings) {
        Ok(InjectOutcome::Injected { pod, .. }) => with_ports_as_values(pod),
        other => panic!("{other:?}"),
    }
}

/// Parses the JSON in `ISTIO_META_POD_PORTS`, whose white space differs.
fn with_ports_as_values(mut pod: Value) -> Value {
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            for variable in container["env"].as_array_mut().into_iter().flatten() {
                if variable["name"] == "ISTIO_META_POD_PORTS" {
                    let text = variable["value"].as_str().expect("a string");
                    variable["value"] = serde_json::from_str(text).expect("JSON");
                }
            }
        }
    }
    normalized(pod)
}

fn pods() -> Vec<Value> {
    let pod = |annotations: Value, labels: Value, containers: Value| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "shop", "annotations": annotations, "labels": labels}, "spec": {"containers": containers}})
    };
    let app = json!([{"name": "app", "image": "nginx", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 53, "protocol": "UDP"}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}}}]);
    vec![
        pod(json!({}), json!({}), app.clone()),
        pod(json!({}), json!({"app": "web", "version": "v1"}), app.clone()),
        pod(json!({"sidecar.istio.io/interceptionMode": "TPROXY"}), json!({"app": "web"}), app.clone()),
        pod(json!({"sidecar.istio.io/interceptionMode": "NONE"}), json!({}), app.clone()),
        pod(json!({"status.sidecar.istio.io/port": "0"}), json!({}), app.clone()),
        pod(
            json!({"status.sidecar.istio.io/port": "15999", "traffic.sidecar.istio.io/excludeInboundPorts": "1, 2", "sidecar.istio.io/logLevel": "debug",
                "traffic.sidecar.istio.io/includeInboundPorts": "80", "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
                "readiness.status.sidecar.istio.io/periodSeconds": "7", "sidecar.istio.io/proxyCPU": "50m"}),
            json!({"security.istio.io/tlsMode": "disabled"}),
            app.clone(),
        ),
        pod(
            json!({"proxy.istio.io/config": "proxyMetadata: {C: \"3\"}\ndrainDuration: 90s"}),
            json!({}),
            json!([app[0], {"name": "two"}]),
        ),
        pod(
            json!({"kubectl.kubernetes.io/default-container": "two"}),
            json!({}),
            json!([app[0], {"name": "istio-proxy", "image": "auto", "env": [{"name": "X", "value": "y"}]}]),
        ),
    ]
}

#[test]
fn templated_sidecar_equals_the_built_in_one() {
    let mirror = json!({"templates": {"sidecar": MIRROR}});
    for (number, pod) in pods().iter().enumerate() {
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            for cni in [true, false] {
                let want = injected(pod, cni, native, &json!({}));
                let got = injected(pod, cni, native, &mirror);
                let difference = difference(&got, &want).unwrap_or_default();
                assert!(got == want, "pod {number}, {native:?}, CNI {cni}:\n{difference}");
            }
        }
    }
}

#[test]
fn templated_sidecar_is_injected_idempotently() {
    let mirror = json!({"templates": {"sidecar": MIRROR}});
    for pod in pods() {
        let values = values(true);
        let documents = Documents { values: Some(&values), config: Some(&mirror), mesh: None };
        let settings = Settings::from_documents(documents).expect("the documents are valid");
        let once = |pod: Value| match inject(&InjectRequest { pod, ..InjectRequest::default() }, &settings) {
            Ok(InjectOutcome::Injected { pod, .. }) => pod,
            other => panic!("{other:?}"),
        };
        let injected = once(pod);
        assert_eq!(once(injected.clone()), injected);
    }
}
