//! What Weir means by "captured": from a pod's annotations to rules in the kernel of its network namespace.
//!
//! ```text
//! annotations ──annotations.rs──▶ CaptureConfig ──plan.rs──▶ RuleSet ──┬─ restore.rs ─▶ iptables-restore text (golden, dry run, fallback)
//!   (Istio's own, or                (config.rs)             (ruleset.rs) └─ nft.rs ─────▶ one nf_tables batch ─netlink─▶ kernel
//!    weir.dev/capture)
//! ```
//!
//! What becomes of a packet under a rule set, or under rules read back from the kernel, is answered by `trace.rs`, without a kernel;
//! `live.rs` reads what a namespace has, whoever put it there.
//!
//! Everything up to `RuleSet` and the text is a pure function of plain values. The feature `apply` (default) adds what touches a
//! namespace: `netns.rs` enters it, `nft.rs` programs it, `route.rs` adds the `::6` address.
//! `fuzzing.rs` (feature of that name) opens private parts to the fuzz targets.
//! No tokio, no kube: the CNI plugin links this crate and nothing heavier.

pub mod annotations;
#[cfg(test)]
mod arbitrary;
#[cfg(feature = "apply")]
pub mod backend;
mod capture_annotation;
pub mod cidrs;
pub mod config;
pub mod names;
pub mod plan;
pub mod ports;
pub mod restore;
pub mod ruleset;
pub mod trace;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(feature = "apply")]
pub mod live;
#[cfg(feature = "apply")]
mod netlink;
#[cfg(feature = "apply")]
pub mod netns;
#[cfg(feature = "apply")]
pub mod nft;
#[cfg(feature = "apply")]
pub mod route;
#[cfg(feature = "apply")]
pub mod xtables;

#[cfg(test)]
#[cfg(feature = "apply")]
mod testing;

pub use config::CaptureConfig;
pub use plan::plan;
pub use ruleset::RuleSet;
