//! What the long-running processes share: the API server, what is known of it, how parts of a process are watched and ended, and how
//! flags give a time.
//!
//! ```text
//! in the cluster, or kubeconfig ──connect──▶ clients ──follow──▶ Cache (all that there is, how old, what is wrong) ──▶ waiters
//!                                              │
//!                            Told ──events─────┘  bounded, counted
//! ```
//!
//! Parts run until a [`Stop`](stop::Stop) tells them to end, and say how they are as conditions of [`health::Health`]. Every wait has a
//! bound, and nothing here gives up.

pub mod cache;
pub mod connect;
pub mod damper;
mod duration;
pub mod events;
pub mod follow;
pub mod health;
pub mod stop;

pub use cache::Cache;
pub use connect::Connect;
pub use duration::duration;
pub use follow::Follower;
