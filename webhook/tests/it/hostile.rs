//! Hostile input: any body gets a response, which is a review with the request's uid if that can be read, and not many times as large as
//! the body.
//!
//! `PROPTEST_CASES` makes the runs longer.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use weir_injector::admission::ReviewId;
use weir_injector::patch::{diff, to_json};
use weir_injector::settings::Settings;
use weir_injector::{InjectOutcome, InjectRequest, inject};
use weir_webhook::server::review::handle;

/// Annotations whose values are read, and some that are not.
const ANNOTATIONS: [&str; 25] = [
    "weir.dev/original",
    "inject.istio.io/templates",
    "sidecar.istio.io/status",
    "proxy.istio.io/overrides",
    "proxy.istio.io/config",
    "sidecar.istio.io/interceptionMode",
    "sidecar.istio.io/inject",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "status.sidecar.istio.io/port",
    "readiness.status.sidecar.istio.io/periodSeconds",
    "sidecar.istio.io/proxyImage",
    "sidecar.istio.io/proxyImageType",
    "sidecar.istio.io/proxyCPU",
    "sidecar.istio.io/proxyMemoryLimit",
    "sidecar.istio.io/bootstrapOverride",
    "sidecar.istio.io/userVolume",
    "sidecar.istio.io/userVolumeMount",
    "sidecar.istio.io/nativeSidecar",
    "prometheus.io/port",
    "prometheus.istio.io/scrape-targets",
    "k8s.v1.cni.cncf.io/networks",
    "apm.datadoghq.com/env",
    "weir.dev/capture",
];

fn settings() -> Settings {
    let values =
        json!({"global": {"proxy": {"tracer": "datadog"}}, "pilot": {"cni": {"enabled": true, "provider": "multus"}}});
    Settings::from_values_and_mesh(Some(&values), None).unwrap()
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}, "annotations": {"prometheus.io/port": "80"}},
        "spec": {
            "containers": [{
                "name": "app", "image": "a", "env": [{"name": "A", "value": "1"}], "ports": [{"name": "http", "containerPort": 80}],
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}}, "lifecycle": {"preStop": {"tcpSocket": {"port": 80}}},
                "volumeMounts": [{"name": "v", "mountPath": "/v"}], "resources": {"limits": {"cpu": 1}},
                "securityContext": {"runAsUser": 1},
            }],
            "initContainers": [{"name": "istio-init", "image": "auto"}],
            "volumes": [{"name": "v", "emptyDir": {}}], "imagePullSecrets": [{"name": "s"}], "securityContext": {"runAsGroup": 2},
        },
    })
}

fn review(pod: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "uid-1", "operation": "CREATE", "namespace": "shop", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": pod},
    })
    .to_string()
}

/// Answers a body, and checks what must hold for every response.
fn checked(body: &[u8]) -> Value {
    let result = handle(body, BTreeMap::new(), &settings(), inject);
    assert!(matches!(result.status, 200 | 400), "{}: {:?}", result.status, result.response);
    let text = result.response.to_json();
    assert!(text.len() < 8 * body.len() + (2 << 20), "{} bytes for {}", text.len(), body.len());
    let reply: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(reply["kind"], "AdmissionReview");
    assert_eq!(reply["response"]["uid"], ReviewId::extract(body).uid.as_str());
    assert!(reply["response"]["allowed"].is_boolean());
    if let Some(patch) = reply["response"]["patch"].as_str() {
        let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
        let mut pod = serde_json::from_slice::<Value>(body).unwrap()["request"]["object"].take();
        json_patch::patch(&mut pod, &patch).unwrap();
    }
    reply
}

