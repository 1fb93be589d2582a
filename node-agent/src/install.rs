//! Installing the plugin, and keeping it installed.
//!
//! ```text
//! flags ─▶ Settings ─┐
//! host  ─▶ discover ─┼─▶ pass: binary ─▶ listing ─▶ plan::decide ─▶ steps ─▶ disk
//! lease ─────────────┘                     ▲                                  │
//!                                          └──── keep: inotify, timer ◀───────┘   damper: what others undo
//! ```
//!
//! `plan` (with `network`, `text`) is a function of bytes; `disk` is the only one that touches files, behind a trait. `uninstall` is the way back.

pub mod binary;
pub mod discover;
pub mod disk;
pub mod finding;
pub mod keep;
pub mod lease;
pub mod network;
pub mod once;
pub mod pass;
pub mod plan;
pub mod runtime;
pub mod settings;
mod text;
pub mod uninstall;
pub mod versions;

pub use weir_runtime::damper;
