//! The node agent `weir-agent`.
//!
//! ```text
//! flags ──args──▶ run ──▶ parts, each a task with a `Context`
//!                  │
//!                  ├── http ◀── health (named conditions), metrics (registry): every part registers its own
//!                  ├── notices ◀── what the administrator should hear ──▶ log, events
//!                  ├── install ◀──▶ the node's CNI folders: plugin and entry, kept in place
//!                  └── node: pods (cache) ──▶ socket (answers), repair (rules of every pod), taint
//! ```
//!
//! SIGTERM removes nothing: the plugin works without an agent, and taking it off a node is an act of its own.

pub mod args;
pub mod events;
pub mod http;
pub mod install;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod notice;
pub mod pods;
pub mod repair;
pub mod run;
pub mod socket;
pub mod taint;

pub use weir_runtime::{health, stop};
