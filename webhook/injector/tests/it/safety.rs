//! Denials and warnings about pods that would not work or would bypass the mesh; and no warnings without a cause.

use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, Platform, Settings};
use weir_injector::yaml;
use weir_injector::{InjectOutcome, InjectRequest, Workload, inject};
use weir_tests::conformance::{Suite, documents};

fn settings(cni: bool, native: NativeSidecars) -> Settings {
    with_values(json!({"pilot": {"cni": {"enabled": cni}}}), native)
}

fn with_values(mut values: Value, native: NativeSidecars) -> Settings {
    let resources =
        json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}});
    values["global"]["proxy"]["resources"] = resources;
    let mut settings = Settings::from_values_and_mesh(Some(&values), None).unwrap();
    settings.native_sidecars = native;
    settings
}

fn pod(annotations: Value, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    });
    pod["metadata"]["annotations"] = annotations;
    if let Value::Object(spec) = spec {
        pod["spec"].as_object_mut().unwrap().extend(spec);
    }
    pod
}

fn with_containers(containers: Value) -> Value {
    let mut pod = pod(json!({}), json!({}));
    pod["spec"]["containers"] = containers;
    pod
}

/// Returns the injected pod with its warnings, or the denial.
fn outcome(pod: &Value, settings: &Settings) -> Result<(Value, Vec<String>), String> {
    let request = InjectRequest { pod: pod.clone(), ..InjectRequest::default() };
    match inject(&request, settings) {
        Ok(InjectOutcome::Injected { pod, warnings, .. }) => Ok((pod, warnings)),
        Ok(InjectOutcome::Skipped { reason, .. }) => panic!("skipped: {reason:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn assert_denied(pod: &Value, settings: &Settings, parts: &[&str]) {
    let text = outcome(pod, settings).expect_err("the pod is denied");
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Asserts that the pod is injected, and that each warning has one of the parts.
fn assert_warned(pod: &Value, settings: &Settings, parts: &[&str]) {
    let (_, warnings) = outcome(pod, settings).unwrap();
    assert_eq!(warnings.len(), parts.len(), "{warnings:#?}");
    for part in parts {
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:#?}");
    }
}

fn user(id: u32) -> Value {
    json!({"runAsUser": id})
}

#[test]
fn pod_whose_application_runs_as_the_proxys_user_is_denied() {
    let app = |security: Value| json!([{"name": "app", "image": "a", "securityContext": security}]);
    for settings in [settings(true, NativeSidecars::On), settings(false, NativeSidecars::Off)] {
        for (pod, reason) in [
            (with_containers(app(user(1337))), "container 'app' runs as user 1337"),
            (with_containers(app(json!({"runAsGroup": 1337}))), "container 'app' runs as group 1337"),
            (pod(json!({}), json!({"securityContext": user(1337)})), "container 'app' runs as user 1337"),
        ] {
            assert_denied(&pod, &settings, &[reason, "bypass the mesh", "another securityContext.runAsUser"]);
        }
        for pod in [
            with_containers(app(user(1000))),
            pod(
                json!({}),
                json!({"securityContext": {"runAsUser": 1337, "fsGroup": 1337}, "containers": app(user(0))}),
            ),
            pod(json!({}), json!({"securityContext": {"fsGroup": 1337, "supplementalGroups": [1337]}})),
            pod(json!({"sidecar.istio.io/interceptionMode": "NONE"}), json!({"containers": app(user(1337))})),
        ] {
            assert_warned(&pod, &settings, &[]);
        }
    }
}

#[test]
fn effective_user_of_the_proxy_is_compared() {
    let both = |proxy: u32, app: u32| {
        with_containers(json!([
            {"name": "app", "image": "a", "securityContext": user(app)},
            {"name": "istio-proxy", "image": "auto", "securityContext": user(proxy)},
        ]))
    };
    let settings = settings(true, NativeSidecars::On);
    assert_denied(&both(2000, 2000), &settings, &["runs as user 2000"]);
    assert_warned(&both(2000, 1337), &settings, &[]);
}

#[test]
fn one_of_several_containers_with_the_proxys_user_is_a_warning() {
    let containers =
        json!([{"name": "app", "image": "a"}, {"name": "vault", "image": "v", "securityContext": user(1337)}]);
    assert_warned(
        &with_containers(containers),
        &settings(true, NativeSidecars::On),
        &["container 'vault' runs as user 1337"],
    );
}

#[test]
fn init_containers_may_run_as_the_proxys_user() {
    let init =
        |security: Value| json!({"initContainers": [{"name": "fetch", "image": "f", "securityContext": security}]});
    let classic = settings(true, NativeSidecars::Off);
    assert_warned(&pod(json!({}), init(user(1337))), &classic, &[]);
    assert_warned(&pod(json!({}), init(user(1))), &classic, &["no network until the proxy runs"]);
    let own_rules = settings(false, NativeSidecars::Off);
    assert_warned(&pod(json!({}), init(user(1))), &own_rules, &["their connections bypass the mesh: fetch"]);
    assert_warned(&pod(json!({}), init(user(1))), &settings(true, NativeSidecars::On), &[]);
}

#[test]
fn container_ports_of_the_sidecar_are_a_warning() {
    let app = |ports: Value| with_containers(json!([{"name": "app", "image": "a", "ports": ports}]));
    let settings = settings(true, NativeSidecars::On);
    for (port, purpose) in [
        (15000, "Envoy's admin interface"),
        (15001, "captured outbound traffic"),
        (15004, "the agent's debug server"),
        (15006, "captured inbound traffic"),
        (15020, "the agent's status"),
        (15021, "health"),
        (15090, "Envoy's metrics"),
    ] {
        assert_warned(
            &app(json!([{"containerPort": port}])),
            &settings,
            &[&format!("declares port {port}, on which the sidecar listens for {purpose}")],
        );
    }
    assert_warned(&app(json!([{"containerPort": 15020, "protocol": "UDP"}, {"containerPort": 8080}])), &settings, &[]);
    // HBONE and DNS capture listen only if they are enabled.
    let ports = json!([{"containerPort": 15008}, {"containerPort": 15053, "protocol": "UDP"}]);
    assert_warned(&app(ports.clone()), &settings, &[]);
    let config =
        "proxyMetadata: {ISTIO_META_ENABLE_HBONE: 'true', ISTIO_META_DNS_CAPTURE: 'true'}\nproxyAdminPort: 15555";
    let mut asked = app(ports);
    asked["metadata"]["annotations"]["proxy.istio.io/config"] = config.into();
    assert_warned(&asked, &settings, &["port 15008", "port 15053"]);
    // A proxy that the user declared is not an application.
    let own = with_containers(
        json!([{"name": "app", "image": "a"}, {"name": "istio-proxy", "ports": [{"containerPort": 15021}]}]),
    );
    assert_warned(&own, &settings, &[]);
}

#[test]
fn host_port_of_the_proxy_is_denied() {
    let containers = |ip: &str| {
        with_containers(json!([
            {"name": "app", "image": "a", "ports": [{"containerPort": 80, "hostPort": 8080}]},
            {"name": "istio-proxy", "image": "auto", "ports": [{"containerPort": 9999, "hostPort": 8080, "hostIP": ip}]},
        ]))
    };
    let settings = settings(true, NativeSidecars::On);
    assert_denied(&containers(""), &settings, &["'app' and the proxy both request host port 8080/TCP on 0.0.0.0"]);
    assert_warned(&containers("10.0.0.1"), &settings, &[]);
}

#[test]
fn pod_that_the_api_server_would_reject_is_denied_with_a_fix() {
    let named = |annotation: &str, value: &str| pod(json!({annotation: value}), json!({}));
    let proxy = |fields: Value| {
        let mut container = json!({"name": "istio-proxy", "image": "auto"});
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        with_containers(json!([{"name": "app", "image": "a"}, container]))
    };
    let many: String = "x".repeat(250_000);
    let settings = settings(false, NativeSidecars::On);
    for (pod, reason) in [
        (
            with_containers(json!([{"name": "app"}, {"name": "app"}])),
            "two containers are named 'app' (twice in spec.containers)",
        ),
        (
            with_containers(json!([{"name": "app"}, {"name": "istio-init"}])),
            "two containers are named 'istio-init' (in spec.containers and in spec.initContainers)",
        ),
        (pod(json!({}), json!({"volumes": [{"name": "v"}, {"name": "v"}]})), "two volumes are named 'v'"),
        (
            pod(json!({}), json!({"volumes": [{"name": "istio-token", "secret": {"secretName": "s"}}]})),
            "volume 'istio-token' of the sidecar would have several sources",
        ),
        (proxy(json!({"volumeMounts": [{"name": "absent", "mountPath": "/x"}]})), "mounts volume 'absent' at '/x'"),
        (
            proxy(json!({"ports": [{"name": "http-envoy-prom", "containerPort": 1}]})),
            "two ports named 'http-envoy-prom'",
        ),
        (proxy(json!({"resources": {"limits": {"cpu": "lots"}}})), "resources.limits.cpu is \"lots\", not a quantity"),
        (named("sidecar.istio.io/proxyCPU", "-1"), "must not be negative"),
        (
            pod(json!({"sidecar.istio.io/proxyCPU": "3", "sidecar.istio.io/proxyCPULimit": "2000m"}), json!({})),
            "container 'istio-proxy' requests more cpu (3) than its limit (2000m)",
        ),
        (
            named("proxy.istio.io/config", "proxyMetadata: {'A=B': x}"),
            "\"A=B\" is not a valid environment variable name",
        ),
        (named("apm.datadoghq.com/env", "{\"\": \"x\"}"), "\"\" is not a valid environment variable name"),
        (named("sidecar.istio.io/bootstrapOverride", ""), "is not a valid ConfigMap name"),
        (named("sidecar.istio.io/userVolume", "{\"A\": {\"emptyDir\": {}}}"), "\"A\" is not a valid volume"),
        (named("sidecar.istio.io/userVolumeMount", "{\"a\": {\"mountPath\": \"\"}}"), "\"a\" is not a valid mount"),
        (
            named("sidecar.istio.io/userVolumeMount", "{\"a\": {\"mountPath\": \"/a\"}}"),
            "mounts volume 'a' at '/a', but the pod has no such volume",
        ),
        (named("mine", &many), "the limit is 262144; the largest is 'mine' with 250004"),
    ] {
        let mut pod = pod;
        if reason.contains("262144") {
            pod["spec"]["containers"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "istio-proxy", "env": [{"name": "A", "value": "y".repeat(20_000)}]}));
        }
        assert_denied(&pod, &settings, &[reason]);
    }
}

#[test]
fn stateful_set_volumes_need_not_be_in_its_manifest() {
    let mut request = InjectRequest {
        pod: pod(json!({"sidecar.istio.io/userVolumeMount": r#"{"claimed": {"mountPath": "/data"}}"#}), json!({})),
        ..InjectRequest::default()
    };
    let settings = settings(true, NativeSidecars::On);
    assert!(inject(&request, &settings).is_err());
    request.workload = Some(Workload { kind: "StatefulSet".to_owned(), ..Workload::default() });
    assert!(matches!(inject(&request, &settings), Ok(InjectOutcome::Injected { .. })));
}

#[test]
fn invalid_labels_and_annotations_from_settings_are_denied() {
    let network = with_values(json!({"global": {"network": "my network"}}), NativeSidecars::On);
    assert_denied(
        &pod(json!({}), json!({})),
        &network,
        &["'my network' is not a valid value of label 'topology.istio.io/network'"],
    );
    let annotated =
        with_values(json!({"sidecarInjectorWebhook": {"injectedAnnotations": {"a b": "x"}}}), NativeSidecars::On);
    assert_denied(&pod(json!({}), json!({})), &annotated, &["'a b' is not a valid annotation key"]);
}

#[test]
fn all_findings_about_the_result_are_reported_at_once() {
    let spec = json!({"securityContext": user(1337), "volumes": [{"name": "v"}, {"name": "v"}],
        "containers": [{"name": "app"}, {"name": "app"}]});
    let annotations = json!({"sidecar.istio.io/proxyMemory": "2Gi", "sidecar.istio.io/proxyMemoryLimit": "1Gi"});
    let parts = ["named 'app'", "named 'v'", "runs as user 1337", "requests more memory"];
    assert_denied(&pod(annotations, spec), &settings(true, NativeSidecars::On), &parts);
}

#[test]
fn invalid_metrics_ports_are_reported_with_other_findings() {
    let mut annotations = json!({"prometheus.io/port": "0", "prometheus.istio.io/scrape-targets": "15090"});
    let settings = settings(true, NativeSidecars::On);
    let spec = json!({"securityContext": user(1337)});
    let parts = ["'prometheus.io/port'", "port 15090 is reserved", "runs as user 1337"];
    assert_denied(&pod(annotations.clone(), spec), &settings, &parts);
    annotations["status.sidecar.istio.io/port"] = "x".into();
    let parts = ["'prometheus.io/port'", "port 15090 is reserved", "status.sidecar.istio.io/port"];
    assert_denied(&pod(annotations, json!({})), &settings, &parts);
}

#[test]
fn sidecar_shares_the_resources_of_the_pod() {
    let spec = json!({"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1500m", "memory": "4Gi"}},
        "containers": [{"name": "app", "image": "a", "resources": {"requests": {"cpu": "1"}}}]});
    for native in [NativeSidecars::On, NativeSidecars::Off] {
        let settings = settings(true, native);
        let (injected, warnings) = outcome(&pod(json!({}), spec.clone()), &settings).unwrap();
        assert_eq!(injected["spec"]["resources"], spec["resources"], "spec.resources stays the user's");
        let all =
            ["containers", "initContainers"].map(|list| injected["spec"][list].as_array().unwrap().clone()).concat();
        let proxy = all.iter().find(|container| container["name"] == "istio-proxy").unwrap();
        let expected =
            json!({"requests": {"cpu": "0", "memory": "128Mi"}, "limits": {"cpu": "1500m", "memory": "1024Mi"}});
        assert_eq!(proxy["resources"], expected);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("reserve 100m cpu for it"), "{warnings:?}");

        let more_requested = json!({"sidecar.istio.io/proxyCPU": "100m"});
        assert_denied(
            &pod(more_requested, spec.clone()),
            &settings,
            &["request more cpu than the pod's spec.resources.requests (1)"],
        );
        let higher_limit = json!({"sidecar.istio.io/proxyMemoryLimit": "5Gi"});
        assert_denied(
            &pod(higher_limit, spec.clone()),
            &settings,
            &["'istio-proxy' has a higher memory limit (5Gi) than the pod's spec.resources.limits (4Gi)"],
        );
    }
}

#[test]
fn jobs_with_a_classic_sidecar_are_a_warning() {
    let never = pod(json!({}), json!({"restartPolicy": "Never"}));
    assert_warned(&never, &settings(true, NativeSidecars::Off), &["pod with restartPolicy Never cannot complete"]);
    assert_warned(&never, &settings(true, NativeSidecars::On), &[]);
    let agent = pod(json!({"inject.istio.io/templates": "grpc-agent"}), json!({"restartPolicy": "OnFailure"}));
    assert_warned(&agent, &settings(true, NativeSidecars::On), &["quitquitquit"]);
}

#[test]
fn missing_control_plane_token_is_a_warning() {
    let settings = settings(true, NativeSidecars::On);
    assert_warned(&pod(json!({}), json!({"automountServiceAccountToken": false})), &settings, &[]);
    let own = json!({"volumes": [{"name": "mine", "emptyDir": {}}], "containers": [
        {"name": "app", "image": "a"},
        {"name": "istio-proxy", "image": "auto", "volumeMounts": [{"name": "mine", "mountPath": "/var/run/secrets/tokens"}]}]});
    assert_warned(
        &pod(json!({}), own),
        &settings,
        &["volume 'mine', which the proxy mounts at /var/run/secrets/tokens, has no service account token"],
    );
}

#[test]
fn gateway_has_no_warnings() {
    let gateway = json!({"inject.istio.io/templates": "gateway"});
    let spec = json!({"containers": [{"name": "istio-proxy", "image": "auto", "ports": [{"containerPort": 15021}]}]});
    assert_warned(&pod(gateway, spec), &settings(true, NativeSidecars::On), &[]);
}

#[test]
fn ignored_annotations_are_a_warning() {
    let annotations =
        json!({"sidecar.istio.io/capNetBindService": "yes", "sidecar.istio.io/rewriteAppHTTPProbers": "on"});
    assert_warned(
        &pod(annotations, json!({})),
        &settings(true, NativeSidecars::On),
        &["capNetBindService", "rewriteAppHTTPProbers"],
    );
}

#[test]
fn conformance_cases_and_samples_have_no_false_warnings() {
    let Some(suite) = Suite::load() else { return };
    let mut seen = 0;
    let mut unexpected = Vec::new();
    let mut check = |name: &str, text: &str, settings: &Settings| {
        for document in documents(text) {
            let document = yaml::from_str(&document).unwrap();
            let items = document["items"].as_array().cloned().unwrap_or_else(|| vec![document]);
            for object in items {
                let pod = [&object["spec"]["template"], &object["spec"]["jobTemplate"]["spec"]["template"], &object];
                let Some(pod) = pod.into_iter().find(|pod| pod["spec"]["containers"].is_array()) else { continue };
                let request = InjectRequest { pod: pod.clone(), ..InjectRequest::default() };
                match inject(&request, settings) {
                    Ok(InjectOutcome::Injected { warnings, .. }) => {
                        seen += 1;
                        unexpected.extend(warnings.into_iter().map(|warning| format!("{name}: {warning}")));
                    }
                    Ok(InjectOutcome::Skipped { .. }) => {}
                    Err(error) => unexpected.push(format!("{name}: denied: {error}")),
                }
            }
        }
    };
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none() && case.extra_templates.is_empty()) {
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            let mut settings =
                Settings::from_values_and_mesh(Some(&suite.values(case)), Some(&suite.mesh(case))).unwrap();
            settings.native_sidecars = native;
            if case.platform == "openshift" {
                settings.platform = Platform::OpenShift;
            }
            check(&format!("{} {native:?}", case.name()), &suite.text("input", &case.input), &settings);
        }
    }
    let samples = suite.path("../../samples", "");
    for sample in std::fs::read_dir(samples).unwrap() {
        let path = sample.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            check(&path.display().to_string(), &text, &settings(true, native));
        }
    }
    // These warnings are right about their files.
    unexpected.retain(|warning| {
        let expected = [
            ("only-proxy-container", "no container but the proxy"),
            ("job", "cannot complete"),
            ("", "no network until the proxy runs"),
            ("", "run before the proxy, so their connections"),
        ];
        !expected.iter().any(|(file, text)| warning.contains(file) && warning.contains(text))
    });
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    assert!(seen > 200, "only {seen} pods");
}
