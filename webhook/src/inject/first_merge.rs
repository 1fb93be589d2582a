//! The strategic merge as far as the built-in templates need it: maps by field, the lists of containers, volumes, variables,
//! mounts, ports and secrets by key, everything else replaced.

use std::collections::VecDeque;

use serde_json::Value;

/// Merges an overlay over a pod.
pub(super) fn merge(pod: &mut Value, overlay: &Value) {
    merge_field(pod, overlay, "");
}

fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "containers" | "initContainers" | "volumes" | "imagePullSecrets" | "env" => Some("name"),
        "ports" => Some("containerPort"),
        "volumeMounts" => Some("mountPath"),
        _ => None,
    }
}

/// The patch as a new value: nulls delete what is not there.
fn without_nulls(patch: &Value) -> Value {
    match patch {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        scalar => scalar.clone(),
    }
}

fn merge_field(target: &mut Value, patch: &Value, field: &str) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                if value.is_null() {
                    target.shift_remove(name);
                } else if let Some(lower) = target.get_mut(name) {
                    merge_field(lower, value, name);
                } else {
                    target.insert(name.clone(), without_nulls(value));
                }
            }
        }
        (Value::Array(target), Value::Array(patch)) => match merge_key(field) {
            Some(key) => *target = merge_list(std::mem::take(target), patch, key),
            None => patch.clone_into(target),
        },
        (target, patch) => *target = without_nulls(patch),
    }
}

/// Items of the patch in its order; the others where they stood before those that were there.
fn merge_list(original: Vec<Value>, patch: &[Value], key: &str) -> Vec<Value> {
    let mut patched: VecDeque<(Option<usize>, Value)> = VecDeque::new();
    for item in patch {
        let position = original.iter().position(|known| known[key] == item[key]);
        let mut merged = position.map_or(Value::Object(serde_json::Map::new()), |position| original[position].clone());
        merge_field(&mut merged, item, "");
        patched.push_back((position, merged));
    }
    let mut result = Vec::with_capacity(original.len() + patch.len());
    for (position, item) in original.into_iter().enumerate() {
        if patched.iter().any(|(_, known)| known[key] == item[key]) || patch.iter().any(|known| known[key] == item[key])
        {
            continue;
        }
        while patched.front().is_some_and(|(known, _)| known.is_none_or(|known| known < position)) {
            result.extend(patched.pop_front().map(|(_, item)| item));
        }
        result.push(item);
    }
    result.extend(patched.into_iter().map(|(_, item)| item));
    result
}
