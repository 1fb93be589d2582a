//! Reads settings from an `IstioOperator`.

use serde_json::{Value, json};

/// The settings of an IstioOperator, as merge patches over the two documents.
#[derive(Debug, PartialEq)]
pub(crate) struct Operator {
    pub(crate) values: Value,
    pub(crate) mesh: Value,
}

/// Fields outside `spec.values` that Istio's installer copies into the values.
const INTO_VALUES: [(&str, &str); 4] = [
    ("/spec/hub", "/global/hub"),
    ("/spec/tag", "/global/tag"),
    ("/spec/revision", "/revision"),
    ("/spec/components/cni/enabled", "/pilot/cni/enabled"),
];

impl Operator {
    /// Reads the object.
    ///
    /// # Errors
    /// It is not an `IstioOperator`, or fields have the wrong type.
    pub(crate) fn read(object: &Value) -> Result<Self, Vec<String>> {
        if object["kind"] != "IstioOperator" {
            return Err(vec![format!(
                "kind is {}, expected IstioOperator",
                object.get("kind").unwrap_or(&Value::Null)
            )]);
        }
        let mut findings = Vec::new();
        let mut part = |field: &str| match &object["spec"][field] {
            Value::Null => json!({}),
            found @ Value::Object(_) => found.clone(),
            _ => {
                findings.push(format!("spec.{field} must be an object"));
                json!({})
            }
        };
        let (own, mesh) = (part("values"), part("meshConfig"));
        if !findings.is_empty() {
            return Err(findings);
        }
        let mut values = json!({});
        for (from, to) in INTO_VALUES {
            if let Some(value) = object.pointer(from) {
                let mut at = &mut values;
                for key in to.split('/').skip(1) {
                    at = &mut at[key];
                }
                *at = value.clone();
            }
        }
        // `spec.values` has precedence.
        json_patch::merge(&mut values, &own);
        Ok(Self { values, mesh })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_mesh_and_copied_fields_are_read() {
        let object = json!({"kind": "IstioOperator", "spec": {
            "hub": "h", "tag": "t", "revision": "canary", "components": {"cni": {"enabled": true}},
            "values": {"global": {"tag": "own"}}, "meshConfig": {"trustDomain": "x"}}});
        let operator = Operator::read(&object).unwrap();
        let values =
            json!({"global": {"hub": "h", "tag": "own"}, "revision": "canary", "pilot": {"cni": {"enabled": true}}});
        assert_eq!(operator, Operator { values, mesh: json!({"trustDomain": "x"}) });
    }

    #[test]
    fn other_kinds_and_wrong_types_are_errors() {
        assert_eq!(
            Operator::read(&json!({"kind": "Pod"})),
            Err(vec!["kind is \"Pod\", expected IstioOperator".to_owned()])
        );
        let object = json!({"kind": "IstioOperator", "spec": {"values": [], "meshConfig": 1}});
        assert_eq!(Operator::read(&object).unwrap_err().len(), 2);
    }
}
