use serde_json::json;

use super::*;

const ENABLED: InjectionPolicy<'_> = InjectionPolicy { policy: "enabled", never_inject: &[], always_inject: &[] };
const DISABLED: InjectionPolicy<'_> = InjectionPolicy { policy: "disabled", ..ENABLED };

fn decision(pod: &Value, policy: InjectionPolicy<'_>) -> Decision {
    decide(pod, Some("default"), policy).decision
}

fn labelled(labels: &Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

fn requesting(value: &str) -> Value {
    labelled(&json!({INJECT_LABEL: value, "app": "a"}))
}

#[test]
fn host_network_overrides_the_pods_label() {
    let mut pod = requesting("true");
    pod["spec"]["hostNetwork"] = true.into();
    assert_eq!(decision(&pod, ENABLED), Decision::Skip(SkipReason::HostNetwork));
}

#[test]
fn pods_in_system_namespaces_are_skipped() {
    for namespace in SYSTEM_NAMESPACES {
        let skip = Decision::Skip(SkipReason::SystemNamespace);
        assert_eq!(decide(&requesting("true"), Some(namespace), ENABLED).decision, skip);
        let pod = json!({"metadata": {"namespace": namespace}});
        assert_eq!(decide(&pod, Some("default"), ENABLED).decision, skip);
    }
    let pod = json!({"metadata": {"namespace": "mine"}});
    assert_eq!(decide(&pod, Some("kube-system"), ENABLED).decision, Decision::Inject);
    assert_eq!(decide(&json!({}), None, ENABLED).decision, Decision::Inject);
}

#[test]
fn static_and_windows_pods_are_skipped_even_if_they_opt_in() {
    let mut static_pod = requesting("true");
    static_pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "0f3a".into();
    assert_eq!(decision(&static_pod, ENABLED), Decision::Skip(SkipReason::StaticPod));
    for (spec, windows) in [
        (json!({"os": {"name": "windows"}}), true),
        (json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), true),
        (json!({"os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "windows"}}), false),
        (json!({"nodeSelector": {"kubernetes.io/os": "linux"}}), false),
    ] {
        let mut pod = requesting("true");
        pod["spec"] = spec;
        let expected = if windows { Decision::Skip(SkipReason::Windows) } else { Decision::Inject };
        assert_eq!(decision(&pod, ENABLED), expected, "{pod}");
    }
}

#[test]
fn pod_label_overrides_selectors_and_policy() {
    let selectors = [json!({"matchLabels": {"app": "a"}})].map(|selector| Selector::parse(&selector));
    let never = InjectionPolicy { never_inject: &selectors, ..DISABLED };
    assert_eq!(decision(&requesting("true"), never), Decision::Inject);
    let always = InjectionPolicy { always_inject: &selectors, ..ENABLED };
    assert_eq!(decision(&requesting("false"), always), Decision::Skip(SkipReason::OptedOut));
}

#[test]
fn label_overrides_annotation_even_when_empty() {
    let pod = |label: Option<&str>, annotation: &str| {
        let mut pod = json!({"metadata": {"annotations": {INJECT_LABEL: annotation}}});
        if let Some(label) = label {
            pod["metadata"]["labels"][INJECT_LABEL] = label.into();
        }
        pod
    };
    assert_eq!(decision(&pod(None, "false"), ENABLED), Decision::Skip(SkipReason::OptedOut));
    assert_eq!(decision(&pod(None, "true"), DISABLED), Decision::Inject);
    assert_eq!(decision(&pod(Some("true"), "false"), DISABLED), Decision::Inject);
    assert_eq!(decision(&pod(Some(""), "false"), ENABLED), Decision::Inject);
}

#[test]
fn invalid_label_value_is_ignored_with_a_warning() {
    for value in ["True", "yes", " true"] {
        let trace = decide(&requesting(value), None, DISABLED);
        assert_eq!(trace.decision, Decision::Skip(SkipReason::PolicyDisabled));
        assert_eq!(trace.warnings.len(), 1, "{value}");
        assert!(trace.warnings[0].contains(&format!("\"{value}\"")), "{:?}", trace.warnings);
    }
    assert_eq!(decide(&requesting(""), None, DISABLED).warnings, Vec::<String>::new());
    let system = decide(&requesting("yes"), Some("kube-system"), ENABLED);
    assert_eq!(system.decision, Decision::Skip(SkipReason::SystemNamespace));
    assert_eq!(system.warnings.len(), 1, "reported whichever rule decides: {:?}", system.warnings);
}

#[test]
fn never_overrides_always_and_always_overrides_policy() {
    let selectors = [json!({"matchLabels": {"other": "x"}}), json!({"matchLabels": {"app": "a"}})];
    let selectors = selectors.map(|selector| Selector::parse(&selector));
    let pod = labelled(&json!({"app": "a"}));
    let both = InjectionPolicy { policy: "enabled", never_inject: &selectors, always_inject: &selectors };
    assert_eq!(decision(&pod, both), Decision::Skip(SkipReason::NeverSelector));
    assert_eq!(decision(&pod, InjectionPolicy { always_inject: &selectors, ..DISABLED }), Decision::Inject);
}

#[test]
fn empty_selector_matches_nothing() {
    let empty = [json!({}), json!({"matchLabels": {}})].map(|selector| Selector::parse(&selector));
    assert_eq!(decision(&json!({}), InjectionPolicy { never_inject: &empty, ..ENABLED }), Decision::Inject);
    assert_eq!(
        decision(&json!({}), InjectionPolicy { always_inject: &empty, ..DISABLED }),
        Decision::Skip(SkipReason::PolicyDisabled)
    );
}

#[test]
fn invalid_selector_is_ignored_with_a_warning() {
    let selectors =
        [json!({"matchExpressions": [{"key": "app", "operator": "Is"}]}), json!({"matchLabels": {"app": "a"}})];
    let selectors = selectors.map(|selector| Selector::parse(&selector));
    let policy = InjectionPolicy { never_inject: &selectors, ..ENABLED };
    let trace = decide(&labelled(&json!({"app": "a"})), None, policy);
    assert_eq!(trace.decision, Decision::Skip(SkipReason::NeverSelector));
    assert_eq!(trace.warnings.len(), 1);
    assert!(trace.warnings[0].starts_with("neverInjectSelector[0] is ignored: "), "{:?}", trace.warnings);
}

#[test]
fn policy_decides_about_pods_without_a_label() {
    assert_eq!(decision(&json!({}), ENABLED), Decision::Inject);
    assert_eq!(decision(&json!({}), DISABLED), Decision::Skip(SkipReason::PolicyDisabled));
}

#[test]
fn unknown_policy_injects_nothing() {
    let always = [json!({"matchLabels": {"app": "a"}})].map(|selector| Selector::parse(&selector));
    let odd = InjectionPolicy { policy: "Enabled", never_inject: &[], always_inject: &always };
    assert_eq!(decision(&requesting("true"), odd), Decision::Skip(SkipReason::UnknownPolicy));
    assert_eq!(decision(&labelled(&json!({"app": "a"})), odd), Decision::Skip(SkipReason::UnknownPolicy));
}

#[test]
fn trace_lists_every_evaluated_rule_and_the_last_decides() {
    let rules = |pod: &Value, policy| {
        let trace = decide(pod, None, policy);
        let evaluated: Vec<(&str, bool)> =
            trace.evaluations.iter().map(|it| (it.rule.name(), it.decision.is_some())).collect();
        let last = trace.evaluations.iter().rev().find_map(|it| it.decision).unwrap();
        assert_eq!(last, trace.decision);
        evaluated
    };
    let evaluated = rules(&json!({"spec": {"hostNetwork": true}}), ENABLED);
    assert_eq!(evaluated, [("host_network", true)]);
    let evaluated = rules(&json!({}), DISABLED);
    assert_eq!(evaluated.len(), 9);
    assert_eq!(evaluated[8], ("policy", true));
    assert!(evaluated[..8].iter().all(|(_, decides)| !decides), "{evaluated:?}");
    let evaluated = rules(&requesting("true"), DISABLED);
    assert_eq!(evaluated[5..], [("own_word", true), ("unrecorded_sidecar", false)]);
}

#[test]
fn pod_with_unrecorded_sidecar_is_skipped() {
    for init in INJECTED_INIT_CONTAINERS {
        for list in ["containers", "initContainers"] {
            let args = ["istio-iptables", "-p", "15001"];
            let mut pod =
                json!({"spec": {"initContainers": [{"name": init, "args": args}], "containers": [{"name": "app"}]}});
            pod["spec"][list].as_array_mut().unwrap().push(json!({"name": "istio-proxy"}));
            assert_eq!(decision(&pod, ENABLED), Decision::Skip(SkipReason::UnrecordedSidecar));
            pod["metadata"]["annotations"][INJECT_LABEL] = "false".into();
            assert_eq!(decision(&pod, ENABLED), Decision::Skip(SkipReason::OptedOut));
        }
    }
}

#[test]
fn proxy_with_computed_variables_counts_as_injected() {
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
fn user_declared_proxy_containers_do_not_count_as_injected() {
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
