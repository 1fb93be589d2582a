//! What Weir means by "captured": from the annotations of a pod to the rules that capture its traffic, and to the way a packet takes
//! through them.
//!
//! ```text
//! annotations ──annotations.rs──▶ CaptureConfig ──plan.rs──▶ RuleSet ──┬─ restore.rs ─▶ iptables-restore text (golden, dry run)
//!   (Istio's own, or                (config.rs)             (ruleset.rs) ├─ trace.rs ───▶ the way of one packet, rule by rule
//!    weir.dev/capture)                                                   └─ the crate weir-kernel programs it
//! ```
//!
//! Everything here is a pure function of plain values: no socket, no process, no file.

pub mod annotations;
#[cfg(any(test, feature = "proptest"))]
pub mod arbitrary;
pub mod backend;
mod capture_annotation;
pub mod cidrs;
pub mod config;
pub mod names;
pub mod plan;
pub mod ports;
pub mod restore;
pub mod ruleset;
pub mod text;
pub mod trace;

pub use config::CaptureConfig;
pub use plan::plan;
pub use ruleset::RuleSet;
