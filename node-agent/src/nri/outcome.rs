//! Why the runtime reports a pod, and what became of it.

use weir_protocol::agent::CallOutcome;

/// Why the runtime reports a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// It is new: no container has been created.
    Run,
    /// It was there when the agent registered: it may have run for long.
    Synchronize,
}

impl Occasion {
    /// Returns the name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Synchronize => "synchronize",
        }
    }
}

/// Result for one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodOutcome {
    /// The pod is not in the mesh.
    Skipped,
    /// Its rules were installed.
    Installed,
    /// Its rules were in place already.
    Unchanged,
    /// Rules of another configuration, or changed ones, were replaced.
    Replaced,
    /// Other intact rules of ours, or rules of another installer, were left alone in a running pod.
    Kept,
    /// It has no rules, or not for sure.
    Failed,
}

impl PodOutcome {
    /// Returns the name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Skipped => CallOutcome::Skipped.name(),
            Self::Installed => CallOutcome::Installed.name(),
            Self::Unchanged => CallOutcome::Unchanged.name(),
            Self::Replaced => CallOutcome::Replaced.name(),
            Self::Kept => "kept",
            Self::Failed => CallOutcome::Failed.name(),
        }
    }
}
