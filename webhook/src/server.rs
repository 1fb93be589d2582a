//! The HTTP side: routes, admission reviews, their concurrency and their log.
//!
//! ```text
//! request ──router──▶ concurrency ──▶ review ──▶ weir_injector::inject ──▶ response
//!            │                                                            │
//!      probes, metrics ◀──────────── counts, log (log_limit) ◀────────────┘
//! ```

pub mod concurrency;
pub mod log_limit;
pub mod review;
pub mod router;
