//! Hostile pods: forged records undo nothing, and other webhooks keep what they changed. What pods cost is in `hostile/cost.rs`.

mod cost;

use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, Settings};
use weir_injector::uninject::uninject;
use weir_injector::{InjectOutcome, InjectRequest, inject};

const STATUS: &str = "sidecar.istio.io/status";
const ORIGINAL: &str = "weir.dev/original";
const OVERRIDES: &str = "proxy.istio.io/overrides";

fn settings(cni: bool, native: NativeSidecars) -> Settings {
    let values = json!({"global": {"hub": "h", "tag": "t"}, "pilot": {"cni": {"enabled": cni}}});
    let mut settings = Settings::from_values_and_mesh(Some(&values), None).unwrap();
    settings.native_sidecars = native;
    settings
}

/// Returns the injected pod and the warnings.
fn injected(pod: &Value, settings: &Settings) -> (Value, Vec<String>) {
    match inject(&InjectRequest { pod: pod.clone(), ..InjectRequest::default() }, settings).unwrap() {
        InjectOutcome::Injected { pod, warnings, .. } => (pod, warnings),
        InjectOutcome::Skipped { reason, .. } => panic!("skipped: {reason:?}"),
    }
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let of = |list: &str| pod["spec"][list].as_array().into_iter().flatten().find(|found| found["name"] == name);
    of("containers").or_else(|| of("initContainers")).unwrap_or_else(|| panic!("no {name} in {pod}"))
}

fn container_mut<'a>(pod: &'a mut Value, name: &str) -> &'a mut Value {
    let list = if pod["spec"]["containers"].as_array().unwrap().iter().any(|found| found["name"] == name) {
        "containers"
    } else {
        "initContainers"
    };
    pod["spec"][list].as_array_mut().unwrap().iter_mut().find(|found| found["name"] == name).unwrap()
}

/// A pod as another webhook has left it, with forged records.
fn forged(status: &Value, original: &Value, overrides: Option<&Value>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web", "team": "a"}, "annotations": {
            "container.apparmor.security.beta.kubernetes.io/app": "runtime/default",
            STATUS: status.to_string(), ORIGINAL: original.to_string(),
        }},
        "spec": {
            "serviceAccountName": "restricted",
            "securityContext": {"runAsNonRoot": true, "fsGroup": 1000},
            "imagePullSecrets": [{"name": "policy"}],
            "initContainers": [{"name": "policy-init", "image": "p"}],
            "containers": [
                {"name": "app", "image": "app@sha256:00", "securityContext": {"privileged": false},
                 "env": [{"name": "HTTPS_PROXY", "value": "http://policy"}],
                 "volumeMounts": [{"name": "policy-ca", "mountPath": "/ca"}],
                 "readinessProbe": {"httpGet": {"path": "/", "port": 80}}},
                {"name": "policy-agent", "image": "p"},
            ],
            "volumes": [{"name": "policy-ca", "configMap": {"name": "ca"}}],
        },
    });
    if let Some(overrides) = overrides {
        pod["metadata"]["annotations"][OVERRIDES] = overrides.to_string().into();
    }
    pod
}

/// Asserts that everything of the pod is still in the injected one.
fn assert_kept(before: &Value, after: &Value) {
    for field in ["serviceAccountName", "securityContext", "imagePullSecrets", "hostPID", "hostNetwork"] {
        assert_eq!(after["spec"][field], before["spec"][field], "{field}");
    }
    for (key, value) in before["metadata"]["annotations"].as_object().unwrap() {
        if ![STATUS, ORIGINAL, OVERRIDES].contains(&key.as_str()) {
            assert_eq!(&after["metadata"]["annotations"][key], value, "{key}");
        }
    }
    for (key, value) in before["metadata"]["labels"].as_object().unwrap() {
        assert_eq!(&after["metadata"]["labels"][key], value, "{key}");
    }
    for list in ["containers", "initContainers", "volumes"] {
        for item in before["spec"][list].as_array().unwrap() {
            let found = after["spec"][list].as_array().unwrap().iter().find(|found| found["name"] == item["name"]);
            let mut found = found.unwrap_or_else(|| panic!("{item} is gone")).clone();
            if found.get("readinessProbe").is_some() {
                found["readinessProbe"] = item["readinessProbe"].clone();
            }
            assert_eq!(&found, item);
        }
    }
    let own = |pod: &Value| -> Vec<String> {
        let items = pod["spec"]["containers"].as_array().unwrap().iter().filter_map(|item| item["name"].as_str());
        items.filter(|name| *name != "istio-proxy").map(str::to_owned).collect()
    };
    assert_eq!(own(after), own(before));
}

