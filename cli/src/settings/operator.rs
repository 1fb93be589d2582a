//! An `IstioOperator` as a source of settings: what it says is laid over the documents.

use serde_json::{Value, json};

/// What an operator's file says about the two documents, as patches over them.
#[derive(Debug, PartialEq)]
pub(crate) struct Operator {
    /// Over `values`.
    pub(crate) values: Value,
    /// Over `mesh`.
    pub(crate) mesh: Value,
}

/// Places outside `spec.values` that the installer writes into the values.
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
    /// It is no `IstioOperator`, or its parts are of another type; all of it.
    pub(crate) fn read(object: &Value) -> Result<Self, Vec<String>> {
        if object["kind"] != "IstioOperator" {
            return Err(vec![format!("this is no IstioOperator but {}", object.get("kind").unwrap_or(&Value::Null))]);
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
        // What stands in `values` itself counts more.
        json_patch::merge(&mut values, &own);
        Ok(Self { values, mesh })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_values_and_mesh_and_what_the_installer_writes_into_the_values() {
        let object = json!({"kind": "IstioOperator", "spec": {
            "hub": "h", "tag": "t", "revision": "canary", "components": {"cni": {"enabled": true}},
            "values": {"global": {"tag": "own"}}, "meshConfig": {"trustDomain": "x"}}});
        let operator = Operator::read(&object).unwrap();
        let values =
            json!({"global": {"hub": "h", "tag": "own"}, "revision": "canary", "pilot": {"cni": {"enabled": true}}});
        assert_eq!(operator, Operator { values, mesh: json!({"trustDomain": "x"}) });
    }

    #[test]
    fn another_object_and_parts_of_another_type_are_refused() {
        assert_eq!(
            Operator::read(&json!({"kind": "Pod"})),
            Err(vec!["this is no IstioOperator but \"Pod\"".to_owned()])
        );
        let object = json!({"kind": "IstioOperator", "spec": {"values": [], "meshConfig": 1}});
        assert_eq!(Operator::read(&object).unwrap_err().len(), 2);
    }
}
