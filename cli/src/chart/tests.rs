use std::collections::BTreeSet;

use weir_injector::selection::InjectorRevision;
use weir_injector::selection::configurations::{WebhookOptions, WebhookTarget};

use super::*;

fn objects(set: &[&str]) -> Vec<Value> {
    ChartArgs::of(set).release().unwrap().objects().unwrap()
}

fn errors(set: &[&str]) -> String {
    ChartArgs::of(set).release().and_then(|release| release.objects()).unwrap_err().to_string()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn every_template_of_the_chart_is_built_in() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/chart/templates");
    let found: BTreeSet<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, OBJECTS.iter().chain(&PARTIALS).map(|(name, _)| (*name).to_owned()).collect());
}

#[test]
fn default_values_match_the_schema_and_all_errors_are_reported() {
    Release::new(WEBHOOK_NAMESPACE.to_owned(), defaults().unwrap()).unwrap();
    let errors = errors(&[
        "webhook.replica=3",
        "webhook.certificates=files,platforms.x.netDir=a",
        "revision=A_b,node.enabled=1",
    ]);
    for wanted in [
        "webhook.replica: no such setting; settings: enabled, createNamespace, ",
        "webhook.certificates: files is not one of builtin, secret, cert-manager",
        "platforms.x.netDir: a does not match",
        "revision: A_b does not match",
        "node.enabled: 1 is not one of true, false, auto",
    ] {
        assert!(errors.contains(wanted), "{wanted}: {errors}");
    }
}

#[test]
fn contradicting_settings_are_errors_of_the_chart() {
    assert!(errors(&["platform=gkee"]).contains("platform \"gkee\" is none of aks, bottlerocket, "));
    assert!(errors(&["webhook.certificates=secret"]).contains("webhook.caBundle has to be the CA of that certificate"));
}

#[test]
fn chart_and_injector_create_the_same_webhook_configurations() {
    let mut compared = 0;
    for revision in ["", "default", "r1"] {
        for tags in [&[][..], &["canary"], &["canary", "default"]] {
            for flags in 0..16_u8 {
                let flag = |bit: u8| flags & (1 << bit) != 0;
                let set = [
                    format!("revision={revision}"),
                    format!("revisionTags={{{}}}", tags.join(",")),
                    format!("webhook.enableNamespacesByDefault={}", flag(0)),
                    format!("webhook.deactivated={}", flag(1)),
                    format!("webhook.matchConditions={}", flag(2)),
                    format!("webhook.skipHostNetwork={}", flag(2)),
                    format!("webhook.url={}", if flag(3) { "https://host/inject" } else { "" }),
                    format!("webhook.caBundle={}", if flag(3) { "Q0E=" } else { "" }),
                    format!("webhook.certificates={}", if flag(0) && !flag(3) { "cert-manager" } else { "builtin" }),
                    format!("webhook.excludedNamespaces={{{}}}", if flag(1) { "legacy" } else { "" }),
                ];
                let set: Vec<&str> = set.iter().map(String::as_str).collect();
                let rendered = objects(&set);
                let installation = InjectorRevision {
                    revision: revision.to_owned(),
                    tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
                    enable_namespaces_by_default: flag(0),
                    deactivated: flag(1),
                };
                let certificate = format!(
                    "{WEBHOOK_NAMESPACE}/{}",
                    if revision == "r1" { "weir-webhook-r1" } else { "weir-webhook" }
                );
                let serving = WebhookOptions {
                    namespace: WEBHOOK_NAMESPACE.to_owned(),
                    target: if flag(3) {
                        WebhookTarget::Url("https://host/inject".to_owned())
                    } else {
                        WebhookTarget::Service
                    },
                    ca_bundle: flag(3).then(|| "Q0E=".to_owned()),
                    inject_ca_from: (flag(0) && !flag(3)).then_some(certificate),
                    excluded_namespaces: if flag(1) { vec!["legacy".to_owned()] } else { Vec::new() },
                    match_conditions: flag(2),
                    skip_host_network: flag(2),
                };
                let data = installation.webhook_configurations(&serving);
                let mut found =
                    of_kind(&rendered, "MutatingWebhookConfiguration").into_iter().cloned().collect::<Vec<_>>();
                for object in &mut found {
                    object["metadata"]["labels"].as_object_mut().unwrap().remove("app.kubernetes.io/managed-by");
                }
                assert_eq!(found, data, "{set:?}");
                compared += data.len();
            }
        }
    }
    assert_eq!(compared, 16 * (1 + 2 + 2 + 1 + 2 + 2 + 1 + 2 + 3));
}

