//! The agent's parts against an API server that can be told to misbehave, and in real namespaces.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking; helpers outside test functions too")]

mod agent;
mod follow;
mod repair;
mod taint;
