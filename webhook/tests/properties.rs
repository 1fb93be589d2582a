//! What holds for every pod that is injected: once is enough, the patch says all of it, and nothing of the user is lost.

#![expect(clippy::unwrap_used, reason = "a test may fail here")]

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_webhook::inject::patch::{diff, to_json};
use weir_webhook::inject::{InjectRequest, Outcome, inject};
use weir_webhook::settings::{NativeSidecars, Settings};

fn settings() -> impl Strategy<Value = Settings> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(cni, native, hold, network)| {
        let values = json!({
            "global": {"hub": "h", "tag": "t", "network": if network { "n1" } else { "" }, "imagePullSecrets": ["pull"],
                       "proxy": {"holdApplicationUntilProxyStarts": hold}},
            "pilot": {"cni": {"enabled": cni}},
        });
        let mut settings = Settings::from_documents(Some(&values), None).unwrap();
        settings.native_sidecars = if native { NativeSidecars::On } else { NativeSidecars::Off };
        settings
    })
}

fn action() -> impl Strategy<Value = Value> {
    let port = prop_oneof![Just(json!(80)), Just(json!(15020)), Just(json!("http")), Just(json!("absent"))];
    (port, prop::option::of("(localhost|example.com)"), 0..3u8).prop_map(|(port, host, kind)| {
        let mut fields = json!({"port": port});
        if let Some(host) = host {
            fields["host"] = host.into();
        }
        match kind {
            0 => json!({"httpGet": fields, "newer/field": {"~": 1}}),
            1 => json!({"tcpSocket": fields, "timeoutSeconds": 2}),
            _ => json!({"exec": {"command": ["true"]}}),
        }
    })
}

fn variables() -> impl Strategy<Value = Value> {
    let name = "(A|B|POD_NAME|ISTIO_META_CLUSTER_ID|X)";
    prop::collection::vec((name, "[a-z]{0,2}").prop_map(|(name, value)| json!({"name": name, "value": value})), 0..5)
        .prop_map(Value::from)
}

/// A container as a user may write it, with fields of a Kubernetes to come.
fn container(name: String) -> impl Strategy<Value = Value> {
    (
        prop::option::of(action()),
        prop::option::of(action()),
        prop::option::of(variables()),
        prop::option::of(1000..1003u32),
        any::<bool>(),
    )
        .prop_map(move |(readiness, stop, env, user, port)| {
            let mut container = json!({"name": name, "image": "i", "newer": {"of": name}});
            if let Some(readiness) = readiness {
                container["readinessProbe"] = readiness;
            }
            if let Some(stop) = stop {
                container["lifecycle"]["preStop"] = stop;
            }
            if let Some(env) = env {
                container["env"] = env;
            }
            if let Some(user) = user {
                // A proxy and an application of one user are refused.
                let user = if name == "istio-proxy" { user + 1000 } else { user };
                container["securityContext"]["runAsUser"] = user.into();
            }
            if port {
                container["ports"] =
                    json!([{"name": "http", "containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]);
            }
            container
        })
}

fn containers(names: &'static [&'static str]) -> impl Strategy<Value = Vec<Value>> {
    prop::sample::subsequence(names.to_vec(), 0..=names.len())
        .prop_shuffle()
        .prop_flat_map(|names| names.into_iter().map(|name| container(name.to_owned())).collect::<Vec<_>>())
}

fn annotations() -> impl Strategy<Value = Value> {
    let one = prop_oneof![
        Just(("prometheus.io/port", "8080")),
        Just(("prometheus.io.port", "8081")),
        Just(("prometheus.io/scrape", "false")),
        Just(("prometheus.istio.io/scrape-targets", "8080,9100:/m")),
        Just(("status.sidecar.istio.io/port", "16000")),
        Just(("sidecar.istio.io/nativeSidecar", "true")),
        Just(("sidecar.istio.io/nativeSidecar", "false")),
        Just(("sidecar.istio.io/interceptionMode", "TPROXY")),
        Just(("sidecar.istio.io/interceptionMode", "NONE")),
        Just(("sidecar.istio.io/rewriteAppHTTPProbers", "false")),
        Just(("traffic.sidecar.istio.io/excludeInboundPorts", "9,10")),
        Just(("proxy.istio.io/config", "holdApplicationUntilProxyStarts: true")),
        Just(("mine/~odd", "x")),
    ];
    prop::collection::vec(one, 0..5)
        .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), Value::from(v))).collect()))
}

