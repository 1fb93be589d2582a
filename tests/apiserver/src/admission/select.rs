//! Which webhooks are called: rules, selectors, conditions.

use serde_json::{Map, Value, json};

use super::{Create, WebhookEntry, cel, forbidden, review};
use crate::store::{StatusError, Store};
use crate::target::Target;

/// Label of every namespace with its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Returns the labels that `namespaceSelector` selects by; `None` for cluster-scoped objects.
pub(super) fn namespace_labels(store: &Store, target: &Target, object: &Value) -> Option<Map<String, Value>> {
    if target.resource == "namespaces" {
        return Some(labels(object));
    }
    if target.namespace.is_empty() {
        return None;
    }
    let mut found = store.get("namespaces", "", &target.namespace).map(labels).unwrap_or_default();
    found.insert(NAME_LABEL.to_owned(), target.namespace.as_str().into());
    Some(found)
}

fn labels(object: &Value) -> Map<String, Value> {
    object["metadata"]["labels"].as_object().cloned().unwrap_or_default()
}

/// Returns whether a webhook is called for an object.
pub(super) fn matches(
    hook: &WebhookEntry,
    create: &Create<'_>,
    object: &Value,
    namespace: Option<&Map<String, Value>>,
) -> Result<bool, StatusError> {
    // Webhooks are never called for webhook configurations: a broken one could not be fixed.
    if create.target.api_version.starts_with("admissionregistration.k8s.io/") {
        return Ok(false);
    }
    let rules = hook.entry["rules"].as_array().into_iter().flatten();
    let selected = rules.into_iter().any(|rule| rule_matches(rule, create.target))
        && namespace.is_none_or(|labels| selector_matches(&hook.entry["namespaceSelector"], labels))
        && selector_matches(&hook.entry["objectSelector"], &labels(object));
    if !selected {
        return Ok(false);
    }
    conditions_hold(hook, create, object)
        .or_else(|error| if hook.ignores_failure() { Ok(false) } else { Err(forbidden(create, object, &error)) })
}

/// Returns whether all conditions hold. One that does not hold takes precedence over one with an error.
fn conditions_hold(hook: &WebhookEntry, create: &Create<'_>, object: &Value) -> Result<bool, String> {
    let Some(conditions) = hook.entry["matchConditions"].as_array().filter(|conditions| !conditions.is_empty()) else {
        return Ok(true);
    };
    let request = review::attributes(create, object);
    let variables = json!({ "object": object, "oldObject": null, "request": request });
    let Value::Object(variables) = variables else { return Ok(true) };
    let results: Vec<Result<bool, String>> = conditions
        .iter()
        .map(|condition| {
            let expression = condition["expression"].as_str().unwrap_or_default();
            cel::Expression::parse(expression)
                .and_then(|parsed| parsed.holds(&variables))
                .map_err(|error| format!("expression '{expression}' resulted in error: {error}"))
        })
        .collect();
    if results.contains(&Ok(false)) {
        return Ok(false);
    }
    results.into_iter().try_fold(true, |all, result| result.map(|holds| all && holds))
}

fn rule_matches(rule: &Value, target: &Target) -> bool {
    let (group, version) = target.api_version.split_once('/').unwrap_or(("", &target.api_version));
    let lists = |field: &str, value: &str| {
        rule[field].as_array().into_iter().flatten().any(|item| item == "*" || item == value)
    };
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => !target.namespace.is_empty(),
        Some("Cluster") => target.namespace.is_empty(),
        _ => true,
    };
    let resource = match target.subresource.as_str() {
        "" => lists("resources", &target.resource),
        part => {
            let whole = format!("{}/{part}", target.resource);
            lists("resources", &whole)
                || lists("resources", &format!("{}/*", target.resource))
                || lists("resources", "*/*")
        }
    };
    lists("operations", "CREATE") && lists("apiGroups", group) && lists("apiVersions", version) && resource && scope
}

/// Returns whether a LabelSelector matches; an empty or missing one matches everything.
fn selector_matches(selector: &Value, labels: &Map<String, Value>) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let terms = selector["matchExpressions"].as_array().into_iter().flatten();
    equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && terms.into_iter().all(|term| {
            let found = labels.get(term["key"].as_str().unwrap_or_default());
            let listed =
                found.is_some_and(|found| term["values"].as_array().is_some_and(|values| values.contains(found)));
            match term["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => found.is_some(),
                Some("DoesNotExist") => found.is_none(),
                _ => false,
            }
        })
}
