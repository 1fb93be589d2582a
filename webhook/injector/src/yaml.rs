//! Converts YAML to JSON values and back, with the scalar rules of Kubernetes tools.

use serde_json::Value;

/// Error returned when a text is not a YAML document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct YamlError(String);

/// Parses one document, which may be JSON. An empty text is `null`.
///
/// Scalars follow YAML 1.1, as in Kubernetes: `yes` and `on` are booleans, and `0644` is octal. The last of equal keys wins.
///
/// # Errors
/// The text is not YAML, has more than one document, or exceeds the parser's limits on nesting and aliases; the message has line
/// and column.
pub fn from_str(text: &str) -> Result<Value, YamlError> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let text = error.to_string();
        // The library names functions of its own.
        let second = text.strip_prefix("multiple YAML documents").and_then(|rest| rest.rsplit_once(" at "));
        YamlError(match second {
            Some((_, place)) => format!("has more than one YAML document, at {place}; only one is expected"),
            None => text,
        })
    })
}

/// Writes a value as one YAML document and keeps the order of keys.
///
/// Strings that YAML 1.1 or 1.2 would parse as another type (`yes`, `0644`, `1e3`, `12:30`) are quoted, strings with several lines
/// become blocks, and long lines are not folded.
///
/// # Errors
/// None for JSON values; the library's signature has one.
pub fn to_string(value: &Value) -> Result<String, YamlError> {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    let mut text = String::new();
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options)
        .map_err(|error| YamlError(error.to_string()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parses_scalars_as_kubernetes_does() {
        let text = "a: yes\nb: 0644\nc: \"yes\"\nd: 1\nd: 2\ne: 1.5\nf:\ng: 100m\n";
        let want = json!({"a": true, "b": 420, "c": "yes", "d": 2, "e": 1.5, "f": null, "g": "100m"});
        assert_eq!(from_str(text).unwrap(), want);
    }

    #[test]
    fn parses_json_and_the_empty_text() {
        assert_eq!(from_str("{\"a\": [1, null]}").unwrap(), json!({"a": [1, null]}));
        assert_eq!(from_str("").unwrap(), Value::Null);
    }

    #[test]
    fn second_document_is_named() {
        let error = from_str("a: 1\n---\nb: 2\n").unwrap_err().to_string();
        assert_eq!(error, "has more than one YAML document, at line 3, column 1; only one is expected");
    }

    #[test]
    fn errors_have_the_line() {
        let error = from_str("a: [1\nb: 2").unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
    }
}
