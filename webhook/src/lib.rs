//! The admission webhook: an HTTPS server around the crate `weir-injector`, and controllers for its certificates and configuration.
//!
//! ```text
//! args ──▶ config ──▶ run: composes and shuts down
//!                      ├── server       HTTP: routes, reviews, their limits and log
//!                      └── controllers  CA, caBundle and settings in the cluster
//! below both: tls, certs, client_auth, file_watch, settings_builder, settings_report, health, metrics
//! ```
//!
//! Everything that can be wrong with flags and files is found before a port is bound.

pub mod args;
pub mod certs;
pub mod client_auth;
pub mod config;
pub mod controllers;
mod crypto;
pub mod file_watch;
pub mod health;
pub mod metrics;
pub mod run;
pub mod server;
pub mod settings_builder;
pub mod settings_report;
pub mod tls;
