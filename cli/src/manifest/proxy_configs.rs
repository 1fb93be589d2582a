//! Reads ProxyConfig resources from a stream of manifests.

use serde_json::{Value, json};
use weir_injector::settings::ProxyConfigResources;

use super::stream;

/// Reads the ProxyConfigs of a stream, also as items of Lists; `namespace` is for those without one.
///
/// # Errors
/// Every invalid field of a ProxyConfig. Errors in other documents are left to the reader of the stream.
pub(crate) fn in_stream(text: &str, namespace: Option<&str>) -> Result<ProxyConfigResources, Vec<String>> {
    let documents = stream::split(text).unwrap_or_default();
    // Parsing twice is only for the rare stream that has some.
    let parsed =
        documents.iter().filter(|document| document.text.contains("ProxyConfig")).flat_map(stream::Document::parse);
    let mut objects: Vec<Value> = parsed.flat_map(items).filter(ProxyConfigResources::is_proxy_config).collect();
    if let Some(namespace) = namespace {
        for object in objects.iter_mut().filter(|object| object["metadata"]["namespace"].is_null()) {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.insert("namespace".to_owned(), json!(namespace));
            }
        }
    }
    ProxyConfigResources::from_objects(&objects).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn items(mut object: Value) -> Vec<Value> {
    match object["items"].take() {
        Value::Array(items) if object["kind"] == "List" => items,
        _ => vec![object],
    }
}
