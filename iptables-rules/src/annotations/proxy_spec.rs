//! Settings of the proxy container in the pod spec.

use std::collections::BTreeMap;

use serde_json::Value;

/// Settings of the proxy container. The webhook, the CLI and the node agent read them from the pod spec; the CNI plugin, which has no
/// access to it, uses the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySpec {
    /// `runAsUser` of the proxy container; `None` or 0 mean 1337.
    pub uid: Option<u32>,
    /// `runAsGroup` of the proxy container; `None` or 0 mean 1337.
    pub gid: Option<u32>,
    /// Literal environment of the proxy container: `ISTIO_META_DNS_CAPTURE`, `INVALID_DROP`, owner groups ...
    pub env: BTreeMap<String, String>,
    /// True if the container was read, so that variables that are not in `env` are not set.
    pub is_known: bool,
}

impl ProxySpec {
    /// Reads the proxy container. Variables with `valueFrom` are left out: their values are unknown here.
    ///
    /// # Errors
    /// Returns one error for each invalid user or group: with a default instead, the rules would exempt another user than the proxy's.
    pub fn from_container(container: &Value) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut id = |field: &str| {
            let value = container.get("securityContext")?.get(field).filter(|value| !value.is_null())?;
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            if id.is_none() {
                let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
                errors.push(format!(
                    "container {name}: securityContext.{field} must be an id from 0 to 4294967295, found {value}"
                ));
            }
            id
        };
        let (uid, gid) = (id("runAsUser"), id("runAsGroup"));
        let env = container.get("env").and_then(Value::as_array).into_iter().flatten();
        let env = env
            .filter_map(|entry| {
                let text = |key: &str| entry.get(key).and_then(Value::as_str);
                Some((text("name")?.to_owned(), text("value")?.to_owned()))
            })
            .collect();
        if errors.is_empty() { Ok(Self { uid, gid, env, is_known: true }) } else { Err(errors) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_ids_and_literal_variables() {
        let container = json!({
            "name": "istio-proxy", "securityContext": {"runAsUser": 0, "runAsGroup": 2000},
            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {}}, {"name": "A", "value": "2"}, null],
        });
        let spec = ProxySpec::from_container(&container).unwrap();
        let env = BTreeMap::from([("A".to_owned(), "2".to_owned())]);
        assert_eq!(spec, ProxySpec { uid: Some(0), gid: Some(2000), env, is_known: true });
        let nothing = json!({"securityContext": {"runAsUser": null}, "env": null});
        assert_eq!(ProxySpec::from_container(&nothing), Ok(ProxySpec { is_known: true, ..ProxySpec::default() }));
    }

    #[test]
    fn names_every_invalid_id() {
        let container = json!({"name": "istio-proxy", "securityContext": {"runAsUser": -1, "runAsGroup": "2000"}});
        assert_eq!(
            ProxySpec::from_container(&container).unwrap_err(),
            [
                "container istio-proxy: securityContext.runAsUser must be an id from 0 to 4294967295, found -1",
                "container istio-proxy: securityContext.runAsGroup must be an id from 0 to 4294967295, found \"2000\"",
            ]
        );
    }
}
