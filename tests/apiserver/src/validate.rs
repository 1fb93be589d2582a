//! Validation and defaults of MutatingWebhookConfigurations, and the encoding of Secrets. Objects of other kinds are accepted as they
//! are.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::admission::cel;
use super::store::StatusError;

const RESOURCE: &str = "mutatingwebhookconfigurations";

/// Sets defaults, as Kubernetes does (`SetDefaults_MutatingWebhook` and others).
pub(super) fn default(resource: &str, object: &mut Value) {
    if resource == "secrets" {
        encode_secret(object);
    }
    if resource != RESOURCE {
        return;
    }
    for hook in object["webhooks"].as_array_mut().into_iter().flatten().filter(|hook| hook.is_object()) {
        let defaults = [
            ("failurePolicy", json!("Fail")),
            ("matchPolicy", json!("Equivalent")),
            ("namespaceSelector", json!({})),
            ("objectSelector", json!({})),
            ("timeoutSeconds", json!(10)),
            ("reinvocationPolicy", json!("Never")),
        ];
        for (key, value) in defaults {
            if hook[key].is_null() {
                hook[key] = value;
            }
        }
        // Bytes: line breaks in base64 are not significant, and an empty value is a missing field, which nobody owns.
        if let Some(config) = hook["clientConfig"].as_object_mut() {
            match config.get("caBundle").and_then(Value::as_str).map(without_line_breaks) {
                Some(bundle) if bundle.is_empty() => drop(config.shift_remove("caBundle")),
                Some(bundle) => drop(config.insert("caBundle".to_owned(), bundle.into())),
                None => {}
            }
        }
        if hook["clientConfig"]["service"].is_object() && hook["clientConfig"]["service"]["port"].is_null() {
            hook["clientConfig"]["service"]["port"] = json!(443);
        }
        for rule in hook["rules"].as_array_mut().into_iter().flatten().filter(|rule| rule.is_object()) {
            if rule["scope"].is_null() {
                rule["scope"] = json!("*");
            }
        }
    }
}

fn without_line_breaks(text: &str) -> String {
    text.replace(['\r', '\n'], "")
}

/// Moves `stringData` to `data`.
fn encode_secret(object: &mut Value) {
    let texts = object.as_object_mut().and_then(|object| object.shift_remove("stringData")).unwrap_or_default();
    for value in object["data"].as_object_mut().into_iter().flatten().map(|(_, value)| value) {
        *value = value.as_str().map(without_line_breaks).unwrap_or_default().into();
    }
    for (key, value) in texts.as_object().into_iter().flatten() {
        object["data"][key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
    }
}

/// Reports everything that is invalid in one error, as kube-apiserver does.
pub(super) fn check(resource: &str, object: &Value) -> Result<(), StatusError> {
    if resource != RESOURCE {
        return Ok(());
    }
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for (index, hook) in object["webhooks"].as_array().into_iter().flatten().enumerate() {
        let at = |field: &str| format!("webhooks[{index}].{field}");
        let name = hook["name"].as_str().unwrap_or_default();
        if name.split('.').filter(|part| !part.is_empty()).count() < 3 {
            found.push(format!(
                "{}: Invalid value: \"{name}\": should be a domain with at least three segments separated by dots",
                at("name")
            ));
        }
        if !names.insert(name) {
            found.push(format!("{}: Duplicate value: \"{name}\"", at("name")));
        }
        check_client_config(&hook["clientConfig"], &at("clientConfig"), &mut found);
        if !matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
            found.push(format!("{}: Required value: must specify one of None, NoneOnDryRun", at("sideEffects")));
        }
        let versions: Vec<&str> =
            hook["admissionReviewVersions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !versions.contains(&"v1") {
            found.push(format!("{}: Required value: must specify one of v1, v1beta1", at("admissionReviewVersions")));
        }
        for (field, known) in [
            ("failurePolicy", ["Fail", "Ignore"]),
            ("reinvocationPolicy", ["Never", "IfNeeded"]),
            ("matchPolicy", ["Exact", "Equivalent"]),
        ] {
            if !hook[field].as_str().is_some_and(|value| known.contains(&value)) {
                found.push(format!("{}: Unsupported value: {}: supported values: {known:?}", at(field), hook[field]));
            }
        }
        if !hook["timeoutSeconds"].as_u64().is_some_and(|seconds| (1..=30).contains(&seconds)) {
            found.push(format!(
                "{}: Invalid value: {}: the timeout value must be between 1 and 30 seconds",
                at("timeoutSeconds"),
                hook["timeoutSeconds"]
            ));
        }
        for (number, rule) in hook["rules"].as_array().into_iter().flatten().enumerate() {
            for field in ["operations", "apiGroups", "apiVersions", "resources"] {
                if rule[field].as_array().is_none_or(Vec::is_empty) {
                    found.push(format!("webhooks[{index}].rules[{number}].{field}: Required value"));
                }
            }
        }
        for (number, condition) in hook["matchConditions"].as_array().into_iter().flatten().enumerate() {
            let expression = condition["expression"].as_str().unwrap_or_default();
            if let Err(error) = cel::Expression::parse(expression) {
                found.push(format!(
                    "webhooks[{index}].matchConditions[{number}].expression: Invalid value: \"{expression}\": {error}"
                ));
            }
        }
        for field in ["namespaceSelector", "objectSelector"] {
            check_selector(&hook[field], &at(field), &mut found);
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let all = if found.len() == 1 { found.concat() } else { format!("[{}]", found.join(", ")) };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let message = format!("MutatingWebhookConfiguration.admissionregistration.k8s.io \"{name}\" is invalid: {all}");
    Err(StatusError::new(422, "Invalid", message))
}

fn check_client_config(config: &Value, at: &str, found: &mut Vec<String>) {
    match (config["url"].as_str(), config["service"].as_object()) {
        (Some(url), None) if !url.starts_with("https://") => {
            found.push(format!("{at}.url: Invalid value: \"{url}\": 'https' is the only allowed URL scheme"));
        }
        (Some(_), None) => {}
        (None, Some(service)) => {
            for field in ["name", "namespace"] {
                if service.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
                    found.push(format!("{at}.service.{field}: Required value: service {field} is required"));
                }
            }
        }
        _ => found.push(format!("{at}: Required value: exactly one of url or service is required")),
    }
    // Whether they are certificates shows when the webhook is called.
    if STANDARD.decode(config["caBundle"].as_str().unwrap_or_default()).is_err() {
        found.push(format!("{at}.caBundle: Invalid value: illegal base64 data"));
    }
}

fn check_selector(selector: &Value, at: &str, found: &mut Vec<String>) {
    for (number, term) in selector["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let values = term["values"].as_array().is_some_and(|values| !values.is_empty());
        let problem = match (term["operator"].as_str(), values) {
            (Some("In" | "NotIn"), false) => {
                "values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
            }
            (Some("Exists" | "DoesNotExist"), true) => {
                "values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            }
            (Some("In" | "NotIn" | "Exists" | "DoesNotExist"), _) => continue,
            _ => "operator: Invalid value: not a valid selector operator",
        };
        found.push(format!("{at}.matchExpressions[{number}].{problem}"));
    }
}
