//! Functions that convert values to JSON and YAML and back.

use std::sync::Arc;

use gotmpl::{TemplateError, Value as Data};
use serde_json::{Map, Number, Value};

use super::super::data::untyped;
use super::super::value::TYPED_OBJECT_KEY;
use super::{Args, Function, FunctionResult, go_yaml, owned, text};
use crate::go_names::json_name;
use crate::yaml;

pub(super) const ALL: [Function; 12] = [
    ("toYaml", 1, 1, |args| Ok(owned(go_yaml::to_string(&json(&args.values[0]))))),
    ("fromYaml", 1, 1, |args| {
        yaml::from_str(args.text(0)?).map(|value| untyped(&value)).map_err(|error| args.error(error.to_string()))
    }),
    ("toJson", 1, 1, to_json),
    ("toRawJson", 1, 1, |args| Ok(owned(json(&args.values[0]).to_string()))),
    ("mustToJson", 1, 1, to_json),
    ("toPrettyJson", 1, 1, |args| {
        let pretty = serde_json::to_string_pretty(&json(&args.values[0]));
        pretty.map(|text| owned(escape_html(&text))).map_err(|error| args.error(error.to_string()))
    }),
    ("fromJson", 1, 1, |args| Ok(serde_json::from_str(args.text(0)?).map_or(Data::Nil, |value| untyped(&value)))),
    ("mustFromJson", 1, 1, |args| {
        serde_json::from_str(args.text(0)?).map(|value| untyped(&value)).map_err(|error| args.error(error.to_string()))
    }),
    // Istio's: for invalid JSON it returns the string `{}`.
    ("fromJSON", 1, 1, |args| {
        Ok(serde_json::from_str(args.text(0)?).map_or_else(|_| text("{}"), |value| untyped(&value)))
    }),
    ("structToJSON", 1, 1, to_json),
    ("toJSON", 1, 1, |args| if let Data::Map(_) = &args.values[0] { to_json(args) } else { Ok(text("{}")) }),
    ("omitNil", 1, 1, |args| Ok(without_nil(&args.values[0]).unwrap_or(Data::Nil))),
];

fn to_json(args: &Args<'_>) -> Result<Data, TemplateError> {
    FunctionResult::Ok(owned(escape_html(&json(&args.values[0]).to_string())))
}

/// Escapes JSON as Go does by default: characters with a meaning in HTML or JavaScript.
fn escape_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// Converts a value to JSON; fields of typed objects have their JSON names and the order of the Go type, and unset ones are left out.
pub(super) fn json(value: &Data) -> Value {
    match value {
        Data::Nil | Data::Function(_) => Value::Null,
        Data::Bool(flag) => Value::Bool(*flag),
        Data::Int(number) => Value::from(*number),
        Data::Uint(number) => Value::from(*number),
        Data::Float(number) => float(*number),
        Data::String(text) => Value::from(&**text),
        Data::List(items) => items.iter().map(json).collect(),
        Data::Map(fields) => match fields.get(TYPED_OBJECT_KEY) {
            None => fields.iter().map(|(name, field)| (name.to_string(), json(field))).collect(),
            Some(Data::List(set)) => {
                let names = set.iter().filter_map(|name| if let Data::String(name) = name { Some(name) } else { None });
                names.filter_map(|name| Some((json_name(name), json(fields.get(name)?)))).collect()
            }
            Some(_) => {
                let is_set = |name: &str, field: &Data| !name.starts_with('\0') && !matches!(field, Data::Nil);
                let set = fields.iter().filter(|(name, field)| is_set(name, field));
                let mut out: Map<String, Value> = set.map(|(name, field)| (lower_first(name), json(field))).collect();
                out.sort_keys();
                Value::Object(out)
            }
        },
    }
}

/// Converts a number as Go's encoder does: an integral one has no fraction.
fn float(number: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    if number.fract() == 0.0 && number.abs() < 9e15 {
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Removes nil values, and lists and maps that become empty by that.
fn without_nil(value: &Data) -> Option<Data> {
    match value {
        Data::Nil => None,
        Data::List(items) => {
            let items: Vec<Data> = items.iter().filter_map(without_nil).collect();
            (!items.is_empty()).then(|| Data::List(items.into()))
        }
        Data::Map(fields) => {
            let fields: std::collections::BTreeMap<_, _> =
                fields.iter().filter_map(|(name, field)| Some((Arc::clone(name), without_nil(field)?))).collect();
            (!fields.is_empty()).then(|| Data::Map(Arc::new(fields)))
        }
        other => Some(other.clone()),
    }
}
