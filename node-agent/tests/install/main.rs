//! Installing on real files: Istio's own tables, faults at every write, the process itself, and real mounts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking; helpers outside test functions too")]

mod agent;
mod conformance;
mod faults;
mod mounts;
mod node;
