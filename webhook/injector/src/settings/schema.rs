//! Protobuf messages as tables: enough of the proto3 JSON mapping to check a document, bring it into canonical form and print
//! it as Istio's Go code does (<https://protobuf.dev/programming-guides/json/>).
//!
//! The canonical form of a message is an object with lowerCamel names in declaration order, without nulls and without
//! scalars, lists and maps at their zero value, which proto3 cannot tell from absent ones.

use serde_json::{Map, Number, Value};

use super::reader::{Findings, mismatch};

/// A message: its fields in declaration order.
pub(super) type Message = [Field];

/// One field of a message.
pub(super) struct Field {
    /// The lowerCamel name; the `snake_case` one is accepted as well.
    pub(super) name: &'static str,
    /// What it holds.
    pub(super) kind: Kind,
}

/// Type of a field.
pub(super) enum Kind {
    /// `string`.
    Text,
    /// `int32`.
    Int,
    /// `uint32`.
    Uint,
    /// `double`.
    Double,
    /// `Int32Value`, `Int64Value`, `UInt32Value`: zero is a value.
    IntValue,
    /// `BoolValue`: false is a value.
    FlagValue,
    /// `Duration`.
    Duration,
    /// An enum; the first name is the zero value.
    Choice(&'static [&'static str]),
    /// `repeated` of something.
    List(&'static Kind),
    /// `map<string, string>`.
    TextMap,
    /// Another message.
    Message(&'static Message),
    /// A message that only passes through.
    Opaque,
}

/// Shorthand for tables.
pub(super) const fn field(name: &'static str, kind: Kind) -> Field {
    Field { name, kind }
}

/// Canonical form of a message; unknown fields are left out, ill-typed ones reported under `path`.
pub(super) fn canonical(
    object: &Map<String, Value>,
    message: &Message,
    path: &str,
    findings: &Findings,
) -> Map<String, Value> {
    let mut out = Map::new();
    for field in message {
        let Some(value) = object.get(field.name).or_else(|| object.get(&snake_case(field.name))) else { continue };
        let path = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        if let Some(value) = field.kind.canonical(value, &path, findings) {
            out.insert(field.name.to_owned(), value);
        }
    }
    out
}

impl Kind {
    fn canonical(&self, value: &Value, path: &str, findings: &Findings) -> Option<Value> {
        if value.is_null() {
            return None;
        }
        let taken = match self {
            Self::Text => value.as_str().map(|text| (!text.is_empty()).then(|| value.clone())),
            Self::Int => integer(value, i64::from(i32::MIN), i64::from(i32::MAX)).map(nonzero),
            Self::Uint => integer(value, 0, i64::from(u32::MAX)).map(nonzero),
            Self::IntValue => integer(value, i64::MIN, i64::MAX).map(|number| Some(number.into())),
            Self::Double => double(value).map(|number| (number.as_f64() != Some(0.0)).then_some(Value::Number(number))),
            Self::FlagValue => value.as_bool().map(|flag| Some(Value::Bool(flag))),
            Self::Duration => value.as_str().and_then(duration).map(|text| Some(Value::String(text))),
            Self::Choice(names) => choice(value, names).map(|index| (index != 0).then(|| names[index].into())),
            Self::List(item) => value.as_array().map(|items| {
                let items = items.iter().enumerate();
                let items = items.filter_map(|(index, item_value)| {
                    item.canonical(item_value, &format!("{path}[{index}]"), findings)
                });
                let items: Vec<Value> = items.collect();
                (!items.is_empty()).then_some(Value::Array(items))
            }),
            Self::TextMap => value.as_object().map(|object| text_map(object, path, findings)),
            Self::Message(message) => {
                value.as_object().map(|object| Some(Value::Object(canonical(object, message, path, findings))))
            }
            Self::Opaque => value.is_object().then(|| Some(value.clone())),
        };
        if taken.is_none() {
            findings.add(path, mismatch(&self.describe(), value));
        }
        taken.flatten()
    }

    /// What proto3 takes where the field is not set.
    pub(super) fn zero(&self) -> Value {
        match self {
            Self::Text => "".into(),
            Self::Int | Self::Uint | Self::Double => 0.into(),
            Self::Choice(names) => names.first().copied().into(),
            Self::List(_) => Value::Array(Vec::new()),
            Self::TextMap => Value::Object(Map::new()),
            Self::IntValue | Self::FlagValue | Self::Duration | Self::Message(_) | Self::Opaque => Value::Null,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Text => "a string".to_owned(),
            Self::Int | Self::Uint | Self::IntValue => "a whole number in range".to_owned(),
            Self::Double => "a number".to_owned(),
            Self::FlagValue => "a boolean".to_owned(),
            Self::Duration => "a duration in seconds such as \"45s\"".to_owned(),
            Self::Choice(names) => format!("one of {}", names.join(", ")),
            Self::List(_) => "a list".to_owned(),
            Self::TextMap | Self::Message(_) | Self::Opaque => "an object".to_owned(),
        }
    }
}

fn nonzero(number: i64) -> Option<Value> {
    (number != 0).then(|| number.into())
}

/// A whole number; proto3 JSON takes strings of digits as well.
fn integer(value: &Value, least: i64, most: i64) -> Option<i64> {
    let number = match value {
        Value::Number(number) => number.as_i64()?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    (least..=most).contains(&number).then_some(number)
}

fn double(value: &Value) -> Option<Number> {
    match value {
        Value::Number(number) => match number.as_f64() {
            // Go prints 100.0 as 100.
            Some(float) if float.fract() == 0.0 && number.as_i64().is_none() => format!("{float:.0}").parse().ok(),
            _ => Some(number.clone()),
        },
        Value::String(text) => Number::from_f64(text.parse().ok()?),
        _ => None,
    }
}

fn choice(value: &Value, names: &[&str]) -> Option<usize> {
    match value {
        Value::String(text) => names.iter().position(|name| name == text),
        Value::Number(number) => {
            number.as_u64().and_then(|index| usize::try_from(index).ok()).filter(|index| *index < names.len())
        }
        _ => None,
    }
}

fn text_map(object: &Map<String, Value>, path: &str, findings: &Findings) -> Option<Value> {
    let mut out = Map::new();
    let mut keys: Vec<&String> = object.keys().collect();
    keys.sort();
    for key in keys {
        match &object[key] {
            Value::String(text) => drop(out.insert(key.clone(), Value::String(text.clone()))),
            other => findings.add(&format!("{path}.{key}"), mismatch("a string", other)),
        }
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

/// A duration as proto3 JSON prints it: seconds with 0, 3, 6 or 9 decimals and an `s`.
fn duration(text: &str) -> Option<String> {
    let number = text.strip_suffix('s')?;
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |number| ("-", number));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 || number.ends_with('.') {
        return None;
    }
    // The bound of google.protobuf.Duration: 10,000 years.
    let seconds: u64 = whole.parse().ok().filter(|seconds| *seconds <= 315_576_000_000)?;
    let fraction = fraction.trim_end_matches('0');
    let width = fraction.len().div_ceil(3) * 3;
    let fraction = if width == 0 { String::new() } else { format!(".{fraction:0<width$}") };
    Some(format!("{sign}{seconds}{fraction}s"))
}

pub(super) fn snake_case(camel: &str) -> String {
    let mut snake = String::with_capacity(camel.len() + 4);
    for c in camel.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    static INNER: [Field; 1] = [field("deep", Kind::Text)];
    static OUTER: [Field; 7] = [
        field("aName", Kind::Text),
        field("count", Kind::Int),
        field("wrapped", Kind::IntValue),
        field("wait", Kind::Duration),
        field("mode", Kind::Choice(&["FIRST", "SECOND"])),
        field("inner", Kind::Message(&INNER)),
        field("map", Kind::TextMap),
    ];

    fn read(value: &Value) -> (Value, Vec<String>) {
        let findings = Findings::new("mesh");
        let out = canonical(value.as_object().unwrap(), &OUTER, "", &findings);
        (Value::Object(out), findings.into_errors().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn orders_by_declaration_and_drops_what_proto3_cannot_keep() {
        let (out, errors) = read(&json!({
            "map": {"b": "2", "a": ""}, "inner": {}, "mode": "FIRST", "wait": "1.50s", "wrapped": 0, "count": 0, "a_name": "x", "other": 1,
        }));
        assert_eq!(errors, Vec::<String>::new());
        let text = serde_json::to_string(&out).unwrap();
        assert_eq!(text, r#"{"aName":"x","wrapped":0,"wait":"1.500s","inner":{},"map":{"a":"","b":"2"}}"#);
    }

    #[test]
    fn names_every_field_that_is_ill_typed() {
        let (_, errors) =
            read(&json!({"count": "many", "wait": "5m", "mode": "THIRD", "inner": {"deep": 1}, "map": {"a": 1}}));
        assert_eq!(errors.len(), 5, "{errors:?}");
        assert_eq!(errors[1], "mesh: wait: must be a duration in seconds such as \"45s\", found a string (\"5m\")");
        assert_eq!(errors[3], "mesh: inner.deep: must be a string, found a number (1)");
    }
}
