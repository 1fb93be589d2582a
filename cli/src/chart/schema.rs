//! Validates the subset of JSON Schema that the chart's `values.schema.json` uses. An unknown keyword is an error, so that none is ignored.

use regex::Regex;
use serde_json::Value;

/// Returns every violation of a schema in a document, with paths.
pub(super) fn findings(schema: &Value, document: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    check(schema, document, "", &mut findings);
    findings
}

fn check(schema: &Value, value: &Value, path: &str, findings: &mut Vec<String>) {
    let Some(rules) = schema.as_object() else { return };
    let name = if path.is_empty() { "the values" } else { path };
    for (rule, wanted) in rules {
        match rule.as_str() {
            "$schema" | "title" | "description" | "properties" => {}
            "type" => {
                let types: Vec<&str> = match wanted {
                    Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
                    one => one.as_str().into_iter().collect(),
                };
                if !types.iter().any(|wanted| has_type(value, wanted)) {
                    return findings.push(format!("{name}: must be {}, found {value}", types.join(" or ")));
                }
            }
            "enum" => {
                let allowed = wanted.as_array().map_or(&[][..], Vec::as_slice);
                if !allowed.contains(value) {
                    let allowed: Vec<String> = allowed.iter().map(word).collect();
                    findings.push(format!("{name}: {} is not one of {}", word(value), allowed.join(", ")));
                }
            }
            "required" => {
                let required = wanted.as_array().into_iter().flatten().filter_map(Value::as_str);
                findings.extend(
                    required
                        .filter(|key| value.is_object() && value.get(key).is_none())
                        .map(|key| format!("{}: is missing", below(path, key))),
                );
            }
            "additionalProperties" => {
                let known = rules.get("properties").and_then(Value::as_object);
                for (key, field) in value.as_object().into_iter().flatten() {
                    if known.is_some_and(|known| known.contains_key(key)) {
                        continue;
                    }
                    let path = below(path, key);
                    if *wanted == Value::Bool(false) {
                        let keys: Vec<&str> =
                            known.map(|known| known.keys().map(String::as_str).collect()).unwrap_or_default();
                        findings.push(format!("{path}: no such setting; settings: {}", keys.join(", ")));
                    } else {
                        check(wanted, field, &path, findings);
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(wanted, item, &format!("{path}[{index}]"), findings);
                }
            }
            "pattern" | "minLength" | "minimum" | "maximum" => {
                findings.extend(violation(rule, wanted, value).map(|what| format!("{name}: {what}")));
            }
            other => findings.push(format!("{name}: unknown keyword {other:?} in the schema")),
        }
    }
    if let (Some(properties), Some(fields)) = (rules.get("properties").and_then(Value::as_object), value.as_object()) {
        for (key, schema) in properties {
            if let Some(field) = fields.get(key) {
                check(schema, field, &below(path, key), findings);
            }
        }
    }
}

/// Returns how a value violates a rule about its text or its size.
fn violation(rule: &str, wanted: &Value, value: &Value) -> Option<String> {
    let violated = match rule {
        "pattern" => {
            let pattern = wanted.as_str().and_then(|pattern| Regex::new(pattern).ok());
            value.as_str().is_some_and(|text| !pattern.is_some_and(|pattern| pattern.is_match(text)))
        }
        "minLength" => value.as_str().is_some_and(|text| Some(text.chars().count() as u64) < wanted.as_u64()),
        "minimum" => value.is_number() && value.as_f64() < wanted.as_f64(),
        _ => value.as_f64() > wanted.as_f64(),
    };
    violated.then(|| match rule {
        "pattern" => format!("{} does not match {wanted}", word(value)),
        "minLength" => "must not be empty".to_owned(),
        "minimum" => format!("{value} is less than {wanted}"),
        _ => format!("{value} is more than {wanted}"),
    })
}

fn has_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => false,
    }
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Prints a value without quotes.
fn word(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), |text| if text.is_empty() { "\"\"".to_owned() } else { text.to_owned() })
}
