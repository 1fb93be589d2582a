//! Rules of typical configurations, compared with texts: our own snapshots, and Istio's test data. Rules of hostile ones are counted.

mod conformance;
mod golden;
mod hostile;
