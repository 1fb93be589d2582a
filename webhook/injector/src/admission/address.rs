//! Where an answer goes to: read of bodies that are no reviews, as far as they can be read.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{V1, V1BETA1};

/// What a reply repeats of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Version of the review; [`V1`] where it is none that is known.
    pub api_version: &'static str,
    /// `request.uid`; empty where there is none.
    pub uid: String,
}

impl Address {
    /// Reads a body up to where it breaks, however deep it is nested: what was found until then counts.
    pub fn find(body: &[u8]) -> Self {
        let mut address = Self { api_version: V1, uid: String::new() };
        // The error is the caller's to tell; this is about what stands before it.
        let _ = serde_json::Deserializer::from_slice(body).deserialize_any(Review(&mut address));
        address
    }
}

struct Review<'a>(&'a mut Address);

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

/// A text, or anything else, which is passed over.
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

    fn found(body: &str) -> (&'static str, String) {
        let Address { api_version, uid } = Address::find(body.as_bytes());
        (api_version, uid)
    }

    #[test]
    fn finds_the_uid_of_a_body_that_breaks_after_it() {
        let uid = || "u-1".to_owned();
        for body in [
            r#"{"request":{"uid":"u-1","object":{"#,
            r#"{"request":{"uid":"u-1","namespace":1e999}}"#,
            r#"{"request":{"object":[[[]]],"uid":"u-1"},"request2":nope"#,
            r#"{"kind":[{}],"apiVersion":7,"request":{"a":{"uid":"other"},"uid":"u-1"}}"#,
        ] {
            assert_eq!(found(body), (V1, uid()), "{body}");
        }
        assert_eq!(found(r#"{"apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"u-1"}}"#), (V1BETA1, uid()));
    }

    #[test]
    fn depth_is_no_obstacle() {
        let deep = "[".repeat(2_000_000);
        assert_eq!(found(&format!(r#"{{"request":{{"uid":"u","object":{deep}"#)).1, "u");
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(found(&format!(r#"{{"request":{{"object":{open}{close},"uid":"u"}}}}"#)).1, "u");
    }

    #[test]
    fn nothing_is_found_where_nothing_is() {
        for body in ["", "[]", "7", "{", "{}", r#"{"request":7}"#, r#"{"request":{"uid":["u"]}}"#, r#"{"uid":"u"}"#] {
            assert_eq!(found(body), (V1, String::new()), "{body}");
        }
    }
}
