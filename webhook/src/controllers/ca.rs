//! The built-in CA: kept in a Secret, rotated with overlap. Every replica issues its own leaf in memory.
//!
//! ```text
//! Secret ──state.rs──▶ CaState ─┬─ plan.rs: what to write, if anything ──▶ by the leader, against the version that was read
//!                               ├─ leaf.rs: whether to issue another leaf ──▶ served from then on
//!                               └─ the trust bundle ──▶ ca_bundle
//! ```
//!
//! The CA in memory signs whether or not the Secret can be read: a replica needs the API server only to start.

pub mod authority;
pub mod leaf;
mod metrics;
pub mod plan;
mod reconciler;
mod secret;
#[cfg(test)]
mod simulation;
pub mod state;

pub use self::plan::CaLifetimes;
pub use self::reconciler::{CaOptions, CaReconciler, service_dns_names};
pub use self::secret::trust_fetcher;