#[test]
fn forged_records_undo_nothing() {
    let all = json!({"containers": ["app", "policy-agent"], "initContainers": ["policy-init"],
                     "volumes": ["policy-ca"], "imagePullSecrets": ["policy"]});
    let app = |change: Value| json!({"v": 1, ".spec": {".containers": {".app": change}}});
    let originals = [
        json!({"v": 1}),
        json!({"v": 1, ".spec": {"+": {"hostPID": true, "hostNetwork": true}, "=": {"serviceAccountName": "admin"}}}),
        json!({"v": 1, ".spec": {"-": ["securityContext", "imagePullSecrets"]}}),
        json!({"v": 1, ".spec": {".securityContext": {"=": {"runAsNonRoot": false}, "-": ["fsGroup"]}}}),
        app(json!({"=": {"image": "evil"}})),
        app(json!({".securityContext": {"=": {"privileged": true}, "+": {"capabilities": {"add": ["SYS_ADMIN"]}}}})),
        app(json!({"-": ["securityContext", "env", "volumeMounts"]})),
        app(json!({".env": {"-": ["HTTPS_PROXY"], "+": {"LD_PRELOAD": {"name": "LD_PRELOAD", "value": "x"}}}})),
        app(json!({"+": {"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}})),
        app(json!({"=": {"readinessProbe": {"exec": {"command": ["x"]}}}})),
        json!({"v": 1, ".spec": {".containers": {"+": {"evil": {"name": "evil", "image": "e"}}, "-": ["policy-agent"]}}}),
        json!({"v": 1, ".spec": {".containers": {"@": {"policy-agent": 0}}}}),
        json!({"v": 1, ".spec": {".initContainers": {"-": ["policy-init"]}}}),
        json!({"v": 1, ".spec": {".volumes": {"+": {"root": {"name": "root", "hostPath": {"path": "/"}}}, "-": ["policy-ca"]}}}),
        json!({"v": 1, ".spec": {".volumes": {"+": {"istio-data": {"name": "istio-data", "hostPath": {"path": "/"}}}}}}),
        json!({"v": 1, ".spec": {"=": {"containers": [{"name": "evil", "image": "e"}]}}}),
        json!({"v": 1, ".metadata": {".labels": {"-": ["team"], "=": {"app": "other"}}}}),
        json!({"v": 1, ".metadata": {".annotations": {"-": ["container.apparmor.security.beta.kubernetes.io/app"]}}}),
        json!({"v": 1, ".metadata": {"-": ["labels", "annotations"]}}),
        json!({"v": 1, "-": ["metadata"]}),
        json!({"v": 1, "=": {"spec": {"containers": [{"name": "evil", "image": "e"}]}}}),
    ];
    for cni in [true, false] {
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            let settings = settings(cni, native);
            for status in [&all, &json!({})] {
                for original in &originals {
                    let pod = forged(status, original, None);
                    let (once, warnings) = injected(&pod, &settings);
                    assert_kept(&pod, &once);
                    if *original != json!({"v": 1}) {
                        assert!(
                            warnings.iter().any(|text| text.contains("kept as it is: ")),
                            "{original}: {warnings:?}"
                        );
                    }
                    let (twice, _) = injected(&once, &settings);
                    assert_eq!(twice.to_string(), once.to_string(), "{original}");
                    // The command line tool applies the records, and says so.
                    let back = uninject(&pod).unwrap().unwrap();
                    let asked = *original != json!({"v": 1}) || *status != json!({});
                    assert_eq!(!back.unverified.is_empty(), asked, "{original} {:?}", back.unverified);
                }
            }
        }
    }
}

#[test]
fn forged_overrides_undo_nothing() {
    let overrides = json!({"containers": [
        {"name": "app", "image": "evil", "securityContext": {"privileged": true}},
        {"name": "istio-proxy", "image": "evil", "securityContext": {"privileged": true}, "command": ["evil"],
         "volumeMounts": [{"name": "policy-ca", "mountPath": "/etc"}], "env": [{"name": "LD_PRELOAD", "value": "x"}]},
    ]});
    let declared = json!({"name": "istio-proxy", "image": "proxy@sha256:11", "securityContext": {"privileged": false}});
    for template in ["sidecar", "grpc-simple"] {
        for status in [json!({}), json!({"containers": ["app", "istio-proxy"]})] {
            let settings = settings(true, NativeSidecars::Off);
            let mut pod = forged(&status, &json!({"v": 1}), Some(&overrides));
            pod["metadata"]["annotations"]["inject.istio.io/templates"] = template.into();
            pod["spec"]["containers"].as_array_mut().unwrap().push(declared.clone());
            for recorded in [true, false] {
                if !recorded {
                    pod["metadata"]["annotations"].as_object_mut().unwrap().shift_remove(STATUS);
                }
                let (once, _) = injected(&pod, &settings);
                assert_eq!(container(&once, "app")["image"], "app@sha256:00", "{template} {status}");
                assert_eq!(container(&once, "app")["securityContext"]["privileged"], false);
                let proxy = container(&once, "istio-proxy");
                assert_ne!(proxy["image"], "evil");
                assert_eq!(proxy["securityContext"]["privileged"], false);
                assert!(
                    !proxy.to_string().contains("LD_PRELOAD") && !proxy.to_string().contains("\"/etc\""),
                    "{proxy}"
                );
                assert!(proxy.get("command").is_none(), "{proxy}");
            }
        }
    }
}

/// Another mutating webhook: pins images, adds a container, and tightens security.
fn other_webhook(mut pod: Value) -> Value {
    for list in ["containers", "initContainers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let image = container["image"].as_str().unwrap().to_owned();
            if image != "auto" && !image.contains('@') {
                container["image"] = format!("{image}@sha256:{}", "0".repeat(64)).into();
            }
            container["securityContext"]["allowPrivilegeEscalation"] = false.into();
            container["securityContext"]["privileged"] = false.into();
            container["securityContext"]["seccompProfile"] = json!({"type": "RuntimeDefault"});
        }
    }
    pod["spec"]["securityContext"]["runAsNonRoot"] = true.into();
    pod["spec"]["hostPID"] = false.into();
    let containers = pod["spec"]["containers"].as_array_mut().unwrap();
    if !containers.iter().any(|container| container["name"] == "scanner") {
        containers.push(json!({
            "name": "scanner", "image": format!("s@sha256:{}", "0".repeat(64)), "ports": [{"containerPort": 9000}],
            "securityContext": {"allowPrivilegeEscalation": false, "privileged": false, "seccompProfile": {"type": "RuntimeDefault"}},
            "readinessProbe": {"httpGet": {"port": 9000}},
        }));
    }
    pod
}

fn user_pods() -> Vec<Value> {
    let plain = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "a:1", "readinessProbe": {"httpGet": {"port": "http"}},
                                 "ports": [{"name": "http", "containerPort": 80}]}],
                 "initContainers": [{"name": "migrate", "image": "m:1"}]},
    });
    let mut own = plain.clone();
    let declared = json!({"name": "istio-proxy", "image": "own:1", "securityContext": {"privileged": true}});
    own["spec"]["containers"].as_array_mut().unwrap().push(declared);
    let mut grpc = plain.clone();
    grpc["metadata"]["annotations"] = json!({"inject.istio.io/templates": "grpc-simple"});
    vec![plain, own, grpc]
}

