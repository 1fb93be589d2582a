//! Labels and annotations of the injected pod.

use serde_json::{Map, Value};

use crate::annotations as name;
use crate::context::InjectContext;
use crate::name_rules::LABEL_MAX;

pub(super) fn sidecar_labels(context: &InjectContext<'_>) -> Map<String, Value> {
    let mut labels = Map::new();
    let mut set_default = |key: &str, default: &str| {
        labels.insert(key.to_owned(), context.labels.get(key).unwrap_or(default).into());
    };
    set_default("security.istio.io/tlsMode", "istio");
    if context.proxy_config.metadata_value("ISTIO_META_ENABLE_HBONE") == Some("true") {
        set_default("networking.istio.io/tunnel", "http");
    }
    labels.append(&mut canonical_labels(context));
    labels
}

/// Returns the labels by which telemetry groups pods.
pub(super) fn canonical_labels(context: &InjectContext<'_>) -> Map<String, Value> {
    let name = context.labels.first_non_empty(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    Map::from_iter([
        ("service.istio.io/canonical-name".to_owned(), label_value(name.unwrap_or(&context.workload.name)).into()),
        (
            "service.istio.io/canonical-revision".to_owned(),
            context.labels.first_non_empty(&revision).unwrap_or("latest").into(),
        ),
    ])
}

/// Returns the revision, and the default container for kubectl.
pub(super) fn annotations(context: &InjectContext<'_>) -> Map<String, Value> {
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

/// Truncates a text to the length of a label value, and trims the separators that a value must not start or end with.
pub(crate) fn label_value(text: &str) -> &str {
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
    fn truncated_label_value_has_no_separator_at_its_ends() {
        assert_eq!(label_value("plain"), "plain");
        assert_eq!(label_value(&format!("{}-tail", "a".repeat(62))), "a".repeat(62));
        assert_eq!(label_value("-x."), "x");
        assert_eq!(label_value(&"é".repeat(40)), "é".repeat(31));
    }
}
