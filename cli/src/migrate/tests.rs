//! A small mesh of Istio, and its plan.

use std::collections::HashMap;

use iptables_rules::names::annotation;
use serde_json::{Value, json};
use weir_injector::selection::InjectorRevision;
use weir_injector::settings::{Documents, Settings, set_cni_mode};
use weir_injector::{InjectOutcome, InjectRequest, inject};

use super::inventory::Objects;
use super::plan::{NamespacePlan, Plan};
use super::{json, text};

/// Returns the webhook configuration of Istio's injector, as its chart has it.
pub(super) fn istio_configuration() -> Value {
    let entries = InjectorRevision::default().webhook_entries().into_iter().map(|entry| {
        json!({
            "name": entry.name,
            "namespaceSelector": entry.namespace_selector,
            "objectSelector": entry.object_selector,
            "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/inject"}},
        })
    });
    json!({
        "metadata": {"name": "istio-sidecar-injector", "labels": {"istio.io/rev": "default"}},
        "webhooks": entries.collect::<Value>(),
    })
}

fn namespace(name: &str, labels: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}})
}

pub(super) fn deployment(namespace: &str, name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": namespace, "name": name},
        "spec": {"template": {
            "metadata": {"labels": {"app": name}, "annotations": annotations},
            "spec": {"containers": [{"name": "app", "image": "nginx"}]},
        }},
    })
}

/// Returns the pod of a Deployment as Istio's injector makes it, with istio-init or in CNI mode.
pub(super) fn pod(deployment: &Value, cni: bool) -> Value {
    let text = |key: &str| deployment["metadata"][key].as_str().unwrap().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    let mut values = Settings::builtin_values();
    set_cni_mode(&mut values, cni);
    let settings = Settings::from_documents(Documents { values: Some(&values), ..Documents::default() }).unwrap();
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["generateName"] = format!("{name}-abc-").into();
    template["metadata"]["name"] = format!("{name}-abc-x").into();
    template["metadata"]["namespace"] = namespace.clone().into();
    template["metadata"]["labels"]["pod-template-hash"] = "abc".into();
    template["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-abc"), "controller": true}]);
    let request = InjectRequest { pod: template, namespace: Some(namespace), ..InjectRequest::default() };
    let InjectOutcome::Injected { mut pod, .. } = inject(&request, &settings).unwrap() else { panic!("not injected") };
    for ours in [annotation::CAPTURE, "weir.dev/original"] {
        pod["metadata"]["annotations"].as_object_mut().unwrap().remove(ours);
    }
    pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}]});
    pod
}

pub(super) fn objects() -> Objects {
    let plain = deployment("shop", "web", &json!({}));
    let init = deployment("shop", "old", &json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "3306"}));
    let values = Settings::builtin_values();
    let map = |name: &str, data: Value| json!({"metadata": {"name": name, "namespace": "istio-system"}, "data": data});
    Objects {
        namespaces: vec![
            namespace("shop", &json!({"istio-injection": "enabled"})),
            namespace("other", &json!({})),
            namespace("kube-system", &json!({})),
        ],
        configurations: vec![istio_configuration()],
        config_maps: vec![
            map("istio-sidecar-injector", json!({"values": values.to_string(), "config": "{}"})),
            map("istio", json!({"mesh": "{}"})),
        ],
        pods: vec![pod(&plain, true), pod(&init, false)],
        controllers: vec![plain, init],
        ..Objects::default()
    }
}

fn plan(objects: &Objects) -> Plan {
    Plan::of(objects, "weir", &[], &HashMap::new())
}

fn shop(plan: &Plan) -> &NamespacePlan {
    plan.namespaces.iter().find(|namespace| namespace.name == "shop").unwrap()
}

#[test]
fn pods_of_either_mode_are_equal_under_weir() {
    let plan = plan(&objects());
    insta::assert_snapshot!(text::print(&plan), @r#"
        injector:       istio-sidecar-injector (Istio), revision default, to service istio-system/istiod
        configuration:  configmap istio-sidecar-injector, revision default, version 1.28.0, templates built in
        Weir:           revision weir is not installed yet

        namespace shop: istio-injection=enabled (Istio); 2 workloads with 2 pods in the mesh
          equal: 1 (istio-cni): Deployment/web
          equal: 1 (istio-init): Deployment/old

        Differences of the new pods:
             2 annotation istio.io/rev: "default" -> "weir"
             2 annotation weir.dev/capture: added
             2 annotation weir.dev/original: added
             1 annotation sidecar.istio.io/interceptionMode: added
             1 annotation traffic.sidecar.istio.io/excludeInboundPorts: added
             1 annotation traffic.sidecar.istio.io/includeInboundPorts: added
             1 annotation traffic.sidecar.istio.io/includeOutboundIPRanges: added
             1 container istio-init: removed
             1 container istio-validation: added

        => 1 namespaces: 2 equal
        "#);
    let document: Value = serde_json::from_str(&json::print(&plan)).unwrap();
    assert_eq!(document.pointer("/namespaces/0/workloads/0/verdict"), Some(&json!("equal")), "{document:#}");
    assert!(!text::is_unsafe(&plan));
}

#[test]
fn arguments_that_the_template_does_not_have_are_a_difference() {
    let mut objects = objects();
    let init = objects.pods[1].pointer_mut("/spec/initContainers").unwrap().as_array_mut().unwrap();
    let init = init.iter_mut().find(|container| container["name"] == "istio-init").unwrap();
    let args = init["args"].as_array_mut().unwrap();
    let excluded = args.iter().position(|arg| arg == "-o").unwrap();
    args[excluded + 1] = "".into();
    let plan = plan(&objects);
    let old = shop(&plan).workloads.iter().find(|workload| workload.name == "old").unwrap();
    assert_eq!(old.assessment.verdict.name(), "captured-less");
    assert!(old.assessment.verdict.sentences()[0].contains("to port 3306"), "{:?}", old.assessment.verdict);
    assert!(text::is_unsafe(&plan));
}

#[test]
fn workloads_that_do_not_move_by_themselves_are_named() {
    let mut objects = objects();
    objects.controllers[0]["spec"]["paused"] = true.into();
    objects.controllers.remove(1);
    let mut bare = objects.pods[0].clone();
    bare["metadata"]["name"] = "bare".into();
    bare["metadata"]["ownerReferences"] = json!([]);
    objects.pods.push(bare);
    let plan = plan(&objects);
    let reasons: Vec<(&str, &[String])> = shop(&plan)
        .workloads
        .iter()
        .map(|workload| (workload.name.as_str(), &workload.assessment.reasons[..]))
        .collect();
    insta::assert_debug_snapshot!(reasons, @r#"
        [
            (
                "old",
                [
                    "its controller was not found",
                ],
            ),
            (
                "web",
                [
                    "its rollout is paused: kubectl rollout resume",
                ],
            ),
            (
                "bare",
                [
                    "it has no controller: delete and create it to move it",
                ],
            ),
        ]
        "#);
}

#[test]
fn rejected_configuration_is_named() {
    let mut objects = objects();
    objects.config_maps[0]["data"]["values"] = "global: {proxy: {privileged: 7}}".into();
    let plan = plan(&objects);
    assert!(!plan.configs[0].errors.is_empty());
    assert!(shop(&plan).workloads.iter().all(|workload| workload.assessment.verdict.name() == "unknown"));
}
