//! Judges a pod at its admission.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iptables_rules::compare::assertion::{AssertionOutcome, Violations, assert_chains};
use iptables_rules::restore::RestoreFamily;
use iptables_rules::trace::Chains;
use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::{Map, Value};
use weir_protocol::decision::SkipReason;

use super::policy::{Action, AssertionRule, CaptureAssertion, ProxyTraits};
use crate::pod_capture::{self, PodCapture, SharedIds};

/// Classes of packets that a breach names.
const MAX_SHOWN: usize = 3;

/// A rule of an assertion that does not hold for a pod, or is not known to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// Name of the assertion.
    pub assertion: String,
    /// What follows for the pod.
    pub action: Action,
    /// The rule, the traffic and its fate, for the pod's author.
    pub text: String,
}

/// What is known about the place where a pod will run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// Labels of its namespace, if they are known.
    pub namespace_labels: Option<&'a Map<String, Value>>,
    /// Whether pods get addresses of both families.
    pub is_dual_stack: bool,
    /// Whether the author of the pod, not the injector, has chosen the ids of the proxy. Then no id is exempt from an assertion: the
    /// application may have it, by the user of its image.
    pub has_authors_proxy: bool,
}

/// Judges a pod as it will be stored, by the assertions that select it.
///
/// A pod in which the plugin installs nothing captures nothing. What cannot be decided is a breach too: nobody has proved that it holds.
pub fn judge(pod: &Value, surroundings: Surroundings<'_>, assertions: &[CaptureAssertion]) -> Vec<Breach> {
    let none = Map::new();
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object).unwrap_or(&none);
    let mut breaches = Vec::new();
    let mut asked: Vec<(&CaptureAssertion, &AssertionRule)> = Vec::new();
    for assertion in assertions {
        match assertion.selects(labels, surroundings.namespace_labels) {
            Some(true) => asked.extend(assertion.rules.iter().map(|rule| (assertion, rule))),
            Some(false) => {}
            None => breaches.push(breach(assertion, "the labels of the namespace are not known yet; try again")),
        }
    }
    if asked.is_empty() {
        return breaches;
    }
    let (config, rules) = match captured(pod, surroundings.is_dual_stack) {
        Ok(captured) => captured,
        Err(text) => {
            breaches.extend(asked.iter().map(|(assertion, rule)| breach(assertion, &rule.sentence(&text))));
            return breaches;
        }
    };
    let shared = if surroundings.has_authors_proxy { SharedIds::all(&config) } else { SharedIds::find(pod, &config) };
    let traits = ProxyTraits::new(&config, &shared, &RestoreFamily::ALL);
    let questions: Vec<_> = asked.iter().map(|(_, rule)| rule.for_pod(&traits)).collect();
    let chains = RestoreFamily::ALL.map(|family| Chains::from_rule_set(&rules, family.any_address()));
    for ((assertion, rule), outcome) in asked.into_iter().zip(assert_chains(&chains, &questions)) {
        match outcome {
            AssertionOutcome::Holds => {}
            AssertionOutcome::Violated(violations) => {
                breaches.push(breach(assertion, &rule.sentence(&sentence(&violations))));
            }
            AssertionOutcome::Unknown(places) => {
                let text = format!("not decided: {}", places.join("; "));
                breaches.push(breach(assertion, &rule.sentence(&text)));
            }
        }
    }
    breaches
}

/// Returns what a pod captures, or why that is not known.
fn captured(pod: &Value, is_dual_stack: bool) -> Result<(CaptureConfig, RuleSet), String> {
    let invalid = |errors: Vec<String>| format!("its capture is invalid: {}", errors.join("; "));
    let mut config = match pod_capture::predict(pod).map_err(invalid)? {
        PodCapture::Captured { config, .. } => *config,
        // The author of a pod may have written the container.
        PodCapture::Skipped(reason @ SkipReason::InitContainer) => return Err(format!("not decided: {reason}")),
        PodCapture::Skipped(_) => return Ok((CaptureConfig::default(), RuleSet::default())),
    };
    if is_dual_stack {
        const BOTH: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        config.ipv6 = config.ipv6.for_addresses(&BOTH);
    }
    let rules = plan(&config).map_err(|errors| invalid(errors.iter().map(ToString::to_string).collect()))?;
    Ok((config, rules))
}

