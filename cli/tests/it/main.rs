//! The binary `weir` as its users run it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail like tests")]

mod assertions;
mod check;
mod conformance;
mod conventions;
mod diff;
mod docs;
mod explain;
mod explain_inject;
mod explain_service;
#[path = "../../check/src/tests/fixture.rs"]
#[allow(dead_code, reason = "the table of planted faults uses more of it")]
mod fixture;
mod inject;
mod install;
mod iptables;
mod manifest;
mod migrate;
mod proxy;
mod rules;
mod run;
mod samples;
mod sources;
mod support_bundle;
mod uninject;
