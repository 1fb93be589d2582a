//! Installs the CNI plugin and its conflist entry, and keeps them installed.
//!
//! ```text
//! flags ─────▶ InstallSettings ─┐
//! host files ▶ discover ────────┼─▶ installer: binary ─▶ conf dir ─▶ plan::decide ─▶ steps ─▶ file_system
//! registration ─────────────────┘                          ▲                                    │
//!                                                          └─ reconcile: inotify, timer ◀───────┘  backoff when another component keeps undoing it
//! ```
//!
//! `plan`, `network` and `text` are pure functions of file contents. Only `file_system` changes files, behind a trait. `uninstall` removes everything.

pub mod binary;
pub mod discover;
pub mod file_system;
pub mod finding;
pub mod installer;
pub mod network;
pub mod once;
pub mod plan;
pub mod reconcile;
pub mod registration;
pub mod runtime;
pub mod settings;
mod text;
pub mod uninstall;
pub mod versions;
