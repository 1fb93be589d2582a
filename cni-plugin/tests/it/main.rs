//! The real binary: protocol, namespaces, the reference plugins in front of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking; helpers outside test functions too")]

mod agent;
mod call;
mod chain;
mod namespace;
mod passthrough;
mod protocol;
