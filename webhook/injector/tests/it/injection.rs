//! The injected pod for typical pods and settings.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, ProxyConfigResources, Settings};
use weir_injector::{InjectOutcome, InjectRequest, SkipReason, Workload, inject};

fn settings(cni: bool, native: NativeSidecars) -> Settings {
    let values = json!({
        "global": {"hub": "h", "tag": "t", "proxy": {"startupProbe": {"enabled": true}, "resources": {"requests": {"cpu": "100m"}}}},
        "pilot": {"cni": {"enabled": cni}},
    });
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

fn request(pod: Value) -> InjectRequest {
    InjectRequest { pod, ..InjectRequest::default() }
}

fn injected(pod: Value, settings: &Settings) -> (Value, Vec<String>) {
    match inject(&request(pod), settings).unwrap() {
        InjectOutcome::Injected { pod, warnings, .. } => (pod, warnings),
        InjectOutcome::Skipped { reason, .. } => panic!("skipped: {reason:?}"),
    }
}

fn container<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    let found = pod["spec"][list].as_array().into_iter().flatten().find(|container| container["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}: {pod:#}"))
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().map(|item| item["name"].as_str().unwrap()).collect()
}

fn args(container: &Value) -> Vec<&str> {
    container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect()
}

#[test]
fn workload_of_a_system_namespace_is_injected_in_a_manifest_only() {
    let settings = Settings::from_values_and_mesh(None, None).unwrap();
    let workload = Some(Workload { kind: "Deployment".to_owned(), ..Workload::default() });
    let request = |is_manifest, workload| InjectRequest {
        pod: json!({"spec": {"containers": [{"name": "app"}]}}),
        namespace: Some("kube-system".to_owned()),
        workload,
        is_manifest,
        ..InjectRequest::default()
    };
    let is_injected =
        |request: InjectRequest| matches!(inject(&request, &settings).unwrap(), InjectOutcome::Injected { .. });
    assert!(is_injected(request(true, workload.clone())));
    assert!(!is_injected(request(false, workload)));
    assert!(!is_injected(request(true, None)), "a pod of a manifest names its namespace itself");
}

#[test]
fn native_sidecar_starts_before_everything_else() {
    let spec = json!({"initContainers": [{"name": "migrate", "image": "m:1"}]});
    let (pod, warnings) = injected(pod(json!({}), spec), &settings(false, NativeSidecars::On));
    assert_eq!(names(&pod, "initContainers"), ["istio-init", "istio-proxy", "migrate"]);
    assert_eq!(names(&pod, "containers"), ["app"]);
    assert_eq!(container(&pod, "initContainers", "istio-proxy")["restartPolicy"], "Always");
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn classic_sidecar_warns_about_jobs_and_init_containers() {
    let spec = json!({"initContainers": [{"name": "migrate", "image": "m:1"}], "dnsPolicy": "Default"});
    let annotations = json!({"sidecar.istio.io/proxyImage": "mine", "sidecar.istio.io/nativeSidecar": "maybe"});
    let mut pod = pod(annotations, spec);
    pod["metadata"]["generateName"] = "web-".into();
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "web", "uid": "1", "controller": true}]);
    let (pod, warnings) = injected(pod, &settings(false, NativeSidecars::Off));
    assert_eq!(names(&pod, "containers"), ["app", "istio-proxy"]);
    assert_eq!(container(&pod, "containers", "istio-proxy")["image"], "h/proxyv2:t");
    for part in ["proxyImage", "nativeSidecar", "dnsPolicy", "Job cannot complete", "migrate"] {
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
    }
}

