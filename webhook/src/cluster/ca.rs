//! The built-in CA: kept in a Secret, rotated with overlap; every replica makes its own leaf in memory.
//!
//! ```text
//! Secret ──state.rs──▶ CaState ─┬─ plan.rs: what to write, if anything ──▶ by the holder of the Lease, against the version that was read
//!                               ├─ leaf.rs: whether another leaf is due ──▶ served from then on
//!                               └─ what is to be trusted ──▶ bundle
//! ```
//!
//! Whatever cannot be read, the CA in memory goes on to sign: a replica needs the API server to start, and never again.

pub mod authority;
mod keep;
pub mod leaf;
pub mod plan;
mod secret;
#[cfg(test)]
mod simulation;
pub mod state;

pub use self::authority::{Ca, CaCert};
pub use self::keep::{Keeper, Options, names};
pub use self::plan::Times;
pub use self::secret::{ROTATE, refresh};
pub use self::state::{CaState, Phase};
