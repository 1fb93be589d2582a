//! Values of a pod's author take time in proportion to their length: for a first injection, for the next one, and where another webhook
//! has turned every list around in between.

use serde_json::{Map, Value, json};
use weir_injector::admission::{AdmissionResult, Review, ReviewResponse, V1};
use weir_injector::patch::{diff, to_json};
use weir_injector::settings::{Documents, NativeSidecars, Settings};
use weir_injector::{InjectOutcome, InjectRequest, inject};
use weir_lab::growth::Growth;

/// Name of the case, number of elements, and the pod with a number of elements.
type Case<F> = (&'static str, usize, F);

/// Builds a pod with a number of elements.
type Build = fn(usize) -> Value;

/// Variables of a proxy, say, that its record has room for.
const DECLARED: usize = 3000;

fn settings() -> Settings {
    let values = json!({"global": {"hub": "h", "tag": "t", "proxy": {"tracer": "datadog"}}, "pilot": {"cni": {"enabled": true}}});
    let mut settings = Settings::from_values_and_mesh(Some(&values), None).unwrap();
    settings.native_sidecars = NativeSidecars::On;
    settings
}

/// Answers a review as the webhook does; returns the injected pod.
fn answer(review: &[u8], settings: &Settings) -> Option<Value> {
    let pod = Review::decode(review).unwrap().request.object;
    let request = InjectRequest { pod, ..InjectRequest::default() };
    match inject(&request, settings) {
        Ok(InjectOutcome::Injected { pod, warnings, .. }) => {
            let patch = Some(to_json(&diff(&request.pod, &pod)).unwrap());
            let result = AdmissionResult::Allowed { patch };
            let (uid, audit_annotations) = (String::new(), std::collections::BTreeMap::default());
            ReviewResponse { api_version: V1, uid, result, warnings, audit_annotations }.to_json();
            Some(pod)
        }
        _ => None,
    }
}

fn review(pod: &Value) -> Vec<u8> {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u", "kind": {"version": "v1", "kind": "Pod"}, "operation": "CREATE", "object": pod},
    })
    .to_string()
    .into_bytes()
}

/// Turns every list around.
fn reversed(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().rev().map(reversed).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, reversed(value))).collect(),
        other => other,
    }
}

fn many(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

fn map(count: usize, entry: impl Fn(usize) -> (String, Value)) -> Value {
    Value::Object((0..count).map(entry).collect::<Map<_, _>>())
}

fn text(count: usize, separator: &str, item: impl Fn(usize) -> String) -> Value {
    (0..count).map(item).collect::<Vec<_>>().join(separator).into()
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "web", "annotations": {}, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]},
    })
}

/// A pod with a value at this path; numbers are positions.
fn with(path: &str, value: Value) -> Value {
    let mut pod = pod();
    let mut at = &mut pod;
    for part in path.split('|') {
        at = match part.parse::<usize>() {
            Ok(position) => &mut at[position],
            Err(_) => &mut at[part],
        };
    }
    *at = value;
    pod
}

fn annotated(name: &str, value: Value) -> Value {
    with(&format!("metadata|annotations|{name}"), value)
}

/// A pod with a declaration of the proxy.
fn with_proxy(field: &str, value: Value) -> Value {
    let mut proxy = json!({"name": "istio-proxy", "image": "auto"});
    proxy[field] = value;
    let mut pod = pod();
    pod["spec"]["containers"].as_array_mut().unwrap().push(proxy);
    pod
}

/// Checks three injections of a pod.
fn check(growth: &mut Growth, what: &str, size: usize, pod: impl Fn(usize) -> Value) {
    check_with(growth, &settings(), what, size, pod);
}

fn check_with(growth: &mut Growth, settings: &Settings, what: &str, size: usize, pod: impl Fn(usize) -> Value) {
    growth.check(what, size, |size| review(&pod(size)), |review| drop(answer(review, settings)));
    let again = |size| answer(&review(&pod(size)), settings).map(|pod| review(&pod));
    growth.check(&format!("{what}, again"), size, again, |review| {
        review.as_ref().and_then(|review| answer(review, settings));
    });
    let turned = |size| answer(&review(&pod(size)), settings).map(|pod| review(&reversed(pod)));
    growth.check(&format!("{what}, again and turned around"), size, turned, |review| {
        review.as_ref().and_then(|review| answer(review, settings));
    });
}