#[test]
fn cni_mode_needs_no_privileges_and_configures_the_plugin() {
    let annotations = json!({
        "weir.dev/capture": "written by the author",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
    });
    let (pod, _) = injected(pod(annotations.clone(), json!({})), &settings(true, NativeSidecars::On));
    let validation = container(&pod, "initContainers", "istio-validation");
    assert_eq!(validation["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(validation["securityContext"]["runAsNonRoot"], true);
    assert!(args(validation).ends_with(&["--run-validation", "--skip-rule-apply"]), "{validation:#}");
    let written = &pod["metadata"]["annotations"];
    assert_eq!(written["sidecar.istio.io/interceptionMode"], "REDIRECT");
    assert_eq!(written["traffic.sidecar.istio.io/excludeInboundPorts"], "9000,15020");
    let capture = written["weir.dev/capture"].as_str().unwrap();
    let config = iptables_rules::CaptureConfig::from_capture_annotation(capture).unwrap();
    assert_eq!(config.outbound_ports_exclude, [3306]);
    assert!(config.inbound_ports_exclude.contains(&9000));

    let (pod, _) = injected(self::pod(annotations, json!({})), &settings(false, NativeSidecars::On));
    assert_eq!(pod["metadata"]["annotations"].get("weir.dev/capture"), None);
    assert_eq!(container(&pod, "initContainers", "istio-init")["securityContext"]["runAsUser"], 0);
}

#[test]
fn interception_mode_decides_about_rules_and_capabilities() {
    let mode = |mode: &str| json!({"sidecar.istio.io/interceptionMode": mode});
    let (tproxy, _) = injected(pod(mode("TPROXY"), json!({})), &settings(true, NativeSidecars::On));
    let security = &container(&tproxy, "initContainers", "istio-proxy")["securityContext"];
    assert_eq!(security["capabilities"], json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}));
    assert_eq!((&security["runAsUser"], &security["runAsGroup"]), (&json!(0), &json!(1337)));
    let (none, _) = injected(pod(mode("NONE"), json!({})), &settings(false, NativeSidecars::On));
    assert_eq!(names(&none, "initContainers"), ["istio-proxy"]);
}

#[test]
fn user_overrides_of_the_proxy_survive_reinjection() {
    let own = json!({
        "name": "istio-proxy", "image": "auto", "args": ["proxy", "sidecar", "--own"],
        "resources": {"limits": {"cpu": "3"}}, "env": [{"name": "OWN", "value": "1"}, {"name": "CA_ADDR", "value": "mine:1"}],
        "ports": [{"containerPort": 9999}], "securityContext": {"runAsUser": 1000},
    });
    for cni in [false, true] {
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            for place in ["containers", "initContainers"] {
                let mut original = pod(json!({}), json!({}));
                let list = original["spec"].as_object_mut().unwrap().entry(place).or_insert(json!([]));
                list.as_array_mut().unwrap().insert(0, own.clone());
                let settings = settings(cni, native);
                let (once, _) = injected(original, &settings);
                let where_it_is = if native == NativeSidecars::On { "initContainers" } else { "containers" };
                let proxy = container(&once, where_it_is, "istio-proxy");
                let other = if native == NativeSidecars::On { "containers" } else { "initContainers" };
                assert!(!names(&once, other).contains(&"istio-proxy"));
                assert_eq!(proxy["image"], "h/proxyv2:t");
                assert_eq!(args(proxy), ["proxy", "sidecar", "--own"]);
                assert_eq!(proxy["resources"], json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "3"}}));
                let env = |name: &str| {
                    proxy["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap()
                };
                assert_eq!((&env("OWN")["value"], &env("CA_ADDR")["value"]), (&json!("1"), &json!("mine:1")));
                let init = container(&once, "initContainers", if cni { "istio-validation" } else { "istio-init" });
                let user = args(init).windows(2).find(|pair| pair[0] == "-u").unwrap()[1].to_owned();
                assert_eq!(user, "1000", "traffic of the user's uid is the proxy's own");
                let (twice, _) = injected(once.clone(), &settings);
                assert_eq!(twice, once, "cni {cni}, {native:?}, written in {place}");
            }
        }
    }
}

