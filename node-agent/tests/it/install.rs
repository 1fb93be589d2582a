//! Installation on real files: Istio's own test tables, a fault at every write, the agent's process, real mounts.

mod conformance;
mod faults;
mod mounts;
mod node;
mod process;

pub(crate) use process::free_port;
