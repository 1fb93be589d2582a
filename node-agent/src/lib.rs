//! The node agent: installs the CNI plugin, answers its pod queries, and repairs capture rules. The library is the body of the binary
//! `weir-agent`, for tests and benchmarks.
//!
//! ```text
//! flags ──args──▶ run ──▶ named tasks, each with a TaskContext
//!                  ├── http: health (named conditions), metrics
//!                  ├── node_event ──▶ log, Kubernetes events
//!                  ├── install ◀──▶ the node's CNI directories: plugin and conflist entry
//!                  │   or, with --mode=nri: nri ◀──▶ the runtime's socket: rules of every new pod
//!                  └── pod_tasks: pods (cache) ──▶ socket (queries), repair (rules of every pod), taint
//! ```
//!
//! SIGTERM removes nothing: the plugin works without an agent, and `weir-agent uninstall` removes it.

pub mod args;
pub mod connections;
pub mod events;
pub mod http;
pub mod install;
pub mod metrics;
pub mod mode;
pub mod node_event;
pub mod nri;
pub mod pod_tasks;
pub mod pods;
pub mod repair;
pub mod run;
pub mod socket;
pub mod taint;
pub mod task_context;

pub use weir_runtime::health;
