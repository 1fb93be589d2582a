//! Parts of messages about findings.

use serde_json::Value;

/// Maximum number of findings in one message: people read it, and what a client sends must not make it grow.
const MAX_FINDINGS: usize = 50;

/// Joins findings with semicolons, and counts those beyond [`MAX_FINDINGS`].
pub(crate) fn join_findings<T: ToString>(findings: &[T]) -> String {
    let mut texts: Vec<String> = findings.iter().take(MAX_FINDINGS).map(ToString::to_string).collect();
    if findings.len() > MAX_FINDINGS {
        texts.push(format!("and {} more", findings.len() - MAX_FINDINGS));
    }
    texts.join("; ")
}

/// Returns the name of a JSON type, with its article.
pub(crate) const fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
