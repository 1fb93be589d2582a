//! Replaces secrets in objects and texts.
//!
//! Objects first, by the names of their fields; then every text, by the looks of keys and tokens. Too much is better than too little.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::{Map, Value};

/// What replaces a secret.
const REDACTED: &str = "REDACTED";
/// Annotation with a copy of the whole object as it was applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Parts of names whose values are secrets.
const SECRET_NAME: &str = "(?:passw(?:or)?d|passphrase|secret|token|credential|api[-_.]?key|private[-_.]?key|access[-_.]?key|authorization|cookie)";

macro_rules! pattern {
    ($name:ident, $($text:expr),+) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new(&[$($text),+].concat()).expect("a valid pattern"));
    };
}

pattern!(SECRET_FIELD, "(?i)", SECRET_NAME);
// Also where the line ends of a PEM are escaped, and where its end is cut off.
pattern!(PEM_KEY, r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)");
pattern!(JWT, r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*");
pattern!(BEARER, r"(?i)\b(bearer|basic)[ +]+[A-Za-z0-9._~+/=-]{8,}");
pattern!(URL_PASSWORD, r"(://[^/\s:@]*:)[^/\s@]+@");
pattern!(
    ASSIGNMENT,
    r#"(?i)(\\?["']?[A-Za-z0-9_.-]*"#,
    SECRET_NAME,
    r#"[A-Za-z0-9_.-]*\\?["']?\s*[:=]\s*)(\\?"(?:[^"\\]|\\[^"])*\\?"|'[^']*'|[^\s,;\[\]}{&"']+)"#
);

/// Redacts an object of a cluster. `managedFields` and the applied copy are removed.
pub(super) fn object(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
    }
    fields(object);
}

fn fields(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(fields),
        Value::Object(object) => {
            redact_variable(object);
            for (name, value) in object.iter_mut() {
                // References to Secrets are objects and names of objects, and stay.
                if value.is_string() && SECRET_FIELD.is_match(name) && !name.ends_with("Name") {
                    *value = REDACTED.into();
                } else {
                    fields(value);
                }
            }
        }
        _ => {}
    }
}

/// Redacts a variable of a container: `{"name": "DB_PASSWORD", "value": "..."}`.
fn redact_variable(object: &mut Map<String, Value>) {
    let is_secret = object.get("name").and_then(Value::as_str).is_some_and(|name| SECRET_FIELD.is_match(name));
    if let Some(value) = object.get_mut("value").filter(|value| is_secret && value.is_string()) {
        *value = REDACTED.into();
    }
}

/// Redacts keys, tokens and passwords in a text.
pub(super) fn text(text: &str) -> String {
    let text = PEM_KEY.replace_all(text, REDACTED);
    let text = JWT.replace_all(&text, REDACTED);
    let text = BEARER.replace_all(&text, format!("$1 {REDACTED}"));
    let text = URL_PASSWORD.replace_all(&text, format!("${{1}}{REDACTED}@"));
    let assignment = |found: &Captures<'_>| {
        let (name, value) = (&found[1], &found[2]);
        // What a reader needs: switches, numbers, references to objects, and nothing at all.
        let is_harmless =
            matches!(value.trim_matches(['"', '\'', '\\']), "" | "true" | "false" | "null" | "none" | REDACTED)
                || value.parse::<u32>().is_ok_and(|number| number < 100_000);
        if is_harmless || name.contains("Name") {
            return found[0].to_owned();
        }
        let quote = if value.starts_with("\\\"") {
            "\\\""
        } else {
            value.get(..1).filter(|c| ["\"", "'"].contains(c)).unwrap_or("")
        };
        format!("{name}{quote}{REDACTED}{quote}")
    };
    ASSIGNMENT.replace_all(&text, assignment).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const JWT_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl";

    #[test]
    fn objects_keep_no_secret() {
        let mut pod = json!({
            "metadata": {"name": "a", "managedFields": [{}], "annotations": {LAST_APPLIED: "{\"x\": \"hunter2\"}", "kept": "1"}},
            "spec": {
                "imagePullSecrets": [{"name": "registry"}],
                "volumes": [{"secret": {"secretName": "weir-webhook-ca"}}],
                "containers": [{"env": [
                    {"name": "DB_PASSWORD", "value": "hunter2"},
                    {"name": "API_KEY", "value": "hunter2"},
                    {"name": "LEVEL", "value": "info"},
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                ]}],
            },
            "data": {"clientSecret": "hunter2"},
        });
        object(&mut pod);
        let text = pod.to_string();
        assert!(!text.contains("hunter2") && !text.contains("managedFields"), "{text}");
        for kept in ["registry", "weir-webhook-ca", "\"info\"", "secretKeyRef", "\"kept\""] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
    }

    #[test]
    fn texts_keep_no_secret() {
        for (secret, input) in [
            ("MIIabc", "-----BEGIN EC PRIVATE KEY-----\nMIIabc\n-----END EC PRIVATE KEY-----\nend"),
            ("MIIabc", r#""tls.key": "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----\n""#),
            ("MIIabc", "cut off: -----BEGIN RSA PRIVATE KEY-----\nMIIabc"),
            ("c2lnbmF0dXJl", &format!("token review of {JWT_TOKEN} failed")),
            ("abcdef0123456789", "Authorization: Bearer abcdef0123456789"),
            ("hunter2", "proxy http://user:hunter2@proxy:3128 refused"),
            ("hunter2", "password=hunter2 user=x"),
            ("hunter2", r#"{"password": "hunter2", "user": "x"}"#),
            ("hunter2", r#""mesh": "a: 1\nclientSecret: hunter2\nb: 2""#),
            ("hunter2", r#""values": "{\"token\": \"hunter2\", \"b\": 2}""#),
            ("hunter 2", "password: 'hunter 2'"),
            ("hunter2", "--registry-token=hunter2"),
        ] {
            let got = text(input);
            assert!(!got.contains(secret) && got.contains(REDACTED), "{input:?} gives {got:?}");
        }
    }

    #[test]
    fn harmless_texts_stay() {
        for kept in [
            "automountServiceAccountToken: true",
            "\"secretName\": \"weir-webhook-ca\"",
            "tokenExpirationSeconds: 43200",
            "\"imagePullSecrets\": [",
            "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----",
            "restored capture rules pod=shop/web netns=/run/netns/x",
        ] {
            assert_eq!(text(kept), kept);
        }
    }
}
