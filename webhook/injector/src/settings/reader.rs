//! A walk through a document that collects every ill-typed field instead of stopping at the first.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::SettingsError;

/// What was found wrong in one document.
pub(super) struct Findings {
    document: &'static str,
    errors: RefCell<Vec<SettingsError>>,
    /// Keys that were asked for, by the path of their object.
    asked: RefCell<BTreeMap<String, BTreeSet<String>>>,
}

impl Findings {
    pub(super) fn new(document: &'static str) -> Self {
        Self { document, errors: RefCell::default(), asked: RefCell::default() }
    }

    pub(super) fn add(&self, path: &str, reason: impl Into<String>) {
        let path = if path.is_empty() { ".".to_owned() } else { path.to_owned() };
        self.errors.borrow_mut().push(SettingsError { document: self.document, path, reason: reason.into() });
    }

    /// Notes that a key of the object at `path` is one that is read.
    pub(super) fn asked(&self, path: &str, key: &str) {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains_key(path) {
            asked.insert(path.to_owned(), BTreeSet::new());
        }
        if let Some(keys) = asked.get_mut(path)
            && !keys.contains(key)
        {
            keys.insert(key.to_owned());
        }
    }

    /// Keys of the document that look like mistakes for ones that are read, or, where `known` lists all keys of its top, are
    /// none of them. Istio's documents have many keys that are nobody's business here: those are passed over in silence.
    pub(super) fn passed_over(&self, document: Option<&Value>, known: &[&str]) -> Vec<SettingsError> {
        let mut found = Vec::new();
        for (path, asked) in self.asked.borrow().iter() {
            let steps = path.split('.').filter(|step| !step.is_empty());
            let object = steps.fold(document, |value, step| value?.get(step));
            for key in object.and_then(Value::as_object).into_iter().flat_map(Map::keys) {
                let at_top = path.is_empty() && !known.is_empty();
                if asked.contains(key) || (at_top && known.contains(&key.as_str())) {
                    continue;
                }
                let names = asked.iter().map(String::as_str).chain(known.iter().copied().filter(|_| at_top));
                let reason = match likeliest(key, names) {
                    Some(meant) => format!("is not known and has no effect; is {meant:?} meant?"),
                    None if at_top => "is not known and has no effect".to_owned(),
                    None => continue,
                };
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                found.push(SettingsError { document: self.document, path, reason });
            }
        }
        found
    }

    pub(super) fn into_errors(self) -> Vec<SettingsError> {
        self.errors.into_inner()
    }
}

/// One place in a document. `null` counts as absent, as it does in Istio's templates.
pub(super) struct Node<'a> {
    value: Option<&'a Value>,
    path: String,
    findings: &'a Findings,
}

impl<'a> Node<'a> {
    pub(super) fn root(value: Option<&'a Value>, findings: &'a Findings) -> Self {
        Self { value: value.filter(|value| !value.is_null()), path: String::new(), findings }
    }

