//! Rules of typical configurations, compared with texts: our own snapshots, and Istio's test data. Rules of hostile ones are counted.
#![allow(clippy::unwrap_used, reason = "a test may fail here")]

mod conformance;
mod golden;
mod growth;
mod hostile;