#[test]
fn malformed_bodies_are_denied_with_their_uid() {
    let good = review(&pod());
    let object = pod().to_string();
    let with_object = |object: &str| good.replacen(&pod().to_string(), object, 1).into_bytes();
    assert_eq!(with_object(&object), good.as_bytes());
    let deep = |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    for (name, body) in [
        ("deep lists", with_object(&deep("[", "]", 500_000))),
        ("deep objects", with_object(&deep("{\"a\":", "}", 500_000))),
        ("open lists", with_object(&"[".repeat(5_000_000))),
        ("a huge number", with_object("{\"spec\":{\"x\":1e99999}}")),
        ("many digits", with_object(&format!("{{\"spec\":{{\"x\":{}.0e9}}}}", "9".repeat(100_000)))),
        ("equal keys", with_object("{\"spec\":{},\"spec\":7}")),
        ("a lone surrogate", with_object("{\"a\":\"\\ud800\"}")),
        (
            "no UTF-8",
            with_object("{\"a\":\"?\"}").into_iter().map(|byte| if byte == b'?' { 0xff } else { byte }).collect(),
        ),
        ("the object as a text", with_object("\"x\"")),
    ] {
        let reply = checked(&body);
        assert_eq!(
            (&reply["response"]["uid"], &reply["response"]["allowed"]),
            (&json!("uid-1"), &json!(false)),
            "{name}"
        );
    }
}

#[test]
fn large_pods_get_small_responses() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        checked(review(&pod).as_bytes())["response"].take()
    };
    let long = "x".repeat(3_000_000);
    let many = |item: Value, number: usize| Value::from(vec![item; number]);
    let denied = [
        (
            "a long name",
            with(&|pod| {
                pod["spec"]["containers"][0]["name"] = long.as_str().into();
                pod["spec"]["containers"][0]["volumeMounts"] = many(json!({}), 10_000);
            }),
        ),
        (
            "a long annotation",
            with(&|pod| pod["metadata"]["annotations"]["proxy.istio.io/config"] = long.as_str().into()),
        ),
        (
            "many templates",
            with(&|pod| pod["metadata"]["annotations"]["inject.istio.io/templates"] = "sidecar,".repeat(20_000).into()),
        ),
        (
            "many ranges",
            with(&|pod| {
                let ranges: Vec<String> =
                    (0..200_000u32).map(|n| format!("{}/32", std::net::Ipv4Addr::from(n))).collect();
                pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundIPRanges"] =
                    ranges.join(",").into();
            }),
        ),
        ("many containers", with(&|pod| pod["spec"]["containers"] = many(json!({"name": "a"}), 100_000))),
        (
            "many mounts",
            with(&|pod| {
                pod["spec"]["containers"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"name": "istio-proxy", "volumeMounts": many(json!({}), 100_000)}));
            }),
        ),
        ("many volumes of one name", with(&|pod| pod["spec"]["volumes"] = many(json!({"name": "v"}), 100_000))),
    ];
    for (name, response) in denied {
        assert_eq!(response["allowed"], false, "{name}");
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.len() < 20_000, "{name}: {} bytes: {}", message.len(), &message[..500]);
    }
    let allowed = with(&|pod| {
        pod["metadata"]["annotations"]["inject.istio.io/templates"] = "grpc-agent".into();
        pod["spec"]["containers"] = (0..1000).map(|n| json!({"name": format!("c{n}")})).collect();
    });
    assert_eq!(allowed["allowed"], true);
}

#[test]
fn yaml_bombs_are_denied() {
    let level = |level: usize| format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(","));
    let bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned() + &(1..12).map(level).collect::<String>();
    for config in [bomb, "[".repeat(100_000), "{a: ".repeat(50_000), "- ".repeat(100_000), "&a [*a]".to_owned()] {
        let mut pod = pod();
        pod["metadata"]["annotations"]["proxy.istio.io/config"] = config.as_str().into();
        let response = &checked(review(&pod).as_bytes())["response"];
        assert_eq!(response["allowed"], false, "{}", &config[..7]);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.contains("annotation 'proxy.istio.io/config'") && message.len() < 2000, "{message}");
    }
}

