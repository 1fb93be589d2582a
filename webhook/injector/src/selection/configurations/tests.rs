use super::*;
use crate::selection::tests::{combinations, revisions};
use crate::selection::{Selection, WebhookEntry, namespace_labels};

fn entries(configurations: &[Value]) -> Vec<WebhookEntry> {
    let webhooks = configurations.iter().flat_map(|configuration| configuration["webhooks"].as_array().unwrap());
    let entry = |entry: &Value| WebhookEntry {
        name: entry["name"].as_str().unwrap().to_owned(),
        namespace_selector: entry["namespaceSelector"].clone(),
        object_selector: entry["objectSelector"].clone(),
    };
    webhooks.map(entry).collect()
}

#[test]
fn entries_match_selected_labels_outside_excluded_namespaces() {
    for revision in revisions().into_iter().filter(|revision| revision.enable_namespaces_by_default) {
        let entries = entries(&revision.webhook_configurations(&WebhookOptions::default()));
        combinations(|name, labels| {
            let matching = entries.iter().filter(|entry| entry.matches(labels).unwrap()).count();
            let excluded = SYSTEM_NAMESPACES.contains(&name) || [WEBHOOK_NAMESPACE, AGENT_NAMESPACE].contains(&name);
            let selected = !excluded && revision.select(labels, name) == Selection::Selected;
            assert_eq!(matching, usize::from(selected), "{revision:?} {name} {labels:?}");
        });
    }
}

#[test]
fn a_new_default_and_the_deactivated_one_share_no_pod() {
    let old = InjectorRevision { deactivated: true, enable_namespaces_by_default: true, ..InjectorRevision::default() };
    let new = InjectorRevision {
        revision: "r1".to_owned(),
        tags: vec!["default".to_owned()],
        enable_namespaces_by_default: true,
        ..InjectorRevision::default()
    };
    let both = [
        old.webhook_configurations(&WebhookOptions::default()),
        new.webhook_configurations(&WebhookOptions::default()),
    ]
    .concat();
    let entries = entries(&both);
    combinations(|name, labels| {
        let matching: Vec<_> = entries.iter().filter(|entry| entry.matches(labels).unwrap()).collect();
        assert!(matching.len() <= 1, "{name} {labels:?}: {matching:?}");
    });
}

#[test]
fn own_and_system_namespaces_are_excluded() {
    let options = WebhookOptions { namespace: "elsewhere".to_owned(), ..WebhookOptions::default() };
    let all = InjectorRevision { enable_namespaces_by_default: true, ..InjectorRevision::default() };
    let entries = entries(&all.webhook_configurations(&options));
    let pod = json!({"sidecar.istio.io/inject": "true"}).as_object().unwrap().clone();
    for namespace in ["elsewhere", AGENT_NAMESPACE, "kube-system", "kube-node-lease"] {
        for labels in [json!({}), json!({"istio-injection": "enabled"}), json!({"istio.io/rev": "default"})] {
            let of_namespace = namespace_labels(namespace, labels.as_object().unwrap().clone());
            let labels = crate::selection::Labels { namespace: &of_namespace, pod: &pod };
            assert!(!entries.iter().any(|entry| entry.matches(labels).unwrap()), "{namespace} {of_namespace:?}");
        }
    }
}

#[test]
fn only_the_auto_entry_ignores_failures() {
    let all = InjectorRevision {
        enable_namespaces_by_default: true,
        tags: vec!["stable".to_owned()],
        ..InjectorRevision::default()
    };
    for configuration in all.webhook_configurations(&WebhookOptions::default()) {
        for entry in configuration["webhooks"].as_array().unwrap() {
            let auto = entry["name"].as_str().unwrap().starts_with("auto.");
            assert_eq!(entry["failurePolicy"], if auto { "Ignore" } else { "Fail" });
            // A pod that did not opt in needs no warning about a skip.
            let conditions: Vec<&str> =
                entry["matchConditions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
            assert_eq!(conditions.contains(&"no-host-network"), auto);
            assert!(conditions.contains(&"no-mirror-pods"));
        }
    }
}

#[test]
fn with_deactivated_equals_a_generated_configuration() {
    let on = InjectorRevision { enable_namespaces_by_default: true, ..InjectorRevision::default() };
    let off = InjectorRevision { deactivated: true, ..on.clone() };
    let [on, off] = [on, off].map(|revision| revision.webhook_configurations(&WebhookOptions::default()).remove(0));
    assert_eq!(with_deactivated(&on, true).as_ref(), Some(&off));
    assert_eq!(with_deactivated(&off, false).as_ref(), Some(&on));
    assert_eq!((with_deactivated(&on, false), with_deactivated(&off, true)), (None, None));
}

#[test]
fn configurations_have_own_names_and_no_label_of_istio() {
    let revision =
        InjectorRevision { revision: "r1".to_owned(), tags: vec!["stable".to_owned()], ..InjectorRevision::default() };
    let options = WebhookOptions {
        target: WebhookTarget::Url("https://injector.example:443/inject".to_owned()),
        ca_bundle: Some("Q0E=".to_owned()),
        inject_ca_from: Some("weir-system/weir-webhook".to_owned()),
        ..WebhookOptions::default()
    };
    let objects = revision.webhook_configurations(&options);
    let names: Vec<&str> = objects.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["weir-sidecar-injector-r1", "weir-revision-tag-stable"]);
    assert_eq!(objects[1]["metadata"]["labels"][OWNER_REVISION_LABEL], "r1");
    assert_eq!(objects[1]["metadata"]["labels"][OWNER_TAG_LABEL], "stable");
    for object in &objects {
        assert!(!object["metadata"]["labels"].as_object().unwrap().keys().any(|label| label.contains("istio")));
        assert_eq!(object["metadata"]["annotations"]["cert-manager.io/inject-ca-from"], "weir-system/weir-webhook");
        assert_eq!(object["webhooks"][0]["clientConfig"]["url"], "https://injector.example:443/inject");
        assert_eq!(object["webhooks"][0]["clientConfig"]["caBundle"], "Q0E=");
    }
    let plain = &InjectorRevision::default().webhook_configurations(&WebhookOptions::default())[0];
    assert!(plain["webhooks"].as_array().unwrap().iter().all(|entry| entry["clientConfig"].get("caBundle").is_none()));
}