#[test]
fn dependencies_come_first_and_webhook_configurations_last() {
    let objects = objects(&["revisionTags={stable}", "webhook.autoscaling.enabled=true", "platform=gke"]);
    let kinds: Vec<&str> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["Namespace", "Namespace"]);
    assert!(kinds.ends_with(&[
        "HorizontalPodAutoscaler",
        "MutatingWebhookConfiguration",
        "MutatingWebhookConfiguration"
    ]));
    let at = |kind: &str| kinds.iter().position(|found| *found == kind).unwrap();
    assert!(
        at("ConfigMap") < at("Deployment")
            && at("ServiceAccount") < at("Deployment")
            && at("ResourceQuota") < at("DaemonSet")
    );
}

#[test]
fn revision_has_its_own_names_and_no_agent() {
    let objects = objects(&["revision=r1"]);
    assert!(of_kind(&objects, "DaemonSet").is_empty());
    let deployment = of_kind(&objects, "Deployment")[0];
    assert_eq!(deployment["metadata"]["name"], "weir-webhook-r1");
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    for wanted in ["--revision=r1", "--ca-secret=weir-webhook-ca-r1", "--service=weir-webhook-r1"] {
        assert!(args.contains(&wanted.into()), "{args:?}");
    }
}

#[test]
fn set_overrides_the_shortcut_options() {
    let args = ChartArgs {
        cert_manager: true,
        init_container_mode: true,
        platform: Some("k3s".to_owned()),
        revision: "r2".to_owned(),
        ..ChartArgs::of(&["platform=k3d"])
    };
    let values = args.release().unwrap().values;
    assert_eq!(values["webhook"]["certificates"], "cert-manager");
    assert_eq!(values["config"]["values"]["pilot"]["cni"]["enabled"], false);
    assert_eq!(values["node"]["enabled"], false);
    assert_eq!((&values["platform"], &values["revision"]), (&json!("k3d"), &json!("r2")));
}

#[test]
fn notes_name_the_label_of_the_revision() {
    let notes = |set: &[&str]| ChartArgs::of(set).release().unwrap().notes(false).unwrap();
    assert!(notes(&[]).contains("istio-injection=enabled"));
    assert!(notes(&["revision=r1"]).contains("istio.io/rev=r1"));
}

#[test]
fn policies_come_with_the_default_revision_where_kubernetes_has_them() {
    for (version, set, expected) in [
        ("v1.29.15", "", 0),
        ("v1.30.0-gke.100", "", 2),
        ("v1.36.3", "admissionPolicies.enabled=false", 0),
        ("v1.36.3", "revision=r1", 0),
        ("v1.29.15", "admissionPolicies.enabled=true", 2),
        ("v1.36.3", "webhook.enabled=false", 0),
    ] {
        let set: &[&str] = if set.is_empty() { &[] } else { &[set] };
        let release = ChartArgs::of(set).release().unwrap().for_kubernetes(version.to_owned());
        let objects = release.objects().unwrap();
        assert_eq!(of_kind(&objects, "ValidatingAdmissionPolicy").len(), expected, "{version} {set:?}");
        assert_eq!(of_kind(&objects, "ValidatingAdmissionPolicyBinding").len(), expected, "{version} {set:?}");
    }
}

/// Helm deletes objects that an upgrade no longer has.
#[test]
fn uninstaller_keeps_its_namespace_and_admission_objects() {
    for platform in ["kubeadm", "gke", "openshift"] {
        let needed = |uninstall: bool| -> Vec<Value> {
            let setting = format!("platform={platform},webhook.enabled=false,node.uninstall={uninstall}");
            let kinds = ["Namespace", "ResourceQuota", "SecurityContextConstraints"];
            objects(&[&setting]).into_iter().filter(|object| kinds.iter().any(|kind| object["kind"] == *kind)).collect()
        };
        assert!(!needed(false).is_empty());
        assert_eq!(needed(true), needed(false), "{platform}");
    }
}
