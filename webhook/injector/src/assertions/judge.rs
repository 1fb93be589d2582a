//! Judges a pod at its admission.

use iptables_rules::compare::assertion::{AssertionOutcome, Violations, assert_chains};
use iptables_rules::names::annotation;
use iptables_rules::restore::RestoreFamily;
use iptables_rules::trace::Chains;
use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::{Map, Value};

use super::policy::{Action, AssertionRule, CaptureAssertion, ProxyTraits};
use crate::pod_capture;

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

/// Judges a pod as it will be stored, by the assertions that select it. `namespace` has the labels of its namespace, if they are known.
///
/// A pod outside of the mesh captures nothing. What cannot be decided is a breach too: nobody has proved that it holds.
pub fn judge(pod: &Value, namespace: Option<&Map<String, Value>>, assertions: &[CaptureAssertion]) -> Vec<Breach> {
    let none = Map::new();
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object).unwrap_or(&none);
    let mut breaches = Vec::new();
    let mut asked: Vec<(&CaptureAssertion, &AssertionRule)> = Vec::new();
    for assertion in assertions {
        match assertion.selects(labels, namespace) {
            Some(true) => asked.extend(assertion.rules.iter().map(|rule| (assertion, rule))),
            Some(false) => {}
            None => breaches.push(breach(assertion, "the labels of the namespace are not known yet; try again")),
        }
    }
    if asked.is_empty() {
        return breaches;
    }
    let (config, rules) = match captured(pod) {
        Ok(captured) => captured,
        Err(errors) => {
            let text = format!("its capture is invalid: {}", errors.join("; "));
            breaches.extend(asked.iter().map(|(assertion, rule)| breach(assertion, &rule.sentence(&text))));
            return breaches;
        }
    };
    let traits = ProxyTraits {
        uids: &config.proxy_uids,
        gids: &config.proxy_gids,
        tunnel_port: config.tunnel_port,
        families: &RestoreFamily::ALL,
    };
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

/// Returns what a pod captures: nothing if it is not injected.
fn captured(pod: &Value) -> Result<(CaptureConfig, RuleSet), Vec<String>> {
    if pod["metadata"]["annotations"].get(annotation::STATUS).is_none() {
        return Ok((CaptureConfig::default(), RuleSet::default()));
    }
    let (_, config) = pod_capture::of_pod(pod)?;
    let rules = plan(&config).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
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
    use serde_json::json;

    use super::*;

    fn assertions(spec: &Value) -> Vec<CaptureAssertion> {
        let object = json!({ "apiVersion": "weir.dev/v1alpha1", "kind": "CaptureAssertion", "metadata": { "name": "pci" }, "spec": spec });
        CaptureAssertion::read_all(&object).unwrap()
    }

    fn pod(capture: Option<&CaptureConfig>) -> Value {
        let mut annotations = json!({});
        if let Some(capture) = capture {
            annotations[annotation::STATUS] = "{}".into();
            annotations[annotation::CAPTURE] = capture.to_capture_annotation().into();
        }
        json!({ "metadata": { "labels": { "app": "web" }, "annotations": annotations }, "spec": {} })
    }

    #[test]
    fn traffic_that_is_not_captured_is_named() {
        let databases = json!({ "name": "databases", "direction": "outbound", "ports": [3306], "must": "captured" });
        let policy = assertions(&json!({ "action": "deny", "rules": [databases] }));
        assert_eq!(judge(&pod(Some(&CaptureConfig::default())), None, &policy), []);
        let excluded = CaptureConfig { outbound_ports_exclude: vec![3306], ..CaptureConfig::default() };
        let breaches = judge(&pod(Some(&excluded)), None, &policy);
        let [Breach { assertion, action: Action::Deny, text }] = &breaches[..] else { panic!("{breaches:?}") };
        assert_eq!(assertion, "pci");
        for part in ["CaptureAssertion pci: databases: ", "3306", "not captured"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(judge(&pod(None), None, &policy).len(), 1, "a pod outside of the mesh captures nothing");
    }

    #[test]
    fn selectors_decide_and_unknown_labels_are_a_breach() {
        let rules = json!([{ "direction": "outbound", "must": "captured" }]);
        let labelled =
            assertions(&json!({ "namespaceSelector": { "matchLabels": { "pci": "true" } }, "rules": rules }));
        let labels = |value: &str| Map::from_iter([("pci".to_owned(), Value::from(value))]);
        assert_eq!(judge(&pod(None), Some(&labels("true")), &labelled).len(), 1);
        assert_eq!(judge(&pod(None), Some(&labels("false")), &labelled), []);
        let [breach] = &judge(&pod(None), None, &labelled)[..] else { panic!("no breach") };
        assert_eq!(
            (breach.action, breach.text.as_str()),
            (Action::Warn, "CaptureAssertion pci: the labels of the namespace are not known yet; try again")
        );
        let other = assertions(&json!({ "selector": { "matchLabels": { "app": "api" } }, "rules": rules }));
        assert_eq!(judge(&pod(None), None, &other), []);
    }
}
