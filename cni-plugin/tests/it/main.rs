//! The binary: protocol, network namespaces, agent, a chain with the reference plugins.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking; helpers outside test functions too")]

mod agent;
mod call;
mod chain;
mod cost;
mod limits;
mod loopback;
mod namespace;
mod passthrough;
mod protocol;
mod skew;
