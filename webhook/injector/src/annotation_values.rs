//! Annotation values that the built-in templates and the functions of user templates share.

use std::borrow::Cow;

use serde_json::Value;

/// Appends a port to a comma-separated list, unless the list has it or the port is empty or 0.
pub(crate) fn append_port<'a>(list: &'a str, port: &str) -> Cow<'a, str> {
    let port = port.trim();
    let entries = || list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    if port.is_empty() || port == "0" || entries().any(|entry| entry == port) {
        return Cow::Borrowed(list);
    }
    Cow::Owned(entries().chain([port]).collect::<Vec<_>>().join(","))
}

/// Parses volumes or mounts of a user: a JSON object from name to object, sorted here, or a list of objects
/// that have a name.
///
/// # Errors
/// The text is neither.
pub(crate) fn parse_named(text: &str) -> Result<Vec<(String, Value)>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(objects)) => {
            let mut named: Vec<(String, Value)> = objects.into_iter().collect();
            named.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            Ok(named)
        }
        Ok(Value::Array(items)) => {
            let named = |item: Value| Some((item["name"].as_str()?.to_owned(), item));
            let named: Option<Vec<_>> = items.into_iter().map(named).collect();
            named.ok_or_else(|| "is a list with an item that has no name".to_owned())
        }
        Ok(_) => Err("is neither a JSON object nor a list".to_owned()),
        Err(error) => Err(format!("is not a JSON object: {error}")),
    }
}

/// Appends a network to the value of Multus' annotation, in its short or its JSON form, unless it is in it.
pub(crate) fn append_multus_network(existing: &str, namespace: &str, network: &str) -> String {
    let flat = if namespace.is_empty() { network.to_owned() } else { format!("{namespace}/{network}") };
    if existing.trim().is_empty() {
        return flat;
    }
    let Some(end) = existing.rfind(']') else {
        if existing.split(',').any(|entry| entry.trim() == flat) {
            return existing.to_owned();
        }
        return format!("{existing}, {flat}");
    };
    match serde_json::from_str::<Vec<Value>>(existing) {
        Ok(list) if !list.iter().any(|entry| is_network(entry, namespace, network)) => {
            let separator = if list.is_empty() { "" } else { ", " };
            let namespace =
                if namespace.is_empty() { String::new() } else { format!(r#", "namespace": "{namespace}""#) };
            let entry = format!(r#"{separator}{{"name": "{network}"{namespace}}}"#);
            format!("{}{entry}{}", &existing[..end], &existing[end..])
        }
        _ => existing.to_owned(),
    }
}

fn is_network(entry: &Value, namespace: &str, network: &str) -> bool {
    entry["name"] == network && entry["namespace"].as_str().unwrap_or_default() == namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_appended_once() {
        assert_eq!(append_port("", "15020"), "15020");
        assert_eq!(append_port(" 4, 5,", "15020"), "4,5,15020");
        assert_eq!(append_port("15020, 4", "15020"), "15020, 4");
        assert_eq!(append_port("4, 5", "0"), "4, 5");
    }

    #[test]
    fn a_network_is_appended_once_in_both_forms() {
        let append = |existing| append_multus_network(existing, "default", "istio-cni");
        assert_eq!(append(""), "default/istio-cni");
        assert_eq!(append("a"), "a, default/istio-cni");
        assert_eq!(append("a, default/istio-cni"), "a, default/istio-cni");
        let appended = r#"[{"name": "a"}, {"name": "istio-cni", "namespace": "default"}]"#;
        assert_eq!(append(r#"[{"name": "a"}]"#), appended);
        let existing = r#"[{"name":"istio-cni","namespace":"default"}]"#;
        assert_eq!(append(existing), existing);
        assert_eq!(append("[broken]"), "[broken]");
    }
}
