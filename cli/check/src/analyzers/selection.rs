//! Label combinations by which webhook entries are compared.

use serde_json::{Map, Value};
use weir_injector::decision::INJECT_LABEL;
use weir_injector::selection::{INJECTION_LABEL, REVISION_LABEL};

use crate::snapshot::object::StringMap;

/// Calls `visit` with every combination of the labels of namespace and pod that webhook entries select by.
pub(super) fn for_each_combination(revisions: &[Option<&str>], mut visit: impl FnMut(&StringMap, &StringMap)) {
    let labels = |pairs: [(&str, Option<&str>); 2]| -> StringMap {
        pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?)))).collect()
    };
    for injection in [None, Some("enabled"), Some("disabled")] {
        for namespace_revision in revisions {
            for inject in [None, Some("true"), Some("false")] {
                for revision in revisions {
                    let namespace = labels([(INJECTION_LABEL, injection), (REVISION_LABEL, *namespace_revision)]);
                    let pod = labels([(INJECT_LABEL, inject), (REVISION_LABEL, *revision)]);
                    visit(&namespace, &pod);
                }
            }
        }
    }
}

/// Describes pods by their labels and those of their namespace.
pub(super) fn describe_pods(namespace: &StringMap, pod: &StringMap) -> String {
    let labels = |map: &StringMap| -> String {
        let pairs = map.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        let pairs: Vec<String> = pairs.collect();
        if pairs.is_empty() { "without labels".to_owned() } else { format!("with {}", pairs.join(", ")) }
    };
    format!("pods {} in a namespace {}", labels(pod), labels(namespace))
}

/// Returns a map with one label.
pub(super) fn label(key: &str, value: &str) -> StringMap {
    Map::from_iter([(key.to_owned(), Value::from(value))])
}