#[test]
fn reinvocation_keeps_what_another_webhook_changed() {
    for cni in [true, false] {
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            let settings = settings(cni, native);
            for pod in user_pods() {
                let (first, _) = injected(&pod, &settings);
                let changed = other_webhook(first);
                let (again, _) = injected(&changed, &settings);
                // Nothing is left to change for the other webhook, so it has lost nothing.
                assert_eq!(other_webhook(again.clone()), again, "cni {cni}, {native:?}");
                assert_eq!(
                    again["spec"]["containers"].as_array().unwrap().len(),
                    changed["spec"]["containers"].as_array().unwrap().len()
                );
                let probe = &container(&again, "scanner")["readinessProbe"]["httpGet"]["path"];
                if container(&again, "app")["readinessProbe"]["httpGet"]["path"] != Value::Null {
                    assert_eq!(probe, "/app-health/scanner/readyz");
                    assert!(again.to_string().contains("/app-health/scanner/readyz\\\":"), "the agent knows the probe");
                }
                assert_eq!(injected(&again, &settings).0.to_string(), again.to_string());
                let back = uninject(&again).unwrap().unwrap().pod;
                assert_eq!(back["spec"]["hostPID"], false);
                assert_eq!(
                    back["spec"]["containers"].as_array().unwrap().len(),
                    pod["spec"]["containers"].as_array().unwrap().len() + 1
                );
            }
        }
    }
}

