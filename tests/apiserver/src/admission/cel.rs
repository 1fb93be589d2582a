//! Conditions of webhooks (`matchConditions`), in the Common Expression Language.

use cel::{Context, Program};
use serde_json::{Map, Value};

/// Functions that a condition may call. Kubernetes has more; one that is missing here is an error, never ignored.
const FUNCTIONS: [&str; 4] = ["contains", "endsWith", "size", "startsWith"];

/// A parsed condition.
#[derive(Debug)]
pub(in super::super) struct Expression(Program);

impl Expression {
    /// Parses a condition. Unlike the real API server it does not check types.
    pub(in super::super) fn parse(text: &str) -> Result<Self, String> {
        let program = Program::compile(text).map_err(|error| error.to_string())?;
        // A name with a sign in it is an operator.
        let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let references = program.references();
        let unknown = references.functions().into_iter().filter(is_name).find(|name| !FUNCTIONS.contains(name));
        let unknown = unknown.map(|name| format!("undeclared reference to '{name}'"));
        unknown.map_or(Ok(Self(program)), Err)
    }

    /// Returns whether the condition holds; an error where it has no value, as for a field that is missing.
    pub(super) fn holds(&self, variables: &Map<String, Value>) -> Result<bool, String> {
        let mut context = Context::default();
        for (name, value) in variables {
            context.add_variable(name, value).map_err(|error| error.to_string())?;
        }
        match self.0.execute(&context) {
            Ok(cel::Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err("not a bool".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(text: &str) -> Result<bool, String> {
        let variables = json!({
            "object": {"metadata": {"namespace": "shop", "labels": {"app": "web"}}, "spec": {"hostNetwork": false, "priority": 7, "containers": [{"name": "a"}, {"name": "b"}]}},
            "request": {"userInfo": {"username": "system:node:n1", "groups": ["system:nodes"]}, "operation": "CREATE"},
        });
        Expression::parse(text)?.holds(variables.as_object().unwrap())
    }

    #[test]
    fn conditions_hold_or_not() {
        for (text, expected) in [
            ("!has(object.spec.hostNetwork) || object.spec.hostNetwork == false", true),
            ("!object.metadata.namespace.startsWith(\"kube-\")", true),
            ("has(object.metadata.labels) && 'app' in object.metadata.labels", true),
            ("object.metadata.labels['app'] != \"web\"", false),
            ("object.spec.priority == 7", true),
            ("request.userInfo.groups.exists(g, g.endsWith('nodes')) ? true : false", true),
            // A side that has no value does not matter where the other decides.
            ("object.spec.missing == 1 || true", true),
            ("false && object.spec.missing == 1", false),
        ] {
            assert_eq!(holds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn condition_without_a_boolean_value_is_an_error() {
        for text in [
            "unknown == 1",
            "object.spec.missing == 1",
            "object.metadata.namespace",
            "object.spec.containers[7].name == ''",
        ] {
            assert!(holds(text).is_err(), "{text}: {:?}", holds(text));
        }
    }

    #[test]
    fn malformed_conditions_and_unknown_functions_are_rejected() {
        for text in ["", "object.spec.", "object.x.nonsense(1)", "true true", "'open", "has(object)"] {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
    }
}
