use super::*;
use crate::inject::selection::tests::{combinations, installations};
use crate::inject::selection::{Admission, Entry, namespace_labels};

fn entries(configurations: &[Value]) -> Vec<Entry> {
    let webhooks = configurations.iter().flat_map(|configuration| configuration["webhooks"].as_array().unwrap());
    let entry = |entry: &Value| Entry {
        name: entry["name"].as_str().unwrap().to_owned(),
        namespace_selector: entry["namespaceSelector"].clone(),
        object_selector: entry["objectSelector"].clone(),
    };
    webhooks.map(entry).collect()
}

#[test]
fn the_objects_select_what_the_table_says_and_never_our_own_namespaces_or_those_of_the_system() {
    for installation in installations().into_iter().filter(|installation| installation.by_default) {
        let entries = entries(&installation.configurations(&Serving::default()));
        combinations(|name, labels| {
            let matching = entries.iter().filter(|entry| entry.matches(labels).unwrap()).count();
            let excluded = SYSTEM_NAMESPACES.contains(&name) || [NAMESPACE, NODE_NAMESPACE].contains(&name);
            let sent = !excluded && installation.admits(labels, name) == Admission::Sent;
            assert_eq!(matching, usize::from(sent), "{installation:?} {name} {labels:?}");
        });
    }
}

#[test]
fn a_revision_that_took_over_the_tag_default_and_the_one_it_was_taken_from_share_no_pod() {
    let old = Installation { deactivated: true, by_default: true, ..Installation::default() };
    let new = Installation {
        revision: "r1".to_owned(),
        tags: vec!["default".to_owned()],
        by_default: true,
        ..Installation::default()
    };
    let both = [old.configurations(&Serving::default()), new.configurations(&Serving::default())].concat();
    let entries = entries(&both);
    combinations(|name, labels| {
        let matching: Vec<_> = entries.iter().filter(|entry| entry.matches(labels).unwrap()).collect();
        assert!(matching.len() <= 1, "{name} {labels:?}: {matching:?}");
    });
}

#[test]
fn pods_of_the_webhook_and_its_agent_need_no_webhook_whatever_their_namespaces_are_labelled() {
    let serving = Serving { namespace: "elsewhere".to_owned(), ..Serving::default() };
    let all = Installation { by_default: true, ..Installation::default() };
    let entries = entries(&all.configurations(&serving));
    let pod = json!({"sidecar.istio.io/inject": "true"}).as_object().unwrap().clone();
    for namespace in ["elsewhere", NODE_NAMESPACE, "kube-system", "kube-node-lease"] {
        for labels in [json!({}), json!({"istio-injection": "enabled"}), json!({"istio.io/rev": "default"})] {
            let of_namespace = namespace_labels(namespace, labels.as_object().unwrap().clone());
            let labels = crate::inject::selection::Labels { namespace: &of_namespace, pod: &pod };
            assert!(!entries.iter().any(|entry| entry.matches(labels).unwrap()), "{namespace} {of_namespace:?}");
        }
    }
}

#[test]
fn only_what_nobody_asked_for_may_start_without_the_webhook() {
    let all = Installation { by_default: true, tags: vec!["stable".to_owned()], ..Installation::default() };
    for configuration in all.configurations(&Serving::default()) {
        for entry in configuration["webhooks"].as_array().unwrap() {
            let auto = entry["name"].as_str().unwrap().starts_with("auto.");
            assert_eq!(entry["failurePolicy"], if auto { "Ignore" } else { "Fail" });
            // Who did not ask need not hear of a skip.
            let conditions: Vec<&str> =
                entry["matchConditions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
            assert_eq!(conditions.contains(&"no-host-network"), auto);
            assert!(conditions.contains(&"no-mirror-pods"));
        }
    }
}

#[test]
fn a_configuration_that_is_switched_off_is_the_one_of_a_deactivated_installation_and_on_again_the_same() {
    let on = Installation { by_default: true, ..Installation::default() };
    let off = Installation { deactivated: true, ..on.clone() };
    let [on, off] = [on, off].map(|installation| installation.configurations(&Serving::default()).remove(0));
    assert_eq!(switched(&on, true).as_ref(), Some(&off));
    assert_eq!(switched(&off, false).as_ref(), Some(&on));
    assert_eq!((switched(&on, false), switched(&off, true)), (None, None));
}

#[test]
fn objects_are_named_after_revision_and_tag_and_have_no_label_of_istio() {
    let installation =
        Installation { revision: "r1".to_owned(), tags: vec!["stable".to_owned()], ..Installation::default() };
    let serving = Serving {
        target: Target::Url("https://injector.example:443/inject".to_owned()),
        ca_bundle: Some("Q0E=".to_owned()),
        inject_ca_from: Some("weir-system/weir-webhook".to_owned()),
        ..Serving::default()
    };
    let objects = installation.configurations(&serving);
    let names: Vec<&str> = objects.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["weir-sidecar-injector-r1", "weir-revision-tag-stable"]);
    assert_eq!(objects[1]["metadata"]["labels"][REVISION_LABEL], "r1");
    assert_eq!(objects[1]["metadata"]["labels"][TAG_LABEL], "stable");
    for object in &objects {
        assert!(!object["metadata"]["labels"].as_object().unwrap().keys().any(|label| label.contains("istio")));
        assert_eq!(object["metadata"]["annotations"]["cert-manager.io/inject-ca-from"], "weir-system/weir-webhook");
        assert_eq!(object["webhooks"][0]["clientConfig"]["url"], "https://injector.example:443/inject");
        assert_eq!(object["webhooks"][0]["clientConfig"]["caBundle"], "Q0E=");
    }
    let plain = &Installation::default().configurations(&Serving::default())[0];
    assert!(plain["webhooks"].as_array().unwrap().iter().all(|entry| entry["clientConfig"].get("caBundle").is_none()));
}
