//! Tests across crates, on real components: namespaces, container runtimes, API servers, images. One binary, one module per subject:
//! `cargo test -p weir-tests --test it equivalence::` runs one of them.
//!
//! Every test makes namespaces, daemons and directories of its own, so that tests of all subjects can run side by side.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may panic like tests")]

mod agent_upgrade;
mod cluster;
mod containerd;
mod continuous;
mod crio;
mod demo;
mod equivalence;
mod hostile;
mod images;
mod lifecycle;
mod nri;
mod observability;
mod packages;
mod plugin;
mod reference;
mod releases;
mod runtime_facts;
mod threat_model;
mod traffic;
