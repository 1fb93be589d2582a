//! Areas of a check: what was checked, and what could not be.

use crate::fault::{self, Severity};
use crate::finding::Finding;

/// Areas by the first digit of the codes of their faults.
const AREAS: [(char, &str); 8] = [
    ('1', "cluster and permissions"),
    ('2', "path from the API server to the webhook"),
    ('3', "certificates"),
    ('4', "webhook configurations and namespaces"),
    ('5', "replicas of the webhook"),
    ('6', "nodes and agents"),
    ('7', "settings"),
    ('8', "workloads"),
];
/// Areas of a check before an installation.
const PRE_INSTALL: &str = "14";
/// Areas that depend on what could not be read, by a part of its name; the first match counts.
const DEPENDENCIES: [(&str, &str); 16] = [
    ("MutatingWebhookConfigurations", "23478"),
    ("ValidatingAdmissionPolic", "4"),
    ("RoleBindings", "1"),
    ("Roles", "1"),
    ("your own permissions", "1"),
    ("version of the API server", "1"),
    ("services of the control plane", "1"),
    ("dry-run pod", "2"),
    ("Secret", "3"),
    ("configmaps of", "67"),
    ("reports", "56"),
    ("ProxyConfigs", "78"),
    (" of weir-node", "6"),
    (" of ", "256"),
    ("namespaces", "48"),
    ("nodes", "16"),
];
/// Areas of anything else: pods, their controllers and events.
const OTHERWISE: &str = "8";

/// State of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AreaState {
    /// Everything was read, and nothing is wrong that matters.
    Passed,
    /// Warnings.
    Warned,
    /// Errors.
    Failed,
    /// Not everything could be read, and what was is in order.
    Incomplete,
}

/// An area with its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Name, for people.
    pub name: &'static str,
    /// State.
    pub state: AreaState,
}

/// Returns the areas of a check with what the findings say about them.
pub fn areas(findings: &[Finding], is_pre_install: bool) -> Vec<Area> {
    let checked = AREAS.into_iter().filter(|(digit, _)| !is_pre_install || PRE_INSTALL.contains(*digit));
    let state = |digit: char| {
        let of_area =
            |finding: &&Finding| finding.fault.code.strip_prefix("WEIR").is_some_and(|n| n.starts_with(digit));
        let worst = findings.iter().filter(of_area).map(|finding| finding.fault.severity).max();
        let mut unread = findings.iter().filter(|finding| finding.fault == &fault::NOT_READ);
        match worst {
            Some(Severity::Error) => AreaState::Failed,
            Some(Severity::Warning) => AreaState::Warned,
            _ if unread.any(|finding| dependents(&finding.object.kind).contains(digit)) => AreaState::Incomplete,
            _ => AreaState::Passed,
        }
    };
    checked.map(|(digit, name)| Area { name, state: state(digit) }).collect()
}

/// Returns whether everything that the check needs could be read.
pub fn is_complete(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.fault != &fault::NOT_READ)
}

fn dependents(what: &str) -> &'static str {
    DEPENDENCIES.iter().find(|(part, _)| what.contains(part)).map_or(OTHERWISE, |(_, areas)| areas)
}
