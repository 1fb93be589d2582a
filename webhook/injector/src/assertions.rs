//! Capture assertions: what the traffic capture of selected pods must be.
//!
//! ```text
//! policy ──policy.rs──▶ CaptureAssertion ───────┐
//! pod ──pod_capture──▶ PodCapture ──▶ RuleSet ──┴─judge─▶ Breach { assertion, action, text }
//! ```
//!
//! `weir assert` proves the same assertions about manifests and running pods.

mod fields;
mod judge;
mod policy;

pub use judge::{Breach, Surroundings, judge};
pub use policy::{Action, AssertionRule, CaptureAssertion, MAX_ASSERTIONS, ProxyTraits};
