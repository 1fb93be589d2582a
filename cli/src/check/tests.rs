//! A healthy cluster, and every fault planted in it.

mod faults;
pub(crate) mod fixture;
mod rights;
mod scale;
mod texts;

use std::time::Duration;

use serde_json::{Value, json};

use super::finding::Finding;
use super::gather::read::{Answer, Ask};
use super::gather::{Scope, gather};
use super::judge::judge;
use super::snapshot::{Places, Snapshot};
use crate::failure::Failure;
use fixture::Fixture;

impl Ask for Fixture {
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        let answer = |code: u16, body: &Value| Ok(Answer { code, text: body.to_string() });
        let status =
            |code: u16, message: &str| answer(code, &json!({"kind": "Status", "code": code, "message": message}));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if self.forbidden.iter().any(|forbidden| path.starts_with(forbidden)) {
            return status(403, &format!("{path} is forbidden: User \"someone\" cannot do that"));
        }
        if path == "/version" {
            return answer(200, &json!({"gitVersion": self.version}));
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        match (method, rest) {
            ("POST", ["pods"]) => match &self.trial {
                Some((code, message)) => status(*code, message),
                None if self.version.ends_with("without-webhooks") => answer(201, body.expect("a pod")),
                None => answer(201, &self.injected(body.expect("a pod"))),
            },
            ("POST", ["selfsubjectaccessreviews"]) => answer(201, &json!({"status": {"allowed": true}})),
            ("GET", ["pods", pod, "proxy", path]) => match self.answers.get(&format!("{namespace}/{pod}/{path}")) {
                Some((code, text)) => Ok(Answer { code: *code, text: text.clone() }),
                None => status(503, "error trying to reach service: connection refused"),
            },
            ("GET", [resource]) => {
                let number =
                    |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.parse::<usize>().ok());
                let (from, limit) = (number("continue=").unwrap_or(0), number("limit=").unwrap_or(usize::MAX));
                let is_in = |object: &Value| namespace.is_empty() || object["metadata"]["namespace"] == namespace;
                let found = self.objects.iter().filter(|(of, object)| of == resource && is_in(object));
                let mut items: Vec<&Value> =
                    found.map(|(_, object)| object).skip(from).take(limit.saturating_add(1)).collect();
                let more = items.len() > limit;
                items.truncate(limit);
                let next = if more { (from + limit).to_string() } else { String::new() };
                answer(200, &json!({"items": items, "metadata": {"continue": next}}))
            }
            ("GET", [resource, name]) => match self.find(resource, namespace, name) {
                Some(object) => answer(200, object),
                None => status(404, "not found"),
            },
            _ => Err(format!("{method} {path} is not answered")),
        }
    }
}

/// What is looked at where nobody says otherwise.
fn scope() -> Scope {
    let [weir, node, istio] = ["weir-system", "weir-node", "istio-system"].map(str::to_owned);
    Scope {
        places: Places { weir, node, istio },
        namespace: None,
        before: None,
        probe: Some(String::new()),
        reports: Duration::from_mins(1),
    }
}

fn gathered(fixture: &Fixture, scope: &Scope) -> Result<Snapshot, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(gather(fixture, scope))
}

/// What is found in a cluster.
fn found_with(fixture: &Fixture, scope: &Scope) -> Vec<Finding> {
    judge(&gathered(fixture, scope).expect("a snapshot")).into_sorted(&[])
}

fn found(fixture: &Fixture) -> Vec<Finding> {
    found_with(fixture, &scope())
}

#[test]
fn a_healthy_cluster_has_no_findings() {
    let findings = found(&Fixture::healthy());
    assert!(findings.is_empty(), "{findings:#?}");
    let before = Scope { before: Some("default".to_owned()), ..scope() };
    let findings = found_with(&Fixture::healthy(), &before);
    assert!(findings.is_empty(), "{findings:#?}");
}
