//! Options of the installation and of the pod that no conformance case covers, as Istio documents them.

use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, Settings};
use weir_injector::{InjectOutcome, InjectRequest, Workload, inject};

/// The settings and the pod of a test.
struct Setup {
    values: Value,
    mesh: Value,
    native: NativeSidecars,
    annotations: Value,
    labels: Value,
    spec: Value,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            values: json!({}),
            mesh: json!({}),
            native: NativeSidecars::On,
            annotations: json!({}),
            labels: json!({"app": "web"}),
            spec: json!({"containers": [{"name": "app", "image": "reg:5000/app:1.2"}]}),
        }
    }
}

impl Setup {
    fn pod(&self) -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop", "annotations": self.annotations, "labels": self.labels}, "spec": self.spec})
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::from_values_and_mesh(Some(&self.values), Some(&self.mesh)).unwrap();
        settings.native_sidecars = self.native;
        settings
    }

    fn injected(&self) -> Value {
        let workload = Workload {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
        };
        let request = InjectRequest { pod: self.pod(), workload: Some(workload), ..InjectRequest::default() };
        match inject(&request, &self.settings()).unwrap() {
            InjectOutcome::Injected { pod, .. } => pod,
            InjectOutcome::Skipped { reason, .. } => panic!("skipped: {reason:?}"),
        }
    }
}

fn values(values: Value) -> Value {
    Setup { values, ..Setup::default() }.injected()
}

fn annotated(annotations: Value) -> Value {
    Setup { annotations, ..Setup::default() }.injected()
}

fn item<'a>(list: &'a Value, key: &str, value: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| item[key] == value)
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["containers", "initContainers"];
    lists.iter().find_map(|list| item(&pod["spec"][list], "name", name)).unwrap_or_else(|| panic!("no {name}: {pod:#}"))
}

fn proxy(pod: &Value) -> &Value {
    container(pod, "istio-proxy")
}

fn env<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    item(&proxy(pod)["env"], "name", name)?["value"].as_str()
}

fn position(pod: &Value, name: &str) -> usize {
    proxy(pod)["env"].as_array().unwrap().iter().position(|variable| variable["name"] == name).unwrap()
}

fn volume<'a>(pod: &'a Value, name: &str) -> &'a Value {
    item(&pod["spec"]["volumes"], "name", name).unwrap_or_else(|| panic!("no volume {name}"))
}

fn mount<'a>(pod: &'a Value, path: &str) -> &'a Value {
    item(&proxy(pod)["volumeMounts"], "mountPath", path).unwrap_or_else(|| panic!("no mount at {path}"))
}

fn args(container: &Value) -> Vec<&str> {
    container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect()
}

#[test]
fn json_logs_apply_to_every_mesh_container() {
    let pod = values(
        json!({"global": {"logAsJson": true, "sts": {"servicePort": 15463}, "proxy": {"outlierLogPath": "/dev/stdout"}}}),
    );
    assert!(args(proxy(&pod)).ends_with(&["--stsPort=15463", "--log_as_json", "--outlierLogPath=/dev/stdout"]));
    assert_eq!(args(container(&pod, "istio-init")).last(), Some(&"--log_as_json"));
}

#[test]
fn log_levels_come_from_the_pod_or_the_settings() {
    let pod =
        annotated(json!({"sidecar.istio.io/logLevel": "debug", "sidecar.istio.io/componentLogLevel": "http:trace",
        "sidecar.istio.io/agentLogLevel": "all:debug"}));
    let expected = ["--proxyLogLevel=debug", "--proxyComponentLogLevel=http:trace", "--log_output_level=all:debug"];
    assert_eq!(args(proxy(&pod))[4..7], expected);
    assert!(args(container(&pod, "istio-init")).contains(&"--log_output_level=all:debug"));
    let pod = annotated(json!({}));
    assert_eq!(
        args(proxy(&pod))[4..],
        ["--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info"]
    );
}

