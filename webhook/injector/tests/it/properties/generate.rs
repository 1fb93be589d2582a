//! Generators of installations and pods.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, Platform, Settings};

/// The settings of an installation, and the variables in its webhook's URL.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    pub(super) settings: Settings,
    pub(super) url_env: BTreeMap<String, String>,
}

pub(super) fn installation() -> impl Strategy<Value = Installation> {
    let switches = prop::collection::vec(any::<bool>(), 11);
    let status_port = prop_oneof![Just(15020), Just(15999)];
    (switches, status_port, "(r1)?", prop::sample::subsequence(vec!["UP", "ISTIO_META_CLUSTER_ID"], 0..=2)).prop_map(
        |(switches, status_port, revision, url)| {
            let [cni, native, hold, network, multus, rewrite, metrics, openshift, hbone, annotated, mtls] = switches[..] else {
                unreachable!("the vector has eleven items")
            };
            let values = json!({
                "global": {"hub": "h", "tag": "t", "network": if network { "n1" } else { "" }, "imagePullSecrets": ["pull"],
                           "mountMtlsCerts": mtls,
                           "proxy": {"holdApplicationUntilProxyStarts": hold, "statusPort": status_port,
                                     "excludeInboundPorts": if hbone { "7" } else { "" }}},
                "gateways": {"securityContext": if hbone { json!({"runAsNonRoot": true}) } else { json!({}) }},
                "pilot": {"cni": {"enabled": cni, "provider": if multus { "multus" } else { "default" }}},
                "revision": revision,
                "sidecarInjectorWebhook": {"rewriteAppHTTPProbe": rewrite},
            });
            let mut config = json!({"statusPort": status_port});
            if hbone {
                config["proxyMetadata"] = json!({"ISTIO_META_ENABLE_HBONE": "true", "OWN_META": "1"});
            }
            let mesh = json!({"enablePrometheusMerge": metrics, "defaultConfig": config});
            let mut settings = Settings::from_values_and_mesh(Some(&values), Some(&mesh)).unwrap();
            settings.native_sidecars = if native { NativeSidecars::On } else { NativeSidecars::Off };
            settings.platform = if openshift { Platform::OpenShift } else { Platform::Kubernetes };
            if annotated {
                settings.injection.injected_annotations.insert("mine/injected".to_owned(), "x".to_owned());
            }
            let url_env = url.into_iter().map(|name| (name.to_owned(), "east".to_owned())).collect();
            Installation { settings, url_env }
        },
    )
}

/// Returns probes or lifecycle handlers.
fn action(is_probe: bool) -> impl Strategy<Value = Value> {
    let port =
        prop_oneof![Just(json!(80)), Just(json!(15020)), Just(json!("http")), Just(json!("absent")), Just(json!("80"))];
    let path = prop_oneof![Just(None), Just(Some("/")), Just(Some("/app-health/app/readyz"))];
    let scheme = prop_oneof![Just(None), Just(Some("HTTP")), Just(Some("HTTPS"))];
    (port, path, scheme, prop::option::of("(localhost|example.com|)"), 0..5u8, any::<bool>()).prop_map(
        move |(port, path, scheme, host, kind, first)| {
            let mut action = json!({});
            if first {
                action["periodSeconds"] = 3.into();
            }
            let mut fields = json!({});
            if let Some(scheme) = scheme.filter(|_| first) {
                fields["scheme"] = scheme.into();
            }
            fields["port"] = port.clone();
            if let Some(host) = host {
                fields["host"] = host.into();
            }
            match kind {
                0 | 1 => {
                    if let Some(path) = path {
                        fields["path"] = path.into();
                    }
                    if let Some(scheme) = scheme {
                        fields["scheme"] = scheme.into();
                    }
                    if first {
                        fields["httpHeaders"] = json!([{"name": "X", "value": "1"}]);
                    }
                    action["httpGet"] = fields;
                }
                2 => action["tcpSocket"] = json!({"port": port}),
                3 if is_probe => {
                    action["grpc"] = if first { json!({"port": 80}) } else { json!({"service": "s", "port": 80}) }
                }
                _ => action["exec"] = json!({"command": ["true"]}),
            }
            action["timeoutSeconds"] = 2.into();
            action["newer/field"] = json!({"~": 1});
            action
        },
    )
}

fn variables() -> impl Strategy<Value = Value> {
    let name = "(A|B|POD_NAME|ISTIO_META_CLUSTER_ID|GRPC_XDS_BOOTSTRAP|UP|X)";
    prop::collection::vec((name, "[a-z]{0,2}").prop_map(|(name, value)| json!({"name": name, "value": value})), 0..5)
        .prop_map(Value::from)
}

