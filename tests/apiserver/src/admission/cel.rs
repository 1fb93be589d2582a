//! The part of CEL that conditions of webhooks are written in: fields, indices, `has`, comparisons, logic, `in`, `size`, the functions of
//! strings, and `exists` and `all`. Whatever else there is in CEL is refused when the expression is read, never passed over.

mod parse;

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// A condition that has been read.
#[derive(Debug, Clone)]
pub(in super::super) struct Expression(Expr);

#[derive(Debug, Clone)]
enum Expr {
    Literal(Value),
    Variable(String),
    Select(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    Has(Box<Expr>, String),
    Not(Box<Expr>),
    Binary(Box<Expr>, Operator, Box<Expr>),
    Choose(Box<Expr>, Box<Expr>, Box<Expr>),
    List(Vec<Expr>),
    Call(Box<Expr>, Function, Box<Expr>),
    Size(Box<Expr>),
    /// `list.exists(name, predicate)`, or `all` of them.
    Every {
        list: Box<Expr>,
        name: String,
        predicate: Box<Expr>,
        all: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    And,
    Or,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    StartsWith,
    EndsWith,
    Contains,
}

/// The names an expression may use, with their values.
pub(super) type Variables = Map<String, Value>;

impl Expression {
    /// Reads an expression.
    pub(in super::super) fn parse(text: &str) -> Result<Self, String> {
        parse::expression(text).map(Self)
    }

    /// Whether it holds; an error where it has no value, as for a field that is not there.
    pub(super) fn holds(&self, variables: &Variables) -> Result<bool, String> {
        truth(&evaluate(&self.0, variables)?)
    }
}

fn truth(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "no such overload".to_owned())
}

fn evaluate(expr: &Expr, names: &Variables) -> Result<Value, String> {
    Ok(match expr {
        Expr::Literal(value) => value.clone(),
        Expr::Variable(name) => names.get(name).cloned().ok_or_else(|| format!("undeclared reference to '{name}'"))?,
        Expr::Select(of, name) => field(&evaluate(of, names)?, name)?,
        Expr::Index(of, index) => match (evaluate(of, names)?, evaluate(index, names)?) {
            (of @ Value::Object(_), Value::String(key)) => field(&of, &key)?,
            (Value::Array(items), Value::Number(place)) => {
                let place = place.as_u64().and_then(|place| usize::try_from(place).ok());
                place.and_then(|place| items.get(place)).cloned().ok_or("index out of bounds")?
            }
            _ => return Err("no such overload".to_owned()),
        },
        Expr::Has(of, name) => match evaluate(of, names)? {
            Value::Object(map) => map.contains_key(name).into(),
            _ => return Err("no such overload".to_owned()),
        },
        Expr::Not(of) => (!truth(&evaluate(of, names)?)?).into(),
        Expr::Binary(left, operator, right) => binary(left, *operator, right, names)?,
        Expr::Choose(condition, yes, no) => {
            evaluate(if truth(&evaluate(condition, names)?)? { yes } else { no }, names)?
        }
        Expr::List(items) => items.iter().map(|item| evaluate(item, names)).collect::<Result<Vec<_>, _>>()?.into(),
        Expr::Call(of, function, argument) => match (evaluate(of, names)?, evaluate(argument, names)?) {
            (Value::String(text), Value::String(part)) => match function {
                Function::StartsWith => text.starts_with(&part),
                Function::EndsWith => text.ends_with(&part),
                Function::Contains => text.contains(&part),
            }
            .into(),
            _ => return Err("no such overload".to_owned()),
        },
        Expr::Size(of) => match evaluate(of, names)? {
            Value::String(text) => text.chars().count(),
            Value::Array(items) => items.len(),
            Value::Object(map) => map.len(),
            _ => return Err("no such overload".to_owned()),
        }
        .into(),
        Expr::Every { list, name, predicate, all } => {
            let items: Vec<Value> = match evaluate(list, names)? {
                Value::Array(items) => items,
                Value::Object(map) => map.into_iter().map(|(key, _)| key.into()).collect(),
                _ => return Err("no such overload".to_owned()),
            };
            let mut inner = names.clone();
            let mut failed = None;
            for item in items {
                inner.insert(name.clone(), item);
                match evaluate(predicate, &inner).and_then(|value| truth(&value)) {
                    Ok(holds) if holds != *all => return Ok(holds.into()),
                    Ok(_) => {}
                    Err(error) => failed = Some(error),
                }
            }
            failed.map_or(Ok((*all).into()), Err)?
        }
    })
}

fn field(of: &Value, name: &str) -> Result<Value, String> {
    of.get(name).cloned().ok_or_else(|| format!("no such key: {name}"))
}

fn binary(left: &Expr, operator: Operator, right: &Expr, names: &Variables) -> Result<Value, String> {
    if let Operator::And | Operator::Or = operator {
        // One side that decides is enough, whatever the other does.
        let deciding = operator == Operator::Or;
        let [left, right] = [left, right].map(|side| evaluate(side, names).and_then(|value| truth(&value)));
        return match (left, right) {
            (Ok(value), _) | (_, Ok(value)) if value == deciding => Ok(deciding.into()),
            (Ok(_), Ok(_)) => Ok((!deciding).into()),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
    }
    let (left, right) = (evaluate(left, names)?, evaluate(right, names)?);
    Ok(match operator {
        Operator::Equal => equal(&left, &right),
        Operator::NotEqual => !equal(&left, &right),
        Operator::In => match &right {
            Value::Array(items) => items.iter().any(|item| equal(item, &left)),
            Value::Object(map) => left.as_str().is_some_and(|key| map.contains_key(key)),
            _ => return Err("no such overload".to_owned()),
        },
        comparison => {
            let order = match (&left, &right) {
                (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
                (left, right) => left.as_f64().zip(right.as_f64()).and_then(|(left, right)| left.partial_cmp(&right)),
            };
            let order = order.ok_or("no such overload")?;
            match comparison {
                Operator::Less => order == Ordering::Less,
                Operator::LessOrEqual => order != Ordering::Greater,
                Operator::Greater => order == Ordering::Greater,
                _ => order != Ordering::Less,
            }
        }
    }
    .into())
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        _ => left == right,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(text: &str) -> Result<bool, String> {
        let variables = json!({
            "object": {"metadata": {"namespace": "shop", "labels": {"app": "web"}}, "spec": {"hostNetwork": false, "containers": [{"name": "a"}, {"name": "b"}]}},
            "request": {"userInfo": {"username": "system:node:n1", "groups": ["system:nodes"]}, "operation": "CREATE"},
        });
        Expression::parse(text)?.holds(variables.as_object().unwrap())
    }

    #[test]
    fn conditions_hold_or_not() {
        for (text, expected) in [
            ("!has(object.spec.hostNetwork) || object.spec.hostNetwork == false", true),
            ("!object.metadata.namespace.startsWith(\"kube-\")", true),
            ("object.metadata.namespace in ['kube-system', 'shop']", true),
            ("request.userInfo.username == 'system:serviceaccount:a:b'", false),
            ("has(object.metadata.labels) && 'app' in object.metadata.labels", true),
            ("object.metadata.labels['app'] != \"web\"", false),
            ("size(object.spec.containers) > 1 && object.spec.containers.size() <= 2", true),
            ("object.spec.containers.exists(c, c.name == 'b')", true),
            ("object.spec.containers.all(c, c.name == 'b')", false),
            ("request.userInfo.groups.exists(g, g.endsWith('nodes')) ? true : false", true),
            ("object.spec.containers[1].name == 'b' && !(false || false)", true),
            // A side that has no value does not matter where the other decides.
            ("object.spec.missing == 1 || true", true),
            ("false && object.spec.missing == 1", false),
            ("true && false", false),
            ("false || false", false),
            ("true && true", true),
        ] {
            assert_eq!(holds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_is_an_error() {
        for (text, error) in [
            ("object.spec.missing == 1", "no such key: missing"),
            ("object.spec.missing == 1 || false", "no such key: missing"),
            ("has(object.nothing.more)", "no such key: nothing"),
            ("object.metadata.namespace", "no such overload"),
            ("object.spec.containers[7].name == ''", "index out of bounds"),
        ] {
            assert_eq!(holds(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_outside_of_the_subset_is_refused_when_read() {
        for text in [
            "",
            "object.spec.",
            "object.metadata.?labels",
            "object.spec.containers.map(c, c.name) == []",
            "object.metadata.name.matches('^a')",
            "unknown == 1",
            "request.hostNetwork",
            "1 + 1 == 2",
            "true true",
            "'open",
            "has(object)",
            "authorizer.path('/').check('get').allowed()",
        ] {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
    }
}
