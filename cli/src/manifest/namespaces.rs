//! Collects the labels of the Namespaces in manifests.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Labels of namespaces, by name.
pub(crate) type NamespaceLabels = HashMap<String, Map<String, Value>>;

/// Collects Namespaces with their labels, also as items of lists.
pub(crate) fn collect(object: &Value, found: &mut NamespaceLabels) {
    if object["apiVersion"] != "v1" {
        return;
    }
    if object["kind"] == "List" {
        for item in object["items"].as_array().into_iter().flatten() {
            collect(item, found);
        }
    } else if object["kind"] == "Namespace"
        && let Some(name) = object["metadata"]["name"].as_str()
    {
        let labels = object["metadata"]["labels"].as_object().cloned();
        found.insert(name.to_owned(), labels.unwrap_or_default());
    }
}
