//! Sidecar injection as pure functions on raw JSON: no server, no client, no clock.
//!
//! ```text
//! values, mesh, config ──settings──▶ Settings
//!                                       │
//! pod ──▶ inject ───────────────────────┴─▶ InjectOutcome { pod, warnings } ──patch──▶ RFC 6902 patch
//!         uninject → decision → context → overlay → merge → overrides → finish
//! ```
//!
//! [`admission`] reads an AdmissionReview and writes its response; the crate `weir-webhook` serves it.

mod annotation_typos;
mod annotation_values;
mod annotations;
mod api_validation;
mod builtin_template;
mod capture;
mod compact;
mod conflicts;
mod containers;
mod context;
mod fields;
mod findings;
mod go_names;
mod inject;
mod name_rules;
mod otel;
mod overlay;
mod overrides;
mod proxy_config;
mod request;
mod selected_templates;
mod template;
mod template_data;
mod validate;
mod warnings;

pub mod admission;
pub mod assertions;
pub mod decision;
pub mod finish;
pub mod merge;
pub mod patch;
pub mod pod_capture;
pub mod quantity;
pub mod selection;
pub mod selector;
pub mod settings;
pub mod uninject;
pub mod url;
pub mod workload;
pub mod yaml;

pub use containers::PROXY_CONTAINER;
pub use decision::SkipReason;
pub use inject::{InjectError, InjectOutcome, inject};
pub use request::InjectRequest;
pub use template::{RenderError, TemplateSet};
pub use workload::Workload;
