//! Fields that all Kubernetes objects share, and their parser.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use weir_injector::selector::Selector;

use crate::finding::FindingObject;

/// Labels or annotations, as the injector takes them.
pub(crate) type StringMap = Map<String, Value>;

/// Returns the value of a label or annotation.
pub(crate) fn text<'a>(map: &'a StringMap, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str)
}

/// Metadata of an object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: StringMap,
    #[serde(deserialize_with = "timestamp")]
    pub(crate) creation_timestamp: Option<Timestamp>,
    #[serde(deserialize_with = "timestamp")]
    pub(crate) deletion_timestamp: Option<Timestamp>,
}

impl Metadata {
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        text(&self.labels, key)
    }

    /// Returns the object as findings name it.
    pub(crate) fn object(&self, kind: &str) -> FindingObject {
        FindingObject::new(kind, &self.namespace, &self.name)
    }
}

/// A label selector.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct LabelSelector {
    /// `None` if the selector is invalid.
    selector: Option<Selector>,
    /// Keys, each with the values that are required or excluded.
    terms: Vec<(String, Vec<String>)>,
}

impl From<Value> for LabelSelector {
    fn from(document: Value) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Document {
            match_labels: BTreeMap<String, String>,
            match_expressions: Vec<Expression>,
        }
        #[derive(Deserialize)]
        struct Expression {
            key: String,
            #[serde(default)]
            values: Vec<String>,
        }
        let selector = Selector::parse(&document).ok();
        let Document { match_labels, match_expressions } = serde_json::from_value(document).unwrap_or_default();
        let labels = match_labels.into_iter().map(|(key, value)| (key, vec![value]));
        let expressions = match_expressions.into_iter().map(|Expression { key, values }| (key, values));
        Self { selector, terms: labels.chain(expressions).collect() }
    }
}

impl LabelSelector {
    /// Returns whether the selector selects an object with these labels. An invalid selector selects nothing.
    pub(crate) fn matches(&self, labels: &StringMap) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.matches(Some(labels)))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().map(|(key, _)| key.as_str())
    }

    /// Returns all values that are compared with a label.
    pub(crate) fn values_of(&self, key: &str) -> impl Iterator<Item = &str> {
        self.terms.iter().filter(move |(of, _)| of == key).flat_map(|(_, values)| values.iter().map(String::as_str))
    }
}

/// A condition in the status of an object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StatusCondition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) message: Option<String>,
}

/// Returns whether the condition `Ready` is true.
pub(crate) fn is_ready(conditions: &[StatusCondition]) -> bool {
    conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
}

/// Parses an object of the API server, which writes `null` for some empty lists (rules of a Role, endpoints of a slice).
pub(crate) fn parse<T: DeserializeOwned>(mut object: Value) -> Result<T, String> {
    drop_nulls(&mut object);
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    serde_json::from_value(object).map_err(|error| format!("cannot parse {name}: {error}"))
}

/// Like [`parse`], without a [`Value`] in between unless the text may have a `null`.
pub(crate) fn parse_text<T: DeserializeOwned>(object: &str) -> Result<T, String> {
    if object.contains("null") {
        return serde_json::from_str(object).map_err(|error| error.to_string()).and_then(parse);
    }
    serde_json::from_str(object).map_err(|error| {
        let object: Value = serde_json::from_str(object).unwrap_or_default();
        format!("cannot parse {}: {error}", object["metadata"]["name"].as_str().unwrap_or_default())
    })
}

pub(super) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Parses an RFC 3339 time; an invalid one counts as absent.
pub(crate) fn timestamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}
