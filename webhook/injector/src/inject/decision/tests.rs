//! Which rule decides about which pod.

use serde_json::json;

use super::*;

const ENABLED: DecisionSettings<'_> = DecisionSettings { policy: "enabled", never_inject: &[], always_inject: &[] };
const DISABLED: DecisionSettings<'_> = DecisionSettings { policy: "disabled", ..ENABLED };

fn decision(pod: &Value, settings: DecisionSettings<'_>) -> Decision {
    decide(pod, Some("default"), settings).decision
}

fn labelled(labels: &Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

fn asking(value: &str) -> Value {
    labelled(&json!({INJECT: value, "app": "a"}))
}

#[test]
fn host_network_beats_the_pods_own_wish() {
    let mut pod = asking("true");
    pod["spec"]["hostNetwork"] = true.into();
    assert_eq!(decision(&pod, ENABLED), Decision::Skip(SkipReason::HostNetwork));
}

#[test]
fn system_namespaces_are_left_alone_by_object_or_request() {
    for namespace in SYSTEM_NAMESPACES {
        let skip = Decision::Skip(SkipReason::SystemNamespace);
        assert_eq!(decide(&asking("true"), Some(namespace), ENABLED).decision, skip);
        let pod = json!({"metadata": {"namespace": namespace}});
        assert_eq!(decide(&pod, Some("default"), ENABLED).decision, skip);
    }
    let pod = json!({"metadata": {"namespace": "mine"}});
    assert_eq!(decide(&pod, Some("kube-system"), ENABLED).decision, Decision::Inject);
    assert_eq!(decide(&json!({}), None, ENABLED).decision, Decision::Inject);
}

#[test]
fn pods_that_no_sidecar_can_run_in_are_left_alone_whatever_they_ask_for() {
    let mut static_pod = asking("true");
    static_pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "0f3a".into();
    assert_eq!(decision(&static_pod, ENABLED), Decision::Skip(SkipReason::StaticPod));
    for (spec, windows) in [
        (json!({"os": {"name": "windows"}}), true),
        (json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), true),
        (json!({"os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "windows"}}), false),
        (json!({"nodeSelector": {"kubernetes.io/os": "linux"}}), false),
    ] {
        let mut pod = asking("true");
        pod["spec"] = spec;
        let expected = if windows { Decision::Skip(SkipReason::Windows) } else { Decision::Inject };
        assert_eq!(decision(&pod, ENABLED), expected, "{pod}");
    }
}

#[test]
fn the_pods_own_word_beats_selectors_and_policy() {
    let selectors = [json!({"matchLabels": {"app": "a"}})].map(|selector| Selector::parse(&selector));
    let never = DecisionSettings { never_inject: &selectors, ..DISABLED };
    assert_eq!(decision(&asking("true"), never), Decision::Inject);
    let always = DecisionSettings { always_inject: &selectors, ..ENABLED };
    assert_eq!(decision(&asking("false"), always), Decision::Skip(SkipReason::ExplicitlyOff));
}

#[test]
fn the_label_counts_before_the_annotation_even_when_empty() {
    let pod = |label: Option<&str>, annotation: &str| {
        let mut pod = json!({"metadata": {"annotations": {INJECT: annotation}}});
        if let Some(label) = label {
            pod["metadata"]["labels"][INJECT] = label.into();
        }
        pod
    };
    assert_eq!(decision(&pod(None, "false"), ENABLED), Decision::Skip(SkipReason::ExplicitlyOff));
    assert_eq!(decision(&pod(None, "true"), DISABLED), Decision::Inject);
    assert_eq!(decision(&pod(Some("true"), "false"), DISABLED), Decision::Inject);
    assert_eq!(decision(&pod(Some(""), "false"), ENABLED), Decision::Inject);
}

#[test]
fn a_word_that_is_not_understood_is_told_and_passed_over() {
    for word in ["True", "yes", " true"] {
        let decided = decide(&asking(word), None, DISABLED);
        assert_eq!(decided.decision, Decision::Skip(SkipReason::PolicyDisabled));
        assert_eq!(decided.warnings.len(), 1, "{word}");
        assert!(decided.warnings[0].contains(&format!("\"{word}\"")), "{:?}", decided.warnings);
    }
    assert_eq!(decide(&asking(""), None, DISABLED).warnings, Vec::<String>::new());
    let system = decide(&asking("yes"), Some("kube-system"), ENABLED);
    assert_eq!(system.decision, Decision::Skip(SkipReason::SystemNamespace));
    assert_eq!(system.warnings.len(), 1, "told whatever decides: {:?}", system.warnings);
}

#[test]
fn never_beats_always_and_always_beats_the_policy() {
    let selectors = [json!({"matchLabels": {"other": "x"}}), json!({"matchLabels": {"app": "a"}})];
    let selectors = selectors.map(|selector| Selector::parse(&selector));
    let pod = labelled(&json!({"app": "a"}));
    let both = DecisionSettings { policy: "enabled", never_inject: &selectors, always_inject: &selectors };
    assert_eq!(decision(&pod, both), Decision::Skip(SkipReason::NeverSelector));
    assert_eq!(decision(&pod, DecisionSettings { always_inject: &selectors, ..DISABLED }), Decision::Inject);
}

#[test]
fn an_empty_selector_matches_nothing() {
    let empty = [json!({}), json!({"matchLabels": {}})].map(|selector| Selector::parse(&selector));
    assert_eq!(decision(&json!({}), DecisionSettings { never_inject: &empty, ..ENABLED }), Decision::Inject);
    assert_eq!(
        decision(&json!({}), DecisionSettings { always_inject: &empty, ..DISABLED }),
        Decision::Skip(SkipReason::PolicyDisabled)
    );
}

#[test]
fn a_selector_that_is_not_understood_is_told_and_passed_over() {
    let selectors =
        [json!({"matchExpressions": [{"key": "app", "operator": "Is"}]}), json!({"matchLabels": {"app": "a"}})];
    let selectors = selectors.map(|selector| Selector::parse(&selector));
    let settings = DecisionSettings { never_inject: &selectors, ..ENABLED };
    let decided = decide(&labelled(&json!({"app": "a"})), None, settings);
    assert_eq!(decided.decision, Decision::Skip(SkipReason::NeverSelector));
    assert_eq!(decided.warnings.len(), 1);
    assert!(decided.warnings[0].starts_with("neverInjectSelector[0] is ignored: "), "{:?}", decided.warnings);
}

#[test]
fn the_policy_decides_about_pods_that_say_nothing() {
    assert_eq!(decision(&json!({}), ENABLED), Decision::Inject);
    assert_eq!(decision(&json!({}), DISABLED), Decision::Skip(SkipReason::PolicyDisabled));
}

#[test]
fn a_policy_that_is_not_known_injects_nothing() {
    let always = [json!({"matchLabels": {"app": "a"}})].map(|selector| Selector::parse(&selector));
    let odd = DecisionSettings { policy: "Enabled", never_inject: &[], always_inject: &always };
    assert_eq!(decision(&asking("true"), odd), Decision::Skip(SkipReason::UnknownPolicy));
    assert_eq!(decision(&labelled(&json!({"app": "a"})), odd), Decision::Skip(SkipReason::UnknownPolicy));
}

#[test]
fn every_rule_that_was_asked_is_told_and_the_last_word_decides() {
    let rules = |pod: &Value, settings| {
        let decided = decide(pod, None, settings);
        let said: Vec<(&str, bool)> =
            decided.steps.iter().map(|step| (step.rule.name(), step.verdict.is_some())).collect();
        let last = decided.steps.iter().rev().find_map(|step| step.verdict).unwrap();
        assert_eq!(last, decided.decision);
        said
    };
    let said = rules(&json!({"spec": {"hostNetwork": true}}), ENABLED);
    assert_eq!(said, [("host_network", true)]);
    let said = rules(&json!({}), DISABLED);
    assert_eq!(said.len(), 9);
    assert_eq!(said[8], ("policy", true));
    assert!(said[..8].iter().all(|(_, had_a_word)| !had_a_word), "{said:?}");
    let said = rules(&asking("true"), DISABLED);
    assert_eq!(said[5..], [("own_word", true), ("unrecorded_sidecar", false)]);
}

#[test]
fn a_sidecar_without_a_record_is_not_injected_again() {
    for init in INJECTED_INIT_CONTAINERS {
        for list in ["containers", "initContainers"] {
            let args = ["istio-iptables", "-p", "15001"];
            let mut pod =
                json!({"spec": {"initContainers": [{"name": init, "args": args}], "containers": [{"name": "app"}]}});
            pod["spec"][list].as_array_mut().unwrap().push(json!({"name": "istio-proxy"}));
            assert_eq!(decision(&pod, ENABLED), Decision::Skip(SkipReason::UnrecordedSidecar));
            pod["metadata"]["annotations"][INJECT] = "false".into();
            assert_eq!(decision(&pod, ENABLED), Decision::Skip(SkipReason::ExplicitlyOff));
        }
    }
}

#[test]
fn a_proxy_with_what_an_injector_works_out_is_not_injected_again() {
    let env = json!([{"name": "PROXY_CONFIG", "value": "{}"}, {"name": "ISTIO_META_POD_PORTS", "value": "[]"}]);
    for list in ["containers", "initContainers"] {
        let pod = json!({"spec": {list: [{"name": "istio-proxy", "env": env}]}});
        assert_eq!(decision(&pod, ENABLED), Decision::Skip(SkipReason::UnrecordedSidecar));
        let other = json!({"spec": {list: [{"name": "app", "env": env}, {"name": "istio-proxy"}]}});
        assert_eq!(decision(&other, ENABLED), Decision::Inject);
    }
    let one = json!({"spec": {"containers": [{"name": "istio-proxy", "env": [{"name": "PROXY_CONFIG"}]}]}});
    assert_eq!(decision(&one, ENABLED), Decision::Inject);
}

#[test]
fn containers_that_users_declare_to_change_the_sidecar_are_no_evidence() {
    for pod in [
        json!({"spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]}}),
        json!({"spec": {"containers": [{"name": "istio-proxy", "image": "mine"}]}}),
        json!({"spec": {"initContainers": [{"name": "istio-proxy"}]}}),
        json!({"spec": {"initContainers": [{"name": "istio-init"}], "containers": [{"name": "istio-proxy"}]}}),
        json!({"spec": {"initContainers": [{"name": "istio-init", "args": ["istio-iptables"]}], "containers": [{"name": "app"}]}}),
    ] {
        assert_eq!(decision(&pod, ENABLED), Decision::Inject, "{pod}");
    }
}
