//! Kubernetes label selectors (`metav1.LabelSelector`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::names::{is_key, is_label_value};

/// A selector that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// One condition; all of a selector must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Document {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<Expression>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: String,
    #[serde(default)]
    values: Option<Vec<String>>,
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// What is wrong with it, all findings.
    pub fn parse(selector: &Value) -> Result<Self, String> {
        let document: Option<Document> =
            serde_path_to_error::deserialize(selector).map_err(|error| error.to_string())?;
        let Document { match_labels, match_expressions } = document.unwrap_or_default();
        let mut findings = Vec::new();
        let mut requirements = Vec::new();
        for (key, value) in match_labels.into_iter().flatten() {
            check_key(&key, &mut findings);
            check_value(&key, &value, &mut findings);
            requirements.push(Requirement::In(key, vec![value]));
        }
        for Expression { key, operator, values } in match_expressions.into_iter().flatten() {
            let values = values.unwrap_or_default();
            check_key(&key, &mut findings);
            for value in &values {
                check_value(&key, value, &mut findings);
            }
            let (listed, empty) = (matches!(operator.as_str(), "In" | "NotIn"), values.is_empty());
            if listed && empty {
                findings.push(format!("`{key}`: {operator} needs values"));
            }
            requirements.push(match operator.as_str() {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" | "DoesNotExist" => {
                    if !empty {
                        findings.push(format!("`{key}`: {operator} takes no values"));
                    }
                    if operator == "Exists" { Requirement::Exists(key) } else { Requirement::DoesNotExist(key) }
                }
                _ => {
                    findings.push(format!("`{key}`: `{operator}` is none of In, NotIn, Exists and DoesNotExist"));
                    continue;
                }
            });
        }
        if findings.is_empty() { Ok(Self { requirements }) } else { Err(findings.join("; ")) }
    }

    /// The selector says nothing. To Kubernetes it then matches everything; whoever asks has to know.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// All conditions hold for these labels.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
        let one_of = |key: &str, values: &[String]| label(key).is_some_and(|label| values.iter().any(|it| it == label));
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => one_of(key, values),
            Requirement::NotIn(key, values) => !one_of(key, values),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::DoesNotExist(key) => label(key).is_none(),
        })
    }
}

fn check_key(key: &str, findings: &mut Vec<String>) {
    if !is_key(key) {
        findings.push(format!("`{key}` is no key of a label"));
    }
}

fn check_value(key: &str, value: &str, findings: &mut Vec<String>) {
    if !is_label_value(value) {
        findings.push(format!("`{key}`: `{value}` is no value of a label"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(selector: &Value, labels: &Value) -> bool {
        Selector::parse(selector).unwrap().matches(labels.as_object())
    }

    fn expression(operator: &str, values: &Value) -> Value {
        json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]})
    }

    #[test]
    fn match_labels_need_every_label() {
        let selector = json!({"matchLabels": {"app": "a", "tier": "x"}});
        assert!(matches(&selector, &json!({"app": "a", "tier": "x", "more": "y"})));
        assert!(!matches(&selector, &json!({"app": "a"})));
        assert!(!matches(&selector, &Value::Null));
    }

    #[test]
    fn in_needs_one_of_the_values() {
        let selector = expression("In", &json!(["a", "b"]));
        assert!(matches(&selector, &json!({"app": "b"})));
        assert!(!matches(&selector, &json!({"app": "c"})));
        assert!(!matches(&selector, &json!({})));
    }

    #[test]
    fn not_in_is_also_true_without_the_label() {
        let selector = expression("NotIn", &json!(["a", "b"]));
        assert!(!matches(&selector, &json!({"app": "b"})));
        assert!(matches(&selector, &json!({"app": "c"})));
        assert!(matches(&selector, &json!({})));
    }

    #[test]
    fn exists_looks_at_the_key_only() {
        for (operator, present, absent) in [("Exists", true, false), ("DoesNotExist", false, true)] {
            let selector = json!({"matchExpressions": [{"key": "app", "operator": operator}]});
            assert_eq!(matches(&selector, &json!({"app": ""})), present);
            assert_eq!(matches(&selector, &json!({})), absent);
        }
    }

    #[test]
    fn labels_and_expressions_must_all_hold() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]});
        assert!(matches(&selector, &json!({"a": "1", "b": "x"})));
        assert!(!matches(&selector, &json!({"a": "1"})));
    }

    #[test]
    fn a_selector_that_says_nothing_is_empty() {
        for selector in
            [json!({}), Value::Null, json!({"matchLabels": {}, "matchExpressions": []}), json!({"matchLabels": null})]
        {
            assert!(Selector::parse(&selector).unwrap().is_empty(), "{selector}");
        }
    }

    #[test]
    fn selectors_that_kubernetes_refuses_are_refused_with_all_reasons() {
        let selector = json!({"matchLabels": {"a b": "x", "c": "-"}, "matchExpressions": [
            {"key": "d", "operator": "in", "values": ["x"]}, {"key": "e", "operator": "In"},
            {"key": "f", "operator": "Exists", "values": ["x"]}, {"key": "Upper/g", "operator": "Exists"}]});
        let text = Selector::parse(&selector).unwrap_err();
        for part in [
            "`a b` is no key",
            "`c`: `-` is no value",
            "`d`: `in` is none of",
            "`e`: In needs values",
            "`f`: Exists takes no values",
            "`Upper/g` is no key",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn ill_typed_selectors_are_refused_with_the_place() {
        assert!(Selector::parse(&json!({"matchLabels": {"a": 1}})).unwrap_err().contains("matchLabels.a"));
        assert!(Selector::parse(&json!({"matchlabels": {}})).unwrap_err().contains("matchlabels"));
        assert!(Selector::parse(&json!("app=x")).is_err());
    }
}
