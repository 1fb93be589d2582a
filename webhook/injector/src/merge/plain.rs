//! Tells patches that need no merging from others.

use serde_json::{Map, Value};

use super::keys::{Field, MapKind};

/// Returns whether merging the map into an empty one gives the map itself: nothing in it is a directive, null, or without its merge
/// key.
pub(super) fn is_plain(fields: &Map<String, Value>, kind: MapKind) -> bool {
    fields.iter().all(|(name, value)| {
        !name.starts_with('$')
            && match (value, kind.field(name)) {
                (Value::Null, _) => false,
                (Value::Object(fields), Field::Plain(kind)) => is_plain(fields, kind),
                (Value::Object(fields), _) => is_plain(fields, MapKind::Other),
                (Value::Array(items), Field::Keyed(key, kind)) => items.iter().all(|item| {
                    item.as_object().is_some_and(|item| key.identity(item).is_some() && is_plain(item, kind))
                }),
                (Value::Array(items), Field::Plain(_)) => is_plain_list(items),
                _ => true,
            }
    })
}

fn is_plain_list(items: &[Value]) -> bool {
    items.iter().all(|item| match item {
        Value::Object(fields) => is_plain(fields, MapKind::Other),
        Value::Array(items) => is_plain_list(items),
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_patches_that_merging_would_change_are_not_plain() {
        let is_plain = |pod: Value| is_plain(pod.as_object().unwrap(), MapKind::Pod);
        assert!(is_plain(
            json!({"spec": {"containers": [{"name": "a", "env": [{"name": "x"}], "args": [null, ["x"], {}]}]}})
        ));
        assert!(is_plain(json!({"metadata": {"finalizers": [null, {"$patch": "delete"}]}})));
        for changed in [
            json!({"spec": null}),
            json!({"metadata": {"labels": {"$patch": "delete"}}}),
            json!({"spec": {"containers": [{"name": "a", "env": [{"value": "x"}]}]}}),
            json!({"spec": {"containers": [{"name": "a", "ports": ["80"]}]}}),
            json!({"spec": {"volumes": [{"name": "a", "emptyDir": null}]}}),
            json!({"spec": {"tolerations": [[{"key": null}]]}}),
        ] {
            assert!(!is_plain(changed.clone()), "{changed}");
        }
    }
}
