//! Diagnosis of a cluster with Weir: before an installation, after it, and in between.
//!
//! ```text
//! cluster ──collect──▶ Snapshot ──analyze──▶ Vec<Finding> ──unsuppressed──▶ print: text | JSON | JUnit | SARIF
//! ```
//!
//! [`collect`] is the only part that talks to the cluster. It parses every object once, so that [`analyze`] is a function of typed values.
//! `weir check` adds flags, the connection and exit codes.

mod analyzers;
mod area;
mod collect;
mod fault;
mod finding;
mod flags;
mod snapshot;
mod suppress;
#[cfg(test)]
mod tests;

pub mod agent;
pub mod print;

pub use analyzers::analyze;
pub use area::{Area, AreaState, areas, is_complete};
pub use collect::{CheckScope, CollectError, collect};
pub use fault::{Fault, Severity};
pub use finding::{Finding, FindingObject};
pub use snapshot::{InstallNamespaces, Snapshot};
pub use suppress::{Suppression, SuppressionError, unsuppressed};