fn breach(assertion: &CaptureAssertion, text: &str) -> Breach {
    let text = format!("CaptureAssertion {}: {text}", assertion.name);
    Breach { assertion: assertion.name.clone(), action: assertion.action, text }
}

fn sentence(violations: &Violations) -> String {
    let classes: Vec<String> = violations
        .fates
        .iter()
        .flat_map(|violation| violation.classes.iter().map(|class| format!("{class}: {}", violation.fate)))
        .collect();
    let more = if classes.len() > MAX_SHOWN || violations.fates.iter().any(|violation| violation.is_truncated) {
        "; and more"
    } else {
        ""
    };
    format!("{}{more}", classes[..classes.len().min(MAX_SHOWN)].join("; "))
}

#[cfg(test)]
mod tests {
    use iptables_rules::config::Ipv6Policy;
    use iptables_rules::names::annotation;
    use serde_json::json;

    use super::*;

    fn assertions(spec: &Value) -> Vec<CaptureAssertion> {
        let object = json!({ "apiVersion": "weir.dev/v1alpha1", "kind": "CaptureAssertion", "metadata": { "name": "pci" }, "spec": spec });
        CaptureAssertion::read_all(&object).unwrap()
    }

    /// A pod with a sidecar.
    fn meshed(capture: &CaptureConfig) -> Value {
        let annotations = json!({ annotation::STATUS: "{}", annotation::CAPTURE: capture.to_capture_annotation() });
        json!({
            "metadata": { "labels": { "app": "web" }, "annotations": annotations },
            "spec": { "containers": [{ "name": "app" }, { "name": "istio-proxy" }] },
        })
    }

