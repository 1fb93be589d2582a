//! Labels and annotations that every template of a proxy adds.

use serde_json::{Map, Value};

use super::super::annotations as name;
use super::super::context::Context;

/// Longest value of a label (Kubernetes, "Labels and Selectors").
const LABEL_MAX: usize = 63;

/// Labels of a sidecar.
pub(super) fn sidecar_labels(context: &Context<'_>) -> Map<String, Value> {
    let mut labels = Map::new();
    let mut keep_or = |key: &str, default: &str| {
        labels.insert(key.to_owned(), context.labels.get(key).unwrap_or(default).into());
    };
    keep_or("security.istio.io/tlsMode", "istio");
    if context.proxy_config.metadata_value("ISTIO_META_ENABLE_HBONE") == Some("true") {
        keep_or("networking.istio.io/tunnel", "http");
    }
    labels.append(&mut canonical_labels(context));
    labels
}

/// Labels by which telemetry groups pods.
pub(super) fn canonical_labels(context: &Context<'_>) -> Map<String, Value> {
    let named = context.labels.first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    Map::from_iter([
        ("service.istio.io/canonical-name".to_owned(), label_value(named.unwrap_or(&context.workload.name)).into()),
        ("service.istio.io/canonical-revision".to_owned(), context.labels.first(&revision).unwrap_or("latest").into()),
    ])
}

/// Annotations of every template.
pub(super) fn annotations(context: &Context<'_>) -> Map<String, Value> {
    let revision = context.settings.revision.as_str();
    let revision = if revision.is_empty() { "default" } else { revision };
    let mut annotations = Map::from_iter([(name::REVISION.to_owned(), Value::from(revision))]);
    if let Some(first) = context.applications.first() {
        for key in [name::DEFAULT_LOGS_CONTAINER, name::DEFAULT_CONTAINER] {
            if context.annotations.get(key).is_none() {
                annotations.insert(key.to_owned(), first["name"].clone());
            }
        }
    }
    annotations
}

/// Cuts a text to what a label may hold; the cut may fall on a separator, which must not stand at an end.
pub(in crate::inject) fn label_value(text: &str) -> &str {
    let mut end = text.len().min(LABEL_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].trim_matches(['-', '_', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_label_values_without_leaving_a_separator_at_an_end() {
        assert_eq!(label_value("plain"), "plain");
        assert_eq!(label_value(&format!("{}-tail", "a".repeat(62))), "a".repeat(62));
        assert_eq!(label_value("-x."), "x");
        assert_eq!(label_value(&"é".repeat(40)), "é".repeat(31));
    }
}
