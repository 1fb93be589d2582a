//! Capture assertions: what the traffic capture of selected pods must be.
//!
//! ```text
//! policy ──policy.rs──▶ CaptureAssertion ──────────┐
//! pod ──pod_capture──▶ CaptureConfig ──▶ RuleSet ──┴─judge─▶ Breach { assertion, action, text }
//! ```
//!
//! `weir assert` proves the same assertions about manifests and running pods.

mod fields;
mod judge;
mod policy;

pub use judge::{Breach, judge};
pub use policy::{Action, AssertionRule, CaptureAssertion, MAX_ASSERTIONS, ProxyTraits};
