//! Whether a pod is injected: what the handler decides, after the API server's selectors have let the pod through.
//!
//! The first rule that decides wins: host network, system namespace, static pod, Windows, the pod's own word, never-selectors, always-selectors,
//! policy. A pod that would be injected is left alone if it carries a sidecar that nobody recorded.

use serde_json::Value;

use super::SkipReason;
use super::containers::List;
use super::context::PROXY;
use super::selector::Selector;

/// What the administrator wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct DecisionSettings<'a> {
    /// `enabled` or `disabled`; with any other text nothing is injected.
    pub policy: &'a str,
    /// Label selectors of pods that are left alone unless they ask.
    pub never_inject: &'a [Value],
    /// Label selectors of pods that are injected whatever the policy.
    pub always_inject: &'a [Value],
}

/// What is done with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It gets its sidecar.
    Inject,
    /// It is left alone.
    Skip(SkipReason),
}

/// A decision, and what somebody should hear about how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// What is done.
    pub decision: Decision,
    /// What could not be understood and was passed over.
    pub warnings: Vec<String>,
}

/// Label (or, as Istio knew it before, annotation) by which a pod asks for a sidecar or refuses it.
pub const INJECT: &str = "sidecar.istio.io/inject";

/// Annotation of the object by which the API server shows a static pod (`k8s.io/api/core/v1`, `MirrorPodAnnotationKey`).
const STATIC_POD: &str = "kubernetes.io/config.mirror";
/// Label of nodes that names their operating system.
const NODE_SYSTEM: &str = "kubernetes.io/os";

/// Namespaces whose pods the cluster needs before it can have a mesh.
const SYSTEM_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Init containers that an injection adds.
const INJECTED_INIT_CONTAINERS: [&str; 2] = ["istio-init", "istio-validation"];

/// Variables of the proxy that an injector works out for each pod.
const COMPUTED_VARIABLES: [&str; 2] = ["PROXY_CONFIG", "ISTIO_META_POD_PORTS"];

/// Decides about a pod. `namespace` is that of the request, for pods that do not name one.
pub fn decide(pod: &Value, namespace: Option<&str>, settings: DecisionSettings<'_>) -> Decided {
    let mut warnings = Vec::new();
    // Read first: what cannot be understood is told whatever decides.
    let wish = explicit(pod, &mut warnings);
    let mut decision = match local_reason(pod, namespace) {
        Some(reason) => Decision::Skip(reason),
        None => by_wish(pod, wish, settings, &mut warnings),
    };
    if decision == Decision::Inject && carries_unrecorded_sidecar(pod) {
        decision = Decision::Skip(SkipReason::UnrecordedSidecar);
    }
    Decided { decision, warnings }
}

/// What rules a sidecar out whatever anybody wishes.
fn local_reason(pod: &Value, namespace: Option<&str>) -> Option<SkipReason> {
    if pod["spec"]["hostNetwork"] == true {
        return Some(SkipReason::HostNetwork);
    }
    let own = pod["metadata"]["namespace"].as_str().filter(|own| !own.is_empty());
    if own.or(namespace).is_some_and(|namespace| SYSTEM_NAMESPACES.contains(&namespace)) {
        return Some(SkipReason::SystemNamespace);
    }
    if pod["metadata"]["annotations"].get(STATIC_POD).is_some() {
        return Some(SkipReason::StaticPod);
    }
    let system = &pod["spec"]["os"]["name"];
    let windows = system == "windows" || (system.is_null() && pod["spec"]["nodeSelector"][NODE_SYSTEM] == "windows");
    windows.then_some(SkipReason::Windows)
}