#[test]
fn rules_can_be_forced_and_native_nftables() {
    let pod = values(json!({"global": {"nativeNftables": true, "proxy_init": {"forceApplyIptables": true}}}));
    assert!(args(container(&pod, "istio-init")).ends_with(&["--force-apply", "--native-nftables"]));
    let cni = json!({"global": {"proxy_init": {"forceApplyIptables": true}}, "pilot": {"cni": {"enabled": true}}});
    assert!(args(container(&values(cni), "istio-validation")).ends_with(&["--run-validation", "--skip-rule-apply"]));
}

#[test]
fn proxy_capabilities_follow_its_features() {
    let security = |pod: &Value| proxy(pod)["securityContext"].clone();
    let low_ports = security(&annotated(json!({"sidecar.istio.io/capNetBindService": "true"})));
    assert_eq!(low_ports["capabilities"], json!({"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}));
    assert_eq!((&low_ports["runAsUser"], &low_ports["runAsGroup"]), (&json!(0), &json!(1337)));
    assert_eq!(low_ports["runAsNonRoot"], false);

    let both = json!({"sidecar.istio.io/capNetBindService": "true", "sidecar.istio.io/interceptionMode": "TPROXY"});
    let both = security(&annotated(both));
    assert_eq!(both["capabilities"]["add"], json!(["NET_ADMIN", "NET_BIND_SERVICE"]));

    let traced =
        security(&annotated(json!({"proxy.istio.io/config": "proxyMetadata: {IPTABLES_TRACE_LOGGING: 'true'}"})));
    assert_eq!(traced["capabilities"], json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}));
    assert_eq!((&traced["privileged"], &traced["allowPrivilegeEscalation"]), (&json!(true), &json!(true)));
    assert_eq!((&traced["runAsUser"], &traced["runAsGroup"]), (&json!(0), &json!(1337)));

    let plain = security(&annotated(json!({})));
    assert_eq!(plain["capabilities"], json!({"drop": ["ALL"]}));
    for (context, writable) in [(&plain, false), (&traced, false), (&low_ports, false)] {
        assert_eq!(context["readOnlyRootFilesystem"], !writable);
    }
}

#[test]
fn seccomp_profile_applies_to_every_mesh_container() {
    let pod = values(json!({"global": {"proxy": {"seccompProfile": {"type": "RuntimeDefault"}, "privileged": true}}}));
    for name in ["istio-proxy", "istio-init"] {
        let security = &container(&pod, name)["securityContext"];
        assert_eq!(security["seccompProfile"], json!({"type": "RuntimeDefault"}), "{name}");
        assert_eq!(
            (&security["privileged"], &security["allowPrivilegeEscalation"]),
            (&json!(true), &json!(true)),
            "{name}"
        );
    }
}

#[test]
fn custom_bootstrap_is_mounted_and_referenced() {
    let pod = annotated(json!({"sidecar.istio.io/bootstrapOverride": "mine"}));
    assert_eq!(volume(&pod, "custom-bootstrap-volume")["configMap"], json!({"name": "mine"}));
    assert_eq!(mount(&pod, "/etc/istio/custom-bootstrap")["name"], "custom-bootstrap-volume");
    assert_eq!(env(&pod, "ISTIO_BOOTSTRAP_OVERRIDE"), Some("/etc/istio/custom-bootstrap/custom_bootstrap.json"));
    assert!(position(&pod, "ISTIO_META_OWNER") < position(&pod, "ISTIO_BOOTSTRAP_OVERRIDE"));
    assert!(position(&pod, "ISTIO_BOOTSTRAP_OVERRIDE") < position(&pod, "ISTIO_META_MESH_ID"));
}

#[test]
fn user_volumes_and_mounts_follow_those_of_the_mesh_sorted() {
    let pod = annotated(json!({
        "sidecar.istio.io/userVolume": r#"{"z":{"emptyDir":{}},"a":{"secret":{"secretName":"s: {x"}}}"#,
        "sidecar.istio.io/userVolumeMount": r#"{"z":{"mountPath":"/z","readOnly":true},"a":{"mountPath":"/a"}}"#,
    }));
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let last = &volumes[volumes.len() - 2..];
    assert_eq!(last, [json!({"name": "a", "secret": {"secretName": "s: {x"}}), json!({"name": "z", "emptyDir": {}})]);
    let mounts = proxy(&pod)["volumeMounts"].as_array().unwrap();
    let expected = [json!({"name": "a", "mountPath": "/a"}), json!({"name": "z", "mountPath": "/z", "readOnly": true})];
    assert_eq!(mounts[mounts.len() - 2..], expected);
}

#[test]
fn ipv6_without_a_dual_stack_proxy_causes_a_warning() {
    let mut settings = Settings::from_values_and_mesh(None, None).unwrap();
    let is_warned = |settings: &Settings, annotations: Value| {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]}});
        let InjectOutcome::Injected { warnings, .. } =
            inject(&InjectRequest { pod, ..InjectRequest::default() }, settings).unwrap()
        else {
            panic!("skipped")
        };
        warnings.iter().any(|warning| warning.contains("bypass the mesh") || warning.contains("bypasses the mesh"))
    };
    let ranges = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    assert!(is_warned(&settings, json!({ranges: "10.0.0.0/8,fd00::/8"})));
    assert!(is_warned(&settings, json!({"weir.dev/ipv6": "capture"})));
    assert!(!is_warned(&settings, json!({ranges: "10.0.0.0/8"})));
    assert!(!is_warned(&settings, json!({ranges: "fd00::/8", "weir.dev/ipv6": "leave"})));
    let dual_stack = "proxyMetadata: {ISTIO_DUAL_STACK: 'true'}";
    assert!(!is_warned(&settings, json!({ranges: "fd00::/8", "proxy.istio.io/config": dual_stack})));
    settings.nodes = settings.nodes.with_pod_cidrs([["10.1.0.0/24", "fd00:1::/64"]]);
    assert!(is_warned(&settings, json!({})), "pods have IPv6 addresses");
    assert!(!is_warned(&settings, json!({"weir.dev/ipv6": "leave"})));
    assert!(!is_warned(&settings, json!({"proxy.istio.io/config": dual_stack})));
}

