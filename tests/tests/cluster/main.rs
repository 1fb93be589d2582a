//! The webhook in a cluster: an API server that asks it, the clients that create pods, and everything that can go wrong on the way.
//!
//! ```text
//! server.rs ── the API server of the tests itself, held to what kube-apiserver does
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may panic like tests")]

mod kubectl;
mod server;
