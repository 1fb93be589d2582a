//! Rules of typical configurations, compared with texts: our own snapshots, and Istio's test data.

mod conformance;
mod golden;