/// Replacements for parts of a body.
fn splice() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..8),
        Just(b"[".repeat(300)),
        Just(b"{\"a\":".repeat(300)),
        Just(b"null".to_vec()),
        Just(b"1e400".to_vec()),
        Just(b"-18446744073709551616".to_vec()),
        Just(b"\"\\u0000\"".to_vec()),
        Just(b"\"\",\"name\":".to_vec()),
        Just(vec![0xff, 0xc0]),
    ]
}

/// JSON of any shape.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z.:/ -]{0,12}".prop_map(Value::from),
        Just(json!("istio-proxy")),
        Just(json!("auto")),
    ];
    let key = prop_oneof![
        "[a-z$/~]{0,6}",
        Just("name".to_owned()),
        Just("$patch".to_owned()),
        Just("httpGet".to_owned()),
        Just("port".to_owned())
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(key.clone(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Pointers into the pod.
const PLACES: [&str; 24] = [
    "",
    "/metadata",
    "/metadata/labels",
    "/metadata/annotations",
    "/metadata/ownerReferences",
    "/metadata/namespace",
    "/spec",
    "/spec/containers",
    "/spec/containers/0",
    "/spec/containers/0/name",
    "/spec/containers/0/env",
    "/spec/containers/0/env/0",
    "/spec/containers/0/ports",
    "/spec/containers/0/ports/0/containerPort",
    "/spec/containers/0/readinessProbe",
    "/spec/containers/0/readinessProbe/httpGet/port",
    "/spec/containers/0/lifecycle",
    "/spec/containers/0/volumeMounts/0",
    "/spec/containers/0/resources",
    "/spec/containers/0/securityContext",
    "/spec/initContainers",
    "/spec/initContainers/0",
    "/spec/volumes/0",
    "/spec/securityContext",
];

fn config() -> ProptestConfig {
    // Fewer than the default of 256 cases: each is a whole review.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 128 };
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn spliced_bodies_are_answered(
        splices in prop::collection::vec((any::<prop::sample::Index>(), 0..12usize, splice()), 1..4)
    ) {
        let mut body = review(&pod()).into_bytes();
        for (place, length, splice) in splices {
            let at = place.index(body.len());
            let end = (at + length).min(body.len());
            body.splice(at..end, splice);
        }
        checked(&body);
    }

    #[test]
    fn pods_of_any_shape_are_answered(changes in prop::collection::vec((prop::sample::select(&PLACES[..]), anything()), 1..4)) {
        let mut pod = pod();
        for (place, value) in changes {
            if let Some(found) = pod.pointer_mut(place) {
                *found = value;
            }
        }
        checked(review(&pod).as_bytes());
    }

    #[test]
    fn annotations_of_any_text_are_used_or_denied(
        key in prop::sample::select(&ANNOTATIONS[..]),
        value in prop_oneof![any::<String>(), "[0-9*,./: -]{0,20}", "[{}\\[\\]\":,a-z0-9]{0,30}", anything().prop_map(|value| value.to_string())],
    ) {
        let mut original = pod();
        original["metadata"]["annotations"] = json!({key: value});
        let request = InjectRequest { pod: original.clone(), ..InjectRequest::default() };
        match inject(&request, &settings()) {
            Ok(InjectOutcome::Skipped { .. }) => {}
            Err(error) => prop_assert!(error.to_string().len() < 4000, "{}", error),
            Ok(InjectOutcome::Injected { pod, .. }) => {
                let patch: json_patch::Patch = serde_json::from_slice(&to_json(&diff(&original, &pod)).unwrap()).unwrap();
                let mut patched = original;
                json_patch::patch(&mut patched, &patch).unwrap();
                prop_assert_eq!(&patched, &pod);
                let again = inject(&InjectRequest { pod: pod.clone(), ..InjectRequest::default() }, &settings());
                let Ok(InjectOutcome::Injected { pod: twice, .. }) = again else { panic!("{again:?}") };
                prop_assert_eq!(twice, pod);
            }
        }
    }
}