#[test]
fn containers_take_linear_time() {
    let mut growth = Growth::default();
    let named = |n: usize| format!("c{n}");
    let probe = json!({"httpGet": {"port": "http", "path": "/"}});
    for list in ["containers", "initContainers"] {
        let path = format!("spec|{list}");
        check(&mut growth, list, 1000, |n| with(&path, many(n, |n| json!({"name": named(n), "image": "i"}))));
        check(&mut growth, &format!("equal {list}"), 1000, |n| {
            with(&path, many(n, |_| json!({"name": "a", "image": "i"})))
        });
        check(&mut growth, &format!("{list} with probes"), 1000, |n| {
            with(
                &path,
                many(n, |n| {
                    json!({"name": named(n), "image": "i", "readinessProbe": probe, "livenessProbe": probe,
                "ports": [{"name": "http", "containerPort": 80}], "lifecycle": {"preStop": {"httpGet": {"port": 80}}}})
                }),
            )
        });
        check(&mut growth, &format!("{list} with lists"), 1000, |n| {
            with(
                &path,
                many(n, |n| {
                    json!({"name": named(n), "image": "i", "env": many(10, |n| json!({"name": named(n), "value": "x"})),
                "volumeMounts": many(5, |n| json!({"name": named(n), "mountPath": named(n)})),
                "ports": many(5, |m| json!({"containerPort": n * 5 + m + 1, "hostPort": n * 5 + m + 1}))})
                }),
            )
        });
    }
    growth.assert_linear();
}

