//! Reads the fields of an object, and collects every fault.

use iptables_rules::compare::assertion::Selection;
use serde_json::{Map, Value};

/// Elements of a list: ports, networks or users.
const MAX_ELEMENTS: usize = 1000;

/// An object whose fields are read.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    /// Returns the fields of an object; adds a fault for every unknown one.
    pub(super) fn of(value: &'a Value, path: &str, known: &[&str], faults: &mut Vec<String>) -> Option<Self> {
        let Some(object) = value.as_object() else {
            let path = if path.is_empty() { "the document" } else { path };
            faults.push(format!("{path} must be an object"));
            return None;
        };
        let fields = Self { object, path: path.to_owned() };
        for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
            faults.push(format!("{} is unknown; known: {}", fields.at(key), known.join(", ")));
        }
        Some(fields)
    }

    fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn list(&self, key: &str, limit: usize, faults: &mut Vec<String>) -> &'a [Value] {
        match self.get(key) {
            None => &[],
            Some(Value::Array(list)) if list.len() <= limit => list,
            Some(Value::Array(list)) => {
                faults.push(format!("{} has {} elements; at most {limit} are allowed", self.at(key), list.len()));
                &[]
            }
            Some(_) => {
                faults.push(format!("{} must be a list", self.at(key)));
                &[]
            }
        }
    }

    /// Returns the parsed elements of a list of strings or numbers.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        faults: &mut Vec<String>,
    ) -> Vec<T> {
        let mut parsed = Vec::new();
        for (position, element) in self.list(key, MAX_ELEMENTS, faults).iter().enumerate() {
            let result = match element {
                Value::String(text) => parse(text),
                Value::Number(number) => parse(&number.to_string()),
                other => Err(format!("must be a string or a number, found {other}")),
            };
            match result {
                Ok(value) => parsed.push(value),
                Err(fault) => faults.push(format!("{}[{position}]: {fault}", self.at(key))),
            }
        }
        parsed
    }

    /// Returns the values of a list, but for those of another.
    pub(super) fn selection<T>(
        &self,
        [only, except]: [&str; 2],
        parse: impl Fn(&str) -> Result<T, String>,
        faults: &mut Vec<String>,
    ) -> Selection<T> {
        Selection { only: self.parsed(only, &parse, faults), except: self.parsed(except, &parse, faults) }
    }

    pub(super) fn flag(&self, key: &str, faults: &mut Vec<String>) -> bool {
        match self.get(key) {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                faults.push(format!("{} must be true or false, found {other}", self.at(key)));
                false
            }
        }
    }

    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        default: Option<T>,
        choices: &[(&str, T)],
        faults: &mut Vec<String>,
    ) -> Option<T> {
        let found = self.get(key);
        if found.is_none() && default.is_some() {
            return default;
        }
        let choice = choices.iter().find(|(name, _)| found.is_some_and(|found| found == name));
        if choice.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let found = found.map_or_else(|| "nothing".to_owned(), Value::to_string);
            faults.push(format!("{} must be {}, found {found}", self.at(key), names.join(" or ")));
        }
        choice.map(|(_, value)| *value)
    }
}
