//! The HTTP side: routes, admission reviews, their memory, their concurrency and their log.
//!
//! ```text
//! request ──router──▶ bodies ──▶ concurrency ──▶ review ──▶ weir_injector::inject ──▶ response
//!            │                                                                        │
//!      probes, metrics ◀──────────────── counts, log (log_limit) ◀────────────────────┘
//! ```

pub mod bodies;
pub mod concurrency;
pub mod json_size;
pub mod log_limit;
pub mod review;
pub mod router;
