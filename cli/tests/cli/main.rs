//! The binary `weir` as its users run it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail like tests")]

mod conformance;
mod docs;
mod explain;
mod explain_inject;
mod inject;
mod install;
mod iptables;
mod manifest;
mod rules;
mod run;
mod samples;
mod sources;
mod uninject;