/// Sets defaults as the API server does between two webhooks.
fn defaulted(mut pod: Value) -> Value {
    for list in ["containers", "initContainers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            container["terminationMessagePath"] = "/dev/termination-log".into();
            container["imagePullPolicy"] = "Always".into();
            for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                port["protocol"] = "TCP".into();
            }
            if let Some(probe) = container.get_mut("readinessProbe") {
                probe["successThreshold"] = 1.into();
                if probe.get("httpGet").is_some() {
                    probe["httpGet"]["scheme"] = "HTTP".into();
                }
            }
        }
    }
    for volume in pod["spec"].get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if volume.get("configMap").is_some() {
            volume["configMap"]["defaultMode"] = 420.into();
        }
    }
    pod["spec"]["securityContext"] = json!({});
    pod
}

#[test]
fn defaults_of_the_api_server_are_no_hostile_records() {
    for probe in [
        json!({"tcpSocket": {"port": 80}}),
        json!({"grpc": {"port": 80}}),
        json!({"httpGet": {"port": "http", "scheme": "HTTPS"}}),
    ] {
        for cni in [true, false] {
            for mut pod in user_pods() {
                pod["spec"]["containers"][0]["readinessProbe"] = probe.clone();
                let mine = r#"{"mine":{"configMap":{"name":"m"}},"yours":{"emptyDir":{}}}"#;
                if pod["metadata"].get("annotations").is_none() {
                    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/userVolume": mine});
                }
                let settings = settings(cni, NativeSidecars::On);
                let (once, _) = injected(&pod, &settings);
                let standing = defaulted(once.clone());
                let (again, warnings) = injected(&standing, &settings);
                assert!(!warnings.iter().any(|text| text.contains("kept as it is")), "{warnings:?}");
                for name in ["app", "migrate"] {
                    assert_eq!(container(&defaulted(again.clone()), name), container(&standing, name));
                }
                for list in ["containers", "initContainers", "volumes"] {
                    let length = |pod: &Value| pod["spec"][list].as_array().map_or(0, Vec::len);
                    assert_eq!(length(&again), length(&standing));
                }
                assert_eq!(injected(&again, &settings).0.to_string(), again.to_string());
                let env = |pod: &Value| pod.to_string().matches("ISTIO_KUBE_APP_PROBERS").count();
                assert_eq!(env(&again), env(&once));
            }
        }
    }
}

#[test]
fn injection_keeps_what_an_earlier_webhook_changed() {
    for cni in [true, false] {
        let settings = settings(cni, NativeSidecars::On);
        for pod in user_pods() {
            let before = other_webhook(pod);
            let (once, _) = injected(&before, &settings);
            for name in ["app", "migrate", "scanner"] {
                for field in ["image", "securityContext"] {
                    assert_eq!(container(&once, name)[field], container(&before, name)[field]);
                }
            }
            assert_eq!(once["spec"]["securityContext"]["runAsNonRoot"], true);
            let after = other_webhook(once);
            let (again, _) = injected(&after, &settings);
            assert_eq!(again.to_string(), after.to_string());
        }
    }
}

#[test]
fn containers_of_the_mesh_change_with_the_settings() {
    let (old, _) = injected(&user_pods()[0], &settings(true, NativeSidecars::On));
    let values = json!({"global": {"hub": "h", "tag": "t2"}, "pilot": {"cni": {"enabled": true}}});
    let mut newer = Settings::from_values_and_mesh(Some(&values), None).unwrap();
    newer.native_sidecars = NativeSidecars::On;
    let (new, _) = injected(&old, &newer);
    assert_eq!(new.to_string(), injected(&user_pods()[0], &newer).0.to_string());
    assert_eq!(container_mut(&mut new.clone(), "istio-proxy")["image"], "h/proxyv2:t2");
}
