//! Protobuf messages as tables: the part of the proto3 JSON mapping that validates a document and prints it as Istio's Go code
//! does (<https://protobuf.dev/programming-guides/json/>).
//!
//! The canonical form of a message is an object with lowerCamelCase names in declaration order, without nulls and without
//! scalars, lists and maps at their zero value, which proto3 cannot tell from absent ones.

use serde_json::{Map, Number, Value};

use crate::fields::{FieldErrors, type_mismatch};

/// A message: its fields in declaration order.
pub(crate) type Message = [Field];

/// One field of a message.
pub(crate) struct Field {
    /// Name in lowerCamelCase; the `snake_case` name is accepted as well.
    pub(crate) name: &'static str,
    pub(crate) field_type: FieldType,
}

/// Type of a field.
pub(crate) enum FieldType {
    String,
    Int32,
    Uint32,
    Double,
    /// `Int32Value`, `Int64Value` or `UInt32Value`: zero is not absent.
    IntValue,
    /// `BoolValue`: false is not absent.
    BoolValue,
    Duration,
    /// `enum`; the first name is the zero value.
    Enum(&'static [&'static str]),
    Repeated(&'static FieldType),
    /// `map<string, string>`.
    StringMap,
    Message(&'static Message),
    /// Message that is passed through without validation.
    Opaque,
}

pub(crate) const fn field(name: &'static str, field_type: FieldType) -> Field {
    Field { name, field_type }
}

/// Returns the canonical form of a message without unknown fields; ill-typed fields are added to `errors` below `path`.
pub(crate) fn canonical(
    object: &Map<String, Value>,
    message: &Message,
    path: &str,
    errors: &FieldErrors,
) -> Map<String, Value> {
    let mut out = Map::new();
    for field in message {
        let Some(value) = object.get(field.name).or_else(|| object.get(&snake_case(field.name))) else { continue };
        let path = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        if let Some(value) = field.field_type.canonical(value, &path, errors) {
            out.insert(field.name.to_owned(), value);
        }
    }
    out
}

impl FieldType {
    fn canonical(&self, value: &Value, path: &str, errors: &FieldErrors) -> Option<Value> {
        if value.is_null() {
            return None;
        }
        let taken = match self {
            Self::String => value.as_str().map(|text| (!text.is_empty()).then(|| value.clone())),
            Self::Int32 => integer(value, i64::from(i32::MIN), i64::from(i32::MAX)).map(nonzero),
            Self::Uint32 => integer(value, 0, i64::from(u32::MAX)).map(nonzero),
            Self::IntValue => integer(value, i64::MIN, i64::MAX).map(|number| Some(number.into())),
            Self::Double => double(value).map(|number| (number.as_f64() != Some(0.0)).then_some(Value::Number(number))),
            Self::BoolValue => value.as_bool().map(|flag| Some(Value::Bool(flag))),
            Self::Duration => value.as_str().and_then(normalize_duration).map(|text| Some(Value::String(text))),
            Self::Enum(names) => enum_index(value, names).map(|index| (index != 0).then(|| names[index].into())),
            Self::Repeated(item) => value.as_array().map(|items| {
                let items = items.iter().enumerate();
                let items = items
                    .filter_map(|(index, item_value)| item.canonical(item_value, &format!("{path}[{index}]"), errors));
                let items: Vec<Value> = items.collect();
                (!items.is_empty()).then_some(Value::Array(items))
            }),
            Self::StringMap => value.as_object().map(|object| string_map(object, path, errors)),
            Self::Message(message) => {
                value.as_object().map(|object| Some(Value::Object(canonical(object, message, path, errors))))
            }
            Self::Opaque => value.is_object().then(|| Some(value.clone())),
        };
        if taken.is_none() {
            errors.add(path, type_mismatch(&self.describe(), value));
        }
        taken.flatten()
    }

    /// Returns proto3's value of an unset field.
    pub(crate) fn zero_value(&self) -> Value {
        match self {
            Self::String => "".into(),
            Self::Int32 | Self::Uint32 | Self::Double => 0.into(),
            Self::Enum(names) => names.first().copied().into(),
            Self::Repeated(_) => Value::Array(Vec::new()),
            Self::StringMap => Value::Object(Map::new()),
            Self::IntValue | Self::BoolValue | Self::Duration | Self::Message(_) | Self::Opaque => Value::Null,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::String => "a string".to_owned(),
            Self::Int32 | Self::Uint32 | Self::IntValue => "an integer in range".to_owned(),
            Self::Double => "a number".to_owned(),
            Self::BoolValue => "a boolean".to_owned(),
            Self::Duration => "a duration in seconds such as \"45s\"".to_owned(),
            Self::Enum(names) => format!("one of {}", names.join(", ")),
            Self::Repeated(_) => "a list".to_owned(),
            Self::StringMap | Self::Message(_) | Self::Opaque => "an object".to_owned(),
        }
    }
}

fn nonzero(number: i64) -> Option<Value> {
    (number != 0).then(|| number.into())
}

/// Reads an integer; proto3 JSON accepts strings of digits as well.
fn integer(value: &Value, min: i64, max: i64) -> Option<i64> {
    let number = match value {
        Value::Number(number) => number.as_i64()?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    (min..=max).contains(&number).then_some(number)
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

fn enum_index(value: &Value, names: &[&str]) -> Option<usize> {
    match value {
        Value::String(text) => names.iter().position(|name| name == text),
        Value::Number(number) => {
            number.as_u64().and_then(|index| usize::try_from(index).ok()).filter(|index| *index < names.len())
        }
        _ => None,
    }
}

fn string_map(object: &Map<String, Value>, path: &str, errors: &FieldErrors) -> Option<Value> {
    let mut out = Map::new();
    let mut keys: Vec<&String> = object.keys().collect();
    keys.sort();
    for key in keys {
        match &object[key] {
            Value::String(text) => drop(out.insert(key.clone(), Value::String(text.clone()))),
            other => errors.add(&format!("{path}.{key}"), type_mismatch("a string", other)),
        }
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

/// Returns a duration as proto3 JSON prints it: seconds with 0, 3, 6 or 9 decimals and an `s`.
fn normalize_duration(text: &str) -> Option<String> {
    let number = text.strip_suffix('s')?;
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |number| ("-", number));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 || number.ends_with('.') {
        return None;
    }
    // The limit of google.protobuf.Duration: 10,000 years.
    let seconds: u64 = whole.parse().ok().filter(|seconds| *seconds <= 315_576_000_000)?;
    let fraction = fraction.trim_end_matches('0');
    let width = fraction.len().div_ceil(3) * 3;
    let fraction = if width == 0 { String::new() } else { format!(".{fraction:0<width$}") };
    Some(format!("{sign}{seconds}{fraction}s"))
}

pub(crate) fn snake_case(camel: &str) -> String {
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

    static INNER: [Field; 1] = [field("deep", FieldType::String)];
    static OUTER: [Field; 7] = [
        field("aName", FieldType::String),
        field("count", FieldType::Int32),
        field("wrapped", FieldType::IntValue),
        field("wait", FieldType::Duration),
        field("mode", FieldType::Enum(&["FIRST", "SECOND"])),
        field("inner", FieldType::Message(&INNER)),
        field("map", FieldType::StringMap),
    ];

    fn read(value: &Value) -> (Value, Vec<String>) {
        let errors = FieldErrors::new("mesh");
        let out = canonical(value.as_object().unwrap(), &OUTER, "", &errors);
        (Value::Object(out), errors.into_errors().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn canonical_form_has_declaration_order_and_no_zero_values() {
        let (out, errors) = read(&json!({
            "map": {"b": "2", "a": ""}, "inner": {}, "mode": "FIRST", "wait": "1.50s", "wrapped": 0, "count": 0, "a_name": "x", "other": 1,
        }));
        assert_eq!(errors, Vec::<String>::new());
        let text = serde_json::to_string(&out).unwrap();
        assert_eq!(text, r#"{"aName":"x","wrapped":0,"wait":"1.500s","inner":{},"map":{"a":"","b":"2"}}"#);
    }

    #[test]
    fn every_ill_typed_field_is_reported() {
        let (_, errors) =
            read(&json!({"count": "many", "wait": "5m", "mode": "THIRD", "inner": {"deep": 1}, "map": {"a": 1}}));
        assert_eq!(errors.len(), 5, "{errors:?}");
        assert_eq!(errors[1], "mesh: wait: must be a duration in seconds such as \"45s\", found a string (\"5m\")");
        assert_eq!(errors[3], "mesh: inner.deep: must be a string, found a number (1)");
    }
}
