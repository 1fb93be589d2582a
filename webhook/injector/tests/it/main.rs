//! Tests of the injector as its users call it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail here")]

mod conformance;
mod docs;
mod growth;
mod hostile;
mod injection;
mod mirror;
mod options;
mod properties;
mod releases;
mod safety;
mod uninject;
mod yaml;