/// Returns containers as users may declare them, with unknown fields, and the fields in any order.
fn container(name: String) -> impl Strategy<Value = Value> {
    let handlers = (
        prop::option::of(action(true)),
        prop::option::of(action(true)),
        prop::option::of(action(true)),
        prop::option::of(action(false)),
        prop::option::of(action(false)),
    );
    let image = prop_oneof![Just(Some("i")), Just(Some("auto")), Just(None)];
    let switches = prop::collection::vec(any::<bool>(), 6);
    (handlers, prop::option::of(variables()), prop::option::of(1000..1003u32), image, switches).prop_map(
        move |((readiness, liveness, startup, stop, start), env, user, image, switches)| {
            let mut container =
                if switches[0] { json!({"name": name}) } else { json!({"newer": {"of": name}, "name": name}) };
            container["newer"] = json!({"of": name});
            if let Some(image) = image.or((name != "istio-proxy").then_some("i")) {
                container["image"] = image.into();
            }
            for (field, probe) in
                [("startupProbe", startup), ("readinessProbe", readiness), ("livenessProbe", liveness)]
            {
                if let Some(probe) = probe {
                    container[field] = probe;
                }
            }
            for (field, handler) in [("postStart", start), ("preStop", stop)] {
                if let Some(mut handler) = handler {
                    handler.as_object_mut().unwrap().retain(|field, _| !field.ends_with("Seconds"));
                    container["lifecycle"][field] = handler;
                }
            }
            if let Some(env) = env {
                container["env"] = env;
            }
            if let Some(user) = user {
                // An application with the proxy's user is denied.
                let user = if name == "istio-proxy" { user + 1000 } else { user };
                container["securityContext"] = json!({"seLinuxOptions": {"level": "s0"}, "runAsUser": user});
            }
            if switches[1] {
                container["ports"] =
                    json!([{"name": "http", "containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]);
            }
            if switches[2] {
                container["resources"] =
                    if switches[3] { json!({}) } else { json!({"limits": {"cpu": "3"}, "requests": {}}) };
            }
            if switches[4] {
                container["volumeMounts"] =
                    json!([{"mountPath": "/data", "name": "data"}, {"name": "istio-data", "mountPath": "/x"}]);
            }
            if switches[5] {
                container["args"] = json!(["proxy", "sidecar", "--mine"]);
            }
            container
        },
    )
}

fn containers(names: &'static [&'static str]) -> impl Strategy<Value = Vec<Value>> {
    prop::sample::subsequence(names.to_vec(), 0..=names.len())
        .prop_shuffle()
        .prop_flat_map(|names| names.into_iter().map(|name| container(name.to_owned())).collect::<Vec<_>>())
}

fn texts(known: &'static [(&'static str, &'static str)], at_most: usize) -> impl Strategy<Value = Option<Value>> {
    let some =
        prop::sample::subsequence(known.to_vec(), 0..=at_most.min(known.len())).prop_shuffle().prop_map(|pairs| {
            Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect())
        });
    prop_oneof![6 => some.prop_map(Some), 1 => Just(None), 1 => Just(Some(Value::Null))]
}

fn annotations() -> impl Strategy<Value = Option<Value>> {
    texts(
        &[
            ("prometheus.io/port", "8080"),
            ("prometheus.io/path", "/stats/prometheus"),
            ("prometheus.io.port", "8081"),
            ("prometheus.io/port", "15020"),
            ("prometheus.io/scrape", "true"),
            ("prometheus.io/scrape", "false"),
            ("prometheus_io/scrape", "1"),
            ("prometheus.istio.io/scrape-targets", "8080,9100:/m"),
            ("prometheus.istio.io/merge-metrics", "true"),
            ("status.sidecar.istio.io/port", "16000"),
            ("status.sidecar.istio.io/port", "0"),
            ("sidecar.istio.io/nativeSidecar", "true"),
            ("sidecar.istio.io/nativeSidecar", "false"),
            ("sidecar.istio.io/interceptionMode", "TPROXY"),
            ("sidecar.istio.io/interceptionMode", "REDIRECT"),
            ("sidecar.istio.io/interceptionMode", "NONE"),
            ("sidecar.istio.io/rewriteAppHTTPProbers", "false"),
            ("sidecar.istio.io/rewriteAppHTTPProbers", "true"),
            ("sidecar.istio.io/userVolume", "{\"mine\":{\"emptyDir\":{}},\"yours\":{\"emptyDir\":{}}}"),
            ("sidecar.istio.io/userVolumeMount", "{\"mine\":{\"mountPath\":\"/mine\"}}"),
            ("sidecar.istio.io/bootstrapOverride", "boot"),
            ("inject.istio.io/templates", "sidecar"),
            ("inject.istio.io/templates", "gateway"),
            ("inject.istio.io/templates", "grpc-agent"),
            ("inject.istio.io/templates", "grpc-simple"),
            ("inject.istio.io/templates", "sidecar,grpc-simple"),
            ("inject.istio.io/templates", "gateway, sidecar"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "9,10"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "15020"),
            ("traffic.sidecar.istio.io/includeInboundPorts", "*"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8"),
            ("traffic.sidecar.istio.io/excludeInterfaces", "eth1"),
            ("k8s.v1.cni.cncf.io/networks", "net-a"),
            ("k8s.v1.cni.cncf.io/networks", "[{\"name\": \"net-a\"}]"),
            ("k8s.v1.cni.cncf.io/networks", "default/istio-cni"),
            ("kubectl.kubernetes.io/default-container", "other"),
            ("kubectl.kubernetes.io/default-container", "app"),
            ("istio.io/rev", "old"),
            ("weir.dev/capture", "mine"),
            ("weir.dev/original", "mine"),
            ("proxy.istio.io/config", "holdApplicationUntilProxyStarts: true"),
            ("proxy.istio.io/config", "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true', OTHER: x}"),
            ("mine/injected", "mine"),
            ("mine/~odd", "x"),
        ],
        9,
    )
}

fn labels() -> impl Strategy<Value = Option<Value>> {
    texts(
        &[
            ("app", "web"),
            ("version", "v1"),
            ("security.istio.io/tlsMode", "istio"),
            ("security.istio.io/tlsMode", "disabled"),
            ("service.istio.io/canonical-name", "web"),
            ("service.istio.io/canonical-revision", "latest"),
            ("networking.istio.io/tunnel", "http"),
            ("topology.istio.io/network", "n1"),
            ("topology.istio.io/network", "mine"),
            ("sidecar.istio.io/inject", "true"),
        ],
        5,
    )
}

fn named(names: &'static [&'static str]) -> impl Strategy<Value = Option<Value>> {
    let some = prop::sample::subsequence(names.to_vec(), 0..=names.len())
        .prop_shuffle()
        .prop_map(|names| names.into_iter().map(|name| json!({"newer": 1, "name": name})).collect::<Value>());
    prop::option::of(some)
}

pub(super) fn pod() -> impl Strategy<Value = Value> {
    (
        containers(&["app", "other", "istio-proxy"]),
        prop::option::of(containers(&["prepare", "istio-init", "istio-validation", "istio-proxy"])),
        annotations(),
        labels(),
        (named(&["data", "istio-envoy", "mine", "istio-data"]), named(&["mine", "pull"]), any::<bool>(), 0..3u8),
    )
        .prop_map(|(mut apps, inits, annotations, labels, (volumes, secrets, metadata, security))| {
            // The API server rejects two containers of one name, and a mount without its volume.
            let inits = inits.map(|mut inits| {
                inits.retain(|init| !apps.iter().any(|app| app["name"] == init["name"]));
                inits
            });
            let mounts =
                apps.iter().chain(inits.iter().flatten()).any(|container| container.get("volumeMounts").is_some());
            let volumes = match volumes {
                Some(Value::Array(mut volumes)) if mounts && !volumes.iter().any(|volume| volume["name"] == "data") => {
                    volumes.push(json!({"name": "data"}));
                    Some(Value::Array(volumes))
                }
                None if mounts => Some(json!([{"name": "data", "newer": 1}])),
                volumes => volumes,
            };
            if apps.is_empty() {
                apps.push(json!({"name": "app", "image": "i"}));
            }
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "newer": [{"a": null}]});
            if metadata {
                pod["metadata"] = json!({"name": "web", "namespace": "shop"});
            }
            for (field, texts) in [("annotations", annotations), ("labels", labels)] {
                if let Some(texts) = texts {
                    pod["metadata"][field] = texts;
                }
            }
            pod["spec"] = json!({"newer/~": {"deep": [1, {"x": []}]}});
            match security {
                0 => pod["spec"]["securityContext"] = json!({"fsGroup": 2000}),
                1 => {
                    pod["spec"]["securityContext"] =
                        json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]});
                }
                _ => {}
            }
            for (field, list) in [("volumes", volumes), ("initContainers", inits.map(Value::from))] {
                if let Some(list) = list {
                    pod["spec"][field] = list;
                }
            }
            pod["spec"]["containers"] = apps.into();
            if let Some(secrets) = secrets {
                pod["spec"]["imagePullSecrets"] = secrets;
            }
            pod
        })
}