    fn outside() -> Value {
        json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "app" }] } })
    }

    fn here(pod: &Value, assertions: &[CaptureAssertion]) -> Vec<Breach> {
        judge(pod, Surroundings::default(), assertions)
    }

    #[test]
    fn traffic_that_is_not_captured_is_named() {
        let databases = json!({ "name": "databases", "direction": "outbound", "ports": [3306], "must": "captured" });
        let policy = assertions(&json!({ "action": "deny", "rules": [databases] }));
        assert_eq!(here(&meshed(&CaptureConfig::default()), &policy), []);
        let excluded = CaptureConfig { outbound_ports_exclude: vec![3306], ..CaptureConfig::default() };
        let breaches = here(&meshed(&excluded), &policy);
        let [Breach { assertion, action: Action::Deny, text }] = &breaches[..] else { panic!("{breaches:?}") };
        assert_eq!(assertion, "pci");
        for part in ["CaptureAssertion pci: databases: ", "3306", "not captured"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    /// Pods that carry the records of an injection, and that the plugin skips all the same.
    #[test]
    fn pods_without_rules_break_what_demands_capture() {
        let policy = assertions(&json!({ "rules": [{ "direction": "outbound", "must": "captured" }] }));
        assert_eq!(here(&outside(), &policy).len(), 1);
        for change in [
            json!({ "spec": { "hostNetwork": true } }),
            json!({ "metadata": { "annotations": { annotation::CAPTURE: null } }, "spec": { "containers": [{ "name": "app" }] } }),
            json!({ "metadata": { "annotations": { annotation::CAPTURE: null, annotation::INJECT: "false" } } }),
            json!({ "metadata": { "annotations": { annotation::CAPTURE: null, "inject.istio.io/templates": "grpc-agent" } } }),
            json!({ "metadata": { "annotations": { annotation::STATUS: r#"{"containers":["app"]}"# } } }),
            json!({ "metadata": { "annotations": { annotation::CAPTURE: "not JSON" } } }),
        ] {
            let mut pod = meshed(&CaptureConfig::default());
            json_patch::merge(&mut pod, &change);
            assert_eq!(here(&pod, &policy).len(), 1, "{change}");
        }
        let mut pod = meshed(&CaptureConfig::default());
        pod["metadata"]["annotations"][annotation::CAPTURE].take();
        pod["spec"]["initContainers"] = json!([{ "name": "istio-init", "image": "busybox" }]);
        let [breach] = &here(&pod, &policy)[..] else { panic!("no breach") };
        assert!(breach.text.contains("not decided: init container istio-init"), "{}", breach.text);
    }

    #[test]
    fn containers_with_the_ids_of_the_proxy_are_not_captured() {
        let policy = assertions(&json!({ "rules": [{ "direction": "outbound", "must": "captured" }] }));
        for (field, name) in [("runAsUser", "uid 1337"), ("runAsGroup", "gid 1337")] {
            for path in ["/spec/containers/0", "/spec"] {
                let mut pod = meshed(&CaptureConfig::default());
                pod.pointer_mut(path).unwrap()["securityContext"] = json!({ field: 1337 });
                let [breach] = &here(&pod, &policy)[..] else { panic!("{field} in {path} is no breach") };
                assert!(breach.text.contains(name), "{}", breach.text);
            }
        }
        // A user of the author's choice may be that of the image.
        let chosen = meshed(&CaptureConfig { proxy_uids: vec![101], ..CaptureConfig::default() });
        assert_eq!(here(&chosen, &policy), []);
        let by_author = Surroundings { has_authors_proxy: true, ..Surroundings::default() };
        let [breach] = &judge(&chosen, by_author, &policy)[..] else { panic!("no breach") };
        assert!(breach.text.contains("uid 101"), "{}", breach.text);
        let mut without_proxy = chosen;
        without_proxy["spec"]["containers"] = json!([{ "name": "app" }]);
        assert_eq!(here(&without_proxy, &policy).len(), 1);

        let mut own = meshed(&CaptureConfig::default());
        own["spec"]["containers"][1]["securityContext"] = json!({ "runAsUser": 1337, "runAsGroup": 1337 });
        assert_eq!(here(&own, &policy), []);
    }

    #[test]
    fn second_family_is_not_captured_where_pods_have_both() {
        let policy = assertions(&json!({ "rules": [{ "direction": "outbound", "must": "captured" }] }));
        let both = Surroundings { is_dual_stack: true, ..Surroundings::default() };
        let undecided = CaptureConfig { ipv6: Ipv6Policy::Auto, ..CaptureConfig::default() };
        assert_eq!(here(&meshed(&undecided), &policy), []);
        let [breach] = &judge(&meshed(&undecided), both, &policy)[..] else { panic!("no breach") };
        assert!(breach.text.contains("IPv6") && !breach.text.contains("IPv4"), "{}", breach.text);
        let captured = CaptureConfig { ipv6: Ipv6Policy::Capture, ..undecided };
        assert_eq!(judge(&meshed(&captured), both, &policy), []);
    }

    #[test]
    fn selectors_decide_and_unknown_labels_are_a_breach() {
        let rules = json!([{ "direction": "outbound", "must": "captured" }]);
        let labelled =
            assertions(&json!({ "namespaceSelector": { "matchLabels": { "pci": "true" } }, "rules": rules }));
        let judge_in = |value: &str| {
            let labels = Map::from_iter([("pci".to_owned(), Value::from(value))]);
            judge(&outside(), Surroundings { namespace_labels: Some(&labels), ..Surroundings::default() }, &labelled)
        };
        assert_eq!(judge_in("true").len(), 1);
        assert_eq!(judge_in("false"), []);
        let [breach] = &here(&outside(), &labelled)[..] else { panic!("no breach") };
        assert_eq!(
            (breach.action, breach.text.as_str()),
            (Action::Warn, "CaptureAssertion pci: the labels of the namespace are not known yet; try again")
        );
        let other = assertions(&json!({ "selector": { "matchLabels": { "app": "api" } }, "rules": rules }));
        assert_eq!(here(&outside(), &other), []);
    }
}
