//! Network namespaces, listeners and probes on one machine, for the demo, the tests and the benches.

pub mod privilege;
