//! Shared by the long-running processes, `weir-webhook` and `weir-agent`.
//!
//! ```text
//! tasks ─── named background tasks, shutdown within a bound, termination signals
//! logging ─ log format, levels that can change at run time, panics in the log
//! health ── named conditions behind /readyz, as text and as JSON
//! listen ── HTTP ports with bounds on connections, handshakes, idle time and drain
//! metrics ─ format of /metrics, and metrics about the process
//!
//! client ──▶ reflector ──▶ cache    objects of one kind, kept current by list and watch
//! client ──▶ events                 Kubernetes events, bounded and counted
//! proxy                             HTTPS_PROXY, NO_PROXY and proxy-url, for every client
//! contention                        backoff against another writer that keeps reverting ours
//! ```
//!
//! Every wait has a bound, and everything that talks to the API server retries for ever.

pub mod cache;
pub mod client;
pub mod contention;
pub mod events;
pub mod health;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod proxy;
pub mod reflector;
pub mod tasks;

pub use cache::{Cache, SkippedObject};
pub use client::ClientFactory;
pub use reflector::{ObjectLimits, Reflector};
pub use tokio_util::sync::CancellationToken;
