//! Sidecar injection as pure functions on raw JSON: no server, no client, no clock.
//!
//! ```text
//! values, mesh, config ──settings.rs──▶ Settings
//!                                         │
//! pod ──▶ inject::inject ─────────────────┴─▶ Outcome { pod, warnings } ──inject::patch──▶ RFC 6902 patch
//!           uninject → decision → context → overlay → merge → overrides → finish
//! ```
//!
//! `admission.rs` reads an AdmissionReview and writes its answer; the crate `weir-webhook` serves it.

pub mod admission;
pub mod inject;
pub mod settings;
pub mod yaml;
