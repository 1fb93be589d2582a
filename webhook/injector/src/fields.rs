//! Reads a JSON document field by field and collects every error instead of stopping at the first.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// A field of a settings document that is invalid, or that has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{document}: {path}: {reason}")]
pub struct FieldError {
    /// `values`, `mesh`, `config` or `ProxyConfig`.
    pub document: &'static str,
    /// Path of the field, `global.proxy.image`; `.` for the document itself.
    pub path: String,
    /// Description of the fault.
    pub reason: String,
}

impl FieldError {
    /// Returns the message without the document's name.
    pub(crate) fn without_document(&self) -> String {
        if self.path == "." { self.reason.clone() } else { format!("{}: {}", self.path, self.reason) }
    }
}

/// The errors found in one document, and the keys that were read from it.
pub(crate) struct FieldErrors {
    document: &'static str,
    errors: RefCell<Vec<FieldError>>,
    /// Keys that are read, by the path of their object.
    known_keys: RefCell<BTreeMap<String, BTreeSet<String>>>,
}

impl FieldErrors {
    pub(crate) fn new(document: &'static str) -> Self {
        Self { document, errors: RefCell::default(), known_keys: RefCell::default() }
    }

    pub(crate) fn add(&self, path: &str, reason: impl Into<String>) {
        let path = if path.is_empty() { ".".to_owned() } else { path.to_owned() };
        self.errors.borrow_mut().push(FieldError { document: self.document, path, reason: reason.into() });
    }

    /// Records that a key of the object at `path` is read.
    pub(crate) fn add_known_key(&self, path: &str, key: &str) {
        self.known_keys.borrow_mut().entry(path.to_owned()).or_default().insert(key.to_owned());
    }

    /// Returns the keys that have no effect and look like mistakes: those that resemble a key that is read and, if `top_level`
    /// lists the other keys that the document may have at its top, unknown ones there. Istio's documents have many keys that
    /// the injector does not read; those are not reported.
    pub(crate) fn ignored_keys(&self, document: Option<&Value>, top_level: &[&str]) -> Vec<FieldError> {
        let mut ignored = Vec::new();
        for (path, known_keys) in self.known_keys.borrow().iter() {
            let segments = path.split('.').filter(|segment| !segment.is_empty());
            let object = segments.fold(document, |value, segment| value?.get(segment));
            for key in object.and_then(Value::as_object).into_iter().flat_map(Map::keys) {
                let at_top = path.is_empty() && !top_level.is_empty();
                if known_keys.contains(key) || (at_top && top_level.contains(&key.as_str())) {
                    continue;
                }
                let candidates =
                    known_keys.iter().map(String::as_str).chain(top_level.iter().copied().filter(|_| at_top));
                let reason = match closest_key(key, candidates) {
                    Some(closest) => format!("unknown key, ignored; did you mean {closest:?}?"),
                    None if at_top => "unknown key, ignored".to_owned(),
                    None => continue,
                };
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                ignored.push(FieldError { document: self.document, path, reason });
            }
        }
        ignored
    }

    pub(crate) fn into_errors(self) -> Vec<FieldError> {
        self.errors.into_inner()
    }
}

/// A value in a document, with its path. `null` counts as absent, as it does in Istio's templates.
pub(crate) struct FieldReader<'a> {
    value: Option<&'a Value>,
    path: String,
    errors: &'a FieldErrors,
}

impl<'a> FieldReader<'a> {
    pub(crate) fn root(value: Option<&'a Value>, errors: &'a FieldErrors) -> Self {
        Self { value: value.filter(|value| !value.is_null()), path: String::new(), errors }
    }

