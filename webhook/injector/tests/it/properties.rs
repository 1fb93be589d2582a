//! Properties of every injection: it is idempotent, it can be undone, the patch reproduces it, and the user's fields survive.
//!
//! `WEIR_PROPERTY_CASES` is the number of pods for each property.

mod generate;

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_injector::patch::{diff, to_json};
use weir_injector::uninject::{RECORD_MAX_BYTES, uninject};
use weir_injector::{InjectOutcome, InjectRequest, inject};

use generate::{Installation, installation, pod};

/// Returns the injected pod; `None` if it is denied.
fn injected(pod: &Value, by: &Installation) -> Option<Value> {
    let request = InjectRequest { pod: pod.clone(), url_env: by.url_env.clone(), ..InjectRequest::default() };
    match inject(&request, &by.settings).ok()? {
        InjectOutcome::Injected { pod, .. } => Some(pod),
        InjectOutcome::Skipped { reason, .. } => panic!("skipped: {reason:?}"),
    }
}

/// Injects a pod, and discards the case if it is denied.
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

/// Changes a pod as other webhooks and the API server do.
fn changed_by_third_parties(mut pod: Value) -> Value {
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
    // A failure prints its minimal case, so no file of seeds is written.
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
    fn uninject_restores_the_exact_pod(pod in pod(), by in installation()) {
        let injected = injected!(&pod, &by);
        let back = uninject(&injected).unwrap().unwrap();
        prop_assert_eq!(back.unrecoverable, Vec::<String>::new());
        prop_assert_eq!(back.pod.to_string(), pod.to_string());
        let record = injected["metadata"]["annotations"]["weir.dev/original"].as_str().unwrap();
        prop_assert!(record.len() <= RECORD_MAX_BYTES);
        prop_assert_eq!(uninject(&pod), Ok(None));
    }

    #[test]
    fn injection_is_idempotent(pod in pod(), by in installation()) {
        let once = injected!(&pod, &by);
        let twice = injected(&once, &by).unwrap();
        let patch = to_json(&diff(&once, &twice)).unwrap();
        prop_assert_eq!(String::from_utf8_lossy(&patch), "[]", "once: {}", once);
        prop_assert_eq!(once.to_string(), twice.to_string());
    }

    #[test]
    fn second_installation_leaves_nothing_of_the_first(pod in pod(), mut first in installation(), second in installation()) {
        // What the settings alone name cannot be told from what another webhook wrote once they have changed, and is kept.
        first.settings.injection.injected_annotations = second.settings.injection.injected_annotations.clone();
        first.settings.values.gateway_security_context = second.settings.values.gateway_security_context.clone();
        first.url_env = second.url_env.clone();
        let by_detour = injected!(&injected!(&pod, &first), &second);
        prop_assert_eq!(injected(&pod, &second).unwrap().to_string(), by_detour.to_string());
    }

    #[test]
    fn third_party_additions_survive_reinjection(pod in pod(), first in installation(), second in installation()) {
        let changed = changed_by_third_parties(injected!(&pod, &first));
        let again = injected!(&changed, &second);
        // A container of the user to which the second installation adds nothing is as the user declared it.
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
        // Their changes of the application belong to the application now.
        let back = uninject(&again).unwrap().unwrap().pod;
        prop_assert!(items(&back, "containers").iter().any(|container| container["name"] == "later"));
    }

    #[test]
    fn patch_reproduces_the_injected_pod(pod in pod(), by in installation()) {
        let result = injected!(&pod, &by);
        let patch: json_patch::Patch = serde_json::from_slice(&to_json(&diff(&pod, &result)).unwrap()).unwrap();
        let mut patched = pod;
        json_patch::patch(&mut patched, &patch).unwrap();
        prop_assert_eq!(patched, result);
    }

    #[test]
    fn unknown_fields_and_user_fields_survive(pod in pod(), by in installation()) {
        let result = injected!(&pod, &by);
        prop_assert_eq!(&result["newer"], &pod["newer"]);
        prop_assert_eq!(&result["spec"]["newer/~"], &pod["spec"]["newer/~"]);
        for list in ["containers", "initContainers", "volumes", "imagePullSecrets"] {
            for item in items(&pod, list) {
                let of_name = |list: &str| items(&result, list).iter().find(|it| it["name"] == item["name"]).cloned();
                // The proxy moves to the list of the sidecar.
                let found = of_name(list).or_else(|| of_name("initContainers")).or_else(|| of_name("containers"));
                let found = found.unwrap_or_else(|| panic!("{list} lost {item}"));
                prop_assert_eq!(&found["newer"], &item["newer"]);
            }
        }
        for app in items(&pod, "containers").iter().filter(|app| app["name"] != "istio-proxy") {
            let after = items(&result, "containers").iter().find(|it| it["name"] == app["name"]).unwrap();
            for field in ["image", "ports", "securityContext"] {
                prop_assert_eq!(after.get(field), app.get(field));
            }
            // The gRPC templates add variables to the application.
            for variable in app["env"].as_array().into_iter().flatten() {
                prop_assert!(after["env"].as_array().unwrap().contains(variable), "{} lost {}", after, variable);
            }
        }
    }
}
