//! Named conditions behind `/readyz`, as text for people and as JSON for programs.
//!
//! ```json
//! {"ready": true, "conditions": [
//!   {"name": "pods", "status": "ok", "impact": "blocking", "reason": "CacheSynced", "message": "cache synced"}
//! ]}
//! ```
//!
//! `reason` is a stable word in upper camel case; `message` is for people and may change.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;

/// Whether a failed condition makes the process unready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadinessImpact {
    /// The process is not ready while the condition has failed.
    Blocking,
    /// The process stays ready; an administrator should investigate.
    Advisory,
}

/// State of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Not as it should be, but the process does its work.
    Degraded,
    /// Not, or not yet, working.
    Failed,
}

/// One condition, as `/readyz` reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConditionReport {
    /// Name of the condition.
    pub name: &'static str,
    /// Its state.
    pub status: Status,
    /// Effect of a failure on the process.
    pub impact: ReadinessImpact,
    /// Stable word for programs.
    pub reason: &'static str,
    /// Sentence for people.
    pub message: String,
}

/// The conditions of a process, in the order of their registration. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Health {
    conditions: Arc<Mutex<Vec<ConditionReport>>>,
}

/// A handle on one condition.
#[derive(Debug, Clone)]
pub struct Condition {
    health: Health,
    index: usize,
}

/// The document behind `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether no blocking condition has failed, and there is one at all.
    pub ready: bool,
    /// All conditions.
    pub conditions: Vec<ConditionReport>,
}

impl Health {
    /// Registers a condition. It has failed with this reason and message until it is set.
    pub fn register(
        &self,
        name: &'static str,
        impact: ReadinessImpact,
        reason: &'static str,
        message: &str,
    ) -> Condition {
        let mut conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let message = message.to_owned();
        conditions.push(ConditionReport { name, status: Status::Failed, impact, reason, message });
        Condition { health: self.clone(), index: conditions.len() - 1 }
    }

    /// Returns the state of all conditions now.
    pub fn readiness(&self) -> Readiness {
        Readiness::new(self.conditions.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Condition {
    /// All is well; `message` says how.
    pub fn set_ok(&self, reason: &'static str, message: impl Into<String>) {
        self.set(Status::Ok, reason, message.into());
    }

    /// Something is wrong, but the process does its work; `message` says what, and what to do.
    pub fn set_degraded(&self, reason: &'static str, message: impl Into<String>) {
        self.set(Status::Degraded, reason, message.into());
    }

    /// Something does not work; `message` says what, and what to do.
    pub fn set_failed(&self, reason: &'static str, message: impl Into<String>) {
        self.set(Status::Failed, reason, message.into());
    }

    fn set(&self, status: Status, reason: &'static str, message: String) {
        let mut conditions = self.health.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(condition) = conditions.get_mut(self.index) {
            (condition.status, condition.reason, condition.message) = (status, reason, message);
        }
    }
}

impl Readiness {
    /// Derives readiness from conditions; without any, nothing is ready.
    pub fn new(conditions: Vec<ConditionReport>) -> Self {
        let ready = !conditions.is_empty() && !conditions.iter().any(ConditionReport::is_blocking);
        Self { ready, conditions }
    }

    /// Renders one line per condition, in the form of the API server's own `/readyz?verbose`; `[!]` marks what does not
    /// make the process unready.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for condition in &self.conditions {
            let mark = match condition.status {
                Status::Ok => '+',
                Status::Failed if condition.is_blocking() => '-',
                Status::Degraded | Status::Failed => '!',
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "[{mark}]{}: {}", condition.name, condition.message.replace('\n', " "));
        }
        text
    }

    /// Answers `/readyz`: 200 or 503, as JSON with `Accept: application/json` or `?format=json`, else as text.
    pub fn respond(&self, headers: &HeaderMap, query: Option<&str>) -> Response {
        let status = if self.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        if wants_json(headers, query) {
            (status, Json(self)).into_response()
        } else {
            (status, self.to_text()).into_response()
        }
    }
}

impl ConditionReport {
    fn is_blocking(&self) -> bool {
        self.status == Status::Failed && self.impact == ReadinessImpact::Blocking
    }
}

fn wants_json(headers: &HeaderMap, query: Option<&str>) -> bool {
    let format = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("format="));
    if let Some(format) = format {
        return format == "json";
    }
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|range| range.split(';').next().is_some_and(|range| range.trim().eq_ignore_ascii_case("application/json")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> (Health, Condition, Condition) {
        let health = Health::default();
        assert!(!health.readiness().ready, "nothing registered yet");
        let install = health.register("install", ReadinessImpact::Blocking, "Starting", "starting");
        let contention = health.register("contention", ReadinessImpact::Advisory, "Starting", "starting");
        (health, install, contention)
    }

    #[test]
    fn only_a_failed_blocking_condition_makes_it_unready() {
        let (health, install, contention) = health();
        assert!(!health.readiness().ready);
        assert_eq!(health.readiness().to_text(), "[-]install: starting\n[!]contention: starting\n");
        install.set_ok("Installed", "entry in 10-a.conflist");
        contention.set_failed("Contended", "another\nwriter");
        assert!(health.readiness().ready);
        assert_eq!(health.readiness().to_text(), "[+]install: entry in 10-a.conflist\n[!]contention: another writer\n");
        install.set_degraded("Contended", "restoring");
        assert!(health.readiness().ready && health.readiness().to_text().starts_with("[!]install: restoring\n"));
        install.set_failed("Gone", "gone");
        assert!(!health.readiness().ready);
    }

    #[test]
    fn json_has_every_field_of_every_condition() {
        let (health, install, _) = health();
        install.set_degraded("Contended", "restoring in 2 s");
        assert_eq!(
            serde_json::to_value(health.readiness()).unwrap(),
            serde_json::json!({"ready": true, "conditions": [
                {"name": "install", "status": "degraded", "impact": "blocking", "reason": "Contended", "message": "restoring in 2 s"},
                {"name": "contention", "status": "failed", "impact": "advisory", "reason": "Starting", "message": "starting"},
            ]})
        );
    }

    #[test]
    fn json_is_chosen_by_query_or_accept_header() {
        let headers = |accept: &str| HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
        for (accept, query, json) in [
            ("*/*", None, false),
            ("application/json", None, true),
            ("text/html, Application/JSON;q=0.9", None, true),
            ("*/*", Some("verbose&format=json"), true),
            ("application/json", Some("format=text"), false),
            ("text/plain", Some("verbose"), false),
        ] {
            assert_eq!(wants_json(&headers(accept), query), json, "{accept} {query:?}");
        }
    }
}