#[test]
fn changing_the_mode_leaves_nothing_of_the_old_one() {
    let kinds = [NativeSidecars::On, NativeSidecars::Off].into_iter();
    let all: Vec<Settings> = kinds.flat_map(|native| [settings(false, native), settings(true, native)]).collect();
    let probe = json!({"httpGet": {"path": "/ready", "port": 8080}});
    let spec = json!({"containers": [{"name": "app", "image": "app:1", "readinessProbe": probe}]});
    for from in &all {
        for to in &all {
            let (before, _) = injected(pod(json!({}), spec.clone()), from);
            let (direct, _) = injected(pod(json!({}), spec.clone()), to);
            let (after, _) = injected(before, to);
            for list in ["containers", "initContainers"] {
                assert_eq!(after["spec"][list], direct["spec"][list], "{list}");
            }
        }
    }
}

#[test]
fn url_variables_reach_the_proxy_and_the_label_overrides_them() {
    let mut request = request(pod(json!({}), json!({})));
    request.url_env = BTreeMap::from([
        ("ISTIO_META_CLUSTER_ID".to_owned(), "east".to_owned()),
        ("ISTIO_META_NETWORK".to_owned(), "net-1".to_owned()),
        ("OTHER".to_owned(), "x".to_owned()),
    ]);
    request.pod["metadata"]["labels"]["topology.istio.io/network"] = "net-2".into();
    let settings = settings(false, NativeSidecars::On);
    let InjectOutcome::Injected { pod, .. } = inject(&request, &settings).unwrap() else { panic!("skipped") };
    let proxy = container(&pod, "initContainers", "istio-proxy");
    let env = |name: &str| proxy["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap();
    assert_eq!(env("ISTIO_META_CLUSTER_ID")["value"], "east");
    assert_eq!(env("ISTIO_META_NETWORK")["value"], "net-2");
    assert_eq!(env("OTHER")["value"], "x");
    request.pod = pod.clone();
    let InjectOutcome::Injected { pod: twice, .. } = inject(&request, &settings).unwrap() else { panic!("skipped") };
    assert_eq!(twice, pod);
}

#[test]
fn skipped_pods_have_a_reason() {
    let settings = settings(true, NativeSidecars::On);
    let skipped = |pod: Value| match inject(&request(pod), &settings).unwrap() {
        InjectOutcome::Skipped { reason, .. } => reason,
        InjectOutcome::Injected { .. } => panic!("injected"),
    };
    assert_eq!(skipped(pod(json!({}), json!({"hostNetwork": true}))), SkipReason::HostNetwork);
    let mut off = pod(json!({}), json!({}));
    off["metadata"]["labels"]["sidecar.istio.io/inject"] = "false".into();
    assert_eq!(skipped(off), SkipReason::OptedOut);
    let mut system = pod(json!({}), json!({}));
    system["metadata"]["namespace"] = "kube-system".into();
    assert_eq!(skipped(system), SkipReason::SystemNamespace);
}

#[test]
fn all_findings_are_reported_at_once() {
    let annotations = json!({
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0",
        "status.sidecar.istio.io/port": "http",
        "proxy.istio.io/config": "concurrency: many",
        "inject.istio.io/templates": "sidecar,mine",
    });
    let error =
        inject(&request(pod(annotations, json!({}))), &settings(true, NativeSidecars::On)).unwrap_err().to_string();
    for part in ["includeOutboundIPRanges", "status.sidecar.istio.io/port", "concurrency", "\"mine\" not found"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn unknown_fields_survive() {
    let spec = json!({"containers": [{"name": "app", "image": "app:1", "ofTheFuture": {"a": [1]}}], "alsoNew": "x"});
    let (pod, _) = injected(pod(json!({}), spec), &settings(true, NativeSidecars::Off));
    assert_eq!(container(&pod, "containers", "app")["ofTheFuture"], json!({"a": [1]}));
    assert_eq!(pod["spec"]["alsoNew"], "x");
}

#[test]
fn pod_selects_other_templates() {
    let settings = settings(true, NativeSidecars::On);
    let (gateway, _) = injected(
        pod(
            json!({"inject.istio.io/templates": "gateway"}),
            json!({"containers": [{"name": "istio-proxy", "image": "auto"}]}),
        ),
        &settings,
    );
    let proxy = container(&gateway, "containers", "istio-proxy");
    assert_eq!(args(proxy)[..2], ["proxy", "router"]);
    assert_eq!(gateway["metadata"]["annotations"].get("weir.dev/capture"), None, "nothing is captured for a gateway");
    let (grpc, _) = injected(pod(json!({"inject.istio.io/templates": "grpc-agent"}), json!({})), &settings);
    let app = container(&grpc, "containers", "app");
    assert_eq!(app["env"][1]["value"], "/etc/istio/proxy/grpc-bootstrap.json");
    assert_eq!(names(&grpc, "initContainers"), Vec::<&str>::new());
    let (twice, _) = injected(grpc.clone(), &settings);
    assert_eq!(twice, grpc);
}

#[test]
fn handlers_of_an_overridden_container_are_rewritten_once() {
    let own = json!({"name": "istio-init", "image": "mine", "lifecycle": {"preStop": {"tcpSocket": {"port": 80}}}});
    let settings = settings(false, NativeSidecars::Off);
    let (once, _) = injected(pod(json!({}), json!({"initContainers": [own]})), &settings);
    let handler = &container(&once, "initContainers", "istio-init")["lifecycle"]["preStop"];
    assert_eq!(*handler, json!({"httpGet": {"path": "/app-lifecycle/istio-init/prestopz", "port": 15020}}));
    let (twice, _) = injected(once.clone(), &settings);
    assert_eq!(twice, once);
}

#[test]
fn capture_that_the_plugin_would_reject_is_denied_in_cni_mode() {
    let with_proxy = |security: Value| json!({"containers": [{"name": "app", "image": "a"}, {"name": "istio-proxy", "securityContext": security}]});
    let groups = |list: &str| json!({"proxy.istio.io/config": format!("proxyMetadata: {{ISTIO_OUTBOUND_OWNER_GROUPS: \"{list}\"}}")});
    let ports: Vec<String> = (1..30_000).map(|port: u16| port.to_string()).collect();
    let many = json!({"traffic.sidecar.istio.io/excludeOutboundPorts": ports.join(",")});
    for (pod, reason) in [
        (pod(json!({}), with_proxy(json!({"runAsUser": -1}))), "securityContext.runAsUser must be an id"),
        (pod(json!({}), with_proxy(json!({"runAsGroup": "7"}))), "securityContext.runAsGroup must be an id"),
        (pod(json!({}), with_proxy(json!({"runAsUser": u32::MAX}))), "proxy uid: 4294967295 is not a valid uid"),
        (pod(groups("202,java"), json!({})), "'ISTIO_OUTBOUND_OWNER_GROUPS': group 'java' is a name"),
        (pod(many, json!({})), "bytes long; the limit is 131072"),
    ] {
        let error = inject(&request(pod), &settings(true, NativeSidecars::On)).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    // A pod that installs its own rules resolves the names in its own image.
    let own = pod(groups("202,java"), json!({}));
    assert!(matches!(inject(&request(own), &settings(false, NativeSidecars::On)), Ok(InjectOutcome::Injected { .. })));
}

#[test]
fn capture_annotation_has_the_ports_of_the_mesh() {
    let mesh = json!({"proxyListenPort": 15101, "proxyInboundListenPort": 15106});
    let values = json!({"pilot": {"cni": {"enabled": true}}});
    let settings = Settings::from_values_and_mesh(Some(&values), Some(&mesh)).unwrap();
    let (pod, _) = injected(pod(json!({}), json!({})), &settings);
    let capture: Value =
        serde_json::from_str(pod["metadata"]["annotations"]["weir.dev/capture"].as_str().unwrap()).unwrap();
    assert_eq!(capture, json!({"v": 1, "?ipv6Auto": true, "proxyPort": 15101, "inboundPort": 15106}));
    assert_eq!(args(container(&pod, "initContainers", "istio-validation"))[1..5], ["-p", "15101", "-z", "15106"]);
}

#[test]
fn recorded_overrides_apply_without_an_injection_record() {
    let stored = json!({"proxy.istio.io/overrides": r#"{"containers":[{"name":"istio-proxy","securityContext":{"runAsUser":5000}}]}"#});
    for cni in [true, false] {
        let settings = settings(cni, NativeSidecars::On);
        let (once, _) = injected(pod(stored.clone(), json!({})), &settings);
        assert_eq!(container(&once, "initContainers", "istio-proxy")["securityContext"]["runAsUser"], 5000);
        let (twice, _) = injected(once.clone(), &settings);
        assert_eq!(twice, once);
    }
}

#[test]
fn grpc_simple_adds_a_bootstrap_file_and_no_proxy() {
    let settings = settings(true, NativeSidecars::On);
    let asking = pod(
        json!({"inject.istio.io/templates": "grpc-simple"}),
        json!({"containers": [{"name": "app", "image": "app:1", "readinessProbe": {"grpc": {"port": 1}}}]}),
    );
    let (once, _) = injected(asking, &settings);
    assert_eq!(names(&once, "initContainers"), ["grpc-bootstrap-init"]);
    assert_eq!(names(&once, "containers"), ["app"]);
    assert_eq!(names(&once, "volumes"), ["grpc-io-proxyless-bootstrap"]);
    let app = container(&once, "containers", "app");
    assert_eq!(app["env"][0], json!({"name": "GRPC_XDS_BOOTSTRAP", "value": "/var/lib/grpc/data/bootstrap.json"}));
    let mount = json!({"name": "grpc-io-proxyless-bootstrap", "mountPath": "/var/lib/grpc/data/"});
    assert_eq!(app["volumeMounts"], json!([mount]));
    assert_eq!(app["readinessProbe"], json!({"grpc": {"port": 1}}), "there is no agent to ask");
    let annotations = &once["metadata"]["annotations"];
    assert_eq!(annotations["sidecar.istio.io/rewriteAppHTTPProbers"], "false");
    assert_eq!(annotations["prometheus.io/port"], "15020", "as Istio has it");
    assert_eq!(annotations.get("weir.dev/capture"), None);
    let (twice, _) = injected(once.clone(), &settings);
    assert_eq!(twice, once);
}

#[test]
fn nodes_decide_about_native_sidecars_unless_the_pod_does() {
    let mut settings = settings(true, NativeSidecars::ByNodes);
    settings.nodes = [("old", "v1.28.3"), ("new", "v1.33.0")].into_iter().collect();
    let of = |annotations: Value, spec: Value| {
        let (pod, _) = injected(pod(annotations, spec), &settings);
        names(&pod, "initContainers").contains(&"istio-proxy")
    };
    assert!(!of(json!({}), json!({})), "one node cannot");
    assert!(of(json!({}), json!({"nodeName": "new"})));
    assert!(!of(json!({}), json!({"nodeName": "old"})));
    assert!(of(json!({"sidecar.istio.io/nativeSidecar": "true"}), json!({"nodeName": "old"})));
}

#[test]
fn proxy_config_resources_apply_to_matching_pods() {
    let mut settings = settings(false, NativeSidecars::Off);
    let resource = |namespace: &str, spec: Value| {
        json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "ProxyConfig",
        "metadata": {"name": "c", "namespace": namespace}, "spec": spec})
    };
    let objects = [
        resource("istio-system", json!({"concurrency": 3, "image": {"imageType": "debug"}})),
        resource("shop", json!({"selector": {"matchLabels": {"app": "web"}}, "environmentVariables": {"HELLO": "x"}})),
        resource("elsewhere", json!({"concurrency": 9})),
    ];
    settings.proxy_configs = ProxyConfigResources::from_objects(&objects).unwrap();
    let mut asked = pod(json!({"proxy.istio.io/config": "proxyMetadata: {HELLO: other}"}), json!({}));
    asked["metadata"]["labels"]["app"] = "web".into();
    let (pod, _) = injected(asked, &settings);
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(proxy["image"], "h/proxyv2:t-debug");
    let env = |name: &str| proxy["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap();
    let printed = "{\"concurrency\":3,\"proxyMetadata\":{\"HELLO\":\"x\"},\"image\":{\"imageType\":\"debug\"}}\n";
    assert_eq!(env("PROXY_CONFIG")["value"], printed);
    assert_eq!(env("HELLO")["value"], "x");
}
