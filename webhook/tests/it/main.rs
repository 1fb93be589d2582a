//! Integration tests of the webhook.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail here")]

mod cost;
mod hostile;
mod http;
mod live;
mod review_memory;
