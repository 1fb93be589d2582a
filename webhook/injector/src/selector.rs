//! Kubernetes label selectors (`metav1.LabelSelector`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::name_rules::{is_label_value, is_qualified_name};

/// A valid selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// One condition. A selector matches if all its conditions hold.
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
    /// Parses a selector.
    ///
    /// # Errors
    /// All errors of the selector, joined by `; `.
    pub fn parse(selector: &Value) -> Result<Self, String> {
        let document: Option<Document> =
            serde_path_to_error::deserialize(selector).map_err(|error| error.to_string())?;
        let Document { match_labels, match_expressions } = document.unwrap_or_default();
        let mut errors = Vec::new();
        let mut requirements = Vec::new();
        for (key, value) in match_labels.into_iter().flatten() {
            check_key(&key, &mut errors);
            check_value(&key, &value, &mut errors);
            requirements.push(Requirement::In(key, vec![value]));
        }
        for Expression { key, operator, values } in match_expressions.into_iter().flatten() {
            let values = values.unwrap_or_default();
            check_key(&key, &mut errors);
            for value in &values {
                check_value(&key, value, &mut errors);
            }
            let (listed, empty) = (matches!(operator.as_str(), "In" | "NotIn"), values.is_empty());
            if listed && empty {
                errors.push(format!("`{key}`: {operator} requires values"));
            }
            requirements.push(match operator.as_str() {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" | "DoesNotExist" => {
                    if !empty {
                        errors.push(format!("`{key}`: {operator} does not allow values"));
                    }
                    if operator == "Exists" { Requirement::Exists(key) } else { Requirement::DoesNotExist(key) }
                }
                _ => {
                    errors.push(format!("`{key}`: operator `{operator}` is not In, NotIn, Exists or DoesNotExist"));
                    continue;
                }
            });
        }
        if errors.is_empty() { Ok(Self { requirements }) } else { Err(errors.join("; ")) }
    }

    /// Returns whether the selector has no conditions, so that it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Returns whether the selector matches the labels.
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

fn check_key(key: &str, errors: &mut Vec<String>) {
    if !is_qualified_name(key) {
        errors.push(format!("`{key}` is not a valid label key"));
    }
}

fn check_value(key: &str, value: &str, errors: &mut Vec<String>) {
    if !is_label_value(value) {
        errors.push(format!("`{key}`: `{value}` is not a valid label value"));
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
    fn match_labels_requires_every_label() {
        let selector = json!({"matchLabels": {"app": "a", "tier": "x"}});
        assert!(matches(&selector, &json!({"app": "a", "tier": "x", "more": "y"})));
        assert!(!matches(&selector, &json!({"app": "a"})));
        assert!(!matches(&selector, &Value::Null));
    }

    #[test]
    fn in_requires_one_of_the_values() {
        let selector = expression("In", &json!(["a", "b"]));
        assert!(matches(&selector, &json!({"app": "b"})));
        assert!(!matches(&selector, &json!({"app": "c"})));
        assert!(!matches(&selector, &json!({})));
    }

    #[test]
    fn not_in_matches_without_the_label() {
        let selector = expression("NotIn", &json!(["a", "b"]));
        assert!(!matches(&selector, &json!({"app": "b"})));
        assert!(matches(&selector, &json!({"app": "c"})));
        assert!(matches(&selector, &json!({})));
    }

    #[test]
    fn exists_depends_on_the_key_only() {
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
    fn a_selector_without_conditions_is_empty() {
        for selector in
            [json!({}), Value::Null, json!({"matchLabels": {}, "matchExpressions": []}), json!({"matchLabels": null})]
        {
            assert!(Selector::parse(&selector).unwrap().is_empty(), "{selector}");
        }
    }

    #[test]
    fn invalid_selectors_are_rejected_with_all_reasons() {
        let selector = json!({"matchLabels": {"a b": "x", "c": "-"}, "matchExpressions": [
            {"key": "d", "operator": "in", "values": ["x"]}, {"key": "e", "operator": "In"},
            {"key": "f", "operator": "Exists", "values": ["x"]}, {"key": "Upper/g", "operator": "Exists"}]});
        let text = Selector::parse(&selector).unwrap_err();
        for part in [
            "`a b` is not a valid label key",
            "`c`: `-` is not a valid label value",
            "`d`: operator `in` is not",
            "`e`: In requires values",
            "`f`: Exists does not allow values",
            "`Upper/g` is not a valid label key",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn ill_typed_selectors_are_rejected_with_the_path() {
        assert!(Selector::parse(&json!({"matchLabels": {"a": 1}})).unwrap_err().contains("matchLabels.a"));
        assert!(Selector::parse(&json!({"matchlabels": {}})).unwrap_err().contains("matchlabels"));
        assert!(Selector::parse(&json!("app=x")).is_err());
    }
}