    /// The field of that name; complains where this place is something else than an object.
    pub(super) fn at(&self, key: &str) -> Node<'a> {
        self.findings.asked(&self.path, key);
        let value = self.object().and_then(|object| object.get(key)).filter(|value| !value.is_null());
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Node { value, path, findings: self.findings }
    }

    pub(super) fn raw(&self) -> Option<&'a Value> {
        self.value
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn findings(&self) -> &'a Findings {
        self.findings
    }

    pub(super) fn refuse(&self, reason: impl Into<String>) {
        self.findings.add(&self.path, reason);
    }

    pub(super) fn object(&self) -> Option<&'a Map<String, Value>> {
        self.typed("an object", Value::as_object)
    }

    pub(super) fn list(&self) -> &'a [Value] {
        self.typed("a list", Value::as_array).map_or(&[], Vec::as_slice)
    }

    pub(super) fn text(&self) -> Option<String> {
        self.typed("a string", |value| value.as_str().map(str::to_owned))
    }

    /// A string; numbers are taken as they are written (`tag: 1.28`).
    pub(super) fn text_or_number(&self) -> Option<String> {
        self.typed("a string or a number", |value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
    }

    /// A boolean; the strings `true` and `false` are taken too, as `--set-string` leaves them.
    pub(super) fn flag(&self) -> Option<bool> {
        self.typed("a boolean", |value| match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if text == "true" => Some(true),
            Value::String(text) if text == "false" => Some(false),
            _ => None,
        })
    }

    /// A number from 0 to `max`; a string of digits is taken too.
    pub(super) fn number(&self, max: u64) -> Option<u64> {
        let number = self.typed("a whole number", |value| match value {
            Value::Number(number) => number.as_u64().or_else(|| whole(number.as_f64()?)),
            Value::String(text) => text.parse().ok(),
            _ => None,
        })?;
        if number > max {
            self.refuse(format!("{number} is more than {max}"));
            return None;
        }
        Some(number)
    }

    pub(super) fn port(&self) -> Option<u16> {
        self.number(u64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok())
    }

    pub(super) fn number_u32(&self) -> Option<u32> {
        self.number(i32::MAX as u64).and_then(|number| u32::try_from(number).ok())
    }

    pub(super) fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for (index, item) in self.list().iter().enumerate() {
            match item.as_str() {
                Some(text) => texts.push(text.to_owned()),
                None => self.findings.add(&format!("{}[{index}]", self.path), mismatch("a string", item)),
            }
        }
        texts
    }

    pub(super) fn text_map(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (key, item) in self.object().into_iter().flatten() {
            match item {
                Value::String(text) => drop(map.insert(key.clone(), text.clone())),
                Value::Null => {}
                other => self.findings.add(&format!("{}.{key}", self.path), mismatch("a string", other)),
            }
        }
        map
    }

    fn typed<T>(&self, wanted: &str, take: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value?;
        let taken = take(value);
        if taken.is_none() {
            self.refuse(mismatch(wanted, value));
        }
        taken
    }
}

/// The name that somebody who wrote `key` meant: the same but for upper and lower case, or for one slip of the keyboard.
fn likeliest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let written = key.to_lowercase().replace(['_', '-'], "");
    names.into_iter().find(|name| written.len() > 3 && is_slip(&written, &name.to_lowercase().replace(['_', '-'], "")))
}

/// Whether two words differ by one letter that is missing, one too many, another one, or two that stand the wrong way round.
fn is_slip(a: &str, b: &str) -> bool {
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

/// `must be a string, found a number (5)`.
pub(super) fn mismatch(wanted: &str, found: &Value) -> String {
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

/// Whole numbers that were written as `15020.0`, up to 2^53.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounds and fraction are checked")]
fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_slip_is_one_letter() {
        for (written, meant) in [
            ("imagePullSecret", "imagePullSecrets"),
            ("tagg", "tag"),
            ("statusprot", "statusPort"),
            ("StatusPort", "statusPort"),
            ("status_port", "statusPort"),
            ("statusPart", "statusPort"),
        ] {
            assert_eq!(likeliest(written, ["hub", meant].into_iter()), Some(meant), "{written}");
        }
        for (written, name) in [("sds", "sts"), ("hub", "tag"), ("proxy", "proxy_init"), ("statsPorts", "statusPort")] {
            assert_eq!(likeliest(written, std::iter::once(name)), None, "{written}");
        }
    }

    #[test]
    fn names_mistakes_with_their_path_and_is_silent_about_the_rest() {
        let document = json!({"global": {"imagePulPolicy": "Always", "hub": "h", "priorityClassName": "x"}, "gateways": {}, "polcy": 1, "odd": 1});
        let findings = Findings::new("values");
        let root = Node::root(Some(&document), &findings);
        let (_, _, _) = (root.at("policy"), root.at("global").at("imagePullPolicy"), root.at("global").at("hub"));
        let texts = |known: &[&str]| {
            findings.passed_over(Some(&document), known).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let slips = [
            "values: polcy: is not known and has no effect; is \"policy\" meant?",
            "values: global.imagePulPolicy: is not known and has no effect; is \"imagePullPolicy\" meant?",
        ];
        assert_eq!(texts(&[]), slips);
        assert_eq!(texts(&["gateways"]), [slips[0], "values: odd: is not known and has no effect", slips[1]]);
    }
}
