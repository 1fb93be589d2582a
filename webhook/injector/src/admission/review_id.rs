//! Identity of a review that its response repeats, also for bodies that cannot be decoded as a review.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{V1, V1BETA1};

/// `apiVersion` and `uid` of a review, which its response must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewId {
    /// `apiVersion` of the review; [`V1`] if it is not a known one.
    pub api_version: &'static str,
    /// `request.uid`; empty if there is none.
    pub uid: String,
}

impl ReviewId {
    /// Extracts what precedes the first syntax error of a body, whatever its nesting depth.
    pub fn extract(body: &[u8]) -> Self {
        let mut id = Self { api_version: V1, uid: String::new() };
        // The caller reports the error.
        let _ = serde_json::Deserializer::from_slice(body).deserialize_any(Review(&mut id));
        id
    }
}

struct Review<'a>(&'a mut ReviewId);

impl<'de> Visitor<'de> for Review<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a review")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = fields.next_key()? {
            match name.as_deref() {
                Some("apiVersion") => {
                    if fields.next_value::<Text>()?.0.as_deref() == Some(V1BETA1) {
                        self.0.api_version = V1BETA1;
                    }
                }
                Some("request") => fields.next_value_seed(Request(&mut self.0.uid))?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Request<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Request<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Request<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = fields.next_key()? {
            if name.as_deref() == Some("uid") {
                *self.0 = fields.next_value::<Text>()?.0.unwrap_or_default();
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// A string, or `None` for any other value.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Some(text.to_owned())))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Text, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Text, A::Error> {
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extract(body: &str) -> (&'static str, String) {
        let ReviewId { api_version, uid } = ReviewId::extract(body.as_bytes());
        (api_version, uid)
    }

    #[test]
    fn extracts_the_uid_before_a_syntax_error() {
        let uid = || "u-1".to_owned();
        for body in [
            r#"{"request":{"uid":"u-1","object":{"#,
            r#"{"request":{"uid":"u-1","namespace":1e999}}"#,
            r#"{"request":{"object":[[[]]],"uid":"u-1"},"request2":nope"#,
            r#"{"kind":[{}],"apiVersion":7,"request":{"a":{"uid":"other"},"uid":"u-1"}}"#,
        ] {
            assert_eq!(extract(body), (V1, uid()), "{body}");
        }
        assert_eq!(extract(r#"{"apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"u-1"}}"#), (V1BETA1, uid()));
    }

    #[test]
    fn nesting_depth_is_not_limited() {
        let deep = "[".repeat(2_000_000);
        assert_eq!(extract(&format!(r#"{{"request":{{"uid":"u","object":{deep}"#)).1, "u");
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(extract(&format!(r#"{{"request":{{"object":{open}{close},"uid":"u"}}}}"#)).1, "u");
    }

    #[test]
    fn a_missing_uid_is_empty() {
        for body in ["", "[]", "7", "{", "{}", r#"{"request":7}"#, r#"{"request":{"uid":["u"]}}"#, r#"{"uid":"u"}"#] {
            assert_eq!(extract(body), (V1, String::new()), "{body}");
        }
    }
}
