//! JSON trees without spare capacity.
//!
//! A map that grows while it is read has room for three fields, and a list for four items, so a pod of many small values takes up to
//! three times the memory that it needs. Every copy of it does again: `clone` keeps the room.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Returns a copy of a value.
pub(crate) fn copy(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(copy).collect(),
        Value::Object(fields) => Value::Object(map(fields.len(), fields.iter().map(|(k, v)| (k.clone(), copy(v))))),
        scalar => scalar.clone(),
    }
}

/// Decodes a value; of equal keys, the last one counts, as in [`Value`].
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Compact::deserialize(deserializer).map(|Compact(value)| value)
}

fn map(length: usize, entries: impl IntoIterator<Item = (String, Value)>) -> Map<String, Value> {
    let mut map = Map::with_capacity(length);
    for (name, value) in entries {
        map.insert(name, value);
    }
    map
}

/// A value in a larger structure.
#[derive(Debug)]
pub(crate) struct Compact(pub(crate) Value);

impl<'de> Deserialize<'de> for Compact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Stacks::default().deserialize(deserializer).map(Self)
    }
}

/// Items and fields of the collections that are being decoded. Each gets a list or map of its size when it ends, without having
/// grown one.
#[derive(Default)]
struct Stacks {
    items: Vec<Value>,
    fields: Vec<(String, Value)>,
}

impl<'de> DeserializeSeed<'de> for &mut Stacks {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Stacks {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let start = self.items.len();
        while let Some(item) = items.next_element_seed(&mut *self)? {
            self.items.push(item);
        }
        Ok(Value::Array(self.items.drain(start..).collect()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let start = self.fields.len();
        while let Some(name) = fields.next_key()? {
            let value = fields.next_value_seed(&mut *self)?;
            self.fields.push((name, value));
        }
        let length = self.fields.len() - start;
        Ok(Value::Object(map(length, self.fields.drain(start..))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_decoded_and_copied_as_they_are() {
        let text = r#"{"b":[1,-1,1.5,true,null,"x",{}],"a":{"c":[],"c":18446744073709551615}}"#;
        let decoded = deserialize(&mut serde_json::Deserializer::from_str(text)).unwrap();
        assert_eq!(decoded.to_string(), serde_json::from_str::<Value>(text).unwrap().to_string());
        assert_eq!(copy(&decoded).to_string(), decoded.to_string());
        assert_eq!(decoded["a"]["c"], json!(u64::MAX));
        assert!(deserialize(&mut serde_json::Deserializer::from_str(r#"{"a":}"#)).is_err());
    }
}