#[test]
fn user_volumes_and_mounts_may_be_lists() {
    let pod = annotated(json!({
        "sidecar.istio.io/userVolume": r#"[{"name":"z","emptyDir":{}}]"#,
        "sidecar.istio.io/userVolumeMount": r#"[{"name":"z","mountPath":"/z"},{"name":"z","mountPath":"/a"}]"#,
    }));
    assert_eq!(volume(&pod, "z"), &json!({"name": "z", "emptyDir": {}}));
    let mounts = proxy(&pod)["volumeMounts"].as_array().unwrap();
    let expected = [json!({"name": "z", "mountPath": "/z"}), json!({"name": "z", "mountPath": "/a"})];
    assert_eq!(mounts[mounts.len() - 2..], expected);
}

#[test]
fn certificates_come_from_the_configured_provider() {
    let gke = values(json!({"global": {"caName": "GkeWorkloadCertificate"}}));
    let driver = json!({"driver": "workloadcertificates.security.cloud.google.com"});
    assert_eq!(volume(&gke, "gke-workload-certificate")["csi"], driver);
    let mounted = mount(&gke, "/var/run/secrets/workload-spiffe-credentials");
    assert_eq!((&mounted["name"], &mounted["readOnly"]), (&json!("gke-workload-certificate"), &json!(true)));

    for written in [json!(true), json!("true")] {
        let bundle = values(json!({"pilot": {"env": {"ENABLE_CLUSTER_TRUST_BUNDLE_API": written}}}));
        let source = json!([{"clusterTrustBundle": {"name": "istio.io:istiod-ca:root-cert", "path": "root-cert.pem"}}]);
        assert_eq!(volume(&bundle, "istiod-ca-cert")["projected"]["sources"], source);
    }
    let named = values(json!({"global": {"trustBundleName": "mine"}, "pilot": {"crlConfigMapName": "revoked"}}));
    assert_eq!(volume(&named, "istiod-ca-cert")["configMap"]["name"], "mine");
    assert_eq!(volume(&named, "istio-ca-crl")["configMap"], json!({"name": "revoked", "optional": true}));

    let other = values(
        json!({"global": {"pilotCertProvider": "kubernetes", "caAddress": "ca.example:443", "sds": {"token": {"aud": "mine"}}}}),
    );
    assert!(item(&other["spec"]["volumes"], "name", "istiod-ca-cert").is_none());
    assert!(item(&proxy(&other)["volumeMounts"], "mountPath", "/var/run/secrets/istio/crl").is_none());
    assert_eq!(
        (env(&other, "PILOT_CERT_PROVIDER"), env(&other, "CA_ADDR")),
        (Some("kubernetes"), Some("ca.example:443"))
    );
    let token = &volume(&other, "istio-token")["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(*token, json!({"path": "istio-token", "expirationSeconds": 43200, "audience": "mine"}));
}

#[test]
fn ca_address_includes_the_revision() {
    let pod = values(json!({"revision": "canary", "global": {"istioNamespace": "mesh"}}));
    assert_eq!(env(&pod, "CA_ADDR"), Some("istiod-canary.mesh.svc:15012"));
    assert_eq!(pod["metadata"]["annotations"]["istio.io/rev"], "canary");
}

#[test]
fn tracers_add_their_own_settings() {
    let datadog = Setup {
        values: json!({"global": {"proxy": {"tracer": "datadog"}}}),
        annotations: json!({"apm.datadoghq.com/env": r#"{"DD_B":"2","DD_A":"{{x}}: 'y'"}"#}),
        ..Setup::default()
    }
    .injected();
    assert_eq!((env(&datadog, "DD_A"), env(&datadog, "DD_B")), (Some("{{x}}: 'y'"), Some("2")));
    assert!(
        position(&datadog, "TRUST_DOMAIN") < position(&datadog, "DD_A")
            && position(&datadog, "DD_A") < position(&datadog, "DD_B")
    );
    let ignored = annotated(json!({"apm.datadoghq.com/env": r#"{"DD_A":"1"}"#}));
    assert_eq!(env(&ignored, "DD_A"), None, "only where the tracer is datadog");

    let tls = "tracing: {lightstep: {address: 'l:1', accessToken: t}, tlsSettings: {mode: SIMPLE, caCertificates: /etc/lightstep/ca.pem}}";
    let lightstep = Setup {
        values: json!({"global": {"proxy": {"tracer": "lightstep"}}}),
        annotations: json!({"proxy.istio.io/config": tls}),
        ..Setup::default()
    }
    .injected();
    assert_eq!(
        volume(&lightstep, "lightstep-certs")["secret"],
        json!({"optional": true, "secretName": "lightstep.cacert"})
    );
    assert_eq!(mount(&lightstep, "/etc/lightstep/")["readOnly"], true);
}

#[test]
fn hbone_label_can_be_set_by_the_pod() {
    let config = json!({"proxy.istio.io/config": "proxyMetadata: {ISTIO_META_ENABLE_HBONE: 'true'}"});
    let label = |labels: Value| {
        let pod = Setup { annotations: config.clone(), labels, ..Setup::default() }.injected();
        pod["metadata"]["labels"]["networking.istio.io/tunnel"].clone()
    };
    assert_eq!(label(json!({})), "http");
    assert_eq!(label(json!({"networking.istio.io/tunnel": "none"})), "none");
    assert!(annotated(json!({}))["metadata"]["labels"].get("networking.istio.io/tunnel").is_none());
}

#[test]
fn configured_lifecycle_overrides_all_others() {
    let own = json!({"preStop": {"exec": {"command": ["sleep", "9"]}}});
    let holding = json!({"global": {"proxy": {"lifecycle": own, "holdApplicationUntilProxyStarts": true}}});
    for native in [NativeSidecars::On, NativeSidecars::Off] {
        let pod = Setup { values: holding.clone(), native, ..Setup::default() }.injected();
        assert_eq!(proxy(&pod)["lifecycle"], own);
    }
    let hold = json!({"global": {"proxy": {"holdApplicationUntilProxyStarts": true}}});
    let classic = Setup { values: hold, native: NativeSidecars::Off, ..Setup::default() }.injected();
    assert_eq!(classic["spec"]["containers"][0]["name"], "istio-proxy", "it starts first");
    assert_eq!(proxy(&classic)["lifecycle"], json!({"postStart": {"exec": {"command": ["pilot-agent", "wait"]}}}));
    let native = annotated(json!({"status.sidecar.istio.io/port": " 16000 "}));
    let drain = json!(["pilot-agent", "request", "--debug-port=16000", "POST", "drain"]);
    assert_eq!(proxy(&native)["lifecycle"]["preStop"]["exec"]["command"], drain);
}

#[test]
fn aliases_are_expanded_and_templates_may_repeat() {
    let webhook = json!({"aliases": {"mine": ["gateway"], "self": ["self"]}, "defaultTemplates": ["mine"], "injectedAnnotations": {"a": "b", "istio.io/rev": "x"}});
    let given = |annotations: Value| Setup {
        values: json!({"sidecarInjectorWebhook": webhook.clone()}),
        annotations,
        ..Setup::default()
    };
    let pod = given(json!({})).injected();
    assert_eq!(args(proxy(&pod))[1], "router");
    assert_eq!(
        (&pod["metadata"]["annotations"]["a"], &pod["metadata"]["annotations"]["istio.io/rev"]),
        (&json!("b"), &json!("x"))
    );
    let once = given(json!({"inject.istio.io/templates": "sidecar"})).injected();
    let mut twice = given(json!({"inject.istio.io/templates": " sidecar , sidecar"})).injected();
    twice["metadata"]["annotations"]["inject.istio.io/templates"] = "sidecar".into();
    assert_eq!(twice, once);
    for (names, unknown) in [("self", "self"), ("", ""), ("sidecar,", ""), ("Sidecar", "Sidecar")] {
        let given = given(json!({"inject.istio.io/templates": names}));
        let request = InjectRequest { pod: given.pod(), ..InjectRequest::default() };
        let error = inject(&request, &given.settings()).unwrap_err().to_string();
        assert!(error.contains(&format!("requested template {unknown:?} not found; have sidecar, gateway")), "{error}");
    }
}

#[test]
fn opentelemetry_attributes_describe_the_service() {
    let mesh = json!({"extensionProviders": [{"name": "x"}, {"name": "o", "opentelemetry": {"serviceAttributeEnrichment": "OTEL_SEMANTIC_CONVENTIONS"}}]});
    let of = |annotations: Value, labels: Value| {
        let pod = Setup { mesh: mesh.clone(), annotations, labels, ..Setup::default() }.injected();
        env(&pod, "OTEL_RESOURCE_ATTRIBUTES").map(str::to_owned)
    };
    assert_eq!(
        of(json!({}), json!({})).as_deref(),
        Some("service.namespace=shop,service.version=1.2,service.instance.id=shop.$(POD_NAME).app")
    );
    assert_eq!(
        of(json!({"resource.opentelemetry.io/service.namespace": "n", "resource.opentelemetry.io/service.instance.id": "i"}),
           json!({"app.kubernetes.io/version": "7"})).as_deref(),
        Some("service.namespace=n,service.version=7,service.instance.id=i")
    );
    assert_eq!(env(&annotated(json!({})), "OTEL_RESOURCE_ATTRIBUTES"), None);
}

#[test]
fn proxy_probes_follow_the_annotations() {
    let probe = json!({"global": {"proxy": {"startupProbe": {"enabled": true, "failureThreshold": 7}}}});
    let pod = Setup {
        values: probe,
        annotations: json!({"readiness.status.sidecar.istio.io/periodSeconds": "3", "readiness.status.sidecar.istio.io/failureThreshold": "5"}),
        ..Setup::default()
    }
    .injected();
    let get = json!({"path": "/healthz/ready", "port": 15021});
    assert_eq!(
        proxy(&pod)["readinessProbe"],
        json!({"httpGet": get, "initialDelaySeconds": 0, "periodSeconds": 3, "timeoutSeconds": 3, "failureThreshold": 5})
    );
    assert_eq!(
        proxy(&pod)["startupProbe"],
        json!({"httpGet": get, "initialDelaySeconds": 0, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 7})
    );
    let none = annotated(json!({"status.sidecar.istio.io/port": "0"}));
    assert!(proxy(&none).get("readinessProbe").is_none() && proxy(&none).get("startupProbe").is_none());
    assert_eq!(proxy(&pod).get("livenessProbe"), None);
}

#[test]
fn grpc_probes_go_through_the_agent_with_their_service() {
    let spec = json!({"containers": [{"name": "app", "image": "a", "readinessProbe": {"grpc": {"port": 9000}, "timeoutSeconds": 4}, "livenessProbe": {"grpc": {"port": 9000, "service": "s"}}}]});
    let pod = Setup { spec, ..Setup::default() }.injected();
    let app = container(&pod, "app");
    assert_eq!(
        app["readinessProbe"],
        json!({"timeoutSeconds": 4, "httpGet": {"path": "/app-health/app/readyz", "port": 15020}})
    );
    let recorded = r#"{"/app-health/app/livez":{"grpc":{"port":9000,"service":"s"}},"/app-health/app/readyz":{"grpc":{"port":9000,"service":null},"timeoutSeconds":4}}"#;
    assert_eq!(env(&pod, "ISTIO_KUBE_APP_PROBERS"), Some(recorded));
}

#[test]
fn secure_metrics_port_is_announced() {
    let pod = annotated(json!({"proxy.istio.io/config": "proxyMetadata: {ENVOY_SECURE_MERGED_METRICS_PORT: '15091'}"}));
    assert_eq!(pod["metadata"]["annotations"]["prometheus.istio.io/secure-port"], "15091");
}

#[test]
fn grpc_agent_keeps_its_mounts_without_a_status_port() {
    let pod = annotated(json!({
        "inject.istio.io/templates": "grpc-agent", "status.sidecar.istio.io/port": "0",
        "sidecar.istio.io/userVolume": r#"{"a":{"emptyDir":{}}}"#, "sidecar.istio.io/userVolumeMount": r#"{"a":{"mountPath":"/a"}}"#,
    }));
    assert_eq!(mount(&pod, "/a")["name"], "a");
    assert_eq!(mount(&pod, "/etc/istio/proxy")["name"], "istio-xds");
    assert_eq!(proxy(&pod).get("readinessProbe"), None);
    let names: Vec<&str> =
        proxy(&pod)["env"].as_array().unwrap().iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names[..4], ["ISTIO_META_GENERATOR", "OUTPUT_CERTS", "PILOT_CERT_PROVIDER", "CA_ADDR"]);
    assert_eq!(names[names.len() - 2..], ["ISTIO_META_DNS_CAPTURE", "DISABLE_ENVOY"]);
}

#[test]
fn gateway_has_only_what_a_gateway_needs() {
    let values = json!({"global": {"proxy": {"resources": {"limits": {"cpu": "2"}}, "outlierLogPath": "/x"}}, "gateways": {"securityContext": {"runAsUser": 5}}});
    let pod = Setup {
        values,
        annotations: json!({"inject.istio.io/templates": "gateway", "status.sidecar.istio.io/port": "0"}),
        labels: json!({"app": "a".repeat(63), "service.istio.io/workload-name": "other"}),
        spec: json!({"containers": [{"name": "istio-proxy", "image": "auto"}]}),
        ..Setup::default()
    }
    .injected();
    assert_eq!(pod["spec"]["securityContext"], json!({"runAsUser": 5}));
    assert_eq!(proxy(&pod)["securityContext"], json!({"runAsUser": 1337, "runAsGroup": 1337}));
    assert_eq!(proxy(&pod).get("resources"), None);
    assert_eq!(proxy(&pod).get("startupProbe"), None);
    assert!(proxy(&pod)["readinessProbe"].is_object(), "whatever the status port");
    assert!(!args(proxy(&pod)).iter().any(|arg| arg.starts_with("--outlierLogPath")));
    assert_eq!(env(&pod, "ISTIO_META_WORKLOAD_NAME"), Some("web"), "the label is the sidecar's");
    assert!(pod["metadata"]["labels"].get("security.istio.io/tlsMode").is_none());
    assert_eq!(volume(&pod, "credential-socket")["emptyDir"], json!({}));
    assert_eq!(item(&pod["spec"]["volumes"], "name", "istio-ca-crl"), None);
}
