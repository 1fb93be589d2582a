//! A healthy cluster, and faults planted in it.

mod changes;
mod faults;
mod fixture;
mod output;
mod permissions;
mod revisions;
mod scale;

use std::time::Duration;

use serde_json::{Value, json};

use crate::collect::api::{ApiResponse, ApiTransport};
use crate::collect::collect_from;
use crate::{CheckScope, CollectError, Finding, InstallNamespaces, Snapshot, analyze};
use fixture::Fixture;

impl ApiTransport for Fixture {
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<ApiResponse, String> {
        let answer = |code: u16, body: &Value| Ok(ApiResponse { code, body: body.to_string() });
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
            ("GET", ["pods", pod, ..]) if pod.split(':').next() == self.deleted_pod => {
                status(404, "pods \"it\" not found")
            }
            ("POST", ["pods"]) => match &self.dry_run {
                Some((code, message)) => status(*code, message),
                None if self.version.ends_with("without-webhooks") => answer(201, body.expect("a pod")),
                None => answer(201, &self.injected(body.expect("a pod"))),
            },
            ("POST", ["selfsubjectaccessreviews"]) => answer(201, &json!({"status": {"allowed": true}})),
            ("GET", ["pods", pod, "proxy", path]) => match self.reports.get(&format!("{namespace}/{pod}/{path}")) {
                Some((code, body)) => Ok(ApiResponse { code: *code, body: body.clone() }),
                None => status(503, "error trying to reach service: connection refused"),
            },
            ("GET", [resource]) => answer(200, &self.page(resource, namespace, query)),
            ("GET", [resource, name]) => match self.find(resource, namespace, name) {
                Some(object) => answer(200, object),
                None => status(404, "not found"),
            },
            _ => Err(format!("no response to {method} {path}")),
        }
    }
}

/// Returns a number in a query.
fn parameter(query: &str, name: &str) -> Option<usize> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

impl Fixture {
    fn page(&self, resource: &str, namespace: &str, query: &str) -> Value {
        let (from, limit) =
            (parameter(query, "continue").unwrap_or(0), parameter(query, "limit").unwrap_or(usize::MAX));
        let is_in = |object: &Value| namespace.is_empty() || object["metadata"]["namespace"] == namespace;
        let found = self.objects.iter().filter(|(of, object)| of == resource && is_in(object));
        let mut items: Vec<&Value> = found.map(|(_, object)| object).skip(from).take(limit.saturating_add(1)).collect();
        let has_more = items.len() > limit;
        items.truncate(limit);
        let next = if has_more { (from + limit).to_string() } else { String::new() };
        json!({"items": items, "metadata": {"continue": next}})
    }
}

fn scope() -> CheckScope {
    let [webhook, agent, istio] = ["weir-system", "weir-node", "istio-system"].map(str::to_owned);
    CheckScope {
        namespaces: InstallNamespaces { webhook, agent, istio },
        namespace: None,
        pre_install_revision: None,
        dry_run_namespace: Some(String::new()),
        pod_report_timeout: Duration::from_mins(1),
    }
}

fn pre_install_scope(revision: &str) -> CheckScope {
    CheckScope { pre_install_revision: Some(revision.to_owned()), ..scope() }
}

fn collected<A: ApiTransport>(cluster: &A, scope: &CheckScope) -> Result<Snapshot, CollectError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(collect_from(cluster, scope))
}

fn findings_in(fixture: &Fixture, scope: &CheckScope) -> Vec<Finding> {
    analyze(&collected(fixture, scope).expect("a snapshot"))
}

fn findings(fixture: &Fixture) -> Vec<Finding> {
    findings_in(fixture, &scope())
}

#[test]
fn deleted_pods_are_not_unread() {
    let mut fixture = Fixture::healthy();
    fixture.deleted_pod = Some("weir-agent-2");
    assert_eq!(findings(&fixture), []);
    let mut fixture = Fixture::healthy();
    fixture.reports.retain(|path, _| !path.contains("weir-agent-2"));
    let names = |fixture: &Fixture| findings(fixture).iter().map(|finding| finding.fault.name).collect::<Vec<_>>();
    assert_eq!(names(&fixture), ["not-read"]);
    fixture.get("pods", "weir-node", "weir-agent-2")["metadata"]["deletionTimestamp"] = "2026-03-01T00:00:00Z".into();
    assert_eq!(names(&fixture), ["agent-missing"]);
}

#[test]
fn a_healthy_cluster_has_no_findings() {
    for scope in [scope(), pre_install_scope("default")] {
        let findings = findings_in(&Fixture::healthy(), &scope);
        assert!(findings.is_empty(), "{findings:#?}");
    }
}
