//! The rules of a pod in the kernel: programs a network namespace with a `RuleSet`, and reads back what it holds.
//!
//! ```text
//! RuleSet ──backend.rs──┬─ nft.rs ──────▶ one nf_tables batch over netlink (default)
//!                       ├─ iptables.rs ─▶ iptables-restore, one text per family (where nf_tables is missing)
//!                       └─ route.rs ────▶ the address `::6` on `lo`, the routes of TPROXY
//! namespace ──live.rs──▶ rules of any installer, addresses, routes ──▶ Chains, for the tracer
//! ```
//!
//! `netns.rs` enters a namespace; everything else acts on the namespace of the calling thread. No tokio, no kube: the CNI plugin links
//! this crate and nothing heavier. The feature `fuzzing` opens private parts to the fuzz targets.

pub mod backend;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod iptables;
pub mod live;
pub mod namespace;
mod netlink;
pub mod netns;
pub mod nft;
pub mod route;
#[cfg(test)]
mod testing;
pub mod xtables;
