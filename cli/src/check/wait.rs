//! `weir check --wait`: checks again and again until a condition holds.

use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use weir_check::{Finding, Severity, Suppression, SuppressionError};

use super::{Checked, ClusterCheckArgs};
use crate::console::Spinner;
use crate::failure::Failure;

/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(2);
/// Name of [`WaitCondition::Passed`].
pub(super) const PASSED: &str = "passed";

/// A condition that ends the wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WaitCondition {
    /// The exit status would be 0.
    Passed,
    /// There is no such finding, although the check is complete.
    Gone(Suppression),
}

impl FromStr for WaitCondition {
    type Err = SuppressionError;

    fn from_str(text: &str) -> Result<Self, SuppressionError> {
        if text == PASSED { Ok(Self::Passed) } else { text.parse().map(Self::Gone) }
    }
}

impl WaitCondition {
    /// Returns whether the findings of a check meet the condition.
    pub(super) fn holds(&self, args: &ClusterCheckArgs, findings: &[Finding]) -> bool {
        if args.is_incomplete(findings) {
            return false;
        }
        match self {
            Self::Passed => !args.is_failed(findings),
            Self::Gone(rule) => !findings.iter().any(|finding| rule.matches(finding)),
        }
    }
}

/// Checks until the condition holds or the time is over; returns the last check, and whether the condition holds.
///
/// # Errors
/// No kubeconfig leads to a cluster, or the cluster did not answer the last check.
pub(super) fn wait(
    args: &ClusterCheckArgs,
    is_pre_install: bool,
    condition: &WaitCondition,
) -> Result<(Checked, bool), Failure> {
    args.connect.require_cluster()?;
    let deadline = Instant::now() + args.timeout;
    let mut spinner = Spinner::start("waiting: checking the cluster");
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(INTERVAL);
        let result = args.check(is_pre_install, left);
        let is_last = Instant::now() + INTERVAL >= deadline;
        match result {
            Ok(checked) => {
                let is_met = condition.holds(args, &checked.findings);
                if is_met || is_last {
                    return Ok((checked, is_met));
                }
                spinner.set(&format!("waiting: {}", counts(&checked.findings)));
            }
            Err(failure) if is_last => return Err(failure),
            Err(failure) => spinner.set(failure.to_string().lines().next().unwrap_or_default()),
        }
        thread::sleep(INTERVAL);
    }
}

fn counts(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.fault.severity == severity).count();
    format!("{} errors, {} warnings", count(Severity::Error), count(Severity::Warning))
}
