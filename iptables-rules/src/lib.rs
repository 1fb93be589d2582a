//! Traffic capture of a meshed pod: from its annotations to a configuration, from the configuration to rules, and the path of a packet
//! through the rules.
//!
//! ```text
//! annotations ──annotations.rs──▶ CaptureConfig ──plan.rs──▶ RuleSet ──┬─ restore.rs ─▶ text for iptables-restore
//!   (Istio's own, or                (config.rs)             (ruleset.rs) ├─ trace.rs ───▶ the path of one packet, rule by rule
//!    weir.dev/capture)                                                   ├─ compare.rs ─▶ packets that two rule sets treat differently
//!                                                                        └─ the crate weir-kernel installs it
//! ```
//!
//! Everything here is a pure function: no sockets, processes or files.

pub mod annotations;
#[cfg(any(test, feature = "proptest"))]
pub mod arbitrary;
pub mod backend;
pub mod capture_annotation;
pub mod cidrs;
pub mod compare;
pub mod config;
pub mod limits;
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
