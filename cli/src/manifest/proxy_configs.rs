//! ProxyConfig resources that stand in a stream beside the pods that they are about.

use serde_json::{Value, json};
use weir_injector::settings::ProxyConfigResources;

use super::stream;

/// The resources of a stream, also as items of Lists; those that name no namespace are in `namespace`.
///
/// # Errors
/// Everything in them that cannot be taken. What is wrong with the rest of the stream is for its reader to say.
pub(crate) fn in_stream(text: &str, namespace: Option<&str>) -> Result<ProxyConfigResources, Vec<String>> {
    let documents = stream::split(text).unwrap_or_default();
    // Most streams have none: nothing is parsed twice for them.
    let parsed =
        documents.iter().filter(|document| document.text.contains("ProxyConfig")).flat_map(stream::Document::parse);
    let mut objects: Vec<Value> = parsed.flat_map(items).filter(ProxyConfigResources::is_one).collect();
    if let Some(namespace) = namespace {
        for object in objects.iter_mut().filter(|object| object["metadata"]["namespace"].is_null()) {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.insert("namespace".to_owned(), json!(namespace));
            }
        }
    }
    ProxyConfigResources::from_objects(&objects).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// An object, or those of a List.
fn items(mut object: Value) -> Vec<Value> {
    match object["items"].take() {
        Value::Array(items) if object["kind"] == "List" => items,
        _ => vec![object],
    }
}
