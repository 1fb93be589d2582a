//! The agent against an API server that can be told to misbehave, in real namespaces, and on real files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking; helpers outside test functions too")]

mod agent;
mod follow;
mod frozen;
mod install;
mod memory;
mod monitors;
mod repair;
mod taint;
