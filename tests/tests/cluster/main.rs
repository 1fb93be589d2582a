//! The webhook in a cluster: an API server that asks it, the clients that create pods, and everything that can go wrong on the way.
//!
//! ```text
//! cluster.rs ── an API server of either kind: the tests' own, or a real one where KUBEBUILDER_ASSETS has its binaries
//! kubectl.rs ── the tool, as a person runs it
//!
//! check.rs ──── what `weir check` says where the way to the webhook is blocked, hop by hop
//! agent.rs ──── the node agent with its own rights
//! server.rs ─── what the tests' own server does, held to what the real one does
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may panic like tests")]

mod agent;
mod check;
mod cluster;
mod kubectl;
mod server;
