//! YAML into JSON values and back, with the scalar rules that Kubernetes tools use: the only place that knows YAML.

use serde_json::Value;

/// Why a text is not a YAML document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct YamlError(String);

/// Reads one document. JSON is YAML too. An empty text is `null`.
///
/// Scalars follow YAML 1.1, as everywhere around Kubernetes: `yes` and `on` are booleans, `0644` is octal, and of two equal
/// keys the last one counts.
///
/// # Errors
/// The text is no YAML, holds more than one document, or is nested or aliased beyond reason; the message carries line and column.
pub fn from_str(text: &str) -> Result<Value, YamlError> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| YamlError(error.to_string()))
}

/// Writes a value as one YAML document, keys in their order.
///
/// Strings that YAML 1.1 or 1.2 would read as something else (`yes`, `0644`, `1e3`, `12:30`) are quoted, several lines become a
/// block, and a long line stays one line.
///
/// # Errors
/// None is known for JSON values; the library's signature has one.
pub fn to_string(value: &Value) -> Result<String, YamlError> {
    // The width is that of the longest line we would ever fold, so: never.
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
    fn reads_scalars_as_kubernetes_does() {
        let text = "a: yes\nb: 0644\nc: \"yes\"\nd: 1\nd: 2\ne: 1.5\nf:\ng: 100m\n";
        let want = json!({"a": true, "b": 420, "c": "yes", "d": 2, "e": 1.5, "f": null, "g": "100m"});
        assert_eq!(from_str(text).unwrap(), want);
    }

    #[test]
    fn takes_json_and_the_empty_text() {
        assert_eq!(from_str("{\"a\": [1, null]}").unwrap(), json!({"a": [1, null]}));
        assert_eq!(from_str("").unwrap(), Value::Null);
    }

    #[test]
    fn refuses_broken_text_with_its_place() {
        let error = from_str("a: [1\nb: 2").unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
    }
}
