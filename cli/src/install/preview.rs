//! Preview of an installation, from a server-side dry run of every object.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::objects::{ApplyOptions, NAMESPACE, ObjectError, ObjectRef};

/// Fields that the API server writes.
const SERVER_FIELDS: [&str; 5] = ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"];
/// Limit of differences that are printed for one object.
const MAX_DIFFERENCES: usize = 20;
/// Limit of a value that is printed, in characters.
const MAX_VALUE: usize = 80;

/// A change of one object.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Create,
    /// The differences, one line each.
    Configure(Vec<String>),
    Delete,
}

/// Changes of an installation.
#[derive(Debug, Default)]
pub(super) struct Preview {
    changes: Vec<(ObjectRef, Change)>,
    unchanged: usize,
}

impl Preview {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Adds objects that will be deleted.
    pub(super) fn add_deleted(&mut self, objects: &[ObjectRef]) {
        self.changes.extend(objects.iter().map(|what| (what.clone(), Change::Delete)));
    }

    /// Returns one line for each changed object, its differences, and a line with the numbers.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut counts = [0_usize; 3];
        for (what, change) in &self.changes {
            let place = if what.namespace.is_empty() { String::new() } else { format!(" -n {}", what.namespace) };
            let (sign, index) = match change {
                Change::Create => ('+', 0),
                Change::Configure(_) => ('~', 1),
                Change::Delete => ('-', 2),
            };
            counts[index] += 1;
            // Writing to a string does not fail.
            let _ = writeln!(text, "{sign} {what}{place}");
            let Change::Configure(differences) = change else { continue };
            for difference in differences.iter().take(MAX_DIFFERENCES) {
                let _ = writeln!(text, "    {difference}");
            }
            if differences.len() > MAX_DIFFERENCES {
                let _ = writeln!(text, "    and {} more", differences.len() - MAX_DIFFERENCES);
            }
        }
        let [created, configured, deleted] = counts;
        let unchanged = self.unchanged;
        let _ = write!(text, "{created} to create, {configured} to change, {deleted} to delete, {unchanged} unchanged");
        text
    }
}

/// Applies every object as a server-side dry run, so that all errors are known before anything is changed.
///
/// # Errors
/// Everything that the API server rejects.
pub(super) async fn preview<'a>(
    cluster: &Cluster,
    objects: impl Iterator<Item = &'a (ObjectRef, Value)>,
    force: bool,
) -> Result<Preview, Failure> {
    let (mut preview, mut findings, mut namespaces) = (Preview::default(), Vec::new(), Vec::new());
    let mut conflicts = false;
    for (what, object) in objects {
        if what.kind == NAMESPACE {
            namespaces.push(what.name.as_str());
        }
        let change = match cluster.apply_and_compare(what, object, ApplyOptions { dry_run: true, force }).await {
            Ok((None, _)) => Change::Create,
            Ok((Some(before), after)) => Change::Configure(differences(&before, &after)),
            // Its namespace is created before it.
            Err(ObjectError::NamespaceNotFound) if namespaces.contains(&what.namespace.as_str()) => Change::Create,
            Err(error) => {
                conflicts |= matches!(error, ObjectError::Conflict(_));
                findings.push(format!("{what}: {error}"));
                continue;
            }
        };
        if change == Change::Configure(Vec::new()) {
            preview.unchanged += 1;
        } else {
            preview.changes.push((what.clone(), change));
        }
    }
    if findings.is_empty() {
        return Ok(preview);
    }
    let advice = if conflicts { "; pass --force-conflicts to take ownership" } else { "" };
    findings.push(format!("{cluster}: nothing was applied{advice}"));
    Err(Failure::findings(findings))
}

/// Returns the fields that differ, without those that the API server writes.
fn differences(before: &Value, after: &Value) -> Vec<String> {
    let plain = |object: &Value| {
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|key, _| !SERVER_FIELDS.contains(&key.as_str()));
        }
        object
    };
    let mut lines = Vec::new();
    compare("", Some(&plain(before)), Some(&plain(after)), &mut lines);
    lines
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, lines: &mut Vec<String>) {
    match (before, after) {
        (before, after) if before == after => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let mut keys: Vec<&String> = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))).collect();
            keys.sort();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, old.get(key), new.get(key), lines);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(&format!("{path}[{index}]"), Some(old), Some(new), lines);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            let only_in = |one: &[Value], other: &[Value]| -> Vec<Value> {
                one.iter().filter(|item| !other.contains(item)).cloned().collect()
            };
            lines.extend(only_in(old, new).iter().map(|item| format!("{path}: - {}", short(item))));
            lines.extend(only_in(new, old).iter().map(|item| format!("{path}: + {}", short(item))));
        }
        (Some(Value::String(old)), Some(Value::String(new))) if old.contains('\n') || new.contains('\n') => {
            let diff = similar::TextDiff::from_lines(old.as_str(), new.as_str());
            let changed = diff.iter_all_changes().filter(|change| change.tag() != similar::ChangeTag::Equal);
            lines.extend(changed.map(|change| format!("{path}: {} {}", change.tag(), change.value().trim_end())));
        }
        (Some(old), Some(new)) => lines.push(format!("{path}: {} -> {}", short(old), short(new))),
        (None, Some(new)) => lines.push(format!("{path}: + {}", short(new))),
        (Some(old), None) => lines.push(format!("{path}: - {}", short(old))),
        (None, None) => {}
    }
}

fn short(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_VALUE).collect();
    if text.chars().count() > MAX_VALUE { format!("{line}...") } else { line }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_name_fields_and_values() {
        let before = json!({
            "metadata": {"resourceVersion": "1", "managedFields": [1]}, "status": {"ready": 1},
            "spec": {"image": "a:1", "args": ["--x", "--y"], "gone": true, "same": [1]}, "data": {"values": "a: 1\nb: 2\n"},
        });
        let after = json!({
            "metadata": {"resourceVersion": "2"},
            "spec": {"image": "a:2", "args": ["--x"], "same": [1], "new": {"k": "v"}}, "data": {"values": "a: 1\nb: 3\n"},
        });
        let wanted = [
            "data.values: - b: 2",
            "data.values: + b: 3",
            "spec.args: - --y",
            "spec.gone: - true",
            "spec.image: a:1 -> a:2",
            "spec.new: + {\"k\":\"v\"}",
        ];
        assert_eq!(differences(&before, &after), wanted);
        assert_eq!(differences(&before, &before), [""; 0]);
    }
}
