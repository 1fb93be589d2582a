//! Reads ProxyConfig resources from a stream of manifests.

use serde_json::{Value, json};
use weir_injector::settings::ProxyConfigResources;

use super::stream;
use crate::failure::Failure;
use crate::files::InputText;

/// Reads the ProxyConfigs of all inputs, also as items of Lists; `namespace` is for those without one.
///
/// # Errors
/// See [`in_stream`]; messages name the input.
pub(crate) fn in_inputs(inputs: &[InputText], namespace: Option<&str>) -> Result<ProxyConfigResources, Failure> {
    let mut objects = Vec::new();
    let mut findings = Vec::new();
    for input in inputs {
        let found = objects_in(&input.text, namespace);
        match ProxyConfigResources::from_objects(&found) {
            Ok(_) => objects.extend(found),
            Err(errors) => findings.extend(errors.iter().map(|error| format!("{}: {error}", input.name))),
        }
    }
    if !findings.is_empty() {
        return Err(Failure::findings(findings));
    }
    ProxyConfigResources::from_objects(&objects).map_err(|errors| messages(&errors)).map_err(Failure::findings)
}

/// Reads the ProxyConfigs of a stream, also as items of Lists; `namespace` is for those without one.
///
/// # Errors
/// Every invalid field of a ProxyConfig. Errors in other documents are left to the reader of the stream.
pub(crate) fn in_stream(text: &str, namespace: Option<&str>) -> Result<ProxyConfigResources, Vec<String>> {
    ProxyConfigResources::from_objects(&objects_in(text, namespace)).map_err(|errors| messages(&errors))
}

fn messages<E: ToString>(errors: &[E]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn objects_in(text: &str, namespace: Option<&str>) -> Vec<Value> {
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
    objects
}

fn items(mut object: Value) -> Vec<Value> {
    match object["items"].take() {
        Value::Array(items) if object["kind"] == "List" => items,
        _ => vec![object],
    }
}
