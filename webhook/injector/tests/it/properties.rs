//! What holds for every pod that is injected: once is enough, it can be taken back, the patch says all of it, and nothing of the
//! user is lost.
//!
//! `WEIR_PROPERTY_CASES` is the number of pods that each property is tried on.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_injector::inject::patch::{diff, to_json};
use weir_injector::inject::uninject::{RECORD_MAX_BYTES, uninject};
use weir_injector::inject::{InjectRequest, Outcome, inject};
use weir_injector::settings::{NativeSidecars, Platform, Settings};

/// An installation: its settings, and what the URL of its webhook asks for.
#[derive(Debug, Clone)]
struct Installation {
    settings: Settings,
    url_env: BTreeMap<String, String>,
}

fn installation() -> impl Strategy<Value = Installation> {
    let switches = prop::collection::vec(any::<bool>(), 11);
    let status_port = prop_oneof![Just(15020), Just(15999)];
    (switches, status_port, "(r1)?", prop::sample::subsequence(vec!["UP", "ISTIO_META_CLUSTER_ID"], 0..=2)).prop_map(
        |(switches, status_port, revision, url)| {
            let [cni, native, hold, network, multus, rewrite, metrics, openshift, hbone, annotated, mtls] = switches[..] else {
                unreachable!("eleven were asked for")
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
            let mut settings = Settings::from_documents(Some(&values), Some(&mesh)).unwrap();
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

/// What a probe or a lifecycle handler does.
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

/// A container as a user may write it, with fields of a Kubernetes to come, and its fields in any order.
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
                // A proxy and an application of one user are refused.
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

fn pod() -> impl Strategy<Value = Value> {
    (
        containers(&["app", "other", "istio-proxy"]),
        prop::option::of(containers(&["prepare", "istio-init", "istio-validation", "istio-proxy"])),
        annotations(),
        labels(),
        (named(&["data", "istio-envoy", "mine", "istio-data"]), named(&["mine", "pull"]), any::<bool>(), 0..3u8),
    )
        .prop_map(|(mut apps, inits, annotations, labels, (volumes, secrets, metadata, security))| {
            // The API server refuses two containers of one name, and a mount without its volume.
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

/// The pod after injection; `None` where it is denied, which is for other tests.
fn injected(pod: &Value, by: &Installation) -> Option<Value> {
    let request = InjectRequest { pod: pod.clone(), url_env: by.url_env.clone(), ..InjectRequest::default() };
    match inject(&request, &by.settings).ok()? {
        Outcome::Injected { pod, .. } => Some(pod),
        Outcome::Skipped { reason, .. } => panic!("skipped: {reason:?}"),
    }
}

/// The pod after injection by the first that can; every property asks for pods that are not denied.
macro_rules! injected {
    ($pod:expr, $by:expr) => {{
        let injected = injected($pod, $by);
        prop_assume!(injected.is_some());
        injected.unwrap()
    }};
}

fn items<'a>(pod: &'a Value, list: &str) -> &'a [Value] {
    pod["spec"][list].as_array().map_or(&[], Vec::as_slice)
}

/// What a webhook that adds something to every container, and the API server, make of a pod.
fn changed_by_others(mut pod: Value) -> Value {
    for list in ["containers", "initContainers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            for (field, item) in [
                ("env", json!({"name": "TRACER", "value": "on"})),
                (
                    "volumeMounts",
                    json!({"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "token"}),
                ),
            ] {
                match container.get_mut(field).and_then(Value::as_array_mut) {
                    Some(items) => items.push(item),
                    None => container[field] = json!([item]),
                }
            }
            container["terminationMessagePath"] = "/dev/termination-log".into();
        }
    }
    match pod["spec"].get_mut("volumes").and_then(Value::as_array_mut) {
        Some(volumes) => volumes.push(json!({"name": "token"})),
        None => pod["spec"]["volumes"] = json!([{"name": "token"}]),
    }
    let later = json!({"name": "later", "image": "l", "readinessProbe": {"httpGet": {"port": 81}}});
    pod["spec"]["containers"].as_array_mut().unwrap().push(later);
    pod
}

fn cases() -> ProptestConfig {
    let cases = std::env::var("WEIR_PROPERTY_CASES").ok().map_or(128, |cases| cases.parse().unwrap());
    // A failure prints its minimal case; a file of seeds beside the source would only be left behind.
    ProptestConfig {
        failure_persistence: None,
        max_global_rejects: cases * 4,
        max_shrink_iters: 256,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn taking_an_injection_back_gives_the_pod_to_the_letter(pod in pod(), by in installation()) {
        let injected = injected!(&pod, &by);
        let back = uninject(&injected).unwrap().unwrap();
        prop_assert_eq!(back.unknown, Vec::<String>::new());
        prop_assert_eq!(back.pod.to_string(), pod.to_string());
        let record = injected["metadata"]["annotations"]["weir.dev/original"].as_str().unwrap();
        prop_assert!(record.len() <= RECORD_MAX_BYTES);
        prop_assert_eq!(uninject(&pod), Ok(None));
    }

    #[test]
    fn injecting_twice_is_injecting_once(pod in pod(), by in installation()) {
        let once = injected!(&pod, &by);
        let twice = injected(&once, &by).unwrap();
        let steps = to_json(&diff(&once, &twice)).unwrap();
        prop_assert_eq!(String::from_utf8_lossy(&steps), "[]", "once: {}", once);
        prop_assert_eq!(once.to_string(), twice.to_string());
    }

    #[test]
    fn another_installation_leaves_nothing_of_the_first(pod in pod(), first in installation(), second in installation()) {
        let by_detour = injected!(&injected!(&pod, &first), &second);
        prop_assert_eq!(injected(&pod, &second).unwrap().to_string(), by_detour.to_string());
    }

    #[test]
    fn what_others_add_after_an_injection_stays(pod in pod(), first in installation(), second in installation()) {
        let changed = changed_by_others(injected!(&pod, &first));
        let again = injected!(&changed, &second);
        // A container of the user that the second installation adds nothing to is as he wrote it.
        let shared = ["istio-init", "istio-validation", "istio-proxy"];
        let status = again["metadata"]["annotations"]["sidecar.istio.io/status"].as_str().unwrap();
        let is_compared = |container: &&Value| {
            let name = container["name"].as_str().unwrap();
            name != "later" && (!shared.contains(&name) || status.contains(&format!("\"{name}\"")))
        };
        for list in ["containers", "initContainers"] {
            for container in items(&changed, list).iter().filter(is_compared) {
                let Some(now) = ["containers", "initContainers"].iter().find_map(|list| {
                    items(&again, list).iter().find(|now| now["name"] == container["name"])
                }) else { continue };
                for (field, key, name) in [("env", "name", "TRACER"), ("volumeMounts", "name", "token")] {
                    let count = now[field].as_array().into_iter().flatten().filter(|item| item[key] == name).count();
                    prop_assert_eq!(count, 1, "{} of {}", name, now);
                }
                prop_assert_eq!(&now["terminationMessagePath"], "/dev/termination-log");
            }
        }
        prop_assert!(items(&again, "volumes").iter().any(|volume| volume["name"] == "token"));
        prop_assert_eq!(injected(&again, &second).unwrap().to_string(), again.to_string());
        // What they did to the application's parts is the application's now.
        let back = uninject(&again).unwrap().unwrap().pod;
        prop_assert!(items(&back, "containers").iter().any(|container| container["name"] == "later"));
    }

    #[test]
    fn the_patch_makes_the_injected_pod(pod in pod(), by in installation()) {
        let result = injected!(&pod, &by);
        let patch: json_patch::Patch = serde_json::from_slice(&to_json(&diff(&pod, &result)).unwrap()).unwrap();
        let mut patched = pod;
        json_patch::patch(&mut patched, &patch).unwrap();
        prop_assert_eq!(patched, result);
    }

    #[test]
    fn what_nobody_knows_and_what_is_the_users_survives(pod in pod(), by in installation()) {
        let result = injected!(&pod, &by);
        prop_assert_eq!(&result["newer"], &pod["newer"]);
        prop_assert_eq!(&result["spec"]["newer/~"], &pod["spec"]["newer/~"]);
        for list in ["containers", "initContainers", "volumes", "imagePullSecrets"] {
            for item in items(&pod, list) {
                let of_name = |list: &str| items(&result, list).iter().find(|it| it["name"] == item["name"]).cloned();
                // A proxy moves where the sidecar is.
                let found = of_name(list).or_else(|| of_name("initContainers")).or_else(|| of_name("containers"));
                // `istio-init` is only merged where there is one.
                let found = found.unwrap_or_else(|| panic!("{list} lost {item}"));
                prop_assert_eq!(&found["newer"], &item["newer"]);
            }
        }
        for app in items(&pod, "containers").iter().filter(|app| app["name"] != "istio-proxy") {
            let after = items(&result, "containers").iter().find(|it| it["name"] == app["name"]).unwrap();
            for field in ["image", "ports", "securityContext"] {
                prop_assert_eq!(after.get(field), app.get(field));
            }
            // The templates for gRPC give variables to the application.
            for variable in app["env"].as_array().into_iter().flatten() {
                prop_assert!(after["env"].as_array().unwrap().contains(variable), "{} lost {}", after, variable);
            }
        }
    }
}
