//! Sidecar injection as pure functions on raw JSON, and the admission server around them (feature `server`).
//!
//! ```text
//! values, mesh ──settings.rs──▶ Settings
//!                                  │
//! pod ──▶ inject::inject ──────────┴─▶ Outcome { pod, warnings } ──inject::patch──▶ RFC 6902 patch
//!           uninject → decision → context → overlay → merge → overrides → finish
//! ```
//!
//! The server (`server.rs`) only reads an AdmissionReview, calls [`inject::inject`] and writes the answer.

pub mod admission;
#[cfg(feature = "server")]
pub mod args;
#[cfg(feature = "server")]
pub mod cluster;
pub mod inject;
#[cfg(feature = "server")]
pub mod server;
pub mod settings;
pub mod yaml;
