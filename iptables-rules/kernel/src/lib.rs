//! Programs the network namespace of a pod with a `RuleSet`, and reads back what the kernel holds.
//!
//! ```text
//! RuleSet ──backend.rs──┬─ nft.rs ──────▶ one nf_tables batch over netlink (default)
//!                       ├─ iptables.rs ─▶ iptables-restore, one text per family (where nf_tables is missing)
//!                       └─ route.rs ────▶ address `::6` on `lo`, routes for TPROXY
//! namespace ──netns_state.rs──▶ rules of any installer, addresses, routes ──▶ Chains, for the tracer
//! namespace ──notifications.rs──▶ something has changed
//! ```
//!
//! `netns.rs` enters a namespace; everything else acts on the namespace of the calling thread. The CNI plugin links this crate, so it
//! uses no async runtime and no Kubernetes client.

pub mod backend;
pub mod connections;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod iptables;
pub mod legacy;
mod netlink;
pub mod netns;
pub mod netns_state;
pub mod nft;
pub mod notifications;
mod outcome;
pub mod read_limits;
pub mod route;
#[cfg(test)]
mod testing;

pub use outcome::ApplyOutcome;
pub use read_limits::ReadLimits;