fn pod() -> impl Strategy<Value = Value> {
    (
        containers(&["app", "other", "istio-proxy"]),
        prop::option::of(containers(&["prepare", "istio-init"])),
        prop::option::of(annotations()),
        prop::option::of(prop::sample::subsequence(vec!["data", "istio-envoy", "mine"], 0..=3)),
        any::<bool>(),
    )
        .prop_map(|(mut apps, inits, annotations, volumes, secret)| {
            if apps.is_empty() {
                apps.push(json!({"name": "app", "image": "i"}));
            }
            let mut pod = json!({
                "apiVersion": "v1", "kind": "Pod", "newer": [{"a": null}],
                "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
                "spec": {"newer/~": {"deep": [1, {"x": []}]}, "containers": apps},
            });
            if let Some(inits) = inits {
                pod["spec"]["initContainers"] = inits.into();
            }
            if let Some(annotations) = annotations {
                pod["metadata"]["annotations"] = annotations;
            }
            if let Some(volumes) = volumes {
                pod["spec"]["volumes"] = volumes.into_iter().map(|name| json!({"name": name, "newer": 1})).collect();
            }
            if secret {
                pod["spec"]["imagePullSecrets"] = json!([{"name": "mine"}]);
            }
            pod
        })
}

fn injected(pod: &Value, settings: &Settings) -> Value {
    match inject(&InjectRequest { pod: pod.clone(), ..InjectRequest::default() }, settings).unwrap() {
        Outcome::Injected { pod, .. } => pod,
        Outcome::Skipped { reason, .. } => panic!("skipped: {reason:?}"),
    }
}

fn items<'a>(pod: &'a Value, list: &str) -> &'a [Value] {
    pod["spec"][list].as_array().map_or(&[], Vec::as_slice)
}

proptest! {
    // A failure prints its minimal case; a file of seeds beside the source would only be left behind.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn injecting_twice_is_injecting_once(pod in pod(), settings in settings()) {
        let once = injected(&pod, &settings);
        let twice = injected(&once, &settings);
        let steps = to_json(&diff(&once, &twice)).unwrap();
        prop_assert_eq!(String::from_utf8_lossy(&steps), "[]", "once: {}", once);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn the_patch_makes_the_injected_pod(pod in pod(), settings in settings()) {
        let result = injected(&pod, &settings);
        let patch: json_patch::Patch = serde_json::from_slice(&to_json(&diff(&pod, &result)).unwrap()).unwrap();
        let mut patched = pod;
        json_patch::patch(&mut patched, &patch).unwrap();
        prop_assert_eq!(patched, result);
    }

    #[test]
    fn what_nobody_knows_and_what_is_the_users_survives(pod in pod(), settings in settings()) {
        let result = injected(&pod, &settings);
        prop_assert_eq!(&result["newer"], &pod["newer"]);
        prop_assert_eq!(&result["spec"]["newer/~"], &pod["spec"]["newer/~"]);
        for list in ["containers", "initContainers", "volumes", "imagePullSecrets"] {
            for item in items(&pod, list) {
                let of_name = |list: &str| items(&result, list).iter().find(|it| it["name"] == item["name"]).cloned();
                // A proxy moves where the sidecar is.
                let found = of_name(list).or_else(|| of_name("initContainers"));
                // `istio-init` is only merged where there is one.
                let found = found.unwrap_or_else(|| panic!("{list} lost {item}"));
                prop_assert_eq!(&found["newer"], &item["newer"]);
            }
        }
        for app in items(&pod, "containers").iter().filter(|app| app["name"] != "istio-proxy") {
            let after = items(&result, "containers").iter().find(|it| it["name"] == app["name"]).unwrap();
            for field in ["image", "env", "ports", "securityContext"] {
                prop_assert_eq!(after.get(field), app.get(field));
            }
        }
    }
}