#[test]
fn lists_of_containers_take_linear_time() {
    let mut growth = Growth::default();
    let cases: [Case<Build>; 12] = [
        ("env", 10_000, |n| json!({"name": format!("V{n}"), "value": "x"})),
        ("env", 10_000, |_| json!({"name": "V", "value": "x"})),
        ("env", 10_000, |n| json!({"name": format!("V{n}"), "value": format!("$(V{})", n.saturating_sub(1))})),
        (
            "env",
            10_000,
            |n| json!({"name": format!("V{}", n / 2), "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        ),
        ("envFrom", 10_000, |n| json!({"configMapRef": {"name": format!("c{n}")}})),
        ("volumeMounts", 10_000, |n| json!({"name": "v", "mountPath": format!("/{n}")})),
        ("volumeMounts", 10_000, |_| json!({"name": "v", "mountPath": "/"})),
        ("volumeDevices", 10_000, |n| json!({"name": "v", "devicePath": format!("/{n}")})),
        ("ports", 10_000, |n| json!({"name": format!("p{n}"), "containerPort": n + 1, "hostPort": n + 1})),
        ("ports", 10_000, |_| json!({"name": "p", "containerPort": 1, "hostPort": 1})),
        ("args", 10_000, |n| json!(n.to_string())),
        ("command", 10_000, |_| json!("-u")),
    ];
    for (field, size, item) in cases {
        let what = format!("{field} {}", item(0));
        check(&mut growth, &format!("{what} of the application"), size, |n| {
            with(&format!("spec|containers|0|{field}"), many(n, item))
        });
        let declared = size.min(DECLARED);
        check(&mut growth, &format!("{what} of the proxy"), declared, |n| with_proxy(field, many(n, item)));
        check(&mut growth, &format!("{what} of both"), declared, |n| {
            let mut pod = with_proxy(field, many(n / 2, item));
            pod["spec"]["containers"][0][field] = many(n / 2, item);
            pod
        });
    }
    for (field, key) in [("resources", "limits"), ("securityContext", "capabilities")] {
        let entries = |n, deleted: bool| {
            map(n, |n| (format!("k{n}"), if deleted { json!({"$patch": "delete"}) } else { "1".into() }))
        };
        check(&mut growth, &format!("{field} of the application"), 9000, |n| {
            with(&format!("spec|containers|0|{field}"), json!({key: entries(n, false)}))
        });
        check(&mut growth, &format!("{field} of the proxy"), 9000, |n| {
            with_proxy(field, json!({key: entries(n, false)}))
        });
        check(&mut growth, &format!("deleted {field} of the proxy"), 9000, |n| {
            with_proxy(field, json!({key: entries(n, true)}))
        });
    }
    check(&mut growth, "directives about lists", 9000, |n| {
        let mut pod = with_proxy("env", many(n, |n| json!({"name": format!("V{n}"), "$patch": "delete"})));
        pod["spec"]["containers"][1]["$setElementOrder/env"] = many(n, |n| json!({"name": format!("V{n}")}));
        pod["spec"]["containers"][1]["$deleteFromPrimitiveList/args"] = many(n, |n| n.to_string().into());
        pod["spec"]["containers"][1]["$retainKeys"] = many(n, |n| n.to_string().into());
        pod
    });
    growth.assert_linear();
}

#[test]
fn lists_of_the_pod_take_linear_time() {
    let mut growth = Growth::default();
    let cases: [Case<Build>; 14] = [
        ("spec|volumes", 5000, |n| json!({"name": format!("v{n}"), "emptyDir": {}})),
        ("spec|volumes", 5000, |_| json!({"name": "v", "emptyDir": {}})),
        ("spec|imagePullSecrets", 10_000, |n| json!({"name": format!("s{n}")})),
        ("spec|imagePullSecrets", 10_000, |_| json!({"name": "s"})),
        ("spec|tolerations", 10_000, |n| json!({"key": format!("t{n}")})),
        ("spec|tolerations", 10_000, |_| json!({"key": "t"})),
        ("spec|hostAliases", 10_000, |n| json!({"ip": format!("10.0.{}.{}", n / 256, n % 256), "hostnames": ["a"]})),
        ("spec|topologySpreadConstraints", 10_000, |n| json!({"topologyKey": format!("k{n}")})),
        ("spec|topologySpreadConstraints", 10_000, |_| json!({"topologyKey": "k"})),
        ("spec|resourceClaims", 10_000, |n| json!({"name": format!("r{n}")})),
        ("spec|readinessGates", 10_000, |n| json!({"conditionType": format!("g{n}")})),
        ("metadata|ownerReferences", 10_000, |n| json!({"uid": format!("u{n}"), "kind": "ReplicaSet", "name": "a"})),
        ("metadata|finalizers", 10_000, |n| format!("f{n}").into()),
        ("spec|securityContext|sysctls", 10_000, |n| json!({"name": format!("s{n}"), "value": "0"})),
    ];
    for (path, size, item) in cases {
        check(&mut growth, &format!("{path} {}", item(0)), size, |n| with(path, many(n, item)));
    }
    for field in ["labels", "annotations"] {
        check(&mut growth, field, 4900, |n| {
            with(&format!("metadata|{field}"), map(n, |n| (format!("k{n}"), "v".into())))
        });
    }
    check(&mut growth, "nodeSelector", 10_000, |n| {
        with("spec|nodeSelector", map(n, |n| (format!("k{n}"), "v".into())))
    });
    growth.assert_linear();
}

#[test]
fn annotations_take_linear_time() {
    let mut growth = Growth::default();
    let json = |value: Value| Value::from(value.to_string());
    let network = |n: usize| format!("{}.{}.{}.0/24", 11 + n / 65_536, n / 256 % 256, n % 256);
    let cases: [Case<&dyn Fn(usize) -> Value>; 21] = [
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", 8000, &|n| text(n, ",", network)),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", 8000, &|n| text(n, ",", network)),
        ("traffic.sidecar.istio.io/excludeInboundPorts", 1000, &|n| text(n, ",", |n| (n + 1).to_string())),
        ("traffic.sidecar.istio.io/includeInboundPorts", 1000, &|n| text(n, ",", |n| (n + 1).to_string())),
        ("sidecar.istio.io/userVolume", 5000, &|n| json(map(n, |n| (format!("v{n}"), json!({"emptyDir": {}}))))),
        ("sidecar.istio.io/userVolume", 5000, &|n| json(map(n, |n| (format!("v{n}"), 1.into())))),
        ("sidecar.istio.io/userVolumeMount", 5000, &|n| {
            json(map(n, |n| (format!("v{n}"), json!({"mountPath": n.to_string()}))))
        }),
        ("apm.datadoghq.com/env", 9000, &|n| json(map(n, |n| (format!("V{n}"), "x".into())))),
        ("prometheus.istio.io/scrape-targets", 1000, &|n| text(n, ",", |n| (n + 1).to_string())),
        ("prometheus.istio.io/scrape-targets", 1000, &|n| text(n, ",", |n| format!("{}:/m{n}", n + 1))),
        ("inject.istio.io/templates", 20_000, &|n| text(n, ",", |_| "sidecar".to_owned())),
        ("inject.istio.io/templates", 20_000, &|n| text(n, ",", |n| format!("t{n}"))),
        ("k8s.v1.cni.cncf.io/networks", 9000, &|n| text(n, ",", |n| format!("n{n}"))),
        ("k8s.v1.cni.cncf.io/networks", 9000, &|n| json(many(n, |n| json!({"name": format!("n{n}")})))),
        ("proxy.istio.io/config", 9000, &|n| json(json!({"proxyMetadata": map(n, |n| (format!("V{n}"), "x".into()))}))),
        ("proxy.istio.io/config", 9000, &|n| json(map(n, |n| (format!("k{n}"), "x".into())))),
        ("proxy.istio.io/config", 4500, &|n| text(n, "\n", |n| format!("k{n}: &a{n} [1]"))),
        ("proxy.istio.io/config", 9000, &|n| {
            Value::from(format!(
                "a: &a [1,2,3,4,5,6,7,8]\n{}",
                text(n, "\n", |n| format!("k{n}: *a")).as_str().unwrap()
            ))
        }),
        ("proxy.istio.io/config", 9000, &|n| text(n, "", |_| "[".to_owned())),
        ("proxy.istio.io/config", 9000, &|n| text(n, "\n", |n| format!("# {n}"))),
        ("sidecar.istio.io/bootstrapOverride", 100_000, &|n| "x".repeat(n).into()),
    ];
    for (name, size, value) in cases {
        let value = |n| value(n);
        let shown: String = value(2).as_str().unwrap().chars().take(40).collect();
        check(&mut growth, &format!("{name}: {shown}"), size, |n| annotated(name, value(n)));
    }
    growth.assert_linear();
}

#[test]
fn records_take_linear_time() {
    let mut growth = Growth::default();
    let names = |n| many(n, |n| format!("c{n}").into());
    let containers =
        |n| many(n, |n| json!({"name": format!("c{n}"), "image": "i", "env": [{"name": "A", "value": "1"}]}));
    let recorded = |size: usize, status: Value, overrides: Value, original: Value| {
        let mut pod = with("spec|containers", containers(size.min(900)));
        pod["spec"]["volumes"] = many(size.min(3000), |n| json!({"name": format!("c{n}"), "emptyDir": {}}));
        pod["metadata"]["annotations"] = json!({
            "sidecar.istio.io/status": status.to_string(), "proxy.istio.io/overrides": overrides.to_string(),
            "weir.dev/original": original.to_string(),
        });
        pod
    };
    let none = || json!({"v": 1});
    check(&mut growth, "status", 3500, |n| {
        recorded(n, json!({"containers": names(n), "volumes": names(n / 4)}), json!({}), none())
    });
    check(&mut growth, "overrides", 900, |n| {
        recorded(n, json!({"containers": names(n)}), json!({"containers": containers(n)}), none())
    });
    check(&mut growth, "overrides of init containers", 2000, |n| {
        recorded(n, json!({"initContainers": names(n)}), json!({"initContainers": containers(n)}), none())
    });
    let status = json!({"containers": [], "volumes": []});
    let numbered = |n| map(n, |m| (format!("c{m}"), (n - m).into()));
    let items = |n| map(n, |n| (format!("x{n}"), json!({"name": format!("x{n}"), "image": "i"})));
    for (what, size) in [("containers", 900), ("volumes", 3000)] {
        let list = format!(".{what}");
        for (change, value) in
            [("-", &names as &dyn Fn(usize) -> Value), ("@", &numbered), ("+", &items), ("=", &items)]
        {
            check(&mut growth, &format!("record of {change} in {what}"), size, |n| {
                recorded(n, status.clone(), json!({}), json!({"v": 1, ".spec": {&list: {change: value(n)}}}))
            });
        }
    }
    check(&mut growth, "recorded variables", 5000, |n| {
        recorded(100, status.clone(), json!({}), json!({"v": 1, "env": names(n)}))
    });
    check(&mut growth, "recorded labels", 4000, |n| {
        recorded(
            100,
            status.clone(),
            json!({}),
            json!({"v": 1, ".metadata": {".labels": {"+": map(n, |n| (format!("l{n}"), "v".into()))}}}),
        )
    });
    let proxy = |n| json!({"containers": [{"name": "istio-proxy", "env": many(n, |n| json!({"name": format!("V{n}"), "value": "x"}))}]});
    check(&mut growth, "overrides of the proxy", 5000, |n| {
        recorded(100, json!({"initContainers": ["istio-proxy"]}), proxy(n), none())
    });
    growth.assert_linear();
}

#[test]
fn custom_templates_take_linear_time() {
    let mut growth = Growth::default();
    let config = json!({"templates": {"sidecar": include_str!("mirror.gotmpl")}});
    let values = json!({"global": {"hub": "h", "tag": "t", "logging": {"level": "default:info"},
        "proxy": {"statusPort": 15020, "startupProbe": {"enabled": true, "failureThreshold": 600},
            "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}}}, "pilot": {"cni": {"enabled": true}}});
    let documents = Documents { values: Some(&values), mesh: None, config: Some(&config) };
    let settings = Settings::from_documents(documents).unwrap();
    let named = |n: usize| format!("n{n}");
    let cases: [Case<&dyn Fn(usize) -> Value>; 5] = [
        ("containers", 1000, &|n| {
            with(
                "spec|containers",
                many(n, |n| json!({"name": named(n), "image": "i", "ports": [{"containerPort": n + 1}]})),
            )
        }),
        ("variables", 10_000, &|n| with("spec|containers|0|env", many(n, |n| json!({"name": named(n), "value": "x"})))),
        ("ports", 10_000, &|n| with("spec|containers|0|ports", many(n, |n| json!({"containerPort": n + 1})))),
        ("labels", 4900, &|n| with("metadata|labels", map(n, |n| (named(n), "v".into())))),
        ("volumes", 4900, &|n| with("spec|volumes", many(n, |n| json!({"name": named(n), "emptyDir": {}})))),
    ];
    for (what, size, pod) in cases {
        check_with(&mut growth, &settings, what, size, pod);
    }
    growth.assert_linear();
}
