//! Builds the record `weir.dev/original`.

use std::collections::HashSet;
use std::mem;

use serde_json::{Map, Value, json};

use super::reconstruct::{listed_names, reconstruct};
use super::{InjectionRecord, RECORD_MAX_BYTES, VERSION, delta, third_party};
use crate::containers::{ContainerList, PROXY_CONTAINER};

/// Fields of the application's containers that a reconstruction changes or looks at.
const RECONSTRUCTED_FIELDS: [&str; 5] = ["name", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"];

/// Returns the value of annotation `weir.dev/original`: the difference between the reconstruction of `injected` and `original`,
/// and the variables and the fingerprint that a second injection needs, see [`third_party`].
///
/// If it exceeds [`RECORD_MAX_BYTES`], the difference is left out and the record is marked `partial`.
pub(crate) fn build_original_record(
    injected: &mut Value,
    injection: Option<&InjectionRecord>,
    original: &Value,
    variables: &[String],
    fingerprint: &str,
) -> String {
    let mut record = Map::new();
    record.insert("v".to_owned(), VERSION.into());
    record.insert(third_party::FINGERPRINT.to_owned(), fingerprint.into());
    if !variables.is_empty() {
        record.insert(third_party::VARIABLES.to_owned(), json!(variables));
    }
    if let Some(injection) = injection {
        record.append(&mut difference(injected, injection, original));
    }
    let text = Value::Object(record).to_string();
    if text.len() > RECORD_MAX_BYTES {
        json!({"v": VERSION, third_party::FINGERPRINT: fingerprint, "partial": true}).to_string()
    } else {
        text
    }
}

/// Returns the difference between the reconstruction of `injected` and `original`.
///
/// The reconstruction borrows what is large and stays the same, most of the application's containers, instead of copying it. So
/// `injected` lacks it meanwhile.
fn difference(injected: &mut Value, injection: &InjectionRecord, original: &Value) -> delta::Delta {
    let lent: Vec<Value> = lent_fields(injected, injection).map(mem::take).collect();
    let (mut reconstructed, _) = reconstruct(injected, injection);
    for (field, value) in lent_fields(&mut reconstructed, injection).zip(lent) {
        *field = value;
    }
    let difference = delta::diff(&reconstructed, original);
    for (field, value) in lent_fields(injected, injection).zip(lent_fields(&mut reconstructed, injection)) {
        mem::swap(field, value);
    }
    difference
}

/// Iterates over the fields of containers whose names no template has, but for [`RECONSTRUCTED_FIELDS`]. They are the same ones, in the
/// same order, in an injected pod and in its reconstruction. The proxy's variables are read, also of one that only the user declares.
fn lent_fields<'a>(pod: &'a mut Value, injection: &'a InjectionRecord) -> impl Iterator<Item = &'a mut Value> {
    let lists = pod.get_mut("spec").and_then(Value::as_object_mut).into_iter().flatten();
    let lists = lists.filter_map(|(field, containers)| {
        let list = ContainerList::BOTH.into_iter().find(|list| list.field() == field)?;
        Some((list, containers.as_array_mut()?))
    });
    lists.flat_map(move |(list, containers)| {
        let listed: HashSet<&str> = listed_names(injection, list).collect();
        let is_own = move |container: &&mut Value| {
            let name = container["name"].as_str().unwrap_or_default();
            name != PROXY_CONTAINER && !listed.contains(name) && injection.stored.find(name).is_none()
        };
        let fields = containers.iter_mut().filter(is_own).filter_map(Value::as_object_mut).flatten();
        fields.filter(|(field, _)| !RECONSTRUCTED_FIELDS.contains(&field.as_str())).map(|(_, value)| value)
    })
}