    /// Returns the field `key`, and adds an error if this value is not an object.
    pub(crate) fn field(&self, key: &str) -> FieldReader<'a> {
        self.errors.add_known_key(&self.path, key);
        let value = self.object().and_then(|object| object.get(key)).filter(|value| !value.is_null());
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        FieldReader { value, path, errors: self.errors }
    }

    pub(crate) fn raw(&self) -> Option<&'a Value> {
        self.value
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn errors(&self) -> &'a FieldErrors {
        self.errors
    }

    pub(crate) fn add_error(&self, reason: impl Into<String>) {
        self.errors.add(&self.path, reason);
    }

    pub(crate) fn object(&self) -> Option<&'a Map<String, Value>> {
        self.typed("an object", Value::as_object)
    }

    pub(crate) fn list(&self) -> &'a [Value] {
        self.typed("a list", Value::as_array).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn string(&self) -> Option<String> {
        self.typed("a string", |value| value.as_str().map(str::to_owned))
    }

    /// Returns a string; a number is accepted as it is written (`tag: 1.28`).
    pub(crate) fn string_or_number(&self) -> Option<String> {
        self.typed("a string or a number", |value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
    }

    /// Returns a boolean; the strings `true` and `false`, which Helm's `--set-string` produces, are accepted.
    pub(crate) fn bool(&self) -> Option<bool> {
        self.typed("a boolean", |value| match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if text == "true" => Some(true),
            Value::String(text) if text == "false" => Some(false),
            _ => None,
        })
    }

    /// Returns an integer from 0 to `max`; a string of digits is accepted.
    pub(crate) fn integer(&self, max: u64) -> Option<u64> {
        let number = self.typed("an integer", |value| match value {
            Value::Number(number) => number.as_u64().or_else(|| integer_from_float(number.as_f64()?)),
            Value::String(text) => text.parse().ok(),
            _ => None,
        })?;
        if number > max {
            self.add_error(format!("must be at most {max}, found {number}"));
            return None;
        }
        Some(number)
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.integer(u64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok())
    }

    pub(crate) fn u32(&self) -> Option<u32> {
        self.integer(i32::MAX as u64).and_then(|number| u32::try_from(number).ok())
    }

    pub(crate) fn string_list(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for (index, item) in self.list().iter().enumerate() {
            match item.as_str() {
                Some(text) => texts.push(text.to_owned()),
                None => self.errors.add(&format!("{}[{index}]", self.path), type_mismatch("a string", item)),
            }
        }
        texts
    }

    pub(crate) fn string_map(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (key, item) in self.object().into_iter().flatten() {
            match item {
                Value::String(text) => drop(map.insert(key.clone(), text.clone())),
                Value::Null => {}
                other => self.errors.add(&format!("{}.{key}", self.path), type_mismatch("a string", other)),
            }
        }
        map
    }

    fn typed<T>(&self, wanted: &str, take: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value?;
        let taken = take(value);
        if taken.is_none() {
            self.add_error(type_mismatch(wanted, value));
        }
        taken
    }
}

/// Returns the known key that equals `key` up to case, `_` and `-`, and one typing error.
fn closest_key<'a>(key: &str, mut candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let normalize = |key: &str| key.to_lowercase().replace(['_', '-'], "");
    let written = normalize(key);
    candidates.find(|candidate| written.len() > 3 && is_one_edit(&written, &normalize(candidate)))
}

/// Returns whether two words differ by at most one inserted, removed, replaced or transposed letter.
fn is_one_edit(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[same..], &b[same..]);
    match (a, b) {
        ([], []) => true,
        ([_, rest_a @ ..], [_, rest_b @ ..]) if rest_a == rest_b => true,
        ([one, two, rest_a @ ..], [first, second, rest_b @ ..])
            if one == second && two == first && rest_a == rest_b =>
        {
            true
        }
        ([_, rest @ ..], other) | (other, [_, rest @ ..]) if rest == other => true,
        _ => false,
    }
}

/// Formats `must be a string, found a number (5)`.
pub(crate) fn type_mismatch(wanted: &str, found: &Value) -> String {
    let found = match found {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => format!("a boolean ({flag})"),
        Value::Number(number) => format!("a number ({number})"),
        Value::String(text) => format!("a string ({:?})", text.chars().take(40).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    format!("must be {wanted}, found {found}")
}

/// Reads an integer that is written with a fraction of zero, `15020.0`, up to 2^53.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounds and fraction are checked")]
fn integer_from_float(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn suggests_keys_with_one_typing_error() {
        for (written, meant) in [
            ("imagePullSecret", "imagePullSecrets"),
            ("tagg", "tag"),
            ("statusprot", "statusPort"),
            ("StatusPort", "statusPort"),
            ("status_port", "statusPort"),
            ("statusPart", "statusPort"),
        ] {
            assert_eq!(closest_key(written, ["hub", meant].into_iter()), Some(meant), "{written}");
        }
        for (written, name) in [("sds", "sts"), ("hub", "tag"), ("proxy", "proxy_init"), ("statsPorts", "statusPort")] {
            assert_eq!(closest_key(written, std::iter::once(name)), None, "{written}");
        }
    }

    #[test]
    fn reports_misspelt_keys_and_unknown_ones_at_the_top() {
        let document = json!({"global": {"imagePulPolicy": "Always", "hub": "h", "priorityClassName": "x"}, "gateways": {}, "polcy": 1, "odd": 1});
        let errors = FieldErrors::new("values");
        let root = FieldReader::root(Some(&document), &errors);
        let (_, _, _) =
            (root.field("policy"), root.field("global").field("imagePullPolicy"), root.field("global").field("hub"));
        let texts = |known: &[&str]| {
            errors.ignored_keys(Some(&document), known).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let misspelt = [
            "values: polcy: unknown key, ignored; did you mean \"policy\"?",
            "values: global.imagePulPolicy: unknown key, ignored; did you mean \"imagePullPolicy\"?",
        ];
        assert_eq!(texts(&[]), misspelt);
        assert_eq!(texts(&["gateways"]), [misspelt[0], "values: odd: unknown key, ignored", misspelt[1]]);
    }
}