/// The pod carries a proxy that an injection made, but no record of it: a tool dropped the annotations, or the sidecar was copied
/// from a running pod. Which of its parts are the user's cannot be told, and injecting would take the old sidecar for what the
/// user wants, so the pod is left as it is. (The pod that is looked at is the original one: what is recorded is gone from it.)
///
/// The names alone prove nothing: users declare `istio-proxy` and `istio-init` to change settings of what is injected. But
/// nobody writes the variables by hand that an injector computes, or has an init container run the mesh's own program.
fn carries_unrecorded_sidecar(pod: &Value) -> bool {
    let (containers, inits) = (List::Containers.of(pod), List::InitContainers.of(pod));
    let computed = |proxy: &Value| {
        let env = proxy["env"].as_array().map_or(&[][..], Vec::as_slice);
        COMPUTED_VARIABLES.iter().all(|computed| env.iter().any(|variable| variable["name"] == *computed))
    };
    let mut proxies = containers.iter().chain(inits).filter(|container| container["name"] == PROXY).peekable();
    let captured = || {
        inits.iter().any(|init| {
            INJECTED_INIT_CONTAINERS.iter().any(|name| init["name"] == *name) && init["args"][0] == "istio-iptables"
        })
    };
    proxies.peek().is_some() && (captured() || proxies.any(computed))
}

/// What the pod, the selectors and the policy say, in this order.
fn by_wish(pod: &Value, wish: Option<bool>, settings: DecisionSettings<'_>, warnings: &mut Vec<String>) -> Decision {
    if !matches!(settings.policy, "enabled" | "disabled") {
        return Decision::Skip(SkipReason::UnknownPolicy);
    }
    match wish {
        Some(true) => return Decision::Inject,
        Some(false) => return Decision::Skip(SkipReason::ExplicitlyOff),
        None => {}
    }
    let labels = pod["metadata"]["labels"].as_object();
    let mut any = |name: &str, selectors: &[Value]| {
        selectors.iter().enumerate().any(|(position, selector)| match Selector::parse(selector) {
            Ok(selector) => !selector.is_empty() && selector.matches(labels),
            Err(reason) => {
                warnings.push(format!("{name}[{position}] is ignored: {reason}"));
                false
            }
        })
    };
    if any("neverInjectSelector", settings.never_inject) {
        return Decision::Skip(SkipReason::NeverSelector);
    }
    if any("alwaysInjectSelector", settings.always_inject) || settings.policy == "enabled" {
        return Decision::Inject;
    }
    Decision::Skip(SkipReason::PolicyDisabled)
}

/// The pod's own word; the label counts where it is present, even when it says nothing.
fn explicit(pod: &Value, warnings: &mut Vec<String>) -> Option<bool> {
    let metadata = &pod["metadata"];
    let found = ["labels", "annotations"].into_iter().find_map(|map| Some((map, metadata[map].get(INJECT)?)));
    let (map, value) = found?;
    match value.as_str() {
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some("") => None,
        _ => {
            let kind = if map == "labels" { "label" } else { "annotation" };
            warnings.push(format!("{kind} '{INJECT}' is ignored: {value} is neither \"true\" nor \"false\""));
            None
        }
    }
}

#[cfg(test)]
mod tests {
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
        let selectors = [json!({"matchLabels": {"app": "a"}})];
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
        let pod = labelled(&json!({"app": "a"}));
        let both = DecisionSettings { policy: "enabled", never_inject: &selectors, always_inject: &selectors };
        assert_eq!(decision(&pod, both), Decision::Skip(SkipReason::NeverSelector));
        assert_eq!(decision(&pod, DecisionSettings { always_inject: &selectors, ..DISABLED }), Decision::Inject);
    }

    #[test]
    fn an_empty_selector_matches_nothing() {
        let empty = [json!({}), json!({"matchLabels": {}})];
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
        let always = [json!({"matchLabels": {"app": "a"}})];
        let odd = DecisionSettings { policy: "Enabled", never_inject: &[], always_inject: &always };
        assert_eq!(decision(&asking("true"), odd), Decision::Skip(SkipReason::UnknownPolicy));
        assert_eq!(decision(&labelled(&json!({"app": "a"})), odd), Decision::Skip(SkipReason::UnknownPolicy));
    }

    #[test]
    fn a_sidecar_without_a_record_is_not_injected_again() {
        for init in INJECTED_INIT_CONTAINERS {
            for list in ["containers", "initContainers"] {
                let args = ["istio-iptables", "-p", "15001"];
                let mut pod = json!({"spec": {"initContainers": [{"name": init, "args": args}], "containers": [{"name": "app"}]}});
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
}
